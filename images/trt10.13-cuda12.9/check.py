"""Runs inside a stack's image: are the packages those of the lock, and do they load? Prints one line of JSON.

Reads stack.toml and, where one lies beside it, the lock. Needs no GPU; with a driver at hand it makes a builder, too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = Path(os.environ.get("PYTHONPATH", "/opt/stack").split(os.pathsep)[0])
# libraries that come with the driver, or with the board's own packages on a Jetson
FROM_DRIVER = re.compile(r"lib(cuda\.so|nvidia-|nvdla_|nvcudla|nvos|nvrm|nvsci|nvmedia|nvtvmr)")
JUNK = re.compile(r"(^|/)(tests?|__pycache__)(/|$)|\.py[co]$")
LOADED, DYNAMIC = 1, 2
END, NEEDED, STRINGS, RPATH, RUNPATH = 0, 1, 5, 15, 29


def read_toml(path: Path) -> dict[str, Any]:
    """Read the file; a Python without a reader for it sees the tables and the lines `key = "text"`, which is enough."""
    text = path.read_text(encoding="utf-8")
    if importlib.util.find_spec("tomllib"):
        document: dict[str, Any] = importlib.import_module("tomllib").loads(text)
        return document
    found: dict[str, Any] = {}
    table = found
    for line in text.splitlines():
        header = re.match(r"\[(.+)\]\s*$", line)
        if header:
            table = found
            for quoted, bare in re.findall(r'"([^"]*)"|([^."\s]+)', header[1]):
                table = table.setdefault(quoted or bare, {})
        pair = re.match(r'([\w-]+)\s*=\s*"([^"]*)"', line)
        if pair:
            table[pair[1]] = pair[2]
    return found


def locked(path: Path) -> dict[str, str]:
    """List the versions that the lock means for this Python."""
    markers = importlib.import_module("packaging.markers")
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        pin, _, marker = line.rstrip("\\ ").partition(" ; ")
        match = re.match(r"([\w.-]+)(?:==| @ \S*/[^/-]+-)([^\s-]+)", pin)
        if match and (not marker or markers.Marker(marker).evaluate()):
            found[plain(match[1])] = match[2]
    return found


def plain(name: str) -> str:
    """Write a package's name as locks do."""
    return re.sub(r"[-_.]+", "-", name).lower()


def compare(packages: dict[str, str], lock: Path) -> Iterator[str]:
    """Hold the packages against the lock."""
    expected = locked(lock)
    for name in sorted(packages.keys() | expected.keys()):
        here, there = packages.get(name, "missing"), expected.get(name, "without it")
        if here != there:
            yield f"{name} is {here}; {lock.name} is {there}"


def modules(role: str) -> Iterator[str]:
    """Import what the worker's stages import besides TensorRT."""
    for name in ["numpy", "onnx", "ml_dtypes", *(["torch", "onnxscript"] if role == "export" else ["onnxruntime"])]:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001
            yield f"{name} does not load: {error!r}"


def tensorrt(spec: dict[str, Any], wanted: set[str], driver: bool) -> tuple[str | None, list[str]]:  # noqa: FBT001
    """Import TensorRT; return its version and what is wrong with it."""
    names = [name for name in dict.fromkeys([spec["import_name"], "tensorrt"]) if importlib.util.find_spec(name)]
    if not names:
        return None, [f"there is no module {spec['import_name']}"]
    try:
        trt = importlib.import_module(names[0])
    except ImportError as error:
        if driver or not FROM_DRIVER.search(str(error)):
            return None, [f"{names[0]} does not load: {error!r}"]
        # where the board's libraries are missing, the package's own word must do
        version = importlib.metadata.version("tensorrt")
        return version, [] if version in wanted else [f"TensorRT is {version}, not {' or '.join(wanted)}"]
    problems = [] if trt.__version__ in wanted else [f"TensorRT is {trt.__version__}, not {' or '.join(wanted)}"]
    if not hasattr(trt, "OnnxParser"):
        problems.append("TensorRT has no ONNX parser")
    # TensorRT-RTX builds without a driver
    if driver or spec["family"] == "rtx":
        try:
            trt.Builder(trt.Logger(trt.Logger.ERROR))
        except Exception as error:  # noqa: BLE001
            problems.append(f"TensorRT makes no builder: {error!r}")
    return trt.__version__, problems


def dynamic(path: Path) -> tuple[list[str], list[str]] | None:
    """Read from a library's ELF headers which libraries it needs and where it looks; None where it is no library."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            return None
        start, size, count = struct.unpack_from("<32xQ14xHH", head)
        file.seek(start)
        segments = [struct.unpack("<IIQQQQQQ", file.read(size)[:56]) for _ in range(count)]
        entries = []
        for kind, _, offset, _, _, length, _, _ in segments:
            if kind == DYNAMIC:
                file.seek(offset)
                entries = list(struct.iter_unpack("<QQ", file.read(length - length % 16)))
        if not any(tag == STRINGS for tag, _ in entries):
            return [], []
        entries = entries[: [tag for tag, _ in entries].index(END)]
        address = next(value for tag, value in entries if tag == STRINGS)
        base = next(s[2] + address - s[3] for s in segments if s[0] == LOADED and s[3] <= address < s[3] + s[5])

        def text(at: int) -> str:
            file.seek(base + at)
            return file.read(4096).split(b"\0")[0].decode()

        paths = [text(value) for tag, value in entries if tag in (RPATH, RUNPATH)]
        folders = [part.replace("$ORIGIN", str(path.parent)) for found in paths for part in found.split(":")]
        return [text(value) for tag, value in entries if tag == NEEDED], folders


def system_folders() -> list[Path]:
    """List where the loader looks without being told."""
    machine = f"{platform.machine()}-linux-gnu"
    named = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    for path in sorted(Path("/etc/ld.so.conf.d").glob("*.conf")):
        named += [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("/")]
    usual = ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib", f"/lib/{machine}", f"/usr/lib/{machine}"]
    return [Path(name) for name in [*named, *usual] if name]


def unresolved() -> Iterator[str]:
    """Name each library in the stack's folder that needs one which is nowhere."""
    system, libraries = system_folders(), sorted(PARTS.rglob("*.so*"))
    # packages load some of their libraries by themselves, from wherever those lie in the stack
    own = {path.name for path in libraries}
    for path in libraries:
        found = dynamic(path) if path.is_file() and not path.is_symlink() else None
        if found is None:
            continue
        for name in found[0]:
            places = [Path(folder) for folder in found[1] if folder] + system
            known = name in own or FROM_DRIVER.match(name)
            if not known and not any((place / name).exists() for place in places):
                yield f"{path.relative_to(PARTS)} needs {name}, which is nowhere"


def junk() -> Iterator[str]:
    """Name what an image can do without and prune.txt has missed; licences may lie anywhere."""
    names = [path.relative_to(PARTS).as_posix() for path in sorted(PARTS.rglob("*"))]
    left = [name for name in names if JUNK.search(name) and ".dist-info/" not in name]
    if left:
        yield f"{len(left)} tests or compiled files are left, such as {left[0]}"


def main() -> int:
    """Check and print what was found."""
    # the container's Python may write nowhere
    sys.dont_write_bytecode = True
    spec, locks = read_toml(HERE / "stack.toml"), sorted(HERE.glob("*.lock"))
    distributions = importlib.metadata.distributions(path=[str(PARTS)])
    packages = {plain(one.metadata["Name"]): one.version for one in distributions}
    problems = list(junk()) if packages else [f"there are no packages in {PARTS}"]
    for lock in locks:
        problems += compare(packages, lock)
    problems += [*modules(spec["role"]), *unresolved()]
    version, driver = None, os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvhost-gpu")  # noqa: PTH110
    if spec["role"] == "build":
        others = spec.get("image", {}).get("locks", {}).values()
        meant = {other["tensorrt"] for other in others if not locks or other["file"] == locks[0].name}
        version, wrong = tensorrt(spec, meant if locks and meant else meant | {spec["tensorrt"]}, driver)
        problems += wrong
    report = {
        "stack": spec["name"],
        "python": platform.python_version(),
        "tensorrt": version,
        "packages": dict(sorted(packages.items())),
        "driver": driver,
        "ok": not problems,
        "problems": problems,
    }
    print(json.dumps(report))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
