"""Brings the engine that fits this machine from a registry or a folder into the store, checked before anyone sees it.

Order: index, its signature and serial, choice, download to a folder of its own, digests, signature of the engine,
manifest against index, header and machine. Only then the store, and last the folder that applications load from.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from builder import durable, host, oci
from builder.artifact import BENCHMARK, LAYERS, MAX_BYTES, PREFIX, Artifact, parse_artifact
from builder.compat import Verdict
from builder.engine_cache import trim_engines
from builder.engine_folder import offer_engine
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.locks import named_lock
from builder.manifest import Manifest
from builder.places import Located
from builder.policy_rules import Policy, Unsigned
from builder.project import Home
from builder.pull_checks import Machine, check_pulled
from builder.pull_index import Choice, choose_engine, read_bundles, read_model_index, told_where
from builder.pull_memory import PullMemory
from builder.signatures import keep_signature
from builder.steps import told
from builder.store import Blob, Entry, Store
from builder.titles import ENGINE, PROOF_ANNOTATION, WEIGHTS
from builder.trust import Trusted, check_signature

PULLED = "org.enginefarm.pulled"
# files that follow from the manifest, which the store has
_DERIVED = frozenset({LAYERS, BENCHMARK})
# what a further pull can take up, perhaps under another policy
_TAKEN_UP = frozenset(
    {
        Reason.DOWNLOAD_CORRUPT,
        Reason.DISK_FULL,
        Reason.INTERRUPTED,
        Reason.KEY_EXPIRED,
        Reason.REGISTRY_REFUSED,
        Reason.REGISTRY_UNREACHABLE,
        Reason.SIGNER_UNKNOWN,
        Reason.UNSIGNED,
    }
)
_SPARE_BYTES = 16 << 20
# beside files named by their digests, the folder where they have their own names
_FILES = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is wanted, and what is taken. `to`: a folder to write instead of the one that applications load from."""

    machine: Machine
    policy: Policy
    allow_unsigned: bool = False
    accept_older: bool = False
    max_bytes: int = MAX_BYTES
    to: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An engine that was pulled. `reference` pins its artifact; `signer` is null where nobody signed it.

    `downloaded`: bytes that had to come; 0 where the store had them all.
    """

    model: str
    job: str
    reference: str
    serial: int
    manifest: Manifest
    verdict: Verdict
    signer: str | None
    folder: Path
    downloaded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Puller:
    """Pulls for one home. Safe for several threads and processes.

    `engines_bytes`: what the folder that applications load from may take; null is no limit.
    """

    home: Home
    cancel: threading.Event
    listen: Listener
    engines_bytes: int | None = None

    def pull(self, located: Located, order: Order) -> Pulled:
        """Pull the best engine of a model; doing it again changes nothing.

        Raises:
            EnginefarmError: NO_ENGINE_FITS; ARTIFACT_MISSING, ARTIFACT_INVALID, ARTIFACT_TOO_NEW, DOWNLOAD_CORRUPT,
                SIZE_REFUSED, NAME_UNSAFE, IDENTITY_MISMATCH, INDEX_ROLLED_BACK, ENGINE_HEADER; UNSIGNED and what
                `trust.check_signature` refuses; DISK_FULL, PATH_OCCUPIED; those of `builder.registry.Registry`.

        """
        now, order = datetime.now(tz=timezone.utc), _with_policy(order, located.model)
        index = read_model_index(located, order.policy, PullMemory(self.home), now, accept_older=order.accept_older)
        choice = choose_engine(index, order.machine)
        where = f"{located.name}@{choice.entry['digest']}"
        content = located.place.manifest(choice.entry["digest"], (oci.MANIFEST_TYPE,))
        if content is None:
            what = f"the index lists an engine that {located.name} does not have"
            raise EnginefarmError(Reason.ARTIFACT_MISSING, what, where=where)
        artifact = parse_artifact(content[0], where, order.max_bytes)
        _compare_sizes(artifact, choice.entry, where)
        bundles = read_bundles(located.place, artifact.descriptor["digest"])
        with told_where(where), self._transfer(artifact, located.model) as work:
            if not bundles:
                # said before a gigabyte has come for nothing
                check_signature(work, bundles, order.policy, located.model, now)
            downloaded = self._download(located, artifact, choice, work)
            files = _gather(artifact, work)
            # each file was compared with its digest as it came
            digests = {title: _hex(one) for title, one in artifact.files.items()}
            check = partial(check_signature, files, policy=order.policy, model=located.model, now=now, digests=digests)
            trusted = check(bundles)
            checked = check_pulled(files, artifact, choice.entry, located.model, order.machine, where)
            entry = self._keep(artifact, files, checked.manifest, where)
            for bundle in bundles:
                # what others attached beside a good signature is left where it is
                if _passes(partial(check, [bundle])):
                    keep_signature(Store(self.home.store), entry, bundle)
            folder = self._publish(entry, located, order, trusted, where)
        return Pulled(
            model=located.model,
            job=checked.manifest.job,
            reference=where,
            serial=index.serial,
            manifest=checked.manifest,
            verdict=checked.verdict,
            signer=trusted.signer if trusted is not None else None,
            folder=folder,
            downloaded=downloaded,
        )

    @contextmanager
    def _transfer(self, artifact: Artifact, model: str) -> Iterator[Path]:
        """Work in a folder that belongs to an artifact, so that the next pull finds what this one has left."""
        name = artifact.descriptor["digest"].removeprefix("sha256:")
        work, keep = self.home.pulls / name, True
        with (
            told(self.listen, model, "pull"),
            durable.unobstructed(str(work)),
            durable.writing(str(work)),
            named_lock(self.home, f"pull-{name[:16]}", self.cancel, self._waits(model)),
        ):
            _make_plain(work)
            try:
                yield work
                keep = False
            except EnginefarmError as error:
                keep = error.reason in _TAKEN_UP
                raise
            finally:
                if not keep:
                    shutil.rmtree(work, ignore_errors=True)

    def _waits(self, model: str) -> Callable[[], None]:
        text = "another enginefarm is pulling the same engine: waiting for it"
        return lambda: self.listen(Note(subject=model, text=text))

    def _download(self, located: Located, artifact: Artifact, choice: Choice, work: Path) -> int:
        """Bring all files to the folder, each under its digest; return the bytes that had to come."""
        known = self._known(choice.verdict.candidate.key, artifact)
        missing = {one["digest"]: one for one in artifact.files.values() if not _take(known, one, work)}
        needed = sum(int(one["size"]) for one in missing.values())
        if host.free_disk_bytes(work) < needed + _SPARE_BYTES:
            what = f"the disk has no room for {needed} bytes of the engine"
            raise EnginefarmError(Reason.DISK_FULL, what, where=str(work))
        located.place.together([_fetching(located, one, work) for one in missing.values()])
        return needed

    def _known(self, key: str, artifact: Artifact) -> dict[str, Path]:
        """Map digests of files that the store has to their places; an engine's weights may be those of any other."""
        store, known = Store(self.home.store), dict[str, Path]()
        shares = any(title in artifact.layers for title in WEIGHTS)
        for entry in store.entries("engine") if shares else store.find("engine", key):
            with suppress(EnginefarmError):
                known |= {blob.digest: blob.path for blob in store.files(entry).values()}
        return known

    def _keep(self, artifact: Artifact, files: Path, manifest: Manifest, where: str) -> Entry:
        """Put the engine into the store; an entry with the same files is left as it is."""
        store = Store(self.home.store)
        wanted = {title: one["digest"] for title, one in artifact.files.items() if title not in _DERIVED}
        older = [entry for entry in store.find("engine", manifest.key) if entry.name == manifest.job]
        for entry in older:
            if _digests(store, entry) == wanted and store.intact(entry):
                store.touch(entry)
                return entry
        added = store.add(
            kind="engine",
            key=manifest.key,
            name=manifest.job,
            files={
                title: Blob(digest=digest, size=artifact.files[title]["size"], path=files / title)
                for title, digest in wanted.items()
            },
            annotations={PROOF_ANNOTATION: manifest.proof.key, PULLED: where},
        )
        if _digests(store, added) != wanted:
            store.remove(added)
            raise EnginefarmError(Reason.DOWNLOAD_CORRUPT, "a file changed after it was checked", where=where)
        # what was built here stays: it was perhaps verified on this machine's GPU
        for entry in older:
            if PULLED in entry.annotations and entry.digest != added.digest:
                store.remove(entry)
        return added

    def _publish(self, entry: Entry, located: Located, order: Order, trusted: Trusted | None, where: str) -> Path:
        blobs = Store(self.home.store).files(entry)
        signer = trusted.signer if trusted is not None else None
        folder = offer_engine(self.home, located.model, blobs, self.cancel, reference=where, signer=signer, to=order.to)
        if self.engines_bytes is not None and order.to is None:
            for gone in trim_engines(self.home, self.engines_bytes, self.cancel):
                text = f"{gone.model} went from {self.home.engines}, which was full; pull it again to load it"
                self.listen(Note(subject=located.model, text=text))
        return folder


def _passes(check: Callable[[], object]) -> bool:
    try:
        check()
    except EnginefarmError:
        return False
    return True


def _with_policy(order: Order, model: str) -> Order:
    """Let the policy say what it says of this model: host code by its rule, unsigned engines by the flag too."""
    rule = order.policy.rule_for(model)
    wish = replace(order.machine.wish, allow_host_code=rule is not None and rule.host_code)
    policy = replace(order.policy, unsigned=Unsigned.ALLOW) if order.allow_unsigned else order.policy
    return replace(order, machine=replace(order.machine, wish=wish), policy=policy)


def _compare_sizes(artifact: Artifact, entry: oci.Document, where: str) -> None:
    """Notice before the download that it is not the engine that the index speaks of."""
    told = tuple(entry["annotations"][f"{PREFIX}{name}"] for name in ("engine", "engine-size"))
    engine = artifact.layers[ENGINE]
    actual = (_hex(engine), str(engine["size"]))
    if told != actual:
        why = f"in the index: {told[0]}, {told[1]} bytes\nin the artifact: {actual[0]}, {actual[1]} bytes"
        what = "the artifact holds another engine than the index says"
        raise EnginefarmError(Reason.IDENTITY_MISMATCH, what, where=where, why=why)


def _take(known: dict[str, Path], described: oci.Document, work: Path) -> bool:
    """Say whether a file is there already: from an earlier attempt, or in the store."""
    blob = _blob(work, described)
    if _holds(blob, described):
        return True
    blob.unlink(missing_ok=True)
    source = known.get(described["digest"])
    if source is None or not source.is_file():
        return False
    _link(source, blob)
    if _holds(blob, described):
        return True
    blob.unlink()
    return False


def _holds(blob: Path, described: oci.Document) -> bool:
    # the size as well: no signature covers it, and the store goes by it
    if not blob.is_file() or blob.stat().st_size != described["size"]:
        return False
    return f"sha256:{durable.sha256_file(blob)}" == str(described["digest"])


def _make_plain(work: Path) -> None:
    """Make a folder, or take from it what no pull left: whatever is written here must not go elsewhere."""
    if work.is_symlink() or work.is_file():
        work.unlink()
    work.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_symlink() or not path.is_file() or path.name == _FILES:
            path.unlink()


def _fetching(located: Located, described: oci.Document, work: Path) -> Callable[[], None]:
    return lambda: located.place.fetch(described, _blob(work, described))


def _blob(work: Path, described: oci.Document) -> Path:
    return work / _hex(described)


def _gather(artifact: Artifact, work: Path) -> Path:
    """Give the files their names, in a folder that holds nothing else: that is what was signed."""
    folder = work / _FILES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for title, described in artifact.files.items():
        _link(_blob(work, described), folder / title)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # a file system where files have one name only
        shutil.copyfile(source, target)


def _hex(described: oci.Document) -> str:
    return str(described["digest"]).removeprefix("sha256:")


def _digests(store: Store, entry: Entry) -> dict[str, str]:
    try:
        return {title: blob.digest for title, blob in store.files(entry).items()}
    except EnginefarmError:
        return {}
