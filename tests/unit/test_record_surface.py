"""What the recording script reads out of bindings; running it needs an index and gcc."""

from __future__ import annotations

import importlib.util
import json
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load_script() -> Any:
    """Import the script, whose name is no module's."""
    spec = importlib.util.spec_from_file_location("record_surface", ROOT / "scripts" / "record-surface.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
OVERLOADED = """\
set(*args, **kwargs)
Overloaded function.

1. set(self: C, index: int) -> str

2. set(self: C, name: str, more: float = 0.5) -> str
"""


class Flag(Enum):
    """As an enum of the bindings."""

    SECOND = 1
    FIRST = 0
    ALSO_FIRST = 0  # noqa: PIE796  # an alias

    def __int__(self) -> int:
        return self.value


def test_a_record_has_the_version_of_its_stack() -> None:
    assert script.file_name("10.16.1.11") == "10.16.1.11.json"
    assert script.file_name("10.14.1.48.post1") == "10.14.1.48.json"


def function(name: str, doc: str) -> Any:
    """Make a built-in as pybind11 does: its signatures are in its docstring."""

    class Builtin:
        __doc__ = doc
        __name__ = name

        def __call__(self) -> None: ...

    return Builtin()


@pytest.mark.parametrize(
    ("doc", "arguments"),
    [
        ("set(self: trt.Config, flag: trt.Flag) -> None\n\nSay more.", [["flag"]]),
        ("set(self: trt.Config) -> int", [[]]),
        ("set(model: Dict[str, Tuple[int, ...]], path: str = None) -> bool", [["model", "path="]]),
        ("set(arg0: int, arg1: capsule = <capsule object at 0x7f>) -> bool", [["arg0", "arg1="]]),
        (OVERLOADED, [["index"], ["name", "more="]]),
        ("Words only.", None),
        ("", None),
    ],
)
def test_signatures_are_read_from_docstrings(doc: str, arguments: list[list[str]] | None) -> None:
    assert script._arguments(function("set", doc)) == arguments


def test_classes_enums_functions_and_values() -> None:
    class Base:
        level = property(lambda _self: 1, lambda _self, _value: None)
        size = property(lambda _self: 1)
        MODE = Flag.SECOND
        run = function("run", "run(self: trt.Base, count: int) -> None")

        def __init__(self, logger: object) -> None: ...

        class Kind(Enum):
            A = 3

            def __int__(self) -> int:
                return self.value

    class Derived(Base):
        pass

    module = ModuleType("bindings")
    vars(module).update(
        __version__="1.2", Base=Base, Derived=Derived, Flag=Flag, float32=Flag.FIRST, _hidden=1, json=json
    )
    module.volume = function("volume", "volume(shape: int) -> int")  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "bindings", module)
        found = script.dump("bindings")
    assert found["classes"] == {
        "Base": {
            "methods": {"__init__": [["logger"]], "run": [["count"]]},
            "properties": {"level": "rw", "size": "r"},
            "constants": {"MODE": "Flag.SECOND"},
        },
        "Derived": {"bases": ["Base"]},
    }
    assert found["enums"] == {"Base.Kind": {"A": 3}, "Flag": {"SECOND": 1, "FIRST": 0, "ALSO_FIRST": 0}}
    assert (found["functions"], found["values"]) == ({"volume": [["shape"]]}, {"float32": "Flag.FIRST"})
    assert (found["tensorrt"], found["module"]) == ("1.2", "bindings")


def test_a_record_has_a_line_per_class_and_keeps_the_order_of_enums() -> None:
    text = script.text_of({"enums": {"B": {"z": 1, "a": 0}, "A": {}}, "tensorrt": "1"})
    assert text == '{\n "enums": {\n  "A": {},\n  "B": {"z":1,"a":0}\n },\n "tensorrt": "1"\n}\n'


def test_the_bindings_of_a_lock_are_found() -> None:
    pin, hashes = script.locked("trt8.6-cuda12.0", None, "3.10")
    assert pin == "tensorrt-bindings==8.6.1"
    assert "6f9d26d5d8f6b87d62048c5ef4bb33b179cdf944d1b28480458d8c27d1e65456" in hashes
    with pytest.raises(SystemExit, match="see --wheel and --dump"):
        script.locked("trt8.6-cuda12.0", "8.6.0", "3.10")
