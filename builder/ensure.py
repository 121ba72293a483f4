"""At the start of a session: has the machine changed, does the engine still fit, and if not, pull or rebuild it.

In a notebook: `from builder.ensure import ensure; ensure("yolo", auto=True)`.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from builder.candidates import Candidate
from builder.check import Checked, check, find_model
from builder.compat import Verdict, Wish, no_fit
from builder.compat_rules import load_known_bad
from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.machine import Facts
from builder.project import Home
from builder.sessions import Change, Session, changes, load_session, machine_of, save_session
from builder.store import Store
from builder.terminal import open_terminal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# a registry without an engine that fits leaves building; one that sends something untrusted does not
_NOT_THERE = frozenset(
    {
        Reason.ARTIFACT_MISSING,
        Reason.NO_ENGINE_FITS,
        Reason.REGISTRY_REFUSED,
        Reason.REGISTRY_UNREACHABLE,
    }
)
_NO_RECIPE = frozenset({Reason.PROJECT_MISSING, Reason.RECIPE_UNKNOWN})


class Action(str, Enum):
    """What was done to have an engine that fits."""

    REUSED = "reused"
    PULLED = "pulled"
    BUILT = "built"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to get an engine. `text` says what it does, after "would"; `go` does it, and the store has the engine."""

    action: Action
    text: str
    go: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What ensuring may use. `ask`: asks a yes-or-no question; null where nobody can answer. `auto`: nobody is asked.

    `pull`: the way through a registry, null without one. `build`: the way through the project's recipe. Both take a
    model and a wish, and raise where the way is closed. `place`: makes an engine the one that applications load.
    """

    facts: Facts
    home: Home
    auto: bool
    ask: Callable[[str], bool] | None
    say: Callable[[str], None]
    pull: Callable[[str, Wish], Way] | None
    build: Callable[[str, Wish], Way]
    place: Callable[[str, Checked], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensured:
    """A model whose engine fits now. `path`: the engine's file in the store; `changes`: what is not as it was.

    `since`: what the changes are counted from: "the last session", "the engine was built", or empty without either.
    """

    model: str
    action: Action
    job: str
    key: str
    path: Path
    verdict: Verdict
    changes: tuple[Change, ...]
    since: str


def ensure(  # what a cell of a notebook may say
    *models: str,
    auto: bool = False,
    registry: str | None = None,
    wish: Wish | None = None,
    project: Path | None = None,
    facts: Facts | None = None,
    say: Callable[[str], None] = print,
) -> tuple[Ensured, ...]:
    """Have an engine of each model that fits this machine, and say what was done.

    `registry`: where models are published, such as ghcr.io/me; null takes $ENGINEFARM_REGISTRY. `auto`: download and
    build without asking. `project`: folder with recipes/ and images/; null looks from here upwards.
    `facts`: a machine to have engines for instead of this one.

    Raises:
        EnginefarmError: NO_ENGINE_FITS where nothing was found, or nobody agreed to get it; what pulling and building
            raise.

    """
    # it imports this module, for the types of its ways
    from builder.ensure_means import Setup, real_means  # noqa: PLC0415

    terminal = open_terminal(sys.stderr, os.environ)
    setup = Setup(registry=registry, project=project, facts=facts, terminal=terminal, cancel=threading.Event())
    try:
        return ensure_models(models, wish or Wish(), real_means(setup, auto=auto, ask=find_asker(), say=say))
    except BaseException:
        # a cell that is interrupted leaves nothing running behind it
        setup.cancel.set()
        raise


def ensure_models(models: Sequence[str], wish: Wish, means: Means) -> tuple[Ensured, ...]:
    """Do the same with given means, one model after the other; one that is nowhere to be had does not stop the others.

    Raises:
        EnginefarmError: as `ensure`; NAME_UNKNOWN for what cannot be a model's name.

    """
    for model in models:
        if not _NAME.fullmatch(model):
            raise EnginefarmError(Reason.NAME_UNKNOWN, f"{model!r} is no model's name")
    done: list[Ensured] = []
    failed: list[EnginefarmError] = []
    for model in dict.fromkeys(models):
        try:
            done.append(_Model(model, wish, means).ensure())
        except EnginefarmError as error:
            if error.reason not in _NOT_THERE | _NO_RECIPE:
                raise
            failed.append(error)
    if len(failed) > 1:
        what = f"{len(failed)} of {len(models)} models have no engine for this machine"
        raise ErrorGroup(failed[0].reason, what, tuple(failed))
    if failed:
        raise failed[0]
    return tuple(done)


class _Model:
    """One model, while its engine is being looked for."""

    def __init__(self, name: str, wish: Wish, means: Means) -> None:
        self._name, self._means = name, means
        self._store = Store(means.home.store)
        self._last = load_session(means.home, name)
        if self._last is not None and wish.precision is None:
            # who had int8 last time shall not get another precision because the machine is another one
            wish = replace(wish, precision=self._last.precision)
        self._wish = wish

    def ensure(self) -> Ensured:
        checked = self._check()
        since, changed = self._compare(checked)
        found = self._fitting(checked)
        if found is not None:
            self._means.place(self._name, found)
            return self._done(Action.REUSED, found, since, changed)
        if not self._means.facts.gpus:
            what = f"{self._name} needs an NVIDIA GPU, and this machine has none"
            raise EnginefarmError(Reason.GPU_NEEDED, what, fix="run this where the engine shall be used")
        wish = self._wish
        if wish.precision is None and checked:
            wish = replace(wish, precision=checked[0].subject.candidate.precision)
        # of those that fit, what was found damaged is gone
        action = self._get([one for one in checked if not one.verdict.fits], wish)
        found = self._fitting(self._check())
        if found is None:
            raise no_fit([one.verdict for one in self._check()], f"engine of {self._name}")
        return self._done(action, found, since, changed)

    def _check(self) -> tuple[Checked, ...]:
        return check(find_model(self._store, self._name), self._means.facts, self._wish, load_known_bad())

    def _fitting(self, checked: Sequence[Checked]) -> Checked | None:
        """Return the best engine that fits and whose files are whole; damaged ones are set aside."""
        for one in checked:
            entry = one.subject.entry
            if not one.verdict.fits or entry is None:
                continue
            if self._store.intact(entry):
                self._store.touch(entry)
                return one
            self._say(f"{one.subject.name} was damaged and is set aside")
        return None

    def _compare(self, checked: Sequence[Checked]) -> tuple[str, tuple[Change, ...]]:
        """Say what is not as it was at the last session, else on the machine that the engine was built for."""
        now = self._means.facts
        if self._last is not None:
            since, changed = "the last session", changes(self._last.machine, now)
        elif checked:
            since, changed = "the engine was built", changes(machine_of(checked[0].subject.candidate), now)
        else:
            self._say("no engine yet")
            return "", ()
        texts = ", ".join(change.text for change in changed)
        self._say(f"since {since}: {texts}" if texts else f"the machine is as it was when {_when(self._last)}")
        return since, changed

    def _say_why(self, checked: Sequence[Checked]) -> None:
        for one in checked:
            why = "; ".join(f"{finding.reason.value.code} {finding.text}" for finding in one.verdict.refusals)
            self._say(f"{one.subject.name} does not fit: {why}")

    def _get(self, checked: Sequence[Checked], wish: Wish) -> Action:
        """Try the ways in order: pull, then build.

        Raises:
            EnginefarmError: NO_ENGINE_FITS where no way is open or none was agreed to.

        """
        means = self._means
        refused: list[str] = []
        absent: EnginefarmError | None = None
        if means.auto or means.ask is not None:
            self._say_why(checked)
        way = means.pull(self._name, wish) if means.pull is not None else None
        if way is not None and self._agreed(way, refused):
            try:
                way.go()
            except EnginefarmError as error:
                if error.reason not in _NOT_THERE:
                    raise
                absent = error
                self._say(f"{error.reason.value.code} {error.what}")
            else:
                return way.action
        if means.ask is None and not means.auto:
            # what would be built is said, too: nobody is asked here
            refused += self._would_build(wish)
        else:
            built = self._build(wish, absent, refused)
            if built is not None and self._agreed(built, refused):
                built.go()
                return built.action
        nothing = no_fit([one.verdict for one in checked], f"engine of {self._name}")
        would = f"--auto, or auto=True, would {', else '.join(refused)}"
        nothing.fix = (
            would if refused else "run it in a project with the model's recipe, or name a --registry that has it"
        )
        raise nothing

    def _build(self, wish: Wish, absent: EnginefarmError | None, refused: Sequence[str]) -> Way | None:
        """Return the way to build; where there is no recipe, what the registry said is the better reason.

        Null where there is no recipe, and somebody said no to pulling.
        """
        try:
            return self._means.build(self._name, wish)
        except EnginefarmError as error:
            if error.reason not in _NO_RECIPE:
                raise
            if refused:
                return None
            if absent is None:
                raise
            raise absent from error

    def _would_build(self, wish: Wish) -> list[str]:
        try:
            return [self._means.build(self._name, wish).text]
        except EnginefarmError as error:
            self._say(f"{error.reason.value.code} {error.what}")
            return []

    def _agreed(self, way: Way, refused: list[str]) -> bool:
        if self._means.auto:
            self._say(f"will {way.text}")
            return True
        if self._means.ask is not None and self._means.ask(f"{self._name}: {way.text}?"):
            return True
        refused.append(way.text)
        return False

    def _done(self, action: Action, found: Checked, since: str, changed: tuple[Change, ...]) -> Ensured:
        candidate, verdict = found.subject.candidate, found.verdict
        for finding in verdict.warnings:
            self._say(f"note: {finding.reason.value.code} {finding.text}")
        self._say(f"{action.value} {found.subject.name}, {verdict.fit.value} on {verdict.gpu}")
        self._remember(candidate)
        return Ensured(
            model=self._name,
            action=action,
            job=found.subject.name,
            key=candidate.key,
            path=found.subject.path,
            verdict=verdict,
            changes=changed,
            since=since,
        )

    def _remember(self, candidate: Candidate) -> None:
        try:
            save_session(self._means.home, self._name, self._means.facts, candidate)
        except EnginefarmError as error:
            # the engine is there and fits: a home that may only be read, as in an image, is no reason to fail
            if error.reason not in {Reason.STORE_READ_ONLY, Reason.DISK_FULL}:
                raise
            self._say(f"note: {error.reason.value.code} {error.what}: the next session cannot compare with this one")

    def _say(self, text: str) -> None:
        self._means.say(f"{self._name}: {text}")


def _when(last: Session | None) -> str:
    return "it was used last" if last is not None else "the engine was built"


def find_asker() -> Callable[[str], bool] | None:
    """Return what asks the person at the terminal or notebook; null where there is none."""
    try:
        there = "ipykernel" in sys.modules or sys.stdin.isatty()
    except (AttributeError, ValueError):
        # services have no standard input, or closed it
        there = False
    return _ask if there else None


def _ask(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
    except (EOFError, RuntimeError):
        # what runs a notebook without a person, such as nbconvert, has nobody to ask
        return False
