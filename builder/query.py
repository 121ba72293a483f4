"""Finds engines in the store by what a person types: a job id, a key or an engine's SHA-256, whole or its beginning."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import EnginefarmError, Reason
from builder.store import Entry, Store
from builder.titles import ENGINE, KEY, PROOF

_DIGEST = re.compile(r"(sha256:)?(?P<hex>[0-9a-f]{6,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyDocuments:
    """The key document of an engine and, where it comes out of the store, that of its proof."""

    label: str
    engine: dict[str, Any]
    proof: dict[str, Any] | None


def list_engines(store: Store) -> list[Entry]:
    """List the engines of the store by name, those of one job oldest first."""
    return sorted(store.entries("engine"), key=lambda entry: entry.name)


def find_engine(store: Store, text: str) -> Entry:
    """Find one engine by job id, key or engine SHA-256; of the last two six or more digits are enough.

    Where one job has several engines, the newest entry is meant.

    Raises:
        EnginefarmError: NAME_UNKNOWN with the nearest names, or with all that a short digest could mean.

    """
    entries = store.entries("engine")
    named = [entry for entry in entries if entry.name == text]
    if named:
        return named[-1]
    match = _DIGEST.fullmatch(text)
    found = [entry for entry in entries if match is not None and _begins(store, entry, match["hex"])]
    if len(found) == 1:
        return found[0]
    if found:
        listed = "\n".join(f"{entry.key} {entry.name}" for entry in found)
        raise EnginefarmError(
            Reason.NAME_UNKNOWN,
            f"{text!r} means {len(found)} engines",
            why=listed,
            fix="write more digits, or the job id",
        )
    raise EnginefarmError(Reason.NAME_UNKNOWN, f"the store has no engine {text!r}", fix=_nearest(text, entries))


def find_key_documents(store: Store, text: str) -> KeyDocuments:
    """Read the key documents of an engine of the store, or of the file `text`.

    Raises:
        EnginefarmError: NAME_UNKNOWN, also where the file is no key document; STORE_CORRUPT.

    """
    path = Path(text)
    if path.is_file():
        return KeyDocuments(label=text, engine=_read_file(path), proof=None)
    entry = find_engine(store, text)
    return KeyDocuments(
        label=f"{entry.name} ({entry.key[:12]})",
        engine=json.loads(store.read(entry, KEY)),
        proof=json.loads(store.read(entry, PROOF)),
    )


def _read_file(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise EnginefarmError(Reason.NAME_UNKNOWN, "the file is not JSON", where=str(path), why=str(error)) from error
    if not isinstance(document, dict) or "kind" not in document or "key_version" not in document:
        fix = "name the key.json that `enginefarm export` writes beside an engine"
        raise EnginefarmError(Reason.NAME_UNKNOWN, "the file is no key document", where=str(path), fix=fix)
    return document


def _begins(store: Store, entry: Entry, digits: str) -> bool:
    return entry.key.startswith(digits) or store.files(entry)[ENGINE].digest.startswith(f"sha256:{digits}")


def _nearest(text: str, entries: Sequence[Entry]) -> str:
    if os.path.isfile(text):  # noqa: PTH113  # a path that is too long is none, too
        return (
            "name its job or digest: `enginefarm pull` brings engines of elsewhere here, `enginefarm check` takes files"
        )
    names = sorted({entry.name for entry in entries})
    if not names:
        return "the store is empty: run `enginefarm build --target <name>` first"
    near = difflib.get_close_matches(text, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else "`enginefarm ls` lists the engines"
