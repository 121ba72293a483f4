"""The index: replaced whole, refused when unreadable, shared with other tools and other writers."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from builder import store_index
from builder.errors import Reason
from builder.store import Store
from tests.artifacts import KEY, OTHER_KEY, add, blob, document, refusal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Name a store that does not exist yet."""
    return Store(tmp_path / "store")


def test_another_process_is_seen_at_once(store: Store) -> None:
    other = Store(store.root)
    for number in range(5):
        entry = add(store, engine=bytes([number]))
        assert other.find("engine", KEY)[0] == entry
        store.remove(entry)
        assert other.find("engine", KEY) == ()


def test_index_is_read_once_per_change(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store)
    store = Store(store.root)
    reads: list[bytes] = []
    parse = store_index._parse

    def counted(content: bytes) -> store_index.Index:
        reads.append(content)
        return parse(content)

    monkeypatch.setattr(store_index, "_parse", counted)
    for _ in range(100):
        store.find("engine", KEY)
    assert len(reads) == 1


def entry_with(**changes: object) -> bytes:
    """Write an index whose only entry is ours, but for the changes."""
    annotations = {
        "org.opencontainers.image.ref.name": "n",
        "org.opencontainers.image.created": "c",
        "org.enginefarm.kind": "engine",
        "org.enginefarm.key": KEY,
    }
    listed = {"mediaType": "m", "digest": "sha256:" + "0" * 64, "size": 1, "annotations": annotations, **changes}
    return json.dumps({"manifests": [{name: value for name, value in listed.items() if value is not None}]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"manifests": 1}',
        b'{"manifests": ["text"]}',
        b'{"manifests": [{"annotations": ["org.enginefarm.kind"]}]}',
        entry_with(annotations={"org.enginefarm.kind": "engine"}),
        entry_with(digest=None),
        entry_with(digest="sha256:../../../etc/passwd"),
        entry_with(digest="sha256:" + "0" * 64 + "\n"),
        entry_with(digest=7),
        entry_with(size="1"),
    ],
)
def test_unreadable_index_is_refused_and_left_alone(store: Store, content: bytes) -> None:
    add(store)
    (store.root / "index.json").write_bytes(content)
    for action in (store.entries, store.verify, lambda: store.find("engine", KEY), lambda: add(store)):
        error = refusal(action)
        assert (error.reason, error.where) == (Reason.STORE_CORRUPT, str(store.root / "index.json"))
        assert str(store.root) in error.fix
    assert (store.root / "index.json").read_bytes() == content


@pytest.mark.parametrize("content", ['{"imageLayoutVersion": "2.0.0"}', "{}", "", None])
def test_layout_of_another_version_is_refused(store: Store, content: str | None) -> None:
    add(store)
    layout = store.root / "oci-layout"
    if content is None:
        layout.unlink()
    else:
        layout.write_text(content)
    reader = Store(store.root)
    assert refusal(reader.entries).reason is Reason.STORE_FOREIGN
    if content is not None:
        assert refusal(lambda: add(store)).reason is Reason.STORE_FOREIGN


def test_file_in_the_place_of_the_store(store: Store) -> None:
    store.root.write_text("a file")
    assert refusal(store.entries).reason is Reason.STORE_FOREIGN
    assert refusal(lambda: add(store)).reason is Reason.STORE_FOREIGN
    assert store.root.read_text() == "a file"


def test_what_other_tools_added_is_kept(store: Store) -> None:
    entry = add(store)
    layer = hashlib.sha256(b"layer").hexdigest()
    blob(store, layer).write_bytes(b"layer")
    content = json.dumps({"layers": [{"digest": f"sha256:{layer}"}]}).encode()
    digest = hashlib.sha256(content).hexdigest()
    blob(store, digest).write_bytes(content)
    foreign = [
        {"mediaType": "m", "digest": f"sha256:{digest}", "size": 1, "annotations": {"org.opencontainers": "x"}},
        {"mediaType": "m", "digest": f"sha256:{digest}", "size": 1},
    ]
    index = document(store.root / "index.json")
    index["manifests"] += foreign
    (store.root / "index.json").write_text(json.dumps(index))

    added = add(store, OTHER_KEY)
    assert store.entries() == (entry, added)
    assert [*store.verify(), *store.orphans()] == []
    assert [one for one in document(store.root / "index.json")["manifests"] if one in foreign] == foreign


def test_writer_trusts_no_earlier_reading(store: Store) -> None:
    """A number of a file may be used again at once, so an index that looks unchanged may be another one."""
    add(store)
    path = store.root / "index.json"
    before = path.stat()
    assert len(store.entries()) == 1
    path.write_bytes(path.read_bytes().replace(KEY.encode(), b"c" * 64))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    add(store, OTHER_KEY)
    assert [entry.key for entry in Store(store.root).entries()] == ["c" * 64, OTHER_KEY]


def test_sweeps_what_killed_writers_left_a_day_ago(store: Store) -> None:
    add(store)
    old, young = store.root / "tmp" / "blob-old", store.root / "tmp" / "blob-young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    add(store, OTHER_KEY)
    assert list((store.root / "tmp").iterdir()) == [young]


def test_sweep_bears_files_that_vanish(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add(store)
    listed = Path.iterdir
    gone = store.root / "tmp" / "blob-gone"
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*listed(folder), gone])
    add(store, OTHER_KEY)
    assert len(store.entries()) == 2


def test_writers_side_by_side_lose_nothing(store: Store) -> None:
    def write(writer: int) -> None:
        own = Store(store.root)
        for number in range(10):
            add(own, hashlib.sha256(bytes([writer, number])).hexdigest(), engine=bytes([number]))
            add(own, KEY, engine=bytes([number]))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.entries()) == 4 * 10 + 10
    assert [*store.verify(), *store.orphans()] == []
