"""The store: a true OCI image layout, whole after any failure, and frank about damage."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from builder import store_index
from builder.errors import Reason
from builder.store import Blob, Store
from tests.artifacts import ENGINE, KEY, OTHER_KEY, add, blob, document, overwrite, refusal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Name a store that does not exist yet."""
    return Store(tmp_path / "store")


def test_nothing_is_made_by_looking(store: Store) -> None:
    assert [*store.entries(), *store.find("engine", KEY), *store.verify(), *store.orphans()] == []
    assert not store.root.exists()


def test_layout_is_what_oci_tools_read(store: Store) -> None:
    entry = add(store, annotations={"org.enginefarm.proof": "p"})
    assert document(store.root / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = document(store.root / "index.json")
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    (listed,) = index["manifests"]
    assert listed["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert listed["artifactType"] == "application/vnd.enginefarm.engine.v1"
    assert listed["annotations"] == {
        "org.opencontainers.image.ref.name": "tiny-sm80",
        "org.opencontainers.image.created": entry.created,
        "org.enginefarm.kind": "engine",
        "org.enginefarm.key": KEY,
        "org.enginefarm.proof": "p",
    }
    content = blob(store, listed["digest"]).read_bytes()
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (listed["digest"][7:], listed["size"])
    manifest = json.loads(content)
    assert manifest["artifactType"] == listed["artifactType"]
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert blob(store, manifest["config"]["digest"]).read_bytes() == b"{}"
    layers = {one["annotations"]["org.opencontainers.image.title"]: one for one in manifest["layers"]}
    assert {title: one["mediaType"] for title, one in layers.items()} == {
        "model.plan": "application/vnd.enginefarm.engine.v1",
        "manifest.json": "application/vnd.enginefarm.manifest.v1+json",
        "key.json": "application/vnd.enginefarm.key.v1+json",
    }
    # nothing wraps the engine: the blob is the engine
    assert blob(store, layers["model.plan"]["digest"]).read_bytes() == ENGINE
    assert layers["model.plan"]["size"] == len(ENGINE)


def test_folder_is_marked_as_a_cache_and_left_tidy(store: Store) -> None:
    add(store)
    assert (store.root / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert list((store.root / "tmp").iterdir()) == []
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (store.root / "blobs" / "sha256").iterdir()}
    assert modes == {0o444}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_files_come_back_byte_for_byte(store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "built.plan"
    source.write_bytes(os.urandom(size))
    entry = add(store, engine=source)
    assert store.read(entry, "model.plan") == source.read_bytes()
    found = store.files(entry)["model.plan"]
    assert (found.size, found.digest) == (size, f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}")
    store.check(entry)


def test_newest_entry_of_a_key_comes_first(store: Store) -> None:
    first, second = add(store, engine=b"1"), add(store, engine=b"2")
    other = add(store, OTHER_KEY)
    onnx = add(store, kind="onnx")
    assert store.find("engine", KEY) == (second, first)
    assert store.entries() == (first, second, other, onnx)
    assert store.entries("onnx") == (onnx,)
    assert Store(store.root).entries() == store.entries()


def test_same_artifact_again_is_one_entry(store: Store) -> None:
    first, again = add(store), add(store)
    assert first.digest == again.digest
    assert store.entries() == (again,)


def test_removed_entry_leaves_harmless_blobs(store: Store) -> None:
    kept, removed = add(store, OTHER_KEY, engine=b"kept"), add(store)
    assert store.orphans() == ()
    store.remove(removed)
    assert store.entries() == (kept,)
    # its manifest and its engine; the small files are shared
    assert {path.stat().st_size for path in store.orphans()} == {removed.size, len(ENGINE)}
    assert store.verify() == ()


def forbid(*_: object, **__: object) -> NoReturn:
    """Stand for everything that a read-only filesystem refuses."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_reading_needs_no_lock_and_no_writable_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = add(store)
    monkeypatch.setattr(store_index, "FileLock", forbid)
    monkeypatch.setattr("tempfile.mkstemp", forbid)
    monkeypatch.setattr(Path, "replace", forbid)
    monkeypatch.setattr(Path, "mkdir", forbid)
    store = Store(store.root)
    assert store.find("engine", KEY) == (entry,)
    assert store.read(entry, "key.json") == b"{}"
    store.check(entry)
    assert [*store.verify(), *store.orphans()] == []
    assert refusal(lambda: add(store)).reason is Reason.STORE_READ_ONLY


@pytest.mark.parametrize("content", [b"\x01" + ENGINE[1:], ENGINE[:-1], ENGINE + b"\x00", b"", None])
def test_damaged_engine(store: Store, content: bytes | None) -> None:
    entry, other = add(store), add(store, OTHER_KEY, engine=b"other", name="other-sm80")
    path = store.files(entry)["model.plan"].path
    if content is None:
        path.unlink()
    else:
        overwrite(path, content)

    error = refusal(lambda: store.check(entry))
    assert (error.reason, error.where) == (Reason.STORE_CORRUPT, str(path))
    assert error.why is not None
    if content is not None:
        expected, actual = (hashlib.sha256(one).hexdigest() for one in (ENGINE, content))
        assert error.why.splitlines() == [f"expected sha256:{expected}", f"actual   sha256:{actual}"]
        assert refusal(lambda: store.read(entry, "model.plan")).why == error.why
    (problem,) = store.verify()
    assert (problem.entry, problem.why) == (entry, error.why)
    assert "model.plan of tiny-sm80" in problem.what

    aside = store.quarantine(entry)
    assert [one.read_bytes() for one in aside.iterdir()] == ([] if content is None else [content])
    assert store.entries() == (other,)
    assert store.verify() == ()
    again = add(store)
    assert store.read(again, "model.plan") == ENGINE
    assert [*store.verify(), *store.orphans()] == []


@pytest.mark.parametrize("content", [b"", b"{}", b"null", None])
def test_damaged_artifact_manifest(store: Store, content: bytes | None) -> None:
    entry = add(store)
    path = blob(store, entry.digest)
    if content is None:
        path.unlink()
    else:
        overwrite(path, content)
    assert refusal(lambda: store.files(entry)).where == str(path)
    assert [problem.entry for problem in store.verify()] == [entry]
    aside = store.quarantine(entry)
    assert len(list(aside.iterdir())) == (content is not None)
    store.check(add(store))
    assert store.verify() == ()


def test_adding_again_heals_damage(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "built.plan"
    source.write_bytes(ENGINE)
    entry = add(store, engine=source)
    for found in store.files(entry).values():
        overwrite(found.path, b"damaged")
    assert len(store.verify()) == 3
    add(store, engine=source)
    assert store.verify() == ()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"layers": [{}]}', b'{"layers": [1]}', b'{"layers": null}'])
def test_manifest_that_is_intact_but_not_ours(store: Store, content: bytes) -> None:
    add(store)
    digest = hashlib.sha256(content).hexdigest()
    blob(store, digest).write_bytes(content)
    index = document(store.root / "index.json")
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(content)}
    (store.root / "index.json").write_text(json.dumps(index))
    (entry,) = store.entries()
    assert refusal(lambda: store.check(entry)).reason is Reason.STORE_CORRUPT
    assert len(store.verify()) == 1


def test_manifest_that_lies_about_a_size(store: Store) -> None:
    entry = add(store)
    manifest = document(blob(store, entry.digest))
    manifest["layers"][2]["size"] += 1
    content = json.dumps(manifest).encode()
    digest = hashlib.sha256(content).hexdigest()
    blob(store, digest).write_bytes(content)
    index = document(store.root / "index.json")
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(content)}
    (store.root / "index.json").write_text(json.dumps(index))
    (problem,) = store.verify()
    assert problem.why == f"expected {len(ENGINE) + 1} bytes\nactual   {len(ENGINE)} bytes"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, Reason.DISK_FULL),
        (errno.EDQUOT, Reason.DISK_FULL),
        (errno.EROFS, Reason.STORE_READ_ONLY),
        (errno.EACCES, Reason.STORE_READ_ONLY),
        (errno.EPERM, Reason.STORE_READ_ONLY),
    ],
)
def test_refused_write_says_why(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    before = add(store)
    source = tmp_path / "big.plan"
    source.write_bytes(b"big" * 1000)

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        error = refusal(lambda: add(store, OTHER_KEY, files={"model.plan": source}))
    assert error.reason is reason
    assert reason is not Reason.DISK_FULL or "3000 bytes" in error.what
    assert list((store.root / "tmp").iterdir()) == []
    assert store.entries() == (before,)
    assert store.verify() == ()


class PowerCutError(BaseException):
    """Stands for the end of the process: nothing in the store may catch it and go on."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """End the process at the step-th durable step. Cleaning up counts as not done."""
    steps: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            if len(steps) >= step:
                raise PowerCutError(name)
            steps.append(name)
            return real(*arguments, **options)

        return act

    for name in ("replace", "chmod", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, counted(name, getattr(Path, name)))
    for name in ("fsync", "close"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    return steps


@pytest.mark.parametrize("begun", [False, True], ids=["new store", "store with an entry"])
def test_cut_at_every_step_leaves_a_store_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, begun: bool
) -> None:
    source = tmp_path / "built.plan"
    source.write_bytes(ENGINE)
    whole = 1000
    for step in range(whole):
        root = tmp_path / f"store-{step}"
        before = (add(Store(root), OTHER_KEY, engine=b"before"),) if begun else ()
        with monkeypatch.context() as patch:
            steps = cut_at(patch, step)
            try:
                add(Store(root), engine=source)
                break
            except PowerCutError:
                assert len(steps) == step
        survivor = Store(root)
        assert survivor.entries() in {before, (*before, *survivor.find("engine", KEY))}
        assert survivor.verify() == ()
        entry = add(survivor, engine=source)
        assert survivor.entries() == (*before, entry)
        assert survivor.verify() == ()
    # five files of their own and the index, each synced, renamed and its folder synced
    assert 20 < step < whole - 1


def test_sync_comes_before_rename(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append(("rename", str(path)))
        events.append(("renamed", str(target)))
        return replace(path, target)

    store.ensure_writable()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    source = tmp_path / "built.plan"
    source.write_bytes(ENGINE)
    add(store, engine=source)
    renames = [place for place, (what, _) in enumerate(events) if what == "rename"]
    assert len(renames) == 5
    for place in renames:
        temp, target = events[place][1], Path(events[place + 1][1])
        assert ("sync", temp) in events[:place]
        assert events[place + 2] == ("sync", str(target.parent))
    assert events[-2] == ("renamed", str(store.root / "index.json"))


def checked_file(folder: Path) -> Blob:
    """Make a file whose digest is known."""
    (folder / "file").write_bytes(ENGINE)
    return Blob(digest=f"sha256:{hashlib.sha256(ENGINE).hexdigest()}", size=len(ENGINE), path=folder / "file")


@pytest.mark.parametrize("there", [False, True])
def test_a_file_that_was_checked_is_not_copied(store: Store, tmp_path: Path, *, there: bool) -> None:
    if there:
        add(store)
    given = checked_file(tmp_path)
    entry = store.add(kind="engine", key=OTHER_KEY, name="tiny", files={"model.plan": given})
    (kept,) = store.files(entry).values()
    assert kept.path.samefile(given.path)
    assert (kept.digest, stat.S_IMODE(kept.path.stat().st_mode)) == (given.digest, 0o444)
    assert store.verify() == ()
    # twice changes nothing
    assert store.add(kind="engine", key=OTHER_KEY, name="tiny", files={"model.plan": given}).digest == entry.digest
    given.path.unlink()
    assert store.verify() == ()
    assert list((store.root / "tmp").iterdir()) == []


def test_where_files_have_one_name_only_a_checked_file_is_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    given = checked_file(tmp_path)
    entry = store.add(kind="engine", key=KEY, name="tiny", files={"model.plan": given})
    assert not store.files(entry)["model.plan"].path.samefile(given.path)
    assert store.read(entry, "model.plan") == ENGINE
