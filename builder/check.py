"""Judges engines of the store and engine files against a machine. Loads no TensorRT and reads only what it must.

Nothing here imports `builder.jobs` or `builder.manifest`: checking takes less time than they take to import.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builder.candidates import Candidate, candidate_of_manifest
from builder.compat import PRECISIONS, Finding, Fit, Verdict, Wish, header_findings, rank, verdict
from builder.compat_rules import KnownBad, load_rules
from builder.engine_header import BYTES_NEEDED, Header, read_header
from builder.errors import EnginefarmError, Reason
from builder.machine import Facts
from builder.store import Entry, Store

# as builder.jobs names them
ENGINE, MANIFEST, KEY = "model.plan", "manifest.json", "key.json"
_SUFFIXES = (".plan", ".engine", ".trt")
_DIGITS = re.compile(r"(sha256:)?(?P<hex>[0-9a-f]{6,64})")
_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine to be judged. `name`: job id or path; `findings`: what its file says against it, on any machine.

    `model`: name of the recipe, empty where no manifest says so; `path`: the engine's file; `entry`: null outside the
    store.
    """

    name: str
    model: str
    candidate: Candidate
    path: Path
    findings: tuple[Finding, ...] = ()
    entry: Entry | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An engine and what became of it."""

    subject: Subject
    verdict: Verdict


def find_subjects(store: Store, names: Sequence[str]) -> tuple[Subject, ...]:
    """Find what names mean: a model or job of the store, digits of a key or an engine, an engine file or a folder.

    No name means all engines of the store. A job built twice for one TensorRT and GPU counts once, the newest.

    Raises:
        EnginefarmError: NAME_UNKNOWN; MANIFEST_INVALID, STORE_CORRUPT.

    """
    if not names:
        return _newest(_in_store(store))
    found: list[Subject] = []
    for name in names:
        path = Path(name)
        if not name:
            # an unset variable of a script; as a path it would be this folder
            raise _unknown(store, name)
        as_path = path.exists() and ("/" in name or path.suffix in _SUFFIXES)
        some = tuple(_on_disk(path)) if as_path else _named(store, name)
        if not some and path.exists():
            some = tuple(_on_disk(path))
        if not some:
            raise _unknown(store, name)
        found += some
    return tuple({(one.name, one.path, one.candidate.key): one for one in found}.values())


def find_model(store: Store, model: str) -> tuple[Subject, ...]:
    """Return the engines of a model that the store has, the newest of each job, TensorRT and GPU.

    Damaged ones count as none.
    """
    return _newest(one for one in _in_store(store, f"{model}-") if one.model == model)


def check(subjects: Iterable[Subject], facts: Facts, wish: Wish, known_bad: Sequence[KnownBad]) -> tuple[Checked, ...]:
    """Judge engines, best first. What a file says against its engine is a refusal like any other."""
    by_place: dict[tuple[str, str, str], list[Subject]] = {}
    for subject in subjects:
        by_place.setdefault(_place(subject.candidate), []).append(subject)
    ranked = rank([one.candidate for many in by_place.values() for one in many], facts, wish, known_bad)
    checked = [_with_findings(by_place[_place(one.candidate)].pop(0), one) for one in ranked]
    return tuple(sorted(checked, key=lambda one: not one.verdict.fits))


def check_one(subject: Subject, facts: Facts, wish: Wish, known_bad: Sequence[KnownBad]) -> Checked:
    """Judge one engine."""
    return _with_findings(subject, verdict(subject.candidate, facts, wish, known_bad))


def _with_findings(subject: Subject, found: Verdict) -> Checked:
    if subject.findings:
        # of what is no engine nothing else can be said
        known = found.refusals if subject.candidate.tensorrt else ()
        refusals = (*subject.findings, *known)
        found = replace(found, refusals=refusals, fit=Fit.NONE, gpu=None)
    return Checked(subject=subject, verdict=found)


def _in_store(store: Store, prefix: str = "") -> Iterator[Subject]:
    """Find all engines of a store; a damaged one is judged like the others, and refused."""
    for entry in (one for one in store.entries("engine") if one.name.startswith(prefix)):
        try:
            yield _of_entry(store, entry)
        except EnginefarmError as error:
            bare = _bare(entry.name, Header(None, None), 0)
            broken = (Finding(error.reason, error.what),)
            yield Subject(name=entry.name, model="", candidate=bare, path=store.root, findings=broken, entry=entry)


def _newest(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    # the places of an index: the id of a job names neither the GPU tuned on nor the last number of TensorRT
    return tuple({(one.name, one.candidate.tensorrt, one.candidate.device): one for one in subjects}.values())


def _named(store: Store, name: str) -> tuple[Subject, ...]:
    entries = store.entries("engine")
    jobs = [entry for entry in entries if entry.name == name]
    if jobs:
        # who names a damaged engine is told so; damaged older ones count as none
        whole = (one for one in _in_store(store, name) if one.name == name and one.model)
        return _newest([*whole, _of_entry(store, jobs[-1])])
    if models := find_model(store, name):
        return models
    match = _DIGITS.fullmatch(name)
    if match is None:
        return ()
    found = [entry for entry in entries if _begins(store, entry, match["hex"])]
    return tuple(_of_entry(store, entry) for entry in found)


def _begins(store: Store, entry: Entry, digits: str) -> bool:
    with suppress(EnginefarmError, KeyError):
        return entry.key.startswith(digits) or store.files(entry)[ENGINE].digest.startswith(f"sha256:{digits}")
    return False


def _of_entry(store: Store, entry: Entry) -> Subject:
    manifest = _document(store.read(entry, MANIFEST), f"{entry.name} in the store")
    key = _document(store.read(entry, KEY), f"{entry.name} in the store")
    blob = store.files(entry)[ENGINE]
    candidate = _candidate(manifest, key, f"{entry.name} in the store")
    try:
        header = _header(blob.path)
    except EnginefarmError as error:
        what = f"{entry.name} in the store is not what it claims to be"
        raise EnginefarmError(Reason.STORE_CORRUPT, what, where=error.where, why=error.why) from error
    return Subject(
        name=entry.name,
        model=str(manifest["recipe"].get("name", "")),
        candidate=candidate,
        path=blob.path,
        findings=header_findings(candidate, header),
        entry=entry,
    )


def _on_disk(path: Path) -> Iterator[Subject]:
    """Find engines in a file or a folder; of a folder its own, else those one level below."""
    if path.is_file():
        yield _of_file(path)
        return
    if not path.is_dir():
        # pipes and devices may never end
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"{path} is neither an engine's file nor a folder of some")
    files = _engine_files(path)
    if not files:
        files = [file for folder in sorted(path.iterdir()) if folder.is_dir() for file in _engine_files(folder)]
    yield from map(_of_file, files)


def _engine_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def _of_file(path: Path) -> Subject:
    header, beside = _header(path), path.with_name(MANIFEST)
    if not beside.is_file():
        return Subject(
            name=str(path),
            model="",
            candidate=_bare(str(path), header, path.stat().st_size),
            path=path,
            findings=_no_engine(header, path.stat().st_size),
        )
    manifest = _document(_read(beside), str(beside))
    key_file = path.with_name(KEY)
    key = _document(_read(key_file), str(key_file)) if key_file.is_file() else {}
    candidate = _candidate(manifest, key, str(beside))
    findings = header_findings(candidate, header)
    if (size := path.stat().st_size) != candidate.size:
        text = f"has {size} bytes, the manifest beside it is of an engine of {candidate.size}"
        findings = (*findings, Finding(Reason.IDENTITY_MISMATCH, text))
    model = str(manifest["recipe"].get("name", ""))
    return Subject(name=str(path), model=model, candidate=candidate, path=path, findings=findings)


def _bare(name: str, header: Header, size: int) -> Candidate:
    """Make what is known of an engine without a manifest: its version, and of TensorRT-RTX its SMs."""
    return Candidate(
        job=name,
        key="",
        stack="",
        tensorrt=header.version or "",
        cuda="",
        precision="",
        sms=load_rules().header_sms(header.version, header.targets) or (),
        os="",
        architecture="",
        rtx=header.kind == "tensorrt-rtx",
        size=size,
    )


def _no_engine(header: Header, size: int) -> tuple[Finding, ...]:
    if header.version is not None:
        if load_rules().header_is_known(header.version) and header.size not in (None, size):
            return (Finding(Reason.ENGINE_HEADER, f"its header says {header.size} bytes, the file has {size}"),)
        return ()
    return (Finding(Reason.ENGINE_HEADER, "the file does not begin as an engine of TensorRT 8.6 or later does"),)


def _candidate(manifest: dict[str, Any], key: dict[str, Any], where: str) -> Candidate:
    plugins = key.get("plugins")
    try:
        names = tuple(str(name) for name in plugins) if isinstance(plugins, list) else ()
        return candidate_of_manifest(manifest, plugins=names)
    except EnginefarmError as error:
        error.where = where
        raise


def _document(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EnginefarmError(Reason.MANIFEST_INVALID, "the file is not JSON", where=where, why=str(error)) from error
    if not isinstance(document, dict):
        raise EnginefarmError(Reason.MANIFEST_INVALID, "the file is no JSON object", where=where)
    return document


def _read(path: Path) -> bytes:
    if path.stat().st_size > _DOCUMENT_BYTES:
        raise EnginefarmError(Reason.SIZE_REFUSED, f"{path.name} is larger than 64 MiB", where=str(path))
    return path.read_bytes()


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return read_header(file.read(BYTES_NEEDED))
    except OSError as error:
        raise EnginefarmError(
            Reason.FILE_MISSING, "the engine cannot be read", where=str(path), why=str(error)
        ) from error


def _place(candidate: Candidate) -> tuple[str, str, str]:
    return candidate.job, candidate.key, candidate.engine_sha256


def _unknown(store: Store, name: str) -> EnginefarmError:
    jobs = {entry.name for entry in store.entries("engine")}
    # a job begins with its model's name, and ends with precision, stack and SMs
    models = {re.split(rf"-(?:{'|'.join(PRECISIONS)})-", job)[0] for job in jobs}
    near = difflib.get_close_matches(name, sorted(jobs | models), n=3)
    fix = f"did you mean {' or '.join(near)}?" if near else "`enginefarm ls` lists the engines"
    what = f"{name!r} is no engine or model of the store, and no engine file or folder of some"
    return EnginefarmError(Reason.NAME_UNKNOWN, what, fix=fix)
