"""`enginefarm images`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from builder import host
from builder.base_images import BaseImages, Choice
from builder.base_pull import Mirror
from builder.bases import load_bases
from builder.changes import changed_stacks
from builder.cli import options
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.docker_engine import DockerEngine
from builder.errors import EnginefarmError, ExitCode, Reason
from builder.image_push import push_image
from builder.image_record import ImageRecord, newest_fitting, records
from builder.image_reproduce import reproduce_image
from builder.image_unpack import save_record, unpack_image
from builder.images import ImageBuilder, ImageSettings, settings_of
from builder.preflight import MIB
from builder.project import Project, find_home
from builder.report.images import built_lines, listed_json, listed_lines, record_json
from builder.sbom import bill_of_materials, provenance_statement
from builder.stacks import Stack, load_stacks
from builder.targets import choose_targets, load_targets, suggestion
from builder.wheels import Index

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

stack_argument = click.argument("name", metavar="STACK")
lock_option = click.option("--lock", "variant", metavar="NAME", help="Another lock of the stack, for example 8.6.0.")


def sources(command: F) -> F:
    """Add the options that say where parts come from."""
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    for option in (
        click.option("--ca-file", type=file, help="Certificates of a proxy or mirror."),
        click.option("--index-url", metavar="URL", help="Package index [default: where pip is set up to look]."),
        click.option(
            "--base-registry",
            metavar="HOST[/PATH]",
            envvar="ENGINEFARM_BASE_REGISTRY",
            show_envvar=True,
            help="Registry that stands for those of the base images.",
        ),
        click.option(
            "--base",
            type=click.Choice([choice.value for choice in Choice]),
            default=Choice.AUTO.value,
            show_default=True,
            envvar="ENGINEFARM_BASE",
            show_envvar=True,
            help="Base by digest, or one made from the distribution's packages.",
        ),
    ):
        command = option(command)
    return command


def settings(
    base: str, base_registry: str | None, index_url: str | None, ca_file: Path | None, omit: tuple[str, ...] = ()
) -> ImageSettings:
    """Gather the options of `sources`."""
    return ImageSettings(
        base=Choice(base),
        omit=omit,
        index=Index(url=index_url, ca_file=ca_file),
        mirror=Mirror(registry=base_registry, ca_file=ca_file),
    )


def find_stack(project: Project, name: str, variant: str | None) -> Stack:
    """Load one stack.

    Raises:
        EnginefarmError: STACK_UNKNOWN, with the nearest valid name.

    """
    stacks = load_stacks(project.images)
    if name not in stacks:
        raise EnginefarmError(
            Reason.STACK_UNKNOWN, f"there is no stack {name!r}", fix=suggestion(name, stacks, "stacks")
        )
    return stacks[name].with_lock(variant) if variant else stacks[name]


@click.group("images")
def command() -> None:
    """Build, check and list the images of stacks.

    Every image is built without a network, from parts that are fetched by digest first.
    """


def with_builder(
    project: Project,
    name: str,
    variant: str | None,
    where: dict[str, Any] | None,
    action: Callable[[ImageBuilder, Stack], T],
) -> T:
    """Open console and builder, and let the action work with them. Without `where` the environment says."""
    home, err, cancel = find_home(), options.stderr(), threading.Event()
    stack, console = find_stack(project, name, variant), open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        builder = ImageBuilder(
            project=project,
            home=home,
            bases=load_bases(project.images),
            engine=DockerEngine(),
            listen=console.listen,
            cancel=cancel,
            settings=settings(**where) if where is not None else settings_of(os.environ),
        )
        return action(builder, stack)


@command.command("build")
@stack_argument
@lock_option
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Only what these targets need; repeatable.")
@sources
@options.as_json
@options.project
def build(
    *, name: str, variant: str | None, targets: tuple[str, ...], as_json: bool, folder: Path | None, **where: Any
) -> int:
    """Build the image of a stack, or find it.

    The same inputs give the same digest on every machine. An image that is there already is not built again.
    """
    project = options.locate_project(folder)
    if targets:
        sms = [sm for target in choose_targets(load_targets(), targets) for sm in target.sms]
        where["omit"] = find_stack(project, name, variant).omitted(sms)
    record, stack = with_builder(project, name, variant, where, lambda builder, stack: (builder.build(stack), stack))
    if as_json:
        options.print_json(record_json(record, stack))
    else:
        options.print_lines(built_lines(record, stack))
    return ExitCode.OK


@command.command("reproduce")
@stack_argument
@lock_option
@sources
@options.as_json
@options.project
def reproduce(*, name: str, variant: str | None, as_json: bool, folder: Path | None, **where: Any) -> int:
    """Build an image twice and compare.

    Both builds are made without a cache, the second one at another place and time. The exit code is 8 when they differ;
    the first layer and file that differ are named.
    """
    verdict = with_builder(options.locate_project(folder), name, variant, where, reproduce_image)
    if as_json:
        options.print_json(asdict(verdict))
    else:
        different = verdict.difference
        lines = [f"{verdict.stack}: {'the same image' if different is None else 'two different images'}"]
        lines += [f"  first   {verdict.first}", f"  second  {verdict.second}"]
        options.print_lines([*lines, *([] if different is None else [f"  differ in {different.text()}"])])
    return ExitCode.OK if verdict.difference is None else ExitCode.NOT_REPRODUCIBLE


@command.command("size")
@stack_argument
@lock_option
@click.option("--check", is_flag=True, help="Fail where the image is larger than its budget.")
@options.as_json
@options.project
def size(*, name: str, variant: str | None, check: bool, as_json: bool, folder: Path | None) -> int:
    """Show what an image weighs, layer by layer.

    The exit code of --check is 4 when it is above the budget in stack.toml.
    """
    project = options.locate_project(folder)
    record, stack = with_builder(project, name, variant, None, lambda builder, stack: (builder.built(stack), stack))
    if as_json:
        options.print_json(record_json(record, stack))
    else:
        options.print_lines(built_lines(record, stack))
    above = record.compressed_bytes - stack.spec.image.budget_mib * MIB
    if check and above > 0:
        what = f"{record.tag} is {above} bytes above its budget of {stack.spec.image.budget_mib} MiB"
        raise EnginefarmError(Reason.IMAGE_TOO_LARGE, what, where=str(stack.folder / "stack.toml"))
    return ExitCode.OK


@command.command("sbom")
@stack_argument
@lock_option
@click.option("--provenance", is_flag=True, help="Print how the image was built instead of what is in it.")
@options.project
def sbom(*, name: str, variant: str | None, provenance: bool, folder: Path | None) -> int:
    """Print the bill of materials.

    As CycloneDX JSON; or its SLSA provenance.
    """
    project = options.locate_project(folder)
    record, stack = with_builder(project, name, variant, None, lambda builder, stack: (builder.built(stack), stack))
    bases = load_bases(project.images)
    options.print_json(
        provenance_statement(record, stack, bases) if provenance else bill_of_materials(record, stack, bases)
    )
    return ExitCode.OK


@command.command("push")
@stack_argument
@lock_option
@click.option("--to", "target", required=True, metavar="REGISTRY/REPOSITORY", help="Where to push to.")
@options.as_json
@options.project
def push(*, name: str, variant: str | None, target: str, as_json: bool, folder: Path | None) -> int:
    """Push an image to a registry.

    Its bill of materials and provenance go beside it. The stack's name is added to the repository; the tag is that of
    the inputs. Docker's own log-in is used.
    """
    project = options.locate_project(folder)
    pushed = with_builder(
        project, name, variant, None, lambda builder, stack: push_image(builder, stack, f"{target.rstrip('/')}/{name}")
    )
    if as_json:
        options.print_json(asdict(pushed))
    else:
        options.print_lines(
            [
                f"{pushed.reference}@{pushed.digest}",
                *(f"  {kind} {digest}" for kind, digest in pushed.referrers.items()),
            ]
        )
    return ExitCode.OK


@command.command("unpack")
@click.argument("names", metavar="STACK...", nargs=-1, required=True)
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@lock_option
@click.option("--record-only", is_flag=True, help="Only what is known of the image, not its files.")
@options.project
def unpack(*, names: tuple[str, ...], target: Path, variant: str | None, record_only: bool, folder: Path | None) -> int:
    """Unpack images into a folder.

    `enginefarm build --executor rootfs` runs stages in them where there is no Docker Engine: copy DIR there, keeping
    modes and links, and name it in ENGINEFARM_ROOTFS. A record alone lets it find what the store has from an image.
    """
    project = options.locate_project(folder)

    def take(builder: ImageBuilder, stack: Stack) -> tuple[ImageRecord, Path]:
        record = builder.built(stack)
        if record_only:
            return record, save_record(record, target)
        return record, unpack_image(builder.engine, stack, record, target, builder.cancel, builder.listen)

    for name in names:
        record, made = with_builder(project, name, variant, None, take)
        options.print_lines([f"{name} {record.digest} {made}"])
    return ExitCode.OK


@command.command("bootstrap-base")
@click.argument("name", metavar="[BASE]", required=False)
@options.project
def bootstrap_base(*, name: str | None, folder: Path | None) -> int:
    """Make stand-ins for base images.

    They are made from the distribution's packages. Without BASE: for all of images/bases.toml that have one.
    """
    project, home, err, cancel = options.locate_project(folder), find_home(), options.stderr(), threading.Event()
    bases, console = load_bases(project.images), open_console(err, {})
    if name is not None:
        bases.get(name)
    wanted = [name] if name else [one for one, base in bases.bases.items() if base.standin is not None]
    home.logs.mkdir(parents=True, exist_ok=True)
    with stop_on_signals(cancel, console.stopping, err), console:
        images = BaseImages(home=home, bases=bases, cancel=cancel, listen=console.listen)
        for one in wanted:
            platform = host.platform_among(bases.get(one).platforms)
            made = images.obtain(one, platform, Choice.STANDIN, home.logs / f"base-{one}.log")
            options.print_lines([f"{one} {made.digest}"])
    return ExitCode.OK


@command.command("ls")
@click.option("--changed-since", "since", metavar="REF", help="Only stacks whose files changed since a git revision.")
@options.as_json
@options.project
def ls(*, since: str | None, as_json: bool, folder: Path | None) -> int:
    """List stacks and their images.

    Base, size, budget, and whether all pins are confirmed.
    """
    project, home = options.locate_project(folder), find_home()
    here = [record for _, record in records(home)]
    stacks = load_stacks(project.images)
    kept = changed_stacks(project, since, stacks) if since else set(stacks)
    bases, found = load_bases(project.images), []
    for stack in (one for name, one in stacks.items() if name in kept):
        variants = [stack, *(stack.with_lock(variant) for variant in stack.spec.image.locks)]
        found += [(each, newest_fitting(each, bases, here)) for each in variants]
    if as_json:
        options.print_json(listed_json(found))
    elif not found:
        options.stderr().line(f"no stack has changed since {since}" if since else f"{project.images} has no stack")
    else:
        out = options.stdout()
        options.print_lines(listed_lines(found, out.width, out.paint))
    return ExitCode.OK
