"""Records of built images: kept, found again by their inputs, absent once they cannot be read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from builder import oci
from builder.bases import Bases
from builder.image_inputs import image_inputs
from builder.image_layout import ImageLayout
from builder.image_record import (
    ImageRecord,
    LayerSize,
    find_record,
    layer_sizes,
    newest_fitting,
    records,
    save_record,
    touch_record,
)
from builder.project import Home
from builder.stacks import Stack
from tests.unit.test_key import export_stack

BASES = Bases(source_date_epoch=1, bases={}, drop=())
BASE, OTHER_BASE = f"sha256:{'0' * 64}", f"sha256:{'1' * 64}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """Make a stack with a folder."""
    folder = tmp_path / "images" / "export"
    folder.mkdir(parents=True)
    (folder.parent / "steps").mkdir(exist_ok=True)
    (folder.parent / "steps" / "pip.lock").write_text("pip==1 --hash=sha256:00\n", encoding="utf-8")
    (folder / "Dockerfile").write_text("FROM x\n", encoding="utf-8")
    return Stack(folder=folder, spec=export_stack().spec, lock="")


def record(stack: Stack, base: str = BASE, **changes: Any) -> ImageRecord:
    """Describe the image of a stack's folder as it is now."""
    inputs = image_inputs(stack, BASES, base)
    parts: dict[str, Any] = {
        "stack": stack.name,
        "variant": stack.variant,
        "tag": inputs.tag,
        "inputs": inputs.sha256,
        "digest": f"sha256:{'d' * 64}",
        "config_digest": f"sha256:{'c' * 64}",
        "platform": "linux/amd64",
        "base": base,
        "standin": False,
        "python": "3.11",
        "layers": [LayerSize(made_by="RUN x", digest="a", size=40), LayerSize(made_by="COPY y", digest="b", size=2)],
        "wheels": {"a-1-py3-none-any.whl": "e" * 64},
        "checked": {"ok": True, "packages": {"a": "1"}},
    }
    return ImageRecord(**(parts | changes))


def test_saved_record_is_found_again(home: Home, stack: Stack) -> None:
    inputs = image_inputs(stack, BASES, BASE)
    assert find_record(home, inputs) is None
    assert not home.root.exists()
    saved = record(stack)
    save_record(home, saved)
    assert find_record(home, inputs) == saved
    assert saved.compressed_bytes == 42
    assert find_record(home, image_inputs(stack, BASES, OTHER_BASE)) is None
    assert [path.name for path in home.images.iterdir()] == [f"{saved.inputs}.json"]


def test_record_of_the_same_inputs_replaces_the_older(home: Home, stack: Stack) -> None:
    save_record(home, record(stack))
    newer = record(stack, digest=f"sha256:{'f' * 64}")
    save_record(home, newer)
    assert [found for _, found in records(home)] == [newer]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"stack": "export"}'])
def test_unreadable_record_counts_as_absent(home: Home, stack: Stack, content: str) -> None:
    saved, other = record(stack), record(stack, OTHER_BASE)
    save_record(home, saved)
    save_record(home, other)
    (home.images / f"{saved.inputs}.json").write_text(content, encoding="utf-8")
    assert find_record(home, image_inputs(stack, BASES, BASE)) is None
    assert [found for _, found in records(home)] == [other]


def test_record_of_another_version_counts_as_absent(home: Home, stack: Stack) -> None:
    saved = record(stack)
    save_record(home, saved)
    path = home.images / f"{saved.inputs}.json"
    path.write_text(json.dumps(saved.model_dump() | {"later": 1}), encoding="utf-8")
    assert list(records(home)) == []


def test_use_is_noted(home: Home, stack: Stack) -> None:
    saved = record(stack)
    # there is nothing to note yet, which is no failure
    touch_record(home, saved)
    save_record(home, saved)
    path = home.images / f"{saved.inputs}.json"
    os.utime(path, (1, 1))
    touch_record(home, saved)
    assert path.stat().st_mtime > 1000


def test_fitting_record_is_the_first_whose_inputs_are_those_of_now(stack: Stack) -> None:
    old = record(stack)
    (stack.folder / "Dockerfile").write_text("FROM y\n", encoding="utf-8")
    standin, pinned = record(stack, OTHER_BASE), record(stack)
    assert newest_fitting(stack, BASES, [old, standin, pinned]) == standin
    assert newest_fitting(stack, BASES, [old, pinned, standin]) == pinned
    assert newest_fitting(stack, BASES, [old]) is None
    assert newest_fitting(stack, BASES, []) is None


def test_record_of_another_stack_or_lock_does_not_fit(stack: Stack) -> None:
    others = [record(stack).model_copy(update=changes) for changes in ({"stack": "other"}, {"variant": "8.6.0"})]
    assert newest_fitting(stack, BASES, others) is None


def layout(folder: Path, steps: list[dict[str, Any]], layers: list[bytes]) -> ImageLayout:
    """Make an image with a history."""
    made = ImageLayout(folder)
    config = oci.descriptor("application/x", *made.add(json.dumps({"history": steps}).encode()))
    listed = [oci.descriptor("application/x", *made.add(content)) for content in layers]
    made.finish(*made.add(json.dumps({"config": config, "layers": listed}).encode()))
    return made


def test_layers_are_paired_with_the_steps_that_made_them(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"created_by": "enginefarm"},
        {"created_by": "ENV A=1", "empty_layer": True},
        {"created_by": "COPY /opt/stack /opt/stack # buildkit"},
        {"created_by": "USER 65534", "empty_layer": True},
        {"created_by": f"RUN {'x' * 200} # buildkit", "empty_layer": False},
    ]
    found = layer_sizes(layout(tmp_path, steps, [b"base", b"parts!", b""]))
    assert found == [
        LayerSize(made_by="enginefarm", digest=oci.digest_of(b"base"), size=4),
        LayerSize(made_by="COPY /opt/stack /opt/stack", digest=oci.digest_of(b"parts!"), size=6),
        LayerSize(made_by=f"RUN {'x' * 116}", digest=oci.digest_of(b""), size=0),
    ]


def test_step_without_words_has_an_empty_name(tmp_path: Path) -> None:
    assert [one.made_by for one in layer_sizes(layout(tmp_path, [{}], [b"a"]))] == [""]


def test_history_that_does_not_fit_the_layers_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        layer_sizes(layout(tmp_path, [{"created_by": "a"}], [b"a", b"b"]))
