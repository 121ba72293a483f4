"""A model's list of engines: read, its signature checked, not older than seen before, and the best engine chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from builder import oci
from builder.artifact import SIGNATURE_TYPE, ModelIndex, parse_index
from builder.compat import MOST_TOLD, Candidate, Fit, Verdict, candidate_of_annotations, no_fit, rank
from builder.errors import EnginefarmError, Reason
from builder.places import Located, Place
from builder.policy_rules import IndexRule, Policy
from builder.pull_checks import Machine
from builder.pull_memory import PullMemory
from builder.store_index import DIGEST
from builder.trust import check_index

# as many as the check looks at, and one more, so that it can say so
_MOST_BUNDLES = 65
_LARGEST_BUNDLE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The engine to take: its entry in the index, and why it fits."""

    index: ModelIndex
    entry: oci.Document
    verdict: Verdict


def read_model_index(
    located: Located, policy: Policy, memory: PullMemory, now: datetime, *, accept_older: bool
) -> ModelIndex:
    """Read a model's index; it must be the model's, signed where the policy asks for it, and no older one.

    Raises:
        EnginefarmError: ARTIFACT_MISSING, ARTIFACT_INVALID, ARTIFACT_TOO_NEW, IDENTITY_MISMATCH, DOWNLOAD_CORRUPT,
            SIZE_REFUSED, INDEX_ROLLED_BACK; UNSIGNED and the other reasons of `trust.check_index`.

    """
    read = located.place.manifest(located.version, (oci.INDEX_TYPE, oci.MANIFEST_TYPE))
    if read is None:
        raise EnginefarmError(Reason.ARTIFACT_MISSING, f"there is no {located.shown}")
    index = parse_index(read[0], located.shown, located.model)
    if policy.index is IndexRule.SIGNED:
        with told_where(f"{located.name}@{index.digest}"):
            check_index(read[0], read_bundles(located.place, index.digest), policy, located.model, now)
    if not located.pinned:
        memory.note(located.shown, index.serial, accept_older=accept_older)
    return index


def choose_engine(index: ModelIndex, machine: Machine) -> Choice:
    """Take the engine that fits this machine best.

    An entry that cannot be read, as one of a later version, takes none of the others with it.

    Raises:
        EnginefarmError: NO_ENGINE_FITS with the reasons of each engine.

    """
    entries = {entry["digest"]: entry for entry in index.entries}
    candidates: list[Candidate] = []
    unread: list[str] = []
    for digest, entry in entries.items():
        try:
            candidates.append(candidate_of_annotations(entry))
        except EnginefarmError as error:
            if len(unread) < MOST_TOLD:
                unread.append(f"{digest}: {error.reason.value.code} {error.what}: {error.why}")
    verdicts = rank(candidates, machine.facts, machine.wish, machine.known_bad)
    if not verdicts or verdicts[0].fit is Fit.NONE:
        refusal = no_fit(verdicts, f"engine of {index.model}")
        if unread:
            refusal.why = "\n".join([*([refusal.why or ""] if verdicts else []), *unread])
        raise refusal
    best = verdicts[0]
    return Choice(index=index, entry=entries[best.candidate.digest or ""], verdict=best)


@contextmanager
def told_where(where: str) -> Iterator[None]:
    """Let errors say what they are about, where they do not yet."""
    try:
        yield
    except EnginefarmError as error:
        error.where = error.where or where
        raise


def read_bundles(place: Place, digest: str) -> list[bytes]:
    """Read the signatures that are attached to a manifest.

    What does not have their form is none: whoever may write there must not be able to spoil the good ones.

    Raises:
        EnginefarmError: DOWNLOAD_CORRUPT, SIZE_REFUSED, ARTIFACT_MISSING where a signature does not come as it should.

    """
    listed = place.referrers(digest, SIGNATURE_TYPE)[:_MOST_BUNDLES]
    with TemporaryDirectory(prefix="enginefarm-") as folder:
        tasks = [_reading(place, one, digest, Path(folder) / str(number)) for number, one in enumerate(listed)]
        found = place.together(tasks)
    return [content for content in found if content is not None]


def _reading(place: Place, listed: object, subject: str, file: Path) -> Callable[[], bytes | None]:
    return lambda: _read_bundle(place, listed, subject, file)


def _read_bundle(place: Place, listed: object, subject: str, file: Path) -> bytes | None:
    name = listed.get("digest") if isinstance(listed, dict) else None
    if not isinstance(name, str) or not DIGEST.fullmatch(name):
        return None
    read = place.manifest(name, (oci.MANIFEST_TYPE,))
    blob = _only_blob(read[0], subject) if read is not None else None
    if blob is None:
        return None
    place.fetch(blob, file)
    return file.read_bytes()


def _only_blob(content: bytes, subject: str) -> oci.Document | None:
    try:
        document = json.loads(content)
        (layer,) = document["layers"]
        digest, size = layer["digest"], layer["size"]
        is_ours = document["subject"]["digest"] == subject and document["artifactType"] == SIGNATURE_TYPE
        formed = DIGEST.fullmatch(digest) is not None and type(size) is int and 0 < size <= _LARGEST_BUNDLE
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return oci.descriptor(SIGNATURE_TYPE, digest, size) if is_ours and formed else None
