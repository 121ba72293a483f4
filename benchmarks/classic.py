"""Proves classic TensorRT on this machine's GPUs: builds, verifies, rebuilds and times the recipes' engines.

Usage: python benchmarks/classic.py OUT [--deadline SECONDS] [--baseline-python PYTHON] [--caches FOLDER]

Everything goes through the command `enginefarm`, as a user would run it; ENGINEFARM_HOME, ENGINEFARM_EXECUTOR and, for
unpacked images, ENGINEFARM_ROOTFS say where. Each GPU does one thing at a time, in the order of `Proof.all_tasks`.
Rebuilds are sealed and time nothing: some run beside builds, never beside tests and timing. OUT gets classic.json,
classic.md, runtime.json, the logs, the engines' manifests and all timing caches, which a later run takes with --caches.
What the deadline leaves no time for is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
STACK, LOCK = "trt8.6-cuda12.0", "8.6.0"
SUFFIX = f"{STACK}-sm90"
# recipe, precision, compatibility. The longest first; and two that the runtime is proven with
FIRST = (
    ("ppocrv4-rec", "fp16", ""),
    ("ppocrv4-rec", "tf32", ""),
    ("ppocrv4-rec", "fp32", ""),
    ("vocos-decoder", "fp16", ""),
    ("resnet18", "fp16", ""),
)
NEXT = (
    ("ppocrv4-det", "fp16", ""),
    ("ppocrv4-cls", "fp16", ""),
    ("ppocrv4-cls", "tf32", ""),
    ("ppocrv4-cls", "fp32", ""),
    ("vocos-decoder", "fp16", "ampere_plus"),
    ("resnet18", "int8", ""),
    ("resnet18", "fp16", "ampere_plus"),
    ("transformer-block", "fp16", ""),
    ("vocos-decoder", "tf32", ""),
    ("vocos-decoder", "fp32", ""),
    ("resnet18", "tf32", ""),
    ("resnet18", "fp32", ""),
    ("transformer-block", "tf32", ""),
    ("transformer-block", "fp32", ""),
)
LAST = (
    ("ppocrv4-det", "tf32", ""),
    ("ppocrv4-det", "fp32", ""),
)
REBUILDS, BESIDE = 3, 6
RUNTIME = {("vocos-decoder", "fp16"), ("resnet18", "fp16")}
ROOTFS = "ENGINEFARM_ROOTFS"
# a task that has less time is not begun
LEAST_S = 15.0
BENCH_LIMIT_S = 240.0
RUNTIME_LIMIT_S = 240.0


class Task(NamedTuple):
    """Something that one GPU does."""

    name: str
    work: Callable[[str], None]
    # nothing else may use the GPU meanwhile
    alone: bool = False


class Proof:
    """The state of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.lock = threading.Lock()
        self.tasks: list[Task] = []
        # who uses which GPU: rebuilds keep away from what must be alone
        self.turns = threading.Condition()
        self.alone: set[str] = set()
        self.beside = dict.fromkeys(gpus(), 0)
        self.rebuilding: list[Future[None]] = []
        self.pool = ThreadPoolExecutor(BESIDE)
        self.found: dict[str, Any] = {
            "date": datetime.now(tz=timezone.utc).date().isoformat(),
            "engines": {},
            "rebuilds": {},
            "bench": {},
            "left_out": [],
            "seconds": {},
        }

    def left(self) -> float:
        """Seconds until the deadline."""
        return float(self.arguments.deadline) - (time.monotonic() - self.started)

    def say(self, text: str) -> None:
        """Print one line with the seconds since the start."""
        with self.lock:
            print(f"{time.monotonic() - self.started:6.0f} {text}", flush=True)

    def run(self, name: str, argv: list[str], limit: float | None = None, **variables: str) -> str | None:
        """Run a program within the time that is left and keep what it says; null where it was left out or stopped."""
        left = self.left()
        if left < LEAST_S:
            self.leave_out(name, "no time left")
            return None
        started, log = time.monotonic(), self.out / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, **variables}
        with log.open("w", encoding="utf-8") as errors:
            try:
                done = subprocess.run(
                    argv,
                    cwd=ROOT,
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    check=False,
                    timeout=min(left, limit or left),
                )
            except subprocess.TimeoutExpired:
                self.leave_out(name, f"stopped after {time.monotonic() - started:.0f} s")
                return None
        seconds = round(time.monotonic() - started, 1)
        with self.lock:
            self.found["seconds"][name] = seconds
        self.say(f"{name}: exit {done.returncode}, {seconds} s")
        if done.returncode:
            self.say(log.read_text(encoding="utf-8")[-800:])
        return done.stdout

    def farm(self, name: str, *arguments: str, limit: float | None = None, **variables: str) -> Any:
        """Run `enginefarm` and return the JSON that it prints; null where it prints none."""
        command = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())", *arguments]
        printed = self.run(name, command, limit, **variables)
        try:
            return json.loads(printed or "")
        except ValueError:
            return None

    def leave_out(self, name: str, why: str) -> None:
        """Note what was not done."""
        self.say(f"{name}: {why}")
        with self.lock:
            self.found["left_out"].append(f"{name}: {why}")

    def build(self, recipe: str, precision: str, compatibility: str) -> Task:
        """Build one engine; its rebuilds begin as soon as it is there."""
        name = "-".join(filter(None, ("build", recipe, precision, compatibility)))
        chosen = ["--stack", STACK, "--lock", LOCK, "--target", self.arguments.target, "--recipe", recipe]
        chosen += ["--precision", precision, *(["--compat", compatibility] if compatibility else [])]

        def work(gpu: str) -> None:
            report = self.farm(name, "build", *chosen, "-j1", "--json", CUDA_VISIBLE_DEVICES=gpu)
            for job in (report or {}).get("jobs", []):
                with self.lock:
                    self.found["engines"][job["job"]] = job
                if job["status"] in ("built", "reused", "proved") and matches(job["job"], self.arguments.rebuild):
                    self.rebuilding.append(self.pool.submit(self.rebuild, job["job"]))
            self.write()

        return Task(name, work)

    def rebuild(self, job: str) -> None:
        """Rebuild an engine and say how far it is the same."""
        with tempfile.TemporaryDirectory() as leases, self.shared() as gpu:
            # it must not wait for the build that has the GPU
            arguments = ("reproduce", job, "--rebuilds", str(REBUILDS), "--json")
            name = f"reproduce-{job}"
            report = self.farm(name, *arguments, ENGINEFARM_GPU_LOCKS=leases, CUDA_VISIBLE_DEVICES=gpu)
        if report is not None:
            self.say(f"{job}: {report['level']}")
            with self.lock:
                self.found["rebuilds"][job] = report

    @contextmanager
    def shared(self) -> Iterator[str]:
        """Wait for a GPU that nobody needs alone."""
        with self.turns:
            self.turns.wait_for(lambda: any(gpu not in self.alone for gpu in self.beside))
            gpu = min((one for one in self.beside if one not in self.alone), key=lambda one: self.beside[one])
            self.beside[gpu] += 1
        try:
            yield gpu
        finally:
            with self.turns:
                self.beside[gpu] -= 1
                self.turns.notify_all()

    @contextmanager
    def exclusive(self, gpu: str) -> Iterator[None]:
        """Let no further rebuild begin on a GPU and wait for those that have."""
        with self.turns:
            self.alone.add(gpu)
            self.turns.wait_for(lambda: not self.beside[gpu])
        try:
            yield
        finally:
            with self.turns:
                self.alone.remove(gpu)
                self.turns.notify_all()

    def bench(self, job: str) -> Task:
        """Time an engine against the baselines."""
        python = self.arguments.baseline_python
        extra = ["--baseline-python", python] if python else []

        def work(gpu: str) -> None:
            name = f"bench-{job}"
            report = self.farm(name, "bench", job, *extra, "--json", limit=BENCH_LIMIT_S, CUDA_VISIBLE_DEVICES=gpu)
            if report is not None and "bench" in report:
                with self.lock:
                    self.found["bench"][job] = report["bench"]
            self.write()

        return Task(f"bench-{job}", work, alone=True)

    def runtime(self) -> Task:
        """Prove `builder.runtime` with two engines, inside the image."""

        def work(gpu: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                names = [f"{recipe}-{precision}-{SUFFIX}" for recipe, precision in sorted(RUNTIME)]
                self.farm("export", "export", folder, "--json", *(part for name in names for part in ("--name", name)))
                argv = [sys.executable, str(ROOT / "benchmarks" / "in_image.py"), STACK]
                argv += ["--read", f"{folder}:/in", "--write", f"{self.out}:/out"]
                argv += ["--", "python3", "/opt/enginefarm/src/benchmarks/runtime.py", "/in", "/out"]
                printed = self.run("runtime", argv, RUNTIME_LIMIT_S, CUDA_VISIBLE_DEVICES=gpu)
            self.say(printed or "")

        return Task("runtime", work, alone=True)

    def tests(self) -> Task:
        """Run the tests of bad input."""

        def work(gpu: str) -> None:
            options = ["--run-gpu", "-v", "--no-header", "-p", "no:cacheprovider"]
            argv = [sys.executable, "-m", "pytest", "tests/gpu", *options]
            printed = self.run("tests", argv, CUDA_VISIBLE_DEVICES=gpu) or ""
            words = ("PASSED", "FAILED", "SKIPPED", "ERROR")
            lines = [line for line in printed.splitlines() if any(word in line for word in words)]
            (self.out / "tests.log").write_text(printed, encoding="utf-8")
            self.say("\n".join(lines))
            with self.lock:
                self.found["tests"] = lines

        return Task("tests", work, alone=True)

    def serve(self, gpu: str) -> None:
        """Do one task after the other on one GPU."""
        while True:
            with self.lock:
                task = self.tasks.pop(0) if self.tasks else None
            if task is None:
                return
            try:
                with self.exclusive(gpu) if task.alone else nullcontext():
                    task.work(gpu)
            except Exception as error:  # noqa: BLE001  # one task must not end the others
                self.leave_out(task.name, repr(error))

    def all_tasks(self) -> list[Task]:
        """List what is to be done: what shows the most comes first, what people use least last."""
        first, following, last = (
            [one for one in builds if matches(f"build-{one[0]}-{one[1]}", self.arguments.only)]
            for builds in (FIRST, NEXT, LAST)
        )
        # without unpacked images there is nothing to enter
        runtime = [self.runtime()] if ROOTFS in os.environ and {one[:2] for one in first} >= RUNTIME else []
        return [
            *(self.build(*one) for one in first),
            *runtime,
            self.tests(),
            *(self.build(*one) for one in following),
            *(self.bench(job) for job in fastest([*first, *following])),
            *(self.build(*one) for one in last),
            *(self.bench(job) for job in fastest(last)),
        ]

    def write(self) -> None:
        """Write what is known so far."""
        with self.lock:
            text = json.dumps(self.found, indent=1) + "\n"
            (self.out / "classic.json").write_text(text, encoding="utf-8")
            (self.out / "classic.md").write_text("\n".join(as_text(self.found)) + "\n", encoding="utf-8")

    def keep(self) -> None:
        """Keep the timing caches and manifests, which outlast the machine."""
        self.arguments.deadline += 60.0
        self.farm("caches", "caches", "export-all", str(self.out / "caches"))
        folder = self.out / "manifests"
        folder.mkdir(exist_ok=True)
        for job in self.found["engines"]:
            shown = self.farm(f"show-{job}", "show", job, "--json")
            (folder / f"{job}.json").write_text(json.dumps(shown, indent=1), encoding="utf-8")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Say whether something was asked for; everything is where there are no patterns."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def fastest(builds: Sequence[tuple[str, str, str]]) -> list[str]:
    """Name the engines that are timed, in precisions that people use first."""
    order = ("fp16", "int8", "fp32", "tf32")
    chosen = sorted((one for one in builds if not one[2]), key=lambda one: order.index(one[1]))
    return [f"{recipe}-{precision}-{SUFFIX}" for recipe, precision, _ in chosen]


def as_text(found: Mapping[str, Any]) -> list[str]:
    """Write the result as Markdown."""
    lines = [
        "| engine | size | worst error | build stage, cold | warm | level | graph | engine | compile | eager |",
        "|---|---:|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for job, report in found["engines"].items():
        engine, worst = report.get("engine"), None
        if engine is None:
            lines.append(f"| {job} | {report['status']}: {(report.get('error') or {}).get('code')} |")
            continue
        worst = engine["proof"]["worst"] or {}
        rebuilds = found["rebuilds"].get(job, {})
        warm = [one["build_seconds"] for one in rebuilds.get("measured", [])]
        times = medians(found["bench"].get(job))
        cells = [
            job,
            f"{engine['bytes'] / 1e6:.1f} MB",
            f"{worst.get('metric')} {worst.get('value', 0):.2g} (limit {worst.get('limit', 0):g})",
            f"{report.get('stage_seconds', {}).get('build', 0):.0f} s",
            f"{min(warm):.0f} to {max(warm):.0f} s" if warm else "",
            rebuilds.get("level", ""),
            *(times.get(name, "") for name in ("engine (graph)", "engine", "compile-cuda", "eager-cuda")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", *(f"- not done: {text}" for text in found["left_out"])]


def medians(bench: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the wall times of the first case by what was timed, with a mark where they are noise."""
    if not bench or not bench["cases"]:
        return {}
    return {
        one["name"]: f"{one['wall']['median_ms']:.3f} ms{' (noise)' if one['noise'] else ''}"
        for one in bench["cases"][0]["timings"]
    }


def gpus() -> list[str]:
    """Name the GPUs that this process may use."""
    sys.path.insert(0, str(ROOT))
    from builder.gpu import visible_gpus

    return [gpu.uuid for gpu in visible_gpus(os.environ)]


def main() -> int:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds after which all is over")
    parser.add_argument("--baseline-python", default="")
    parser.add_argument("--target", default="hopper")
    parser.add_argument("--caches", type=Path, help="timing caches of an earlier run")
    parser.add_argument("--only", action="append", default=[], help="build-RECIPE-PRECISION; globs; may be repeated")
    parser.add_argument("--rebuild", action="append", default=[], help="jobs to rebuild; globs; all unless given")
    proof = Proof(parser.parse_args())
    if proof.arguments.caches is not None:
        proof.farm("caches-import", "caches", "import", str(proof.arguments.caches))
    proof.tasks = proof.all_tasks()
    workers = [threading.Thread(target=proof.serve, args=(gpu,)) for gpu in gpus()]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one in proof.rebuilding:
        one.result()
    proof.keep()
    proof.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
