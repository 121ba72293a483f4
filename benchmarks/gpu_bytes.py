"""Builds engines again and again from one timing cache and says where, and why, their bytes differ. Needs a GPU.

Usage, inside the image of a classic stack: python3 gpu_bytes.py MODELS OUT [--seconds N] [--only NAME,...]. MODELS
holds ONNX files, OUT (a folder) gets bytes.json and bytes.md. Every build is a process of its own with the same
command line, environment, folder and file names. One variant changes one thing:

cold     no timing cache; its cache is the one that all others read
plain    as any program would build
fixed    addresses not randomised, hashes of Python not either
perturb  fixed, and malloc fills what it hands out and takes back with another byte each time
single   fixed, on one processor, one heap, with the worker's settings of malloc
turns    what the worker does for TensorRT-RTX: fixed addresses although the kernel randomises, threads taking turns
no-jit   fixed, without the tactics that are compiled while building
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.byte_causes import Build, explain  # noqa: E402

NO_RANDOM_ADDRESSES = 0x0040000
STACK_BYTES = 8 << 20
BUILD_LIMIT_S = 400.0
# min, opt and max of dynamic axes, by the beginning of the file's name; -1 elsewhere becomes 1, 4, 8
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "ppocrv4-cls": [(1, 3, 48, 192), (4, 3, 48, 192), (8, 3, 48, 192)],
    "ppocrv4-det": [(1, 3, 160, 160), (1, 3, 320, 320), (1, 3, 640, 640)],
    "ppocrv4-rec": [(1, 3, 48, 160), (2, 3, 48, 320), (4, 3, 48, 640)],
    "vocos-decoder": [(1, 100, 64), (1, 100, 256), (1, 100, 512)],
}
KEPT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PYTHONDONTWRITEBYTECODE",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)


class Variant(NamedTuple):
    """One way to build. `perturb`: malloc's filling, one per build in turn."""

    name: str
    times: int
    cold: bool = False
    fixed: bool = True
    single: bool = False
    turns: bool = False
    jit: bool = True
    perturb: tuple[int, ...] = ()


VARIANTS = (
    Variant("cold", 1, cold=True, fixed=False),
    Variant("plain", 2, fixed=False),
    Variant("fixed", 3),
    Variant("perturb", 2, perturb=(0x55, 0x2A)),
    Variant("turns", 3, fixed=False, turns=True),
    Variant("single", 2, single=True),
    Variant("no-jit", 2, jit=False),
)


def main() -> int:
    """Build all variants of all models while there is time, and write what was found."""
    if sys.argv[1:] == ["--child"]:
        return child()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no build after so long")
    parser.add_argument("--only", default="", help="variants, separated by commas; cold is always among them")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    wanted = set(filter(None, arguments.only.split(",")))
    variants = [one for one in VARIANTS if not wanted or one.name in wanted or one.cold]
    deadline, found = time.monotonic() + arguments.seconds, []
    for model in sorted(arguments.models.glob("*.onnx"), key=lambda path: path.stat().st_size):
        found.append(try_model(model, variants, deadline))
        (arguments.out / "bytes.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (arguments.out / "bytes.md").write_text("\n".join(as_text(found)) + "\n", encoding="utf-8")
    print("\n".join(as_text(found)))
    return 0


def try_model(model: Path, variants: list[Variant], deadline: float) -> dict[str, Any]:
    """Build one model in every variant and compare builds that follow one another."""
    result: dict[str, Any] = {"model": model.stem, "builds": [], "pairs": []}
    cache = b""
    cold: Build | None = None
    for variant in variants:
        last: Build | None = None
        for index in range(variant.times):
            if time.monotonic() > deadline:
                result["builds"].append({"variant": variant.name, "failed": "no time left"})
                break
            facts, engine, left = build_apart(model, variant, index, cache)
            result["builds"].append({"variant": variant.name, **facts})
            print(line_of(model.stem, result["builds"][-1]), flush=True)
            if engine is None:
                break
            cache = left if variant.cold else cache
            now = as_build(engine, facts)
            cold = now if variant.cold else cold
            if variant.name == "plain" and index == 0 and cold is not None:
                # does an engine come out of its own cache again?
                result["pairs"].append({"variant": "cold and plain", "builds": [0, 0], **explain(cold, now)})
            if last is not None:
                result["pairs"].append({"variant": variant.name, "builds": [index - 1, index], **explain(last, now)})
            last = now
        for one in result["builds"]:
            one.pop("maps", None)
    return result


def build_apart(model: Path, variant: Variant, index: int, cache: bytes) -> tuple[dict[str, Any], bytes | None, bytes]:
    """Build in a process of its own; return facts, the engine and the timing cache it left."""
    folder = Path(tempfile.gettempdir()) / "gpu-bytes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copyfile(model, folder / "model.onnx")
    (folder / "cache.in").write_bytes(b"" if variant.cold else cache)
    settings = {"stem": model.stem, "turns": variant.turns, "jit": variant.jit}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    started = time.time()
    try:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--child"],
            cwd=folder,
            env=environment(variant, index),
            preexec_fn=lambda: settle(variant),
            timeout=BUILD_LIMIT_S,
            capture_output=True,
            text=True,
            check=False,
        )
        failed = "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
        failed = f"still running after {BUILD_LIMIT_S:.0f} s"
    facts: dict[str, Any] = {"index": index, "started": started, "ended": time.time(), "failed": failed}
    facts["perturb"] = variant.perturb[index % len(variant.perturb)] if variant.perturb else None
    if failed:
        return facts, None, b""
    facts.update(json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    return facts, (folder / "engine.plan").read_bytes(), (folder / "cache.out").read_bytes()


def environment(variant: Variant, index: int) -> dict[str, str]:
    """Return the environment of a build: the same for all builds of a variant, but for what the variant changes."""
    env = {name: os.environ[name] for name in KEPT if name in os.environ}
    env.update(HOME="/tmp", CUDA_MODULE_LOADING="LAZY")  # noqa: S108  # the same place for every build
    if variant.fixed or variant.turns:
        env["PYTHONHASHSEED"] = "0"
    if variant.perturb:
        # of one length: what the stack holds must not move
        env["MALLOC_PERTURB_"] = f"{variant.perturb[index % len(variant.perturb)]:03}"
    if variant.single or variant.turns:
        env.update(importlib.import_module("builder.worker.addresses").ENVIRONMENT)
    if variant.single:
        env["MALLOC_ARENA_MAX"] = "1"
    return env


def settle(variant: Variant) -> None:
    """Settle the process that is about to become a build."""
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
    if variant.fixed:
        ctypes.CDLL(None).personality(NO_RANDOM_ADDRESSES)
    if variant.single:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def child() -> int:
    """Build once, in this process, from the files of the working folder."""
    settings = json.loads(Path("settings.json").read_text(encoding="utf-8"))
    facts: dict[str, Any] = {"pid": os.getpid(), "personality": ctypes.CDLL(None).personality(0xFFFFFFFF)}
    if settings["turns"]:
        addresses = importlib.import_module("builder.worker.addresses")
        facts["turns"] = importlib.import_module("builder.worker.turns").take_turns()
        trt = load()
        open_gpu()
        facts["line"] = addresses.draw_line(addresses.HEAP_BELOW)
        addresses.in_fresh_heap(build, trt, settings, facts)
    else:
        build(load(), settings, facts)
    facts["pids"] = sorted({os.getpid(), *(int(name) for name in os.listdir("/proc/self/task"))})
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line.split(maxsplit=5) for line in maps]
    facts["maps"] = [[*(int(part, 16) for part in line[0].split("-")), "".join(line[5:]).strip()] for line in lines]
    Path("facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return 0


def load() -> Any:
    """Import TensorRT."""
    return importlib.import_module("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_bindings")


def open_gpu() -> None:
    """Let the driver take its share of the address space."""
    cuda = ctypes.CDLL("libcuda.so.1")
    context = ctypes.c_void_p()
    cuda.cuInit(0)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    cuda.cuCtxSetCurrent(context)


def build(trt: Any, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    """Build model.onnx with cache.in into engine.plan and cache.out."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path("model.onnx").read_bytes()):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.FP16)
    if not settings["jit"]:
        # the mask that TensorRT starts with, less the tactics compiled while building
        config.set_tactic_sources(config.get_tactic_sources() & ~(1 << int(trt.TacticSource.JIT_CONVOLUTIONS)))
    add_profile(builder, config, network, settings["stem"])
    content = Path("cache.in").read_bytes()
    cache = config.create_timing_cache(content)
    facts["cache_accepted"] = bool(config.set_timing_cache(cache, False))
    loaded = bytes(cache.serialize())
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    facts["seconds"] = round(time.monotonic() - started, 3)
    if engine is None:
        raise RuntimeError("no engine")
    left = bytes(config.get_timing_cache().serialize())
    Path("engine.plan").write_bytes(engine)
    Path("cache.out").write_bytes(left)
    facts["cache"] = {name: short(data) for name, data in (("file", content), ("loaded", loaded), ("left", left))}
    facts["engine"] = short(bytes(engine))


def add_profile(builder: Any, config: Any, network: Any, stem: str) -> None:
    """Give dynamic inputs a shape profile."""
    profile, dynamic = builder.create_optimization_profile(), False
    known = next((shapes for name, shapes in SHAPES.items() if stem.startswith(name)), None)
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        if -1 in tuple(tensor.shape):
            filled = [tuple(size if axis < 0 else axis for axis in tensor.shape) for size in (1, 4, 8)]
            profile.set_shape(tensor.name, *(known or filled))
            dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)


def short(content: bytes) -> list[Any]:
    """Return size and the first digits of the digest."""
    return [len(content), hashlib.sha256(content).hexdigest()[:12]]


def as_build(engine: bytes, facts: dict[str, Any]) -> Build:
    """Return what the comparison wants to know."""
    maps = [(start, end, name) for start, end, name in facts["maps"]]
    return Build(engine, maps, facts["pids"], facts["started"], facts["ended"], facts["perturb"])


def line_of(model: str, build: dict[str, Any]) -> str:
    """Say how one build went."""
    if build["failed"]:
        return f"{model} {build['variant']}: {build['failed'].splitlines()[-1]}"
    return f"{model} {build['variant']} {build['index']}: {build['seconds']} s, {build['engine']}, {build['cache']}"


def as_text(found: list[dict[str, Any]]) -> list[str]:
    """Write the result as Markdown."""
    lines = ["# Why engines of one timing cache differ", ""]
    for result in found:
        lines += [
            f"## {result['model']}",
            "",
            "| variant | builds | same | bytes | places | causes |",
            "|---|---|---|---:|---:|---|",
        ]
        for pair in result["pairs"]:
            causes = ", ".join(f"{name}: {entry['places']}" for name, entry in pair.get("causes", {}).items())
            same = "yes" if pair["same"] else "no" if "bytes" in pair else f"sizes {pair['sizes']}"
            cells = [
                pair["variant"],
                f"{pair['builds']}",
                same,
                f"{pair.get('bytes', '')}",
                f"{pair.get('places', '')}",
            ]
            lines.append(f"| {' | '.join(cells)} | {causes} |")
        lines += ["", *(f"- {line_of(result['model'], one)}" for one in result["builds"]), ""]
        for pair in {pair["variant"]: pair for pair in reversed(result["pairs"])}.values():
            lines += ["", f"### {pair['variant']}", ""]
            for sample in pair.get("samples", []):
                part = f"{sample['section']} of GPU code" if sample["elf"] else "outside GPU code"
                lines += [f"- {sample['offset']}+{sample['length']}, {sample['cause']}, {part}: {sample['values']}"]
                lines += [f"  `{text}`" for text in sample["ascii"]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
