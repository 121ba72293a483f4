"""`enginefarm bench`."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import click

from builder.bench import BenchSettings, bench
from builder.bench_subject import KINDS
from builder.cli import options
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.errors import EnginefarmError, ExitCode, Reason
from builder.project import find_home
from builder.report.bench import bench_page, noise_text
from builder.report.failure import error_lines

_VARIABLE = "ENGINEFARM_BASELINE_PYTHON"


class Python(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """A program by path, or by name on the PATH."""

    name = "python"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Find it."""
        found = shutil.which(str(value))
        if found is None:
            self.fail(f"{value} is no program", param, ctx)
        # a virtual environment's Python is a link, and knows itself by its place
        return Path(found).absolute()


@click.command("bench")
@click.argument("name")
@click.option("--baseline-python", type=Python(), metavar="PYTHON", envvar=_VARIABLE, show_envvar=True,
              help="Python with PyTorch or ONNX Runtime to compare with [default: none].")  # fmt: skip
@click.option("--baseline", "baselines", multiple=True, type=click.Choice(KINDS),
              help="Compare with this only; repeatable.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=2), default=5, show_default=True, metavar="N",
              help="Turns that engine and baselines take.")  # fmt: skip
@click.option("--all-shapes", is_flag=True, help="Time min, opt and max of each shape profile, not opt alone.")
@click.option("--strict", is_flag=True, help="Fail if anything measured is noise.")
@executor_option("What runs the engine; auto: what built it.")
@click.option("--no-install", is_flag=True, help="Refuse instead of installing a stack's packages.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=3600.0, show_default=True,
              metavar="SECONDS", help="Limit for the whole of it.")  # fmt: skip
@click.option("--keep", "--keep-work", "keep_work", is_flag=True,
              help="Keep the folders of all stages, and containers that failed.")  # fmt: skip
@options.as_json
@options.project
def command(  # noqa: PLR0913 - one parameter per option
    *,
    name: str,
    baseline_python: Path | None,
    baselines: tuple[str, ...],
    rounds: int,
    all_shapes: bool,
    strict: bool,
    executor: str,
    no_install: bool,
    timeout: float,
    keep_work: bool,
    as_json: bool,
    folder: Path | None,
) -> int:
    """Time an engine on a GPU against what runs without one.

    NAME is a job id, or the first six or more digits of a key or of an engine's SHA-256. Engine and baselines take
    turns, each in a process of its own. What is found goes into the engine's manifest; noise is called noise.
    """
    project, home, err = options.locate_project(folder), find_home(), options.stderr()
    settings = BenchSettings(
        baseline_python=baseline_python,
        baselines=baselines,
        rounds=rounds,
        all_shapes=all_shapes,
        executor=executor,
        install=not no_install,
        keep_work=keep_work,
        timeout_s=timeout,
    )
    cancel = threading.Event()
    console = open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        found = bench(name, project, home, settings, console.listen, cancel)
    if as_json:
        options.print_json({"job": found.job, "bench": found.result.model_dump(mode="json")})
    else:
        out = options.stdout()
        options.print_lines(bench_page(found.job, found.result, found.manifest.build, out.width, out.paint))
    if found.result.quiet or not strict:
        return ExitCode.OK
    noise = EnginefarmError(Reason.BENCH_NOISY, f"the times of {found.job} are noise", why=noise_text(found.result))
    for line in error_lines(noise, err.width, err.paint):
        err.line(line)
    return noise.exit_code
