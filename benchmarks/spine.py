"""Measures the farm against yardsticks, side by side in one run, and writes a Markdown table.

Usage: python benchmarks/spine.py [--quick] [--out FILE]. Uses a home of its own; nothing of yours is touched.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
MODELS = ("ppocrv4-det", "ppocrv4-rec", "ppocrv4-cls", "vocos-decoder")
STAGES = ("lower", "build", "examine")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    yardstick: str
    wanted: str


class Farm:
    """Runs the command in a home of the benchmark's own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str, cwd: Path = ROOT) -> tuple[float, str]:
        """Run `enginefarm`; return wall seconds and standard output."""
        return timed(
            [str(BIN / "enginefarm"), *arguments],
            cwd,
            {"ENGINEFARM_HOME": str(self.home), "ENGINEFARM_EXECUTOR": "local"},
        )

    def build(self, *arguments: str) -> tuple[float, list[dict[str, Any]]]:
        """Build for Ampere; return wall seconds and the jobs of the JSON report."""
        seconds, out = self.run("build", "--target", "ampere", "--json", *arguments)
        jobs: list[dict[str, Any]] = json.loads(out)["jobs"]
        return seconds, jobs

    def forget_engines(self) -> None:
        """Drop the engines and keep environments, fetched files and exported models."""
        index = self.home / "store" / "index.json"
        document = json.loads(index.read_text())
        kept = [d for d in document["manifests"] if d["annotations"]["org.enginefarm.kind"] != "engine"]
        index.write_text(json.dumps(document | {"manifests": kept}))


def timed(argv: list[str], cwd: Path = ROOT, extra: dict[str, str] | None = None) -> tuple[float, str]:
    """Run a command that must succeed; return wall seconds and standard output."""
    started = time.perf_counter()
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(extra or {})}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{argv} failed:\n{done.stderr[-4000:]}")
    return seconds, done.stdout


def middle(values: list[float]) -> str:
    """Show median and range in seconds."""
    return f"{statistics.median(values):.3f} s ({min(values):.3f} to {max(values):.3f}, n={len(values)})"


def first_runs(farm: Farm) -> list[Row]:
    """From an empty home: everything installed, exported, built and verified; then again."""
    cold, jobs = farm.build()
    seconds = farm_journal(farm, "export")
    farm.forget_engines()
    warm, again = farm.build()
    stages = {name: sum(job["stage_seconds"].get(name, 0.0) for job in again) for name in (*STAGES, "verify")}
    shown = ", ".join(f"{name} {value:.1f} s" for name, value in stages.items())
    noop = [farm.run("build", "--target", "ampere")[0] for _ in range(7)]
    return [
        Row(f"first run, {len(jobs)} jobs, with installing two environments", f"{cold:.1f} s", "", "stated"),
        Row("export of Vocos in it", f"{seconds:.1f} s", "", "stated"),
        Row(f"{len(again)} engines anew, default -j", f"{warm:.1f} s", f"sum of stages: {shown}", "stated"),
        Row(f"second run, {len(jobs)} jobs, all reused, digests re-checked", middle(noop), "", "<= 1.0 s"),
    ]


def farm_journal(farm: Farm, stage: str) -> float:
    """Sum the journal's seconds of a stage."""
    lines = (farm.home / "journal.jsonl").read_text().splitlines()
    return sum(float(entry["seconds"]) for entry in map(json.loads, lines) if entry["stage"] == stage)


def against_bare(farm: Farm, runs: int) -> list[Row]:
    """Build stages and whole runs against a bare script that calls TensorRT-RTX, one process per model."""
    rows: list[Row] = []
    for precision in ("fp32", "fp16"):
        lowered = lowered_models(farm, precision)
        select = [item for name in MODELS for item in ("--recipe", name)] + ["--precision", precision]
        bare: list[float] = []
        stage: list[float] = []
        whole: dict[str, list[float]] = {"-j1": [], "-j2": []}
        for _ in range(runs):
            bare.append(sum(bare_build(farm, lowered[name]) for name in MODELS))
            for parallel, walls in whole.items():
                farm.forget_engines()
                wall, jobs = farm.build(*select, "--skip-verify", parallel)
                walls.append(wall)
                if parallel == "-j1":
                    stage.append(sum(job["stage_seconds"]["build"] for job in jobs))
        yard = statistics.median(bare)
        for label, values, wanted in (
            ("sum of build stages, one at a time", stage, "<= 1.10x"),
            ("whole run without export and verify, -j1", whole["-j1"], "stated"),
            ("whole run without export and verify, -j2", whole["-j2"], "<= 1.5x"),
        ):
            ratio = statistics.median(values) / yard
            rows.append(
                Row(f"four models {precision}: {label}", f"{middle(values)} = {ratio:.2f}x", middle(bare), wanted)
            )
    return rows


def lowered_models(farm: Farm, precision: str) -> dict[str, Path]:
    """Build once and keep what the build stages were given."""
    farm.forget_engines()
    select = [item for name in MODELS for item in ("--recipe", name)]
    farm.build(*select, "--precision", precision, "--skip-verify", "--keep-work")
    kept = farm.home / "bench" / precision
    kept.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for folder in sorted((farm.home / "work").glob(f"kept-*/*-{precision}-*/build")):
        name = next(model for model in MODELS if folder.parent.name.startswith(model))
        found[name] = kept / f"{name}.onnx"
        shutil.copyfile(folder / "in" / "lowered.onnx", found[name])
        profiles = json.loads((folder / "job.json").read_text())["params"]["profiles"]
        found[name].with_suffix(".json").write_text(json.dumps(profiles))
    shutil.rmtree(farm.home / "work")
    return found


def bare_build(farm: Farm, model: Path) -> float:
    """Build one engine without the farm, in the farm's own environment."""
    python = next((farm.home / "envs").glob("trtrtx*/bin/python"))
    engine, profiles = model.with_suffix(".plan"), model.with_suffix(".json")
    return timed(
        [str(python), str(ROOT / "benchmarks" / "bare.py"), str(model), str(engine), str(profiles), "8.0,8.6"]
    )[0]


def parallel_speed(farm: Farm, runs: int) -> Row:
    """All jobs with -j2 against -j1, verification included."""
    walls: dict[str, list[float]] = {"-j1": [], "-j2": []}
    for _ in range(runs):
        for parallel, seconds in walls.items():
            farm.forget_engines()
            seconds.append(farm.build(parallel)[0])
    ratio = statistics.median(walls["-j1"]) / statistics.median(walls["-j2"])
    return Row(
        "all jobs, -j2 against -j1", f"{middle(walls['-j2'])}: {ratio:.2f}x as fast", middle(walls["-j1"]), ">= 1.5x"
    )


def help_speed(runs: int) -> Row:
    """`enginefarm --help` against importing click."""
    for_help = [timed([str(BIN / "enginefarm"), "--help"])[0] for _ in range(runs)]
    for_click = [timed([sys.executable, "-c", "import click"])[0] for _ in range(runs)]
    ratio = statistics.median(for_help) / statistics.median(for_click)
    return Row(
        "enginefarm --help", f"{middle(for_help)} = {ratio:.2f}x", f"import click: {middle(for_click)}", "<= 1.5x"
    )


def plan_speed(farm: Farm, sizes: tuple[int, ...]) -> list[Row]:
    """Plan synthetic projects: each recipe gives four jobs (two precisions, two targets)."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "images").symlink_to(ROOT / "images")
        template = (ROOT / "recipes" / "ppocrv4-rec" / "recipe.yaml").read_text()
        made = 0
        for size in sizes:
            for number in range(made, size // 4):
                recipe = project / "recipes" / f"model-{number:05d}" / "recipe.yaml"
                recipe.parent.mkdir(parents=True)
                recipe.write_text(template.replace("name: ppocrv4-rec", f"name: model-{number:05d}", 1))
            made = size // 4
            arguments = ["plan", "--json", "--project", folder, "--target", "ampere", "--target", "ada"]
            seconds = [farm.run(*arguments)[0] for _ in range(3)]
            jobs = len(json.loads(farm.run(*arguments)[1])["jobs"])
            wanted = "<= 5 s" if size == sizes[-1] else "linear"
            rows.append(Row(f"plan of {jobs} jobs from {size // 4} recipes", middle(seconds), "", wanted))
    return rows


def table(rows: list[Row]) -> str:
    """Write the rows as Markdown with the machine they were measured on."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    head = (
        f"# Benchmarks, {dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}\n\n"
        f"`make bench` on {os.cpu_count()} processors ({platform.machine()}), {memory:.0f} GiB, no GPU, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}. Median (range, runs).\n\n"
        "| what | measured | yardstick | wanted |\n|---|---|---|---|\n"
    )
    return head + "".join(f"| {row.what} | {row.measured} | {row.yardstick} | {row.wanted} |\n" for row in rows)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "spine.md")
    options = parser.parse_args()
    runs = 2 if options.quick else 5
    with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
        farm = Farm(Path(folder))
        rows = first_runs(farm)
        rows += [help_speed(10 * runs), *plan_speed(farm, (1000, 2500, 5000, 10000))]
        rows += [*against_bare(farm, runs), parallel_speed(farm, max(2, runs // 2))]
    text = table(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
