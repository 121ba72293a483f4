"""Removes what the farm keeps and no longer needs, least recently used first, and nothing that a run uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from builder.disk import STORE_KINDS, Item, home_items, leftovers, oldest_live_run
from builder.project import Home
from builder.store import Store

# written before this, and needed by nobody
_LEFT_S = 3600.0
_DAY_S = 86400.0

Source = Callable[[], Iterable[Item]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may stay: bytes in all, or days since the last use. Both null: leftovers alone go."""

    keep_bytes: int | None = None
    keep_days: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What went or would go. `kept_bytes`: what stays; `in_use`: how many things stay only because a run uses them."""

    removed: tuple[Item, ...]
    freed_bytes: int
    kept_bytes: int
    in_use: int


def collect(home: Home, limits: Limits, *, dry_run: bool, kept: Source = tuple, dead: Source = tuple) -> Collected:
    """Remove leftovers, then what is beyond the limits. `kept`, `dead`: what lies outside the home, in Docker.

    Raises:
        EnginefarmError: STORE_FOREIGN, STORE_CORRUPT, STORE_READ_ONLY.

    """
    gone = [item for item in [*leftovers(home, _LEFT_S), *dead()] if dry_run or item.remove()]
    live, now = oldest_live_run(home), time.time()
    items = sorted([*home_items(home), *kept()], key=lambda item: item.used)
    total, in_use = sum(item.size for item in items), 0
    for item in items:
        too_old = limits.keep_days is not None and now - item.used > limits.keep_days * _DAY_S
        too_much = limits.keep_bytes is not None and total > limits.keep_bytes
        if not too_old and not too_much:
            continue
        if live is not None and item.used >= live:
            in_use += 1
        elif dry_run or item.remove():
            gone.append(item)
            total -= item.size
    # where a run is at work, a young blob may be one that it is about to name
    swept = Store(home.store).sweep(_LEFT_S if live is not None else 0.0, dry_run=dry_run)
    # what an entry takes is free once its blobs are swept, which others may share
    counted = sum(item.size for item in gone if dry_run or item.kind not in STORE_KINDS.values())
    return Collected(removed=tuple(gone), freed_bytes=counted + swept, kept_bytes=total, in_use=in_use)
