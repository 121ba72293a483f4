# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Record which names a TensorRT's Python bindings really have: `record-surface.py STACK [--lock NAME]`.

Adapters of TensorRT versions that no machine here can run are tested against these records. The bindings' wheel is
taken by the hash in the stack's lock. It has a MB; the libraries under it have GBs, are not read for this, and empty
ones stand in for them. The interpreter that is asked (--python) must be one that the wheel is compiled for. Needs gcc
and nm.

A whole TensorRT that lies elsewhere, for example in an image, writes the same record itself:
`docker run --rm --network none -i IMAGE python3 - --dump tensorrt < scripts/record-surface.py`; this part runs on
Python 3.9 and takes the standard library alone. `--dumped FILE` puts such a record in its place.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

# Read from standard input, the script has no place of its own and needs none.
ROOT = Path(globals().get("__file__", ".")).resolve().parent.parent
SURFACES = ROOT / "tests" / "data" / "surfaces"
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "linux_x86_64")
# What an argument list of pybind11's docstrings holds at its top level: `name`, `name: type`, with ` = default` or not.
_ARGUMENT = re.compile(r"^\**([A-Za-z_]\w*)\s*(?::[^=]*)?(=.*)?$", re.DOTALL)
# Left over in the modules' own namespaces: helpers of their first lines, and the variable of a loop.
_LEFT_OVER = ("common_enter", "common_exit", "find_lib", "try_load", "attr", "value")
_SPECIAL = ("__init__", "__getitem__", "__len__", "__setitem__", "__bool__", "__call__", "__enter__", "__exit__")


def dump(module_name: str) -> dict[str, Any]:
    """Import bindings and say what is in them: enums with values, classes, functions and module-level values.

    Methods map to the names of their arguments, without `self`; one that may be left out ends with `=`. Properties map
    to `rw` or `r`. What has no signature maps to null.
    """
    module = importlib.import_module(module_name)
    found: dict[str, Any] = {"classes": {}, "enums": {}, "functions": {}, "values": {}}
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in _LEFT_OVER or inspect.ismodule(value):
            continue
        if inspect.isclass(value):
            _read_class(name, value, found)
        elif callable(value):
            found["functions"][name] = _arguments(value)
        elif hasattr(type(value), "__members__"):
            found["values"][name] = f"{type(value).__name__}.{value.name}"
    return {
        "tensorrt": module.__version__,
        "module": module_name,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **found,
    }


def _read_class(name: str, cls: Any, found: dict[str, Any]) -> None:
    members = getattr(cls, "__members__", None)
    if members is not None:
        found["enums"][name] = {member: int(value) for member, value in members.items()}
        return
    bases = [base.__name__ for base in cls.__bases__ if base.__name__ not in ("object", "pybind11_object")]
    described: dict[str, Any] = {"bases": bases, "methods": {}, "properties": {}, "constants": {}}
    found["classes"][name] = described
    for key, value in sorted(vars(cls).items()):
        if key.startswith("_") and key not in _SPECIAL:
            continue
        if inspect.isclass(value):
            # Logger.Severity is ILogger.Severity again
            _read_class(f"{name}.{key}", value, found)
        else:
            part, says = _read_member(cls, key, value)
            described[part][key] = says
    if described["methods"].get("__init__") is None:
        # pybind11's own, which only refuses
        described["methods"].pop("__init__", None)
    for part in ("bases", "methods", "properties", "constants"):
        if not described[part]:
            del described[part]


def _read_member(cls: Any, key: str, value: Any) -> tuple[str, Any]:
    if isinstance(value, property):
        return "properties", "r" if value.fset is None else "rw"
    if hasattr(type(value), "__members__"):
        return "constants", f"{type(value).__qualname__}.{value.name}"
    if callable(getattr(cls, key)):
        return "methods", _arguments(getattr(cls, key))
    # pybind11's static properties have a type of their own
    return "properties", "rw"


def _arguments(function: Any) -> list[list[str]] | None:
    """Return the names of the arguments of every overload, or None where nothing says them."""
    if inspect.isfunction(function):
        parameters = list(inspect.signature(function).parameters.values())
        names = [one.name if one.default is one.empty else one.name + "=" for one in parameters]
        return [[name for name in names if name not in ("self", "this")]]
    text = inspect.getdoc(function) or ""
    signatures = []
    for line in text.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(function.__name__)}\((.*)\)(?: -> .*)?$", line)
        if match is not None:
            pieces = [_ARGUMENT.match(piece.strip()) for piece in _split(match.group(1))]
            names = [one.group(1) + ("=" if one.group(2) else "") for one in pieces if one is not None]
            signatures.append([name for name in names if name != "self"])
    # `name(*args, **kwargs)` heads a list of overloads
    return [one for one in signatures if one != ["args", "kwargs"]] or None


def _split(text: str) -> list[str]:
    """Split at the commas that no bracket surrounds."""
    pieces, depth, piece = [], 0, ""
    for char in text:
        depth += (char in "[(<{") - (char in "])>}")
        if char == "," and depth == 0:
            pieces.append(piece)
            piece = ""
        else:
            piece += char
    return [one for one in [*pieces, piece] if one.strip()]


def fetch(requirement: str, hashes: tuple[str, ...], python: str, folder: Path) -> Path:
    """Fetch the wheel that `requirement` (`name==version`) means for a Python such as "3.11"; no hash: any will do."""
    wanted = folder / "wanted.txt"
    wanted.write_text(" ".join([requirement, *(f"--hash=sha256:{one}" for one in hashes)]) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes"] if hashes else []
    command += [f"--platform={one}" for one in PLATFORMS]
    subprocess.run([*command, "--python-version", python, "--dest", str(folder), "-r", str(wanted)], check=True)
    return next(folder.glob("*.whl"))


def stand_in(extension: Path, folder: Path) -> None:
    """Write empty libraries with every name that a bindings' extension module asks of TensorRT's."""
    read = ["nm", "--dynamic", "--undefined-only", str(extension)]
    lines = subprocess.run(read, check=True, capture_output=True, text=True).stdout.split("\n")
    # versioned ones are those of the C and C++ libraries; weak ones may be absent
    asked = [line.split()[1] for line in lines if line.split()[:1] == ["U"] and "@" not in line]
    here = ctypes.CDLL(None)
    names = [name for name in asked if not re.match(r"_?Py", name) and not hasattr(here, name)]
    source = folder / "empty.c"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names), encoding="utf-8")
    read = ["readelf", "--dynamic", str(extension)]
    needed = re.findall(r"NEEDED.*\[(.*)\]", subprocess.run(read, check=True, capture_output=True, text=True).stdout)
    for library in needed:
        if re.match(r"lib(nv|tensorrt|cudart|cudnn|cublas)", library):
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", str(folder / library), str(source)]
            subprocess.run(command, check=True)


def version_of(python: str) -> str:
    """Ask an interpreter for its version, such as "3.11"."""
    ask = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()


def record(requirement: str, hashes: tuple[str, ...], python: str) -> dict[str, Any]:
    """Record the surface of one wheel of bindings, in a fresh process of the interpreter `python`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = fetch(requirement, hashes, version_of(python), folder)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "wheel")
        extension = next((folder / "wheel").glob("tensorrt*/*.so"))
        stand_in(extension, folder)
        environ = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder / "wheel")}
        command = [python, str(Path(__file__)), "--dump", extension.parent.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout
        found: dict[str, Any] = json.loads(text)
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return {**found, "method": "import without its libraries", "wheel": wheel.name, "sha256": sha256}


def locked(stack_name: str, variant: str | None, python: str) -> tuple[str, tuple[str, ...]]:
    """Find the pin of the bindings in a stack's lock, and its hashes."""
    from builder.stacks import load_stacks  # noqa: PLC0415 - --dump runs where the farm is not installed

    stack = load_stacks(ROOT / "images")[stack_name]
    stack = stack.with_lock(variant) if variant else stack
    pins = [one for one in stack.requirements(python) if re.match(r"tensorrt.*-bindings==", one.pin)]
    if len(pins) != 1:
        raise SystemExit(f"the lock of {stack_name} has no wheel of bindings; see --wheel and --dump")
    return pins[0].pin, pins[0].hashes


def text_of(surface: dict[str, Any]) -> str:
    """Write a record down: one sorted line per class or enum, so that a difference between versions reads well.

    Enum members stay in TensorRT's order: of two names with one value, the first is the one it gives back.
    """
    lines = []
    for key, value in sorted(surface.items()):
        if isinstance(value, dict):
            inner = [f"  {json.dumps(name)}: {_compact(part)}" for name, part in sorted(value.items())]
            lines.append(f" {json.dumps(key)}: {{\n" + ",\n".join(inner) + "\n }")
        else:
            lines.append(f" {json.dumps(key)}: {_compact(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def file_name(version: str) -> str:
    """Name the record of a version as stacks name it: 10.14.1.48.post1 is 10.14.1.48 in another wheel."""
    return f"{version.partition('.post')[0]}.json"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def main() -> int:
    """Record one surface, or print that of installed bindings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack", nargs="?", help="stack whose lock names the bindings")
    parser.add_argument("--lock", help="another lock of the stack")
    parser.add_argument("--python", default=sys.executable, help="interpreter that the wheel is compiled for")
    parser.add_argument("--wheel", help="name==version of bindings to take where the lock has none; not held to a hash")
    parser.add_argument("--dump", metavar="MODULE", help="only print the surface of an installed module")
    parser.add_argument("--dumped", type=Path, metavar="FILE", help="take this printed surface")
    options = parser.parse_args()
    if options.dump:
        sys.stdout.write(json.dumps(dump(options.dump)))
        return 0
    if options.dumped:
        surface = {"method": "import", **json.loads(options.dumped.read_text(encoding="utf-8"))}
    else:
        taken = (options.wheel, ()) if options.wheel else None
        pin, hashes = taken or locked(options.stack, options.lock, version_of(options.python))
        surface = record(pin, hashes, options.python)
    path = SURFACES / file_name(surface["tensorrt"])
    path.write_text(text_of(surface), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
