"""What must hold of an engine that came from elsewhere, after its files have their digests and their signature.

Nothing is deserialized here or before: the engine's file is read for its first bytes alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import oci
from builder.artifact import Artifact, check_files, engine_entry, parse_manifest
from builder.compat import Verdict, Wish, candidate_of_manifest, header_findings, verdict
from builder.compat_rules import KnownBad
from builder.engine_header import BYTES_NEEDED, read_header
from builder.errors import EnginefarmError, Reason
from builder.key import KEY_VERSION, make_key
from builder.machine import Facts
from builder.manifest import Manifest
from builder.titles import ENGINE, KEY, MANIFEST, PROOF


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What an engine is judged by."""

    facts: Facts
    wish: Wish
    known_bad: Sequence[KnownBad]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An engine that is what it says."""

    manifest: Manifest
    verdict: Verdict


def check_pulled(
    folder: Path, artifact: Artifact, entry: oci.Document, model: str, machine: Machine, where: str
) -> Checked:
    """Compare the files of a folder with each other, with the index's entry and with this machine.

    Raises:
        EnginefarmError: MANIFEST_INVALID, ARTIFACT_INVALID, ARTIFACT_TOO_NEW, IDENTITY_MISMATCH, ENGINE_HEADER, and
            the reasons of `compat.verdict` where the manifest does not keep what the index promised.

    """
    manifest = parse_manifest((folder / MANIFEST).read_bytes(), where)
    if manifest.recipe.name != model:
        raise _mismatch(where, f"it is an engine of {manifest.recipe.name!r}, not of {model!r}")
    check_files(artifact, manifest, where)
    key = _key_document(folder / KEY, "engine", manifest.key, where)
    _key_document(folder / PROOF, "proof", manifest.proof.key, where)
    candidate = candidate_of_manifest(
        manifest.model_dump(mode="json"), plugins=_names(key.get("plugins"), where), digest=entry["digest"]
    )
    with (folder / ENGINE).open("rb") as stream:
        header = read_header(stream.read(BYTES_NEEDED))
    for finding in header_findings(candidate, header):
        raise EnginefarmError(finding.reason, f"{ENGINE} is not what its manifest says", where=where, why=finding.text)
    judged = verdict(candidate, machine.facts, machine.wish, machine.known_bad)
    if judged.refusals:
        first = judged.refusals[0]
        why = "\n".join(f"{one.reason.value.code} {one.text}" for one in judged.refusals)
        what = "the engine does not fit this machine, although the index says so"
        raise EnginefarmError(first.reason, what, where=where, why=why)
    _check_entry(manifest, artifact, entry, where)
    return Checked(manifest=manifest, verdict=judged)


def _check_entry(manifest: Manifest, artifact: Artifact, entry: oci.Document, where: str) -> None:
    wanted = engine_entry(manifest, artifact.descriptor)
    told, true = entry.get("annotations", {}), wanted["annotations"]
    # what a later version says besides is no contradiction
    wrong = [name for name in true if told.get(name) != true[name]]
    lines = [f"{name}: {told.get(name)!r} in the index, {true[name]!r} by the manifest" for name in wrong]
    platform = {name: entry.get("platform", {}).get(name) for name in wanted["platform"]}
    if platform != wanted["platform"]:
        lines.append(f"platform: {platform} in the index, {wanted['platform']} by the manifest")
    if lines:
        raise _mismatch(where, "\n".join(lines))


def _key_document(path: Path, kind: str, sha256: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
        rest = {name: value for name, value in document.items() if name not in {"kind", "key_version"}}
        told, version = document["kind"], int(document["key_version"])
        actual = make_key(kind, rest).sha256
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{path.name}: {error!r}"
        raise EnginefarmError(Reason.ARTIFACT_INVALID, "a key document cannot be read", where=where, why=why) from error
    if version > KEY_VERSION:
        why = f"{path.name} is of version {version}, this version reads {KEY_VERSION}"
        raise EnginefarmError(Reason.ARTIFACT_TOO_NEW, "a newer enginefarm wrote this", where=where, why=why)
    if told != kind or actual != sha256:
        raise _mismatch(where, f"key by {path.name}: {actual}\nby the manifest: {sha256}")
    return dict(document)


def _names(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise EnginefarmError(Reason.ARTIFACT_INVALID, "a key document cannot be read", where=where, why="plugins")
    # a plugin is named, or described with its name
    names = [one.get("name") if isinstance(one, Mapping) else one for one in value]
    if not all(isinstance(name, str) for name in names):
        raise EnginefarmError(Reason.ARTIFACT_INVALID, "a key document cannot be read", where=where, why="plugins")
    return tuple(str(name) for name in names)


def _mismatch(where: str, why: str) -> EnginefarmError:
    return EnginefarmError(Reason.IDENTITY_MISMATCH, "the engine is not the one it is said to be", where=where, why=why)
