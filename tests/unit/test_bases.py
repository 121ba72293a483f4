"""images/bases.toml: what it pins, and how a mistake in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.bases import Bases, load_bases
from builder.errors import Reason
from tests.artifacts import refusal

IMAGES = Path(__file__).parents[2] / "images"
DIGEST = f"sha256:{'0' * 64}"
TEXT = f"""\
source_date_epoch = 1
[bases.b]
ref = "host/name:tag"
digest = "{DIGEST}"
platforms = ["linux/amd64"]
python = "3.11"
confirmed = true
source = "seen"
[bases.b.standin]
suite = "bookworm"
python = "3.11"
variant = "custom"
include = ["python3-minimal"]
[drop]
paths = ["dev/*"]
"""


def load(folder: Path, text: str = TEXT) -> Bases:
    """Read a list of bases from its text."""
    (folder / "bases.toml").write_text(text, encoding="utf-8")
    return load_bases(folder)


def test_committed_bases_are_pinned() -> None:
    bases = load_bases(IMAGES)
    assert bases.bases
    assert bases.drop
    for name, base in bases.bases.items():
        assert bases.get(name) is base
        assert base.pinned == f"{base.ref}@{base.digest}"
        # a tag is for people; the digest counts
        assert ":" in base.ref.rpartition("/")[2]
        assert not base.ref.endswith(":latest")


def test_reads_every_field(tmp_path: Path) -> None:
    bases = load(tmp_path)
    assert (bases.source_date_epoch, bases.drop, list(bases.bases)) == (1, ("dev/*",), ["b"])
    base = bases.get("b")
    assert (base.pinned, base.platforms, base.confirmed) == (f"host/name:tag@{DIGEST}", ["linux/amd64"], True)
    assert base.standin is not None
    assert (base.standin.suite, base.standin.hooks) == ("bookworm", [])


def test_standin_may_be_missing(tmp_path: Path) -> None:
    head, _, rest = TEXT.partition("[bases.b.standin]")
    assert load(tmp_path, f"{head}[drop]{rest.partition('[drop]')[2]}").get("b").standin is None


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("epoch = 1", "epoch = 0", "source_date_epoch"),
        ("epoch = 1", 'epoch = "soon"', "source_date_epoch"),
        (DIGEST, DIGEST[:-1], "bases.b.digest"),
        (DIGEST, f"sha256:{'A' * 64}", "bases.b.digest"),
        (DIGEST, "latest", "bases.b.digest"),
        ('["linux/amd64"]', "[]", "bases.b.platforms"),
        ("confirmed = true\n", "", "bases.b.confirmed"),
        ('source = "seen"', 'sauce = "seen"', "bases.b.sauce"),
        ('python = "3.11"\nconfirmed', "python = 3.11\nconfirmed", "bases.b.python"),
        ('["python3-minimal"]', "[]", "bases.b.standin.include"),
        ('suite = "bookworm"\n', "", "bases.b.standin.suite"),
        ('["dev/*"]', '"dev/*"', "drop.paths"),
        ("[drop]", "[dorp]", "drop"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, old: str, new: str, field: str) -> None:
    assert old in TEXT
    error = refusal(lambda: load(tmp_path, TEXT.replace(old, new)))
    assert (error.reason, error.where) == (Reason.STACK_INVALID, str(tmp_path / "bases.toml"))
    assert field in [line.partition(": ")[0] for line in (error.why or "").splitlines()]


def test_all_wrong_fields_are_named_at_once(tmp_path: Path) -> None:
    error = refusal(lambda: load(tmp_path, TEXT.replace("epoch = 1", "epoch = 0").replace(DIGEST, "x")))
    assert [line.partition(": ")[0] for line in (error.why or "").splitlines()] == [
        "source_date_epoch",
        "bases.b.digest",
    ]


def test_broken_toml_names_the_line(tmp_path: Path) -> None:
    error = refusal(lambda: load(tmp_path, "source_date_epoch = 1\n[bases\n"))
    assert (error.reason, error.where) == (Reason.STACK_INVALID, str(tmp_path / "bases.toml"))
    assert "line 2" in error.what


def test_missing_file(tmp_path: Path) -> None:
    error = refusal(lambda: load_bases(tmp_path))
    assert (error.reason, error.where) == (Reason.STACK_INVALID, str(tmp_path))
    assert "bases.toml" in error.what


def test_unknown_base_lists_the_known(tmp_path: Path) -> None:
    error = refusal(lambda: load(tmp_path).get("c"))
    assert error.reason is Reason.STACK_INVALID
    assert "'c'" in error.what
    assert error.fix == "bases: b"
