"""The first bytes of engines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from builder import engine_header
from builder.engine_header import BYTES_NEEDED, Header, read_header

# as seen in files: TensorRT-RTX 1.7.1, and the classic layout with the version of 8.6.1
RTX = bytes.fromhex("76747274000000000200000000000000ec7f02000000000001070174767472740600000000000000000000000000")
CLASSIC = b"ftrt" + bytes(0x14) + bytes((8, 6, 1, 6)) + bytes(100)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (RTX, Header("tensorrt-rtx", "1.7.1.116", 6, 163820)),
        (CLASSIC, Header("tensorrt", "8.6.1.6")),
        (RTX[:BYTES_NEEDED], Header("tensorrt-rtx", "1.7.1.116", 6, 163820)),
        (RTX[: BYTES_NEEDED - 1], Header("tensorrt-rtx", "1.7.1.116")),
        (CLASSIC[:0x1C], Header("tensorrt", "8.6.1.6")),
        (CLASSIC[:0x1B], Header("tensorrt", None)),
        (b"ftrt", Header("tensorrt", None)),
        (b"ftr", Header(None, None)),
        (b"", Header(None, None)),
        (b"PK\x03\x04" + bytes(100), Header(None, None)),
        (b"FTRT" + CLASSIC[4:], Header(None, None)),
    ],
)
def test_headers(content: bytes, expected: Header) -> None:
    assert read_header(content) == expected


def test_the_module_is_python_3_8() -> None:
    ast.parse(Path(engine_header.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
