"""Small artifacts in a store, for tests of the store itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.errors import EnginefarmError
from builder.store import Entry, Store

KEY = "a" * 64
OTHER_KEY = "b" * 64
ENGINE = b"\x00engine\xff" * 1000


def add(store: Store, key: str = KEY, engine: bytes | Path = ENGINE, **changes: Any) -> Entry:
    """Put a small artifact into a store."""
    files: dict[str, Path | bytes] = {"model.plan": engine, "manifest.json": b'{"a": 1}', "key.json": b"{}"}
    return store.add(**{"kind": "engine", "key": key, "name": "tiny-sm80", "files": files, **changes})


def document(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def blob(store: Store, digest: str) -> Path:
    """Find a blob as any OCI tool would."""
    return store.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


def overwrite(path: Path, content: bytes) -> None:
    """Damage a blob, which is read-only on purpose."""
    path.chmod(0o644)
    path.write_bytes(content)


def refusal(action: Callable[[], object]) -> EnginefarmError:
    """Run something that must be refused."""
    with pytest.raises(EnginefarmError) as caught:
        action()
    return caught.value
