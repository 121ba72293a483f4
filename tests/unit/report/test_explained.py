"""Why keys differ."""

from __future__ import annotations

from builder.report.explained import GROUPS, explained_json, explained_lines

LEFT = {
    "kind": "engine",
    "key_version": 1,
    "precision": "fp16",
    "profiles": [{"x": {"min": [1, 3], "max": [8, 3]}}],
    "stack": {"name": "a", "packages": ["click==8.1", "numpy==2.0"]},
    "worker_sha256": "0" * 64,
    "surprise": 1,
}
RIGHT = {
    "kind": "engine",
    "key_version": 1,
    "precision": "bf16",
    "profiles": [{"x": {"min": [1, 3], "max": [16, 3]}}],
    "stack": {"name": "a", "packages": ["click==8.1", "numpy==2.1"]},
    "worker_sha256": "f" * 64,
}


def plain(text: str, style: str) -> str:
    """Paint nothing."""
    return text


def test_equal_documents_have_no_differences() -> None:
    """Nothing is said of what is equal."""
    assert explained_json(LEFT, LEFT) == []


def test_every_difference_is_listed_with_its_place() -> None:
    """Lists of tables are compared inside; unknown fields are not lost."""
    rows = explained_json(LEFT, RIGHT)
    assert {row["path"] for row in rows} == {
        "precision",
        "profiles.0.x.max",
        "stack.packages",
        "worker_sha256",
        "surprise",
    }
    assert [row["group"] for row in rows][-1] == "other"


def test_text_names_pins_that_came_and_went() -> None:
    """A lock of many pins shows only those that differ; digests are short."""
    text = explained_lines(explained_json(LEFT, RIGHT), plain)
    assert text == [
        "precision:",
        "  precision: fp16 -> bf16",
        "shape profiles:",
        "  profiles.0.x.max: [8, 3] -> [16, 3]",
        "TensorRT, CUDA and packages:",
        "  stack.packages",
        "    - numpy==2.0",
        "    + numpy==2.1",
        "code of the farm's worker:",
        "  worker_sha256: 000000000000 -> ffffffffffff",
        "other:",
        "  surprise: 1 -> nothing",
    ]


def test_order_of_a_list_counts() -> None:
    """The same pins in another order are said to be that."""
    rows = explained_json({"stack": ["a", "b"]}, {"stack": ["b", "a"]})
    assert explained_lines(rows, plain)[-1] == "  stack: the same values in another order"


def test_groups_do_not_overlap() -> None:
    """A field has one heading."""
    names = [name for fields in GROUPS.values() for name in fields]
    assert len(names) == len(set(names))
