"""The first bytes of an engine: which TensorRT wrote it. Read before anything is loaded; runs on Python 3.8 too.

TensorRT 8.6 to 11 begin a file with `ftrt`, TensorRT-RTX with `vtrt`; both keep four numbers of the version at 0x18.
Seen in files of 8.6.0 and of TensorRT-RTX 1.7.1; for 11.2.1 a public project says the same.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

BYTES_NEEDED = 0x28
_SIZE_AT, _VERSION_AT, _VERSION_END = 0x10, 0x18, 0x1C
_TARGETS_AT = 0x20
_KINDS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


class Header(NamedTuple):
    """What the first bytes say. `kind`: "tensorrt", "tensorrt-rtx", or None where the file is no engine of either.

    `version`: four numbers, such as "8.6.1.6"; None where the file is too short. `targets`: of TensorRT-RTX the bits
    that say for which GPUs the engine is; what they mean depends on the release. `size`: of such an engine the bytes of
    the file, as far as 1.7.1 is concerned.
    """

    kind: Optional[str]  # noqa: UP045 - Python 3.8
    version: Optional[str]  # noqa: UP045 - Python 3.8
    targets: Optional[int] = None  # noqa: UP045 - Python 3.8
    size: Optional[int] = None  # noqa: UP045 - Python 3.8


def read_header(first_bytes: bytes) -> Header:
    """Read the header; `first_bytes` are the first BYTES_NEEDED bytes of the file, or more."""
    kind = _KINDS.get(first_bytes[:4])
    if kind is None or len(first_bytes) < _VERSION_END:
        return Header(kind, None)
    version = ".".join(str(number) for number in first_bytes[_VERSION_AT:_VERSION_END])
    if kind != "tensorrt-rtx" or len(first_bytes) < BYTES_NEEDED:
        return Header(kind, version)
    size, targets = first_bytes[_SIZE_AT:_VERSION_AT], first_bytes[_TARGETS_AT:BYTES_NEEDED]
    return Header(kind, version, int.from_bytes(targets, "little"), int.from_bytes(size, "little"))
