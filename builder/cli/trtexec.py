"""`enginefarm trtexec`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from builder.cli import options
from builder.jobs import read_manifest
from builder.project import Home, find_home
from builder.selection import Selection, load_catalogue
from builder.stacks import build_stacks, load_stacks
from builder.store import Store
from builder.trtexec import MODEL, find_job, keeping_command, trtexec_command, trtexec_notes


@click.command("trtexec")
@click.argument("job_id", metavar="JOB")
@click.option("--onnx", "model", metavar="FILE", help="The lowered graph [default: that of a build with --keep].")
@options.lock
@options.as_json
@options.project
def command(*, job_id: str, model: str | None, lock: str | None, as_json: bool, folder: Path | None) -> None:
    """Print the trtexec commands that do what a job does.

    JOB is a job id, as `enginefarm plan` lists them; no engine needs to be there. The first command builds, the others
    time what it built, one per shape profile. Nothing is run.
    """
    project, home = options.locate_project(folder), find_home()
    every = tuple(build_stacks(load_stacks(project.images)))
    catalogue = load_catalogue(project, Selection(stacks=every, lock=lock))
    job, recipe, stack = find_job(catalogue, job_id)
    kept = _kept_fp32(home, job.id)
    lowered = model or _kept_graph(home, job.id)
    commands = trtexec_command(job, recipe, stack, model=lowered or MODEL, kept_fp32=kept)
    notes = trtexec_notes(job, recipe, stack)
    if lowered is None:
        keeping = shlex.join([*keeping_command(job, recipe), *(["--lock", lock] if lock else [])])
        notes.append(f"{MODEL} is what the stage lower makes; this leaves it behind: {keeping}")
    if as_json:
        options.print_json({"job": job.id, "notes": notes, "commands": commands})
    else:
        options.print_lines([*(f"# {note}" for note in notes), *(shlex.join(one) for one in commands)])


def _kept_graph(home: Home, job_id: str) -> str | None:
    """Find the lowered graph that a build left on request, the newest one."""
    found = home.work.glob(f"kept-*/{job_id}/lower/out/lowered.onnx")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest) if newest is not None else None


def _kept_fp32(home: Home, job_id: str) -> list[str] | None:
    """Read which nodes lowering left in FP32, where the store has the job's engine."""
    store = Store(home.store)
    entries = [entry for entry in store.entries("engine") if entry.name == job_id]
    return read_manifest(store, entries[-1]).lowered.detail.get("kept_fp32") if entries else None
