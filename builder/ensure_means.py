"""The ways of `builder.ensure` in earnest: pull as `enginefarm pull` does, build as `enginefarm build` does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from builder import durable
from builder.build_here import BUILT_HERE, Workshop, build_here, choose_job
from builder.check import Checked
from builder.compat import Wish
from builder.compat_rules import load_known_bad
from builder.console import open_console
from builder.engine_folder import TRUST, offer_engine
from builder.ensure import Action, Means, Way
from builder.events import Listener
from builder.facts import read_facts
from builder.machine import Facts
from builder.places import PREFIX_VARIABLE, Talk, full_reference, locate
from builder.policy import load_policy
from builder.project import Home, find_home, find_project
from builder.pull import PULLED, Order, Puller
from builder.pull_checks import Machine
from builder.runner import Settings
from builder.signatures import check_entry
from builder.store import Store
from builder.terminal import Terminal
from builder.titles import ENGINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Where to look and how to work. `registry` null: $ENGINEFARM_REGISTRY; `project` null: from here upwards.

    `policy`: file that says who may sign what; null takes the usual one. `facts` null: this machine's.
    """

    registry: str | None
    project: Path | None
    terminal: Terminal
    cancel: threading.Event
    policy: Path | None = None
    facts: Facts | None = None
    settings: Settings = field(default_factory=Settings)
    plain_http: bool = False


def real_means(setup: Setup, *, auto: bool, ask: Callable[[str], bool] | None, say: Callable[[str], None]) -> Means:
    """Read this machine and find the ways that are open here.

    Raises:
        EnginefarmError: GPU_UNREADABLE.

    """
    doors = _Doors(setup, setup.facts if setup.facts is not None else read_facts(os.environ), find_home())
    known = setup.registry or os.environ.get(PREFIX_VARIABLE)
    return Means(
        facts=doors.facts,
        home=doors.home,
        auto=auto,
        ask=ask,
        say=say,
        pull=doors.pull if known else None,
        build=doors.build,
        place=doors.place,
    )


class _Doors:
    """Makes ways for one machine and home."""

    def __init__(self, setup: Setup, facts: Facts, home: Home) -> None:
        self._setup, self.facts, self.home = setup, facts, home

    def pull(self, model: str, wish: Wish) -> Way:
        reference = full_reference(model, self._setup.registry, os.environ)

        def go() -> None:
            order = Order(machine=self._machine(wish), policy=load_policy(self._setup.policy))

            def work(listen: Listener) -> None:
                cancel = self._setup.cancel
                talk = Talk(cancel=cancel, listen=listen, plain_http=self._setup.plain_http)
                Puller(home=self.home, cancel=cancel, listen=listen).pull(locate(reference, talk), order)

            self._shown(work)

        return Way(action=Action.PULLED, text=f"pull the engine that fits from {reference}", go=go)

    def build(self, model: str, wish: Wish) -> Way:
        project = find_project(Path.cwd(), self._setup.project)
        machine = self._machine(wish)
        _, job = choose_job(model, machine, project)

        def work(listen: Listener) -> None:
            settings, cancel = self._setup.settings, self._setup.cancel
            workshop = Workshop(project=project, home=self.home, settings=settings, listen=listen, cancel=cancel)
            build_here(model, machine, workshop)

        return Way(action=Action.BUILT, text=f"build {job.id}", go=lambda: self._shown(work))

    def place(self, model: str, found: Checked) -> None:
        """Make an engine of the store the one that applications load.

        A pulled one was placed by its pull, but others have been since, or it had to make room: then its signature
        counts anew, by the policy as it is now.

        Raises:
            EnginefarmError: as `trust.check_signature`; PATH_OCCUPIED, DISK_FULL, STORE_READ_ONLY.

        """
        entry = found.subject.entry
        if entry is None or self._placed(model, found):
            return
        store, now = Store(self.home.store), datetime.now(tz=timezone.utc)
        blobs = store.files(entry)
        trusted = None
        if PULLED in entry.annotations:
            _, trusted = check_entry(store, entry, load_policy(self._setup.policy), now, model)
        signer = trusted.signer if trusted is not None else None
        reference = entry.annotations.get(PULLED, BUILT_HERE)
        offer_engine(self.home, model, blobs, self._setup.cancel, reference=reference, signer=signer)

    def _placed(self, model: str, found: Checked) -> bool:
        folder = self.home.engines / model
        try:
            sha256 = durable.sha256_file(folder / ENGINE) if (folder / TRUST).is_file() else None
        except OSError:
            return False
        return sha256 == found.subject.candidate.engine_sha256

    def _machine(self, wish: Wish) -> Machine:
        return Machine(facts=self.facts, wish=wish, known_bad=load_known_bad())

    def _shown(self, work: Callable[[Listener], None]) -> None:
        console = open_console(self._setup.terminal, {})
        with console:
            work(console.listen)
