"""Writes engines of the store as plain files: one folder per job, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.jobs import read_manifest
from builder.query import list_engines
from builder.signature_bundle import SUFFIX
from builder.store import Blob, Entry, Store
from builder.titles import ENGINE, KEY, MANIFEST, WEIGHTS
from builder.triton import CONFIG, VERSION, TritonModel, is_own_config, repository, serves

_FILES = (ENGINE, MANIFEST, KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """An engine's folder. `written` is false where the same files were there already."""

    job: str
    folder: Path
    engine_sha256: str
    engine_bytes: int
    written: bool


def choose_engines(store: Store, patterns: Sequence[str]) -> list[Entry]:
    """Pick the newest engine of every job whose id matches one of the globs; no glob means all.

    Raises:
        EnginefarmError: NAME_UNKNOWN for a glob that matches nothing, or where the store is empty.

    """
    newest = {entry.name: entry for entry in list_engines(store)}
    for pattern in patterns or ("*",):
        if not any(fnmatchcase(name, pattern) for name in newest):
            raise EnginefarmError(Reason.NAME_UNKNOWN, f"no engine of the store matches {pattern!r}")
    return [entry for name, entry in newest.items() if not patterns or any(fnmatchcase(name, p) for p in patterns)]


def export_engine(store: Store, entry: Entry, folder: Path) -> Exported:
    """Copy an engine with manifest and key document to `folder`/<job id>, checking digests on the way.

    A folder of an older export is replaced; anything else in its place is left alone.

    Raises:
        EnginefarmError: PATH_OCCUPIED, STORE_CORRUPT.

    """
    destination = folder / entry.name
    blobs = store.files(entry)
    wanted = {title: blobs[title].digest for title in (*_FILES, *(one for one in WEIGHTS if one in blobs))}
    engine = blobs[ENGINE]
    written = not _holds(destination, wanted)
    if written:
        _refuse_foreign(destination, entry.name)
        with _writing(folder), _temp_folder(folder, entry.name) as temp:
            for title, digest in wanted.items():
                _copy(blobs[title].path, temp / title, digest)
            _put_in_place(temp, destination)
    return Exported(
        job=entry.name,
        folder=destination,
        engine_sha256=engine.digest.removeprefix("sha256:"),
        engine_bytes=engine.size,
        written=written,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model of a Triton repository. `files`: engine's file to job; `written` is false where it was there already."""

    model: TritonModel
    folder: Path
    size: int
    written: bool


def servable(store: Store, entries: Sequence[Entry]) -> list[Entry]:
    """Leave out engines that Triton cannot load."""
    return [entry for entry in entries if serves(read_manifest(store, entry))]


def export_triton(store: Store, entries: Sequence[Entry], folder: Path) -> list[ExportedModel]:
    """Write engines as a model repository of Triton, each model whole or not at all.

    A model of an older export is replaced; anything else in its place is left alone.

    Raises:
        EnginefarmError: those of `triton.repository`, PATH_OCCUPIED, STORE_CORRUPT.

    """
    by_job = {entry.name: entry for entry in entries}
    models = repository(read_manifest(store, entry) for entry in entries)
    for model in models:
        _refuse_other_model(folder / model.name)
    return [_export_model(store, model, by_job, folder) for model in models]


def _export_model(store: Store, model: TritonModel, by_job: dict[str, Entry], folder: Path) -> ExportedModel:
    destination = folder / model.name
    blobs = {file: store.files(by_job[job]) for file, job in model.files.items()}
    wanted: dict[str, Blob] = {}
    for file, parts in blobs.items():
        wanted[f"{VERSION}/{file}"] = parts[ENGINE]
        # Triton reads folders with numbers for names alone
        wanted[f"manifests/{file.removesuffix('.plan')}.json"] = parts[MANIFEST]
    config = model.config.encode()
    written = not (
        _files_below(destination) == {CONFIG, *wanted}
        and (destination / CONFIG).read_bytes() == config
        and _holds(destination, {name: blob.digest for name, blob in wanted.items()})
    )
    if written:
        with _writing(folder), _temp_folder(folder, model.name) as temp:
            for name, blob in wanted.items():
                (temp / name).parent.mkdir(exist_ok=True)
                _copy(blob.path, temp / name, blob.digest)
            (temp / CONFIG).write_bytes(config)
            _put_in_place(temp, destination)
    size = sum(parts[ENGINE].size for parts in blobs.values())
    return ExportedModel(model=model, folder=destination, size=size, written=written)


def _files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _refuse_other_model(destination: Path) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    config = destination / CONFIG
    own = destination.is_dir() and not destination.is_symlink() and config.is_file() and not config.is_symlink()
    if not own or not is_own_config(config.read_bytes()):
        what = f"{destination} is not a model as enginefarm wrote it"
        why = f"its {CONFIG} was changed, or comes from elsewhere"
        raise EnginefarmError(Reason.PATH_OCCUPIED, what, why=why, fix="name another folder, or move the model away")


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        with durable.writing(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            yield
    except (FileExistsError, NotADirectoryError) as error:
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{folder} is no folder") from error
    except EnginefarmError as error:
        if error.reason is Reason.STORE_READ_ONLY:
            error.fix = "name a folder that you may write to"
        raise


@contextmanager
def _temp_folder(folder: Path, job: str) -> Iterator[Path]:
    temp = Path(tempfile.mkdtemp(prefix=f".{job}.", dir=folder))
    temp.chmod(0o755)
    try:
        yield temp
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _holds(destination: Path, wanted: dict[str, str]) -> bool:
    return all(
        (destination / title).is_file() and f"sha256:{durable.sha256_file(destination / title)}" == digest
        for title, digest in wanted.items()
    )


def _refuse_foreign(destination: Path, job: str) -> None:
    if not destination.exists() and not destination.is_symlink():
        return
    if destination.is_symlink() or not destination.is_dir():
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{destination} is not a folder that enginefarm wrote")
    # a signature of the older engine goes with it
    ours = {*_FILES, *WEIGHTS}
    others = sorted(
        path.name for path in destination.iterdir() if path.name not in ours and not path.name.endswith(SUFFIX)
    )
    if others:
        listed = ", ".join(others[:5])
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{destination} holds other files", why=f"not ours: {listed}")
    if any(destination.iterdir()) and _job_of(destination / MANIFEST) != job:
        why = f"its {MANIFEST} is not that of an engine of this job"
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{destination} holds other files", why=why)


def _job_of(manifest: Path) -> object:
    try:
        document = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document.get("job") if isinstance(document, dict) else None


def _put_in_place(temp: Path, destination: Path) -> None:
    if destination.exists():
        older = temp.with_name(f"{temp.name}.older")
        destination.rename(older)
        temp.rename(destination)
        shutil.rmtree(older)
    else:
        temp.rename(destination)


def _copy(source: Path, destination: Path, digest: str) -> None:
    try:
        actual = f"sha256:{durable.copy_hashed(source, destination)}"
    except FileNotFoundError as error:
        if source.exists():
            raise
        raise EnginefarmError(Reason.STORE_CORRUPT, f"{source} is gone from the store", why=str(error)) from error
    if actual != digest:
        raise EnginefarmError(
            Reason.STORE_CORRUPT, f"{source} is not what the store says", why=f"expected {digest}\nactual   {actual}"
        )
