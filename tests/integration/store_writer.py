"""Adds artifacts to a store without end: `python store_writer.py STORE LOG SEED [COUNT]`. The prey of the crash test.

Each finished addition is appended to LOG, so that the test knows what the store must still have.
"""

from __future__ import annotations

import os
import random
import sys
from itertools import count
from pathlib import Path

from builder.store import Entry, Store

SHARED = 8


def main() -> None:
    """Add, replace, remove and quarantine at random."""
    root, log, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    rounds = range(int(sys.argv[4])) if len(sys.argv) > 4 else count()
    store, choice = Store(root), random.Random(seed)  # noqa: S311  # a plan of work, not a secret
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in rounds:
        own = _add(store, choice, f"{seed}-{number}", log)
        os.write(descriptor, f"{own.key}\n".encode())
        # keys that all writers fight for
        shared = _add(store, choice, f"shared-{choice.randrange(SHARED)}", log)
        if choice.random() < 0.2:
            store.quarantine(shared)
        if choice.random() < 0.2:
            store.remove(shared)


def _add(store: Store, choice: random.Random, key: str, log: Path) -> Entry:
    engine = choice.randbytes(choice.choice([0, 100, 100_000, 3_000_000]))
    built = log.with_suffix(".plan")
    built.write_bytes(engine)
    files: dict[str, Path | bytes] = {"model.plan": built, "manifest.json": b"{}", "key.json": key.encode()}
    return store.add(kind="engine", key=key, name=key, files=files)


if __name__ == "__main__":
    main()
