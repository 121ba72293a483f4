"""Sizes, durations and small numbers as people write them."""

from __future__ import annotations

_KIBI = 1024
_MINUTE = 60
_HOUR = 3600
_SHORT = 12


def size(count: int) -> str:
    """Write a number of bytes: `512 B`, `4.7 MiB`."""
    if count < _KIBI:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        value /= _KIBI
        if value < _KIBI - 0.05:
            return f"{value:.1f} {unit}"
    return f"{value / _KIBI:.1f} TiB"


def duration(seconds: float) -> str:
    """Write a number of seconds: `0.52 s`, `14.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < _MINUTE - 0.05:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"


def figure(value: float) -> str:
    """Write a metric with two significant digits: `0.0012`, `3.1e-09`."""
    return f"{value:.2g}"


def short(digest: str) -> str:
    """Shorten a digest for people; documents and JSON keep all of it."""
    return digest[:_SHORT]
