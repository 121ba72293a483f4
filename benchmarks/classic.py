"""Proves classic TensorRT on this machine's GPUs: builds, verifies, rebuilds and times the recipes' engines.

Usage: python benchmarks/classic.py OUT [--deadline SECONDS] [--baseline-python PYTHON] [--step NAME]...

Everything goes through the command `enginefarm`, as a user would run it; ENGINEFARM_HOME, ENGINEFARM_EXECUTOR and, for
unpacked images, ENGINEFARM_ROOTFS say where. OUT gets classic.json, which grows step by step, classic.md and the logs.
A step that would start after the deadline is left out and named. `--crowd N` lets N rebuilds share a GPU: sealed, they
time nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
STACK, LOCK = "trt8.6-cuda12.0", "8.6.0"
RECIPES = ("vocos-decoder", "transformer-block", "resnet18", "ppocrv4-cls", "ppocrv4-rec", "ppocrv4-det")
COMPATIBLE = ("vocos-decoder", "resnet18")
REBUILDS = 3


class Proof:
    """The state of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.out: Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        self.started = time.monotonic()
        self.found: dict[str, Any] = {"date": datetime.now(tz=timezone.utc).date().isoformat(), "left_out": []}

    def farm(self, *arguments: str, log: str, variables: Mapping[str, str] | None = None) -> Any:
        """Run `enginefarm`, keep what it says, and return the JSON that it prints; null where it prints none."""
        command = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())", *arguments]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PYTHONPATH": path, **(variables or {})}
        started = time.monotonic()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=self.left())
        seconds = time.monotonic() - started
        ending = f"exit {done.returncode}, {seconds:.1f} s"
        text = f"$ enginefarm {' '.join(arguments)}\n{done.stdout}\n{done.stderr}\n{ending}\n"
        with (self.out / f"{log}.log").open("a", encoding="utf-8") as file:
            file.write(text)
        print(f"{log}: enginefarm {' '.join(arguments[:3])}: {ending}", flush=True)
        if done.returncode:
            print(done.stderr[-1500:], flush=True)
        try:
            return json.loads(done.stdout)
        except ValueError:
            return None

    def left(self) -> float:
        """Seconds until the deadline."""
        return max(1.0, float(self.arguments.deadline) - (time.monotonic() - self.started))

    def step(self, name: str, work: Callable[[], Any]) -> None:
        """Do one step and keep what it found."""
        if self.arguments.step and name not in self.arguments.step:
            return
        if self.left() < self.arguments.least:
            self.found["left_out"].append(name)
            return
        started = time.monotonic()
        try:
            self.found[name] = work()
        except subprocess.TimeoutExpired:
            self.found["left_out"].append(f"{name} (stopped at the deadline)")
        self.found.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        (self.out / "classic.json").write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def select(self, recipes: tuple[str, ...]) -> list[str]:
        """Return the options that choose the recipes on this stack and GPU."""
        chosen = ["--stack", STACK, "--lock", LOCK, "--target", self.arguments.target]
        for recipe in recipes:
            chosen += ["--recipe", recipe]
        return chosen

    def build(self) -> Any:
        """Build all engines with an empty timing cache."""
        return self.farm(
            "build", *self.select(self.arguments.recipes), "-j", self.arguments.jobs, "--json", log="build"
        )

    def compatible(self) -> Any:
        """Build engines for every GPU from Ampere on."""
        chosen = [*self.select(COMPATIBLE), "--precision", "fp16", "--compat", "ampere_plus"]
        return self.farm("build", *chosen, "-j", self.arguments.jobs, "--json", log="compatible")

    def built(self) -> list[str]:
        """List the engines of the store by job id, as far as they are asked for."""
        jobs = sorted({item["job"] for item in self.farm("ls", "--json", log="ls") or []})
        asked = self.arguments.job
        return [job for job in jobs if not asked or any(fnmatchcase(job, pattern) for pattern in asked)]

    def reproduce(self) -> Any:
        """Rebuild each engine from its timing cache and say how far it is the same."""
        crowd = self.arguments.crowd

        def one(job: str) -> Any:
            with tempfile.TemporaryDirectory() as leases:
                # rebuilds that share a GPU must not wait for one another's lease
                variables = {"ENGINEFARM_GPU_LOCKS": leases} if crowd > 1 else {}
                arguments = ("reproduce", job, "--rebuilds", str(REBUILDS), "--json")
                return self.farm(*arguments, log=f"reproduce-{job}", variables=variables)

        with ThreadPoolExecutor(crowd if crowd > 1 else int(self.arguments.jobs)) as pool:
            jobs = self.built()
            return dict(zip(jobs, pool.map(one, jobs), strict=True))

    def bench(self) -> Any:
        """Time each engine against the baselines."""
        extra = ["--baseline-python", self.arguments.baseline_python] if self.arguments.baseline_python else []

        def one(job: str) -> Any:
            return self.farm("bench", job, *extra, "--json", log=f"bench-{job}")

        with ThreadPoolExecutor(int(self.arguments.jobs)) as pool:
            jobs = self.built()
            return dict(zip(jobs, pool.map(one, jobs), strict=True))

    def bad_input(self) -> Any:
        """Run the tests on the GPU."""
        command = [sys.executable, "-m", "pytest", "tests/gpu", "--run-gpu", "-q", "--no-header", "-rA"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=self.left())
        (self.out / "tests.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        lines = done.stdout.splitlines()
        print("\n".join(lines[-25:]), flush=True)
        return {
            "exit": done.returncode,
            "tests": [line for line in lines if line.startswith(("PASSED", "FAILED", "SKIPPED"))],
        }


def main() -> int:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--deadline", type=float, default=3600.0, help="seconds after which no step begins")
    parser.add_argument("--least", type=float, default=20.0, help="seconds that a step needs at least")
    parser.add_argument("--baseline-python", default="")
    parser.add_argument("--target", default="hopper")
    parser.add_argument("--jobs", default="1", help="jobs at once: as many as there are GPUs")
    parser.add_argument("--crowd", type=int, default=1, help="rebuilds that share a GPU")
    parser.add_argument("--job", action="append", default=[], help="rebuild and time only jobs like this glob")
    parser.add_argument("--recipe", dest="recipes", action="append")
    parser.add_argument("--step", action="append", default=[])
    arguments = parser.parse_args()
    arguments.recipes = tuple(arguments.recipes or RECIPES)
    proof = Proof(arguments)
    proof.step("doctor", lambda: proof.farm("doctor", "--json", log="doctor"))
    proof.step("build", proof.build)
    proof.step("compatible", proof.compatible)
    proof.step("bench", proof.bench)
    proof.step("reproduce", proof.reproduce)
    proof.step("tests", proof.bad_input)
    return 0


if __name__ == "__main__":
    sys.exit(main())
