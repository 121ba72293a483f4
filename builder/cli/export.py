"""`enginefarm export`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli import options
from builder.errors import EnginefarmError, Reason
from builder.export_dir import choose_engines, export_engine, export_triton, servable
from builder.project import find_home
from builder.report.planned import counted
from builder.report.units import short, size
from builder.store import Entry, Store


@click.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", "patterns", multiple=True, metavar="GLOB", help="Only these job ids; repeatable.")
@click.option("--triton", is_flag=True, help="Make DIR a model repository of Triton Inference Server.")
@options.as_json
def command(*, folder: Path, patterns: tuple[str, ...], triton: bool, as_json: bool) -> None:
    """Write engines as plain files for trtexec or Triton.

    Every engine becomes DIR/<job id>/ with model.plan, manifest.json and key.json, and weights.onnx where the engine
    was built without its weights. What is there already is left as it
    is; files of others are never overwritten.

    With --triton every recipe and precision becomes a model, DIR/<recipe>-<precision>/ with config.pbtxt and one engine
    per SM. Engines of TensorRT-RTX and engines without their weights are left out: Triton cannot load them.
    """
    store = Store(find_home().store)
    if triton:
        _triton(store, choose_engines(store, patterns), folder, as_json=as_json)
        return
    exported = [export_engine(store, entry, folder) for entry in choose_engines(store, patterns)]
    if as_json:
        options.print_json(
            [
                {
                    "job": item.job,
                    "folder": str(item.folder.absolute()),
                    "sha256": item.engine_sha256,
                    "bytes": item.engine_bytes,
                    "written": item.written,
                }
                for item in exported
            ]
        )
        return
    for item in exported:
        options.stdout().line(f"{item.folder}  {size(item.engine_bytes)}  {short(item.engine_sha256)}")
    written = sum(item.written for item in exported)
    options.stderr().line(f"{counted(written, 'engine')} written, {len(exported) - written} there already")


def _triton(store: Store, entries: list[Entry], folder: Path, *, as_json: bool) -> None:
    chosen = servable(store, entries)
    if not chosen:
        what = "Triton cannot load any of these engines: they are of TensorRT-RTX or without their weights"
        fix = "build engines with a stack of classic TensorRT, without build.strip_weights"
        raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix=fix)
    exported = export_triton(store, chosen, folder)
    if as_json:
        options.print_json(
            [
                {
                    "model": item.model.name,
                    "folder": str(item.folder.absolute()),
                    "files": dict(item.model.files),
                    "bytes": item.size,
                    "written": item.written,
                    "needs_host_code": item.model.needs_host_code,
                }
                for item in exported
            ]
        )
    for item in exported:
        if not as_json:
            options.stdout().line(f"{item.folder}  {size(item.size)}  {', '.join(item.model.files)}")
        if item.model.needs_host_code:
            flag = "--backend-config=tensorrt,version-compatible=true"
            options.stderr().line(f"{item.model.name} carries code for the host: start Triton with {flag}")
    written, left_out = sum(item.written for item in exported), len(entries) - len(chosen)
    tail = f"; {counted(left_out, 'engine')} left out that Triton cannot load" if left_out else ""
    options.stderr().line(f"{counted(written, 'model')} written, {len(exported) - written} there already{tail}")
