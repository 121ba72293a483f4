"""Hands TensorRT timing caches that are cut, damaged or of elsewhere, and writes down what it says. Needs a GPU.

Usage, inside the image of a classic stack: python3 gpu_cache_refusals.py MODEL.onnx OUT [--foreign FILE] [--seconds N].
OUT (a folder) gets refusals.json, refusals.md and the cache that was made, to be a foreign one on another machine.
Each case is a process of its own, since a bad cache may end it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_bytes import add_profile, load, short  # noqa: E402

LIMIT_S = 300.0
UUID_BYTES = 16
# TensorRT's tag at the beginning of a cache, told by the first bytes of one that it made
HEADER_BYTES = 64


def main() -> int:
    """Make a cache, then try every case with it."""
    if sys.argv[1:] == ["--child"]:
        return child()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--foreign", type=Path, help="a cache from another machine")
    parser.add_argument("--seconds", type=float, default=420.0, help="begin no case after so long")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + arguments.seconds
    first, good = attempt(arguments.model, "no cache", b"", {})
    (arguments.out / "timing.cache").write_bytes(good)
    results = [first]
    foreign = arguments.foreign.read_bytes() if arguments.foreign else None
    for name, content, settings in cases(good, bytes.fromhex(first.get("uuid", "")), foreign) if good else []:
        if time.monotonic() > deadline:
            results.append({"case": name, "failed": "no time left"})
            continue
        results.append(attempt(arguments.model, name, content, settings)[0])
        print(row(results[-1]), flush=True)
        (arguments.out / "refusals.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    lines = ["| cache | given | taken | build | left | TensorRT says |", "|---|---|---|---|---|---|"]
    (arguments.out / "refusals.md").write_text("\n".join([*lines, *map(row, results)]) + "\n", encoding="utf-8")
    return 0


def cases(good: bytes, uuid: bytes, foreign: bytes | None) -> list[tuple[str, bytes, dict[str, Any]]]:
    """List what to hand over, the questions that matter most first."""
    size = len(good)
    listed: list[tuple[str, bytes, dict[str, Any]]] = [("as it was left", good, {})]
    if uuid and uuid in good:
        other = good.replace(uuid, bytes(byte ^ 0x5A for byte in uuid))
        listed += [("another GPU's UUID", other, {}), ("the same, mismatch ignored", other, {"ignore": True})]
    if foreign is not None:
        listed += [("of another machine", foreign, {}), ("the same, mismatch ignored", foreign, {"ignore": True})]
    listed += [(f"cut at {share} %", good[: size * share // 100], {}) for share in (99, 90, 50, 10)]
    listed += [(f"a bit flipped at {share} %", flipped(good, size * share // 100), {}) for share in (0, 1, 25, 60, 95)]
    listed += [
        ("with a tail", good + bytes(100), {}),
        ("not a cache", b"not a cache" * 10, {}),
        ("combined with itself", good, {"twice": True}),
        ("all libraries loaded at once", good, {"eager": True}),
        ("other optimisation level", good, {"level": 2}),
        ("read in an FP32 build", good, {"half": False}),
    ]
    return listed


def flipped(content: bytes, at: int) -> bytes:
    """Return a copy with one bit changed."""
    at = min(at, len(content) - 1)
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def attempt(model: Path, name: str, cache: bytes, settings: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Build with a cache in a process of its own; return what came of it and the cache that was left."""
    folder = Path(tempfile.gettempdir()) / "gpu-cache-refusals"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(model, folder / "model.onnx")
    (folder / "cache.in").write_bytes(cache)
    (folder / "settings.json").write_text(json.dumps({"stem": model.stem, **settings}), encoding="utf-8")
    env = {**os.environ, "CUDA_MODULE_LOADING": "EAGER" if settings.get("eager") else "LAZY"}
    result: dict[str, Any] = {"case": name, "given": short(cache), "settings": settings}
    argv = [sys.executable, str(Path(__file__).resolve()), "--child"]
    try:
        done = subprocess.run(argv, cwd=folder, env=env, timeout=LIMIT_S, capture_output=True, text=True, check=False)
        if done.returncode:
            result["failed"] = f"exit code {done.returncode}: {done.stderr[-800:]}"
    except subprocess.TimeoutExpired:
        result["failed"] = f"still running after {LIMIT_S:.0f} s"
    facts, left = folder / "facts.json", folder / "cache.out"
    if facts.is_file():
        result.update(json.loads(facts.read_text(encoding="utf-8")))
    return result, left.read_bytes() if left.is_file() else b""


class Facts:
    """What is known so far: written to a file after each step, should one end the process."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {"messages": []}

    def note(self, **more: Any) -> None:
        """Write down more."""
        self.known.update(more)
        Path("facts.json").write_text(json.dumps(self.known), encoding="utf-8")


def child() -> int:
    """Build once, in this process."""
    settings = json.loads(Path("settings.json").read_text(encoding="utf-8"))
    trt, facts = load(), Facts()
    facts.note(uuid=gpu_uuid().hex())
    logger = make_logger(trt, facts)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path("model.onnx").read_bytes()):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.get("half", True):
        config.set_flag(trt.BuilderFlag.FP16)
    if "level" in settings:
        config.builder_optimization_level = settings["level"]
    add_profile(builder, config, network, settings["stem"])
    hand_over(config, settings, facts)
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    facts.note(step="end", built=engine is not None, seconds=round(time.monotonic() - started, 2))
    final = config.get_timing_cache()
    if final is not None:
        left = bytes(final.serialize())
        Path("cache.out").write_bytes(left)
        facts.note(left=short(left), header=left[:HEADER_BYTES].hex())
    return 0


def hand_over(config: Any, settings: dict[str, Any], facts: Facts) -> None:
    """Give the builder the cache as the case wants it."""
    content = Path("cache.in").read_bytes()
    facts.note(step="create")
    cache = config.create_timing_cache(content)
    facts.note(step="set", created=cache is not None)
    if cache is None:
        return
    if settings.get("twice"):
        facts.note(combined=bool(cache.combine(config.create_timing_cache(content), False)))
    facts.note(loaded=short(bytes(cache.serialize())))
    facts.note(step="build", taken=bool(config.set_timing_cache(cache, bool(settings.get("ignore")))))


def make_logger(trt: Any, facts: Facts) -> Any:
    """Keep errors, and all that is said of caches."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            wanted = "cache" in message.lower() or "myelin error" in message.lower()
            if int(severity) <= 1 or wanted:
                facts.known["messages"].append(f"{int(severity)}: {message}")

    return Logger()


def gpu_uuid() -> bytes:
    """Ask the driver for the UUID of the first GPU."""
    cuda, raw = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(UUID_BYTES)
    device = ctypes.c_int()
    cuda.cuInit(0)
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetUuid(raw, device)
    return raw.raw


def row(result: dict[str, Any]) -> str:
    """Write one case as a row."""
    said = "<br>".join(message.replace("|", "/")[:200] for message in result.get("messages", [])[:4])
    built = f"{result['seconds']} s" if result.get("built") else result.get("failed", "no engine").splitlines()[-1][:80]
    taken = result.get("taken", f"stopped at {result.get('step', 'the start')}")
    return f"| {result['case']} | {result.get('given')} | {taken} | {built} | {result.get('left')} | {said} |"


if __name__ == "__main__":
    sys.exit(main())
