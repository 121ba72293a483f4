"""A stack's locks: what their lines mean, and taking another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import Reason
from builder.stacks import Requirement, Stack, load_stacks
from tests.artifacts import refusal
from tests.unit.test_key import export_stack

IMAGES = Path(__file__).parents[2] / "images"
A, B = "a" * 64, "b" * 64
STACK = """\
name = "s"
title = "t"
role = "build"
family = "trt8"
import_name = "tensorrt"
tensorrt = "8.6.1"
cuda = "12.0"
platform = "linux/amd64"
python = ["3.11"]
needs_gpu = true
confirmed = false
installed_mib = 1
sms = ["8.0"]
grouping = "each"
precisions = ["fp16"]
[image]
base = "b"
budget_mib = 100
env = { A = "1" }
"""
OTHER = {
    "file": "requirements-8.6.0.lock",
    "base": "older",
    "import_name": "tensorrt_bindings",
    "tensorrt": "8.6.0",
    "python": ["3.9", "3.10"],
    "confirmed": True,
    "budget_mib": 200,
}


def parse(lock: str, python: str = "3.11") -> tuple[Requirement, ...]:
    """Read a lock as a stack for x86-64 does."""
    return export_stack(lock=lock).requirements(python)


def test_line_has_pin_and_hash() -> None:
    (found,) = parse(f"numpy==2.0.0 --hash=sha256:{A}\n")
    assert found == Requirement(pin="numpy==2.0.0", marker=None, hashes=(A,))
    assert found.url is None


def test_lines_go_on_after_a_backslash() -> None:
    lock = f"numpy==2.0.0 \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\nonnx==1.0 --hash=sha256:{A}\n"
    assert [(one.pin, one.hashes) for one in parse(lock)] == [("numpy==2.0.0", (A, B)), ("onnx==1.0", (A,))]


def test_comments_options_and_empty_lines_mean_nothing() -> None:
    lock = f"# made by a script\n\n--index-url https://x\n  # a==1\na==1 --hash=sha256:{A}\n"
    assert [one.pin for one in parse(lock)] == ["a==1"]


@pytest.mark.parametrize(
    ("marker", "python", "counts"),
    [
        ('python_version < "3.11"', "3.10", True),
        ('python_version < "3.11"', "3.11", False),
        # as numbers, not as text
        ('python_version >= "3.9"', "3.10", True),
        ('python_full_version >= "3.11"', "3.11", True),
        ('sys_platform == "linux"', "3.11", True),
        ('sys_platform == "win32"', "3.11", False),
        ('platform_machine == "x86_64"', "3.11", True),
        ('platform_machine == "aarch64"', "3.11", False),
        ('platform_system == "Linux" and implementation_name == "cpython"', "3.11", True),
    ],
)
def test_marker_decides(marker: str, python: str, *, counts: bool) -> None:
    found = parse(f"a==1 ; {marker} --hash=sha256:{A}\nb==2 --hash=sha256:{B}\n", python)
    expected = [Requirement(pin="a==1", marker=marker, hashes=(A,))] if counts else []
    assert list(found) == [*expected, Requirement(pin="b==2", marker=None, hashes=(B,))]


def test_arm_has_its_own_markers() -> None:
    stack = export_stack(lock='a==1 ; platform_machine == "aarch64"\nb==1 ; platform_machine == "x86_64"\n')
    spec = stack.spec.model_copy(update={"platform": "linux/arm64"})
    assert Stack(folder=stack.folder, spec=spec, lock=stack.lock).packages("3.11") == ("a==1",)


def test_part_with_an_address() -> None:
    url = "https://pypi.nvidia.com/p/part-8.6.1-cp311-none-manylinux_2_17_x86_64.whl"
    (found,) = parse(f"part @ {url} \\\n    --hash=sha256:{A}\n")
    assert (found.pin, found.url, found.hashes) == (f"part @ {url}", url, (A,))
    (marked,) = parse(f'part @ {url} ; python_version == "3.11" --hash=sha256:{A}\n')
    assert (marked.url, marked.marker) == (url, 'python_version == "3.11"')
    assert parse(f'part @ {url} ; python_version == "3.12" --hash=sha256:{A}\n') == ()


def test_packages_are_the_sorted_pins() -> None:
    assert export_stack(lock=f"b==2 --hash=sha256:{B}\na==1 --hash=sha256:{A}\n").packages("3.11") == ("a==1", "b==2")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True),
        st.tuples(
            st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}", fullmatch=True),
            st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), min_size=1, max_size=3),
            st.booleans(),
        ),
        max_size=5,
    )
)
def test_what_was_written_is_read(pins: dict[str, tuple[str, list[str], bool]]) -> None:
    lines, expected = [], []
    for name, (version, hashes, broken) in pins.items():
        between = " \\\n    " if broken else " "
        lines.append(between.join([f"{name}=={version}", *(f"--hash=sha256:{one}" for one in hashes)]) + "\n")
        expected.append(Requirement(pin=f"{name}=={version}", marker=None, hashes=tuple(hashes)))
    assert parse("".join(lines)) == tuple(expected)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """Make a stack with two locks."""
    folder = tmp_path / "images" / "s"
    folder.mkdir(parents=True)
    table = "".join(f"{name} = {json.dumps(value)}\n" for name, value in OTHER.items())
    (folder / "stack.toml").write_text(f'{STACK}[image.locks."8.6.0"]\n{table}', encoding="utf-8")
    (folder / "requirements.lock").write_text("a==1\n", encoding="utf-8")
    (folder / "requirements-8.6.0.lock").write_text("a==0\n", encoding="utf-8")
    return load_stacks(folder.parent)["s"]


def test_other_lock_changes_what_it_names(stack: Stack) -> None:
    other = stack.with_lock("8.6.0")
    assert (other.lock, other.lock_path) == ("a==0\n", stack.folder / "requirements-8.6.0.lock")
    assert (other.variant, other.name, other.folder) == ("8.6.0", "s", stack.folder)
    assert (other.build.tensorrt, other.spec.python, other.spec.confirmed) == ("8.6.0", ["3.9", "3.10"], True)
    assert (other.spec.image.base, other.spec.image.budget_mib) == ("older", 200)
    assert other.build.import_name == "tensorrt_bindings"
    assert other.lock_sha256 != stack.lock_sha256
    assert other.packages("3.10") == ("a==0",)
    assert (other.build.family, other.build.sms, other.spec.image.env) == ("trt8", ["8.0"], {"A": "1"})


def test_other_lock_leaves_the_stack_as_it_is(stack: Stack) -> None:
    stack.with_lock("8.6.0")
    assert (stack.variant, stack.lock_path.name, stack.build.tensorrt) == (None, "requirements.lock", "8.6.1")
    assert (stack.spec.image.base, stack.spec.image.budget_mib) == ("b", 100)


def test_features_are_those_of_the_release_but_for_what_the_stack_lacks(stack: Stack) -> None:
    assert {"ampere_plus", "fp16_flag"} <= stack.build.features
    assert not {"strip_plan", "native_instancenorm"} & stack.with_lock("8.6.0").build.features
    changed = stack.build.model_copy(update={"lacks": ["ampere_plus"]})
    assert stack.build.features - changed.features == {"ampere_plus"}


@pytest.mark.parametrize("name", ["strip_plan", "no_such_feature"])
def test_a_stack_lacks_only_what_its_release_has(stack: Stack, name: str) -> None:
    path = stack.folder / "stack.toml"
    text = path.read_text(encoding="utf-8").replace("[image]\n", f'lacks = ["{name}"]\n[image]\n', 1)
    path.write_text(text, encoding="utf-8")
    error = refusal(lambda: load_stacks(stack.folder.parent))
    assert error.reason is Reason.STACK_INVALID
    assert f"lacks {name}, which TensorRT 8.6.1 has not either" in (error.why or "")


def test_unknown_lock_lists_the_known(stack: Stack) -> None:
    error = refusal(lambda: stack.with_lock("8.5"))
    assert (error.reason, error.fix) == (Reason.STACK_UNKNOWN, "its locks: 8.6.0")
    assert "'8.5'" in error.what
    assert "stack s" in error.what


def test_stack_of_one_lock_says_so() -> None:
    error = refusal(lambda: export_stack().with_lock("8.5"))
    assert (error.reason, error.fix) == (Reason.STACK_UNKNOWN, "its locks: the one it always takes")


def test_committed_variants_load() -> None:
    variants = [one.with_lock(name) for one in load_stacks(IMAGES).values() for name in one.spec.image.locks]
    assert variants
    for variant in variants:
        assert variant.lock
        assert variant.lock_path.is_file()
