"""Fakes of TensorRT's Python bindings, made of what scripts/record-surface.py found in the real ones.

A fake has the recorded names and no other: an adapter that calls what its TensorRT lacks fails, on a machine that could
never run it. What it does is only as much as an adapter needs to get through a build.

    trt = fake_tensorrt("8.6.1")
    trt.scene.inputs = [FakeTensor("x", shape=(-1, 3))]
    trt.scene.layers = [FakeLayer("conv", "CONVOLUTION", "[ONNX Layer: conv]", more={"num_groups": 1})]
    trt.scene.failing.append(["Error Code 2: OutOfMemory (Requested size was 9 bytes.)"])  # the first build fails
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", trt)
    ...
    assert trt.called("IBuilderConfig.set_flag") == [(trt.BuilderFlag.FP16,)]
    assert trt.called("IBuilderConfig.builder_optimization_level=") == [(5,)]
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from tests.surface_objects import BEHAVIOUR, COMPUTED, DEFAULTS, FUNCTIONS

SURFACES = Path(__file__).parent / "data" / "surfaces"


@cache
def read_surface(version: str) -> dict[str, Any]:
    """Read what was recorded of a TensorRT version."""
    surface: dict[str, Any] = json.loads((SURFACES / f"{version}.json").read_text(encoding="utf-8"))
    return surface


def recorded_versions() -> list[str]:
    """Name the versions that were recorded, oldest first; TensorRT-RTX counts from 1."""
    return sorted((path.stem for path in SURFACES.glob("*.json")), key=lambda name: [int(n) for n in name.split(".")])


def has_symbol(version: str, symbol: str) -> bool:
    """Say whether the bindings have a name: a class, enum or function, or a member as `Class.member`."""
    surface = read_surface(version)
    owner, _, member = symbol.rpartition(".")
    if not owner:
        return any(symbol in surface[part] for part in ("classes", "enums", "functions", "values"))
    if owner in surface["enums"]:
        return member in surface["enums"][owner]
    return any(
        member in described.get(part, {})
        for described in _with_bases(surface, owner)
        for part in ("methods", "properties", "constants")
    )


def _with_bases(surface: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    described = surface["classes"].get(name)
    if described is not None:
        yield described
        for base in described.get("bases", ()):
            yield from _with_bases(surface, base)


@dataclass
class FakeTensor:
    """A tensor of the fake network; -1 is a dynamic axis."""

    name: str
    dtype: str = "FLOAT"
    shape: tuple[int, ...] = (1, 3)


@dataclass
class FakeLayer:
    """A layer of the fake network. `more`: what its own class has, such as kernel_size_nd."""

    name: str
    type: str = "ELEMENTWISE"
    metadata: str = ""
    inputs: Sequence[FakeTensor] = ()
    outputs: Sequence[FakeTensor] = ()
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class Scene:
    """What happens: the network that parsing gives, and what goes wrong.

    `parse_errors`: node, operator and text of each node that the parser refuses. `failing`: one list of errors per
    build that gives nothing, first builds first. `timings`: what a build adds to a timing cache that has it not yet.
    `calibrated`: batch size, batches and shapes of each calibration that ran. `contexts`: how many there is memory for.
    When an engine runs, `compute` makes outputs of inputs; `run_on` gets addresses, shapes and stream instead,
    `run_errors` are said instead, and `captured` takes the runs of a thread that it names instead. A refit says
    `refit_errors` or lacks `missing_weights`; `beside`: a file that has to lie where the refitted model is said to be.
    """

    inputs: Sequence[FakeTensor] = (FakeTensor("x"),)
    layers: Sequence[FakeLayer] = ()
    outputs: Sequence[FakeTensor] = (FakeTensor("y"),)
    warnings: Sequence[str] = ()
    parse_errors: Sequence[tuple[str, str, str]] = ()
    failing: list[list[str]] = field(default_factory=list)
    timings: bytes = b"[timings]"
    refuses_caches: bool = False
    calibrated: list[tuple[int, int, dict[str, tuple[int, ...]]]] = field(default_factory=list)
    layer_information: str = '{"Layers": [], "Bindings": []}'
    compute: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    run_on: Callable[[dict[str, int], dict[str, tuple[int, ...]], int], None] | None = None
    run_errors: Sequence[str] = ()
    contexts: int = -1
    captured: dict[int, list[Any]] = field(default_factory=dict)
    refit_errors: Sequence[str] = ()
    missing_weights: Sequence[str] = ()
    beside: str = ""


class FakeTensorRT(ModuleType):
    """The bindings' module. `calls`: every call and every attribute set (`Class.name=`) in order, with the values."""

    def __init__(self, version: str) -> None:
        super().__init__(read_surface(version)["module"])
        self.__version__ = version
        self.surface = read_surface(version)
        self.scene = Scene()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.engines: dict[bytes, Any] = {}
        self._enums = {name: _numbered(name, members) for name, members in self.surface["enums"].items()}
        for name, made in self._enums.items():
            if "." not in name:
                setattr(self, name, made)
        for name in self.surface["classes"]:
            self._make(name)
        for name, overloads in self.surface["functions"].items():
            setattr(self, name, partial(_call, self, name, overloads, FUNCTIONS.get(name)))
        for name, value in self.surface["values"].items():
            setattr(self, name, self.constant(value))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"TensorRT {self.__version__} has no {name!r}")

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """Return the values of every call of `Class.method` or setting of `Class.attribute=`, in order."""
        return [values for called, values in self.calls if called == name]

    def constant(self, path: str) -> Any:
        """Return an enum's member, such as `DataType.FLOAT`."""
        owner, _, member = path.rpartition(".")
        # a value of a nested enum names it without its class
        found = next(made for name, made in self._enums.items() if name == owner or name.endswith(f".{owner}"))
        return found[member]

    def new(self, cls: str, /, **state: Any) -> Any:
        """Make an object of a class as TensorRT itself does."""
        made = object.__new__(getattr(self, cls))
        made._state = state
        return made

    def _make(self, name: str) -> type:
        if name in vars(self):
            return vars(self)[name]  # type: ignore[no-any-return]
        described = self.surface["classes"][name]
        bases = tuple(self._make(base) for base in described.get("bases", ()) if base in self.surface["classes"])
        namespace: dict[str, Any] = {"_trt": self, "_recorded": name}
        for method, overloads in described.get("methods", {}).items():
            namespace[method] = _method(self, name, method, overloads)
        for attribute, mode in described.get("properties", {}).items():
            namespace[attribute] = _property(self, name, attribute, mode)
        for constant, value in described.get("constants", {}).items():
            namespace[constant] = self.constant(value)
        nested = {one: made for one, made in self._enums.items() if one.rpartition(".")[0] == name}
        namespace.update((one.rpartition(".")[2], made) for one, made in nested.items())
        setattr(self, name, type(name, bases or (_Object,), namespace))
        return vars(self)[name]  # type: ignore[no-any-return]


class _Numbered(enum.Enum):
    """As pybind11's enums: numbers only where asked for."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


def _numbered(name: str, members: dict[str, int]) -> Any:
    return cast("Any", _Numbered)(name.rpartition(".")[2], members)


class _Object:
    """Holds what an object of TensorRT was told. Python's own subclasses may have attributes of their own."""

    _trt: FakeTensorRT
    _recorded = ""
    _state: dict[str, Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"TensorRT {self._trt.__version__}: {self._recorded} has no constructor")

    def __getattr__(self, name: str) -> Any:
        if name == "_state":
            self._state = {}
            return self._state
        raise AttributeError(f"TensorRT {self._trt.__version__}: {self._recorded} has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        known = getattr(type(self), name, None)
        if not name.startswith("_") and not isinstance(known, property) and "_recorded" in vars(type(self)):
            raise AttributeError(f"TensorRT {self._trt.__version__}: {self._recorded} has no {name!r} to set")
        object.__setattr__(self, name, value)


def _method(trt: FakeTensorRT, owner: str, name: str, overloads: Any) -> Callable[..., Any]:
    behaviour = BEHAVIOUR.get(f"{owner}.{name}")

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        act = partial(behaviour, self) if behaviour is not None else None
        return _call(trt, f"{owner}.{name}", overloads, act, *args, **kwargs)

    return method


def _call(trt: FakeTensorRT, what: str, overloads: Any, act: Any, *args: Any, **kwargs: Any) -> Any:
    values = _bind(overloads, args, kwargs)
    if values is None:
        text = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
        raise TypeError(f"TensorRT {trt.__version__}: {what}({text}) fits none of {overloads}")
    trt.calls.append((what, values))
    return act(*values) if act is not None else None


def _bind(overloads: list[list[str]] | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Put arguments into the order of the first signature that takes them; what was left out is not there."""
    for names in overloads or ():
        plain = [name.rstrip("=") for name in names]
        needed = [name for name in names[len(args) :] if not name.endswith("=")]
        given = set(kwargs)
        if len(args) <= len(names) and given <= set(plain[len(args) :]) and given >= set(needed):
            return (*args, *(kwargs[name] for name in plain[len(args) :] if name in kwargs))
    return (*args, *kwargs.values()) if overloads is None else None


def _property(trt: FakeTensorRT, owner: str, name: str, mode: str) -> property:
    computed = COMPUTED.get(f"{owner}.{name}")

    def read(self: Any) -> Any:
        if computed is not None and name not in self._state:
            return computed(self)
        default = DEFAULTS.get(f"{owner}.{name}")
        return self._state.get(name, trt.constant(default) if isinstance(default, str) else default)

    def write(self: Any, value: Any) -> None:
        present = read(self)
        if isinstance(present, enum.Enum) and not isinstance(value, type(present)):
            raise TypeError(
                f"TensorRT {trt.__version__}: {owner}.{name} takes a {type(present).__name__}, not {value!r}"
            )
        trt.calls.append((f"{owner}.{name}=", (value,)))
        self._state[name] = value

    return property(read, write if mode == "rw" else None)


def fake_tensorrt(version: str) -> FakeTensorRT:
    """Make a fake of a recorded version: "8.6.1" or, for TensorRT-RTX, "1.7.1.116"; see the module's example."""
    return FakeTensorRT(version)
