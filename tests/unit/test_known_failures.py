"""The catalogue of known failures: complete, quick, and right about texts as users post them."""

from __future__ import annotations

import io
import re
import string
import time
from pathlib import Path

import pytest

from builder import known_failures
from builder.errors import Reason
from builder.known_failures import Finding, KnownFailure, load_catalogue, needle, recognise

LOGS = Path(__file__).parents[1] / "data" / "failures"
CATALOGUE = load_catalogue()
POSTED = sorted(LOGS.glob("*.txt"))
CLASS = re.compile(rb"\[\^?\]?(?:\\.|[^\\\]])*\]")


def read(text: bytes) -> list[Finding]:
    """Recognise a text."""
    return recognise(io.BytesIO(text), CATALOGUE)


def by_id(failure: KnownFailure) -> str:
    """Name a failure in test reports."""
    return failure.id


@pytest.mark.parametrize("path", POSTED, ids=lambda path: path.stem)
def test_posted_logs_are_recognised(path: Path) -> None:
    expected, _, _ = path.stem.rpartition("-")
    found = [finding.failure.id for finding in read(path.read_bytes())]
    assert found[:1] == ([] if expected == "none" else [expected])


def test_every_entry_has_a_log() -> None:
    shown = {path.stem.rpartition("-")[0] for path in POSTED}
    assert shown == {failure.id for failure in CATALOGUE} | {"none"}


def test_ids_are_unique() -> None:
    ids = [failure.id for failure in CATALOGUE]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("failure", CATALOGUE, ids=by_id)
def test_entries_are_complete(failure: KnownFailure) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", failure.id)
    assert all(text.strip() for text in (failure.title, failure.cause, failure.fix))
    assert failure.patterns
    assert failure.see is None or failure.see == Reason.from_code(failure.see).value.code


@pytest.mark.parametrize("failure", CATALOGUE, ids=by_id)
def test_every_pattern_has_the_names_that_the_texts_use(failure: KnownFailure) -> None:
    texts = failure.title + failure.cause + failure.fix
    used = {name for _, name, _, _ in string.Formatter().parse(texts) if name is not None}
    assert [pattern.regex.pattern for pattern in failure.patterns if used - set(pattern.regex.groupindex)] == []


@pytest.mark.parametrize("failure", CATALOGUE, ids=by_id)
def test_no_pattern_can_be_slow(failure: KnownFailure) -> None:
    """Repetitions are bounded, and a literal text decides first."""
    for pattern in failure.patterns:
        assert len(pattern.needle) >= 6, pattern.regex.pattern
        outside = re.sub(rb"\\.", b"", CLASS.sub(b"", pattern.regex.pattern))
        assert not re.search(rb"[*+]|,\}", outside), pattern.regex.pattern


def test_hostile_logs_stay_quick() -> None:
    """Half a megabyte of the beginning of each pattern's text, with and without line ends."""
    needles = {pattern.needle for failure in CATALOGUE for pattern in failure.patterns}
    started = time.monotonic()
    for text in needles:
        once = (text + b" ") * 200
        read(once * 2)
        read((once + b"\n") * 2)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abc", "abc"),
        (r"ab\.c", "ab.c"),
        ("abcd?ef", "abc"),
        ("abcd{0,3}efgh", "efgh"),
        ("abcd*efgh", "efgh"),
        ("ab[cd]efg(?:hijk)lm", "efg"),
        (r"a\d{1,3}bcd\bef", "bcd"),
        ("abc|d", ""),
        (r"[]\]x]yz", "yz"),
        ("a+bc", "bc"),
    ],
)
def test_needle(pattern: str, expected: str) -> None:
    assert needle(pattern) == expected


def test_what_the_log_says_is_filled_in() -> None:
    text = b"fine\n[E] 6: ... expecting compute 7.5 got compute 8.6, please rebuild.\n"
    (finding,) = read(b"6: The engine plan file is generated on an incompatible device,".join(text.split(b"6: ...")))
    assert finding.line == 2
    assert finding.text == "incompatible device, expecting compute 7.5 got compute 8.6"
    assert "GPU in use has 7.5" in finding.cause
    assert finding.fix.startswith("Build for 7.5")
    assert finding.title == "The engine was built for SM 8.6, this GPU is SM 7.5"


def test_most_specific_first_and_each_line_once() -> None:
    text = b"no space left on device\nfailed to register layer: write /x: no space left on device\n"
    assert [(found.failure.id, found.line) for found in read(text)] == [("disk-full-image", 2), ("disk-full", 1)]


def test_repetitions_are_counted() -> None:
    (finding,) = read(b"x\nENOSPC\n" * 5)
    assert (finding.line, finding.count) == (2, 5)


def test_shapes_of_one_failure_are_told_apart_up_to_a_limit() -> None:
    names = ["cudnn", "cublas", "cudart", "cufft", "curand"]
    text = "".join(f"lib{name}.so.8: cannot open shared object file\n" for name in names)
    found = read(text.encode())
    assert [finding.details for finding in found] == [(("library", f"lib{name}.so.8"),) for name in names[:3]]
    assert [finding.count for finding in found] == [3, 1, 1]


def test_texts_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the block size, line numbers and texts of several lines stay right."""
    text = (
        b"\n" * 7
        + b"failed to register layer: ApplyLayer exit status 1 stdout:  \nstderr: write /x: no space left on device"
    )
    expected = [("disk-full-image", 8, 1)]
    monkeypatch.setattr(known_failures, "_OVERLAP_BYTES", 256)
    for block in (1, 7, 64, 100, 1000):
        monkeypatch.setattr(known_failures, "_BLOCK_BYTES", block)
        filled = b"filler filler\n" * 100 + text + b"\nfiller filler\n" * 100
        found = [(finding.failure.id, finding.line - 100, finding.count) for finding in read(filled)]
        assert found == expected


def test_odd_bytes_are_readable() -> None:
    (finding,) = read(b"\xff\xfe\x1b[31mlibcudnn.so.8\xff: cannot open shared object file ENOSPC \x1b[0m\n")
    assert finding.failure.id == "disk-full"
    assert read(b"") == []
    assert read(b"\x00" * 100_000) == []
