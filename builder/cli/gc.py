"""`enginefarm gc`."""

from __future__ import annotations

from collections import Counter

import click

from builder.cli import options
from builder.cli.sizes import Bytes
from builder.collect import Collected, Limits, collect
from builder.disk import Item
from builder.errors import EnginefarmError, ExitCode
from builder.executors import docker_answers
from builder.project import find_home
from builder.report.planned import counted
from builder.report.units import size


@click.command("gc")
@click.option("--keep-bytes", type=Bytes(), metavar="N", help="Keep at most this much, for example 20GB.")
@click.option("--keep-days", type=click.FloatRange(min=0), metavar="D", help="Keep what was used in the last D days.")
@click.option("--dry-run", is_flag=True, help="Say what would go and remove nothing.")
@options.as_json
def command(*, keep_bytes: int | None, keep_days: float | None, dry_run: bool, as_json: bool) -> int:
    """Remove what the farm keeps and no longer needs.

    Store, fetched files, environments, base images, images and build cache of this farm, least recently used first;
    nothing of anybody else, and nothing that a run uses now. Without a limit only leftovers of dead runs go.
    """
    home, err = find_home(), options.stderr()
    limits = Limits(keep_bytes=keep_bytes, keep_days=keep_days)
    kept: list[Item] = []
    dead: list[Item] = []
    if docker_answers():
        from builder.docker_disk import dead_containers, docker_items  # noqa: PLC0415 - slow, and few have Docker
        from builder.docker_engine import DockerEngine  # noqa: PLC0415

        try:
            engine = DockerEngine()
            kept, dead = list(docker_items(engine, home)), list(dead_containers(engine, home))
        except EnginefarmError as error:
            err.line(f"Docker is left alone: {error.what}")
    done = collect(home, limits, dry_run=dry_run, kept=lambda: kept, dead=lambda: dead)
    if as_json:
        options.print_json(_as_json(done, dry_run=dry_run))
        return ExitCode.OK
    for item in done.removed:
        options.stdout().line(f"{size(item.size):>10}  {item.kind} {item.name}")
    kinds = Counter(item.kind for item in done.removed)
    listed = ", ".join(counted(count, kind) for kind, count in sorted(kinds.items()))
    listed = listed or ("files that nothing names any more" if done.freed_bytes else "nothing")
    err.line(
        f"{'would remove' if dry_run else 'removed'} {listed}: {size(done.freed_bytes)}; {size(done.kept_bytes)} stay"
    )
    if done.in_use:
        stays = "stays because a run uses it" if done.in_use == 1 else "stay because a run uses them"
        err.line(f"{counted(done.in_use, 'thing')} beyond the limit {stays}")
    if keep_bytes is None and keep_days is None:
        err.line("leftovers only; --keep-bytes or --keep-days removes more")
    return ExitCode.OK


def _as_json(done: Collected, *, dry_run: bool) -> dict[str, object]:
    items = [{"kind": item.kind, "name": item.name, "size": item.size, "used": item.used} for item in done.removed]
    figures = {"freed_bytes": done.freed_bytes, "kept_bytes": done.kept_bytes, "in_use": done.in_use}
    return {"dry_run": dry_run, **figures, "removed": items}
