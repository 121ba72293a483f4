"""Addresses repeat in every process, whatever it did before."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from builder.worker import addresses

pytestmark = pytest.mark.integration

LINE = """
import ctypes, mmap, sys
from builder.worker import addresses
ballast = [mmap.mmap(-1, int(size)) for size in sys.argv[1:]]
drawn = [addresses.draw_line(addresses.LIBRARIES_BELOW), addresses.draw_line(addresses.HEAP_BELOW)]
mappings = [mmap.mmap(-1, size << 20) for size in (64, 8, 130)]
places = [ctypes.addressof(ctypes.c_char.from_buffer(mapping)) for mapping in mappings]
print(drawn, [hex(place) for place in places])
"""


def _places(*ballast: int) -> str:
    """Print where large mappings lie in a process of its own that made mappings of other sizes before."""
    argv = [sys.executable, "-c", LINE, *map(str, ballast)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(platform.machine() not in addresses.MACHINES, reason="the addresses of this machine are not known")
def test_large_mappings_lie_where_they_always_lie() -> None:
    places = [_places(), _places(), _places(5 << 20, 300 << 20), _places(1 << 20)]
    assert places[0].startswith("[True, True] ['0x6afffc000000'")
    assert set(places) == {places[0]}
