"""Collecting: least recently used first, never what a run uses, and nothing of anybody else."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.collect import Collected, Limits, collect
from builder.disk import Item, home_items, size_of
from builder.errors import Reason
from builder.project import Home
from builder.store import Store
from builder.workspace import LOCK, STARTED, Workspace
from tests.artifacts import KEY, OTHER_KEY, add, refusal
from tests.unit.test_disk import (
    DAY,
    DIGESTS,
    HOUR,
    age,
    base,
    engine,
    environment,
    fetched,
    strangers,
    tree,
    write,
)

NOTHING = Limits(keep_bytes=0)
LEFTOVERS = Limits()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


def fill(home: Home) -> None:
    """Make one of each thing, of different ages."""
    fetched(home, DIGESTS[0], seconds=5 * DAY)
    environment(home, seconds=4 * DAY)
    base(home, seconds=3 * DAY)
    engine(home, seconds=2 * DAY)
    fetched(home, DIGESTS[1], seconds=1 * DAY)


def names(done: Collected) -> list[str]:
    """Name what went, in order."""
    return [item.name for item in done.removed]


def left(home: Home) -> set[str]:
    """Name what is there."""
    return {item.name for item in home_items(home)}


def unchanged(home: Home) -> dict[str, bytes]:
    """List all files but the lock files, which looking makes."""
    return {name: content for name, content in tree(home.root).items() if not name.endswith(".lock")}


def test_empty_home(home: Home) -> None:
    done = collect(home, NOTHING, dry_run=False)
    assert (done.removed, done.freed_bytes, done.kept_bytes, done.in_use) == ((), 0, 0, 0)
    assert not home.root.exists()


def test_without_a_limit_everything_stays(home: Home) -> None:
    fill(home)
    before = unchanged(home)
    done = collect(home, LEFTOVERS, dry_run=False)
    assert (done.removed, done.freed_bytes) == ((), 0)
    assert done.kept_bytes == sum(item.size for item in home_items(home))
    assert unchanged(home) == before


def test_least_recently_used_goes_first(home: Home) -> None:
    fill(home)
    items = sorted(home_items(home), key=lambda item: item.used)
    assert names(collect(home, NOTHING, dry_run=False)) == [item.name for item in items]
    assert left(home) == set()


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5])
def test_as_much_stays_as_may(home: Home, kept: int) -> None:
    fill(home)
    items = sorted(home_items(home), key=lambda item: item.used)
    room = sum(item.size for item in items[-kept:])
    done = collect(home, Limits(keep_bytes=room), dry_run=False)
    assert left(home) == {item.name for item in items[-kept:]}
    assert (done.kept_bytes, done.in_use) == (room, 0)


def test_one_byte_too_much(home: Home) -> None:
    fill(home)
    total = sum(item.size for item in home_items(home))
    assert names(collect(home, Limits(keep_bytes=total - 1), dry_run=False)) == [DIGESTS[0]]


@pytest.mark.parametrize(("days", "gone"), [(0.0, 5), (0.5, 5), (1.5, 4), (2.5, 3), (4.5, 1), (6.0, 0)])
def test_what_was_used_lately_stays(home: Home, days: float, gone: int) -> None:
    fill(home)
    items = sorted(home_items(home), key=lambda item: item.used)
    assert names(collect(home, Limits(keep_days=days), dry_run=False)) == [item.name for item in items[:gone]]


def test_either_limit_removes(home: Home) -> None:
    fill(home)
    everything = sum(item.size for item in home_items(home))
    assert len(names(collect(home, Limits(keep_bytes=everything, keep_days=3.5), dry_run=False))) == 2
    assert len(names(collect(home, Limits(keep_bytes=0, keep_days=1000), dry_run=False))) == 3


def test_use_postpones_the_end(home: Home) -> None:
    fill(home)
    age(home.fetch / "sha256" / DIGESTS[0], 0)
    assert names(collect(home, Limits(keep_days=3.5), dry_run=False)) == [f"export-py3.11-{'a' * 16}"]


def test_freed_bytes_are_those_of_the_disk(home: Home) -> None:
    fetched(home, DIGESTS[0], 70_000)
    folder = environment(home)
    size = size_of(folder) + size_of(home.fetch / "sha256" / DIGESTS[0])
    assert collect(home, NOTHING, dry_run=False).freed_bytes == size
    engine(home, content=b"x" * 9000)
    # the empty configuration, which all entries name, stays
    blobs = sum(path.stat().st_size for path in (home.store / "blobs" / "sha256").iterdir()) - len(b"{}")
    assert collect(home, NOTHING, dry_run=False).freed_bytes == blobs


@pytest.mark.parametrize("limits", [LEFTOVERS, NOTHING, Limits(keep_days=2.5)])
def test_dry_run_removes_nothing_and_says_the_same(home: Home, limits: Limits) -> None:
    fill(home)
    strangers(home)
    write(home.fetch / "sha256" / f"{DIGESTS[2]}.part", seconds=2 * HOUR)
    write(home.work / "run-dead" / LOCK, 0)
    before = unchanged(home)
    promised = collect(home, limits, dry_run=True)
    assert unchanged(home) == before
    done = collect(home, limits, dry_run=False)
    assert [(item.kind, item.name, item.size) for item in promised.removed] == [
        (item.kind, item.name, item.size) for item in done.removed
    ]
    assert (promised.kept_bytes, promised.in_use) == (done.kept_bytes, done.in_use)
    assert done.removed
    assert unchanged(home) != before


@pytest.mark.parametrize("limits", [LEFTOVERS, NOTHING, Limits(keep_days=0)])
@pytest.mark.parametrize("running", [False, True], ids=["idle", "while a run is at work"])
def test_strangers_are_never_touched(home: Home, limits: Limits, *, running: bool) -> None:
    strangers(home)
    before = unchanged(home)
    fill(home)
    write(home.fetch / "sha256" / f"{DIGESTS[2]}.part", seconds=2 * HOUR)
    write(home.work / "run-dead" / LOCK, 0)
    if running:
        with Workspace(home, keep=False):
            collect(home, limits, dry_run=False)
    else:
        collect(home, limits, dry_run=False)
    after = unchanged(home)
    assert {name: after.get(name) for name in before} == before


def test_home_is_bare_once_everything_is_gone(home: Home) -> None:
    fill(home)
    collect(home, NOTHING, dry_run=False)
    rest = {name for name, content in unchanged(home).items() if content}
    assert {name for name in rest if "/blobs/" not in name} == {
        "store/CACHEDIR.TAG",
        "store/index.json",
        "store/oci-layout",
    }
    assert left(home) == set()


def test_run_at_work_keeps_what_it_used(home: Home) -> None:
    fill(home)
    with Workspace(home, keep=False) as workspace:
        age(workspace.folder / STARTED, 2.5 * DAY)
        done = collect(home, NOTHING, dry_run=False)
        assert names(done) == [DIGESTS[0], f"export-py3.11-{'a' * 16}", f"sha256-{'b' * 64}-linux-amd64"]
        assert done.in_use == 2
        assert left(home) == {"tiny-a", DIGESTS[1]}
        assert done.kept_bytes == sum(item.size for item in home_items(home))
        Store(home.store).check(Store(home.store).entries()[0])
        assert workspace.folder.is_dir()
    assert collect(home, NOTHING, dry_run=False).in_use == 0
    assert left(home) == set()


def test_only_what_is_beyond_the_limit_counts_as_in_use(home: Home) -> None:
    fill(home)
    with Workspace(home, keep=False) as workspace:
        age(workspace.folder / STARTED, 10 * DAY)
        assert collect(home, LEFTOVERS, dry_run=False).in_use == 0
        assert collect(home, Limits(keep_days=2.5), dry_run=False).in_use == 3
        assert collect(home, NOTHING, dry_run=True).in_use == 5
    assert len(left(home)) == 5


def test_thing_used_by_a_run_makes_others_go(home: Home) -> None:
    old = fetched(home, DIGESTS[0], 40_000, seconds=2 * DAY)
    fetched(home, DIGESTS[1], 40_000, seconds=5 * DAY)
    with Workspace(home, keep=False) as workspace:
        age(workspace.folder / STARTED, 3 * DAY)
        done = collect(home, Limits(keep_bytes=size_of(old)), dry_run=False)
    assert (names(done), done.in_use) == ([DIGESTS[1]], 0)


def test_blob_that_a_run_is_about_to_name_stays(home: Home) -> None:
    entry = engine(home, content=b"x" * 9000)
    store = Store(home.store)
    store.remove(entry)
    orphans = store.orphans()
    age(orphans[0], 2 * HOUR)
    with Workspace(home, keep=False):
        collect(home, LEFTOVERS, dry_run=False)
        assert store.orphans() == orphans[1:]
    collect(home, LEFTOVERS, dry_run=False)
    assert store.orphans() == ()


def test_leftovers_go_without_a_limit(home: Home) -> None:
    fill(home)
    old = write(home.fetch / "sha256" / f"{DIGESTS[2]}.part", seconds=2 * HOUR)
    young = write(home.fetch / "sha256" / f"{DIGESTS[3]}.part")
    dead = write(home.work / "run-dead" / LOCK, 0).parent
    kept = write(home.work / "kept-dead" / LOCK, 0).parent
    size = size_of(old) + size_of(dead)
    done = collect(home, LEFTOVERS, dry_run=False)
    assert names(done) == [old.name, dead.name]
    assert done.freed_bytes == size
    assert not old.exists()
    assert not dead.exists()
    assert young.is_file()
    # a person asked to keep it
    assert kept.is_dir()


def test_shared_blobs_live_as_long_as_one_entry_needs_them(home: Home) -> None:
    old, young = engine(home, KEY, b"old", seconds=5 * DAY), engine(home, OTHER_KEY, b"young", seconds=DAY)
    store = Store(home.store)
    shared = {blob.digest for blob in store.files(old).values()} & {blob.digest for blob in store.files(young).values()}
    assert len(shared) == 1
    done = collect(home, Limits(keep_days=2), dry_run=False)
    assert (names(done), store.entries()) == (["tiny-a"], (young,))
    assert done.freed_bytes == old.size + len(b"old") + len(KEY)
    assert (store.verify(), store.orphans()) == ((), ())
    collect(home, NOTHING, dry_run=False)
    assert (store.entries(), store.orphans()) == ((), ())


@settings(max_examples=30, deadline=None)
@given(
    ages=st.lists(st.sampled_from([0.5, 1.5, 2.5, 3.5]), min_size=4, max_size=4),
    limits=st.builds(Limits, keep_bytes=st.none() | st.integers(0, 60_000), keep_days=st.none() | st.integers(0, 4)),
    began=st.none() | st.sampled_from([1.0, 2.0, 3.0]),
)
def test_store_is_whole_afterwards(
    tmp_path_factory: pytest.TempPathFactory, ages: list[float], limits: Limits, began: float | None
) -> None:
    home = Home(root=tmp_path_factory.mktemp("home"))
    store = Store(home.store)
    contents = [b"a" * 9000, b"b" * 9000, b"a" * 9000, b"c"]
    entries = [
        engine(home, f"{number}" * 64, content, seconds=days * DAY)
        for number, (content, days) in enumerate(zip(contents, ages, strict=True))
    ]
    with Workspace(home, keep=False) as workspace:
        age(workspace.folder / STARTED, (began or 0.0) * DAY)
        if began is not None:
            done = collect(home, limits, dry_run=False)
    if began is None:
        done = collect(home, limits, dry_run=False)
        assert store.orphans() == ()
    assert store.verify() == ()
    assert len(store.entries()) == len(entries) - len(done.removed)
    used = {entry for entry, days in zip(entries, ages, strict=True) if began is not None and days < began}
    assert used <= set(store.entries())


def item(name: str, size: int, used: float, removed: list[str], *, goes: bool = True) -> Item:
    """Make a thing that lies elsewhere."""

    def remove() -> bool:
        removed.append(name)
        return goes

    return Item(kind="image", name=name, size=size, used=used, remove=remove)


def test_things_elsewhere_are_weighed_together_with_the_homes(home: Home) -> None:
    removed: list[str] = []
    now = time.time()
    path = fetched(home, DIGESTS[0], seconds=2 * DAY)
    images = [item("young", 10, now - DAY, removed), item("old", 20, now - 3 * DAY, removed)]
    done = collect(home, Limits(keep_bytes=10 + size_of(path)), dry_run=False, kept=lambda: images)
    assert (names(done), removed) == (["old"], ["old"])
    assert (done.freed_bytes, done.kept_bytes) == (20, 10 + size_of(path))
    assert path.is_file()
    assert names(collect(home, NOTHING, dry_run=False, kept=lambda: images[:1])) == [DIGESTS[0], "young"]


def test_thing_that_cannot_go_still_counts(home: Home) -> None:
    removed: list[str] = []
    images = [item("busy", 20, 1, removed, goes=False), item("free", 10, 2, removed)]
    done = collect(home, Limits(keep_bytes=20), dry_run=False, kept=lambda: images)
    # one stays against its turn: the next goes in its place
    assert (removed, names(done)) == (["busy", "free"], ["free"])
    assert (done.freed_bytes, done.kept_bytes) == (10, 20)


def test_dead_things_elsewhere_go_at_once(home: Home) -> None:
    removed: list[str] = []
    dead = [item("container", 7, 0, removed), item("stuck", 5, 0, removed, goes=False)]
    with Workspace(home, keep=False):
        done = collect(home, LEFTOVERS, dry_run=False, dead=lambda: dead)
    assert (removed, names(done), done.freed_bytes) == (["container", "stuck"], ["container"], 7)


def test_things_elsewhere_stay_in_a_dry_run(home: Home) -> None:
    removed: list[str] = []
    done = collect(
        home,
        NOTHING,
        dry_run=True,
        kept=lambda: [item("image", 3, 0, removed)],
        dead=lambda: [item("container", 4, 0, removed)],
    )
    assert (names(done), done.freed_bytes, removed) == (["container", "image"], 7, [])


def test_run_at_work_keeps_things_elsewhere(home: Home) -> None:
    removed: list[str] = []
    with Workspace(home, keep=False):
        images = [item("new", 3, time.time() + 1, removed), item("old", 3, time.time() - DAY, removed)]
        done = collect(home, NOTHING, dry_run=False, kept=lambda: images)
    assert (removed, done.in_use, done.kept_bytes) == (["old"], 1, 3)


@pytest.mark.parametrize("content", ["", "{}", "nonsense"])
def test_damaged_index_stops_before_anything_of_the_store_goes(home: Home, content: str) -> None:
    engine(home)
    (home.store / "index.json").write_text(content, encoding="utf-8")
    blobs = sorted((home.store / "blobs" / "sha256").iterdir())
    error = refusal(lambda: collect(home, NOTHING, dry_run=False))
    assert error.reason is Reason.STORE_CORRUPT
    assert sorted((home.store / "blobs" / "sha256").iterdir()) == blobs


def test_foreign_store_is_refused(home: Home) -> None:
    write(home.store / "index.json")
    assert refusal(lambda: collect(home, NOTHING, dry_run=False)).reason is Reason.STORE_FOREIGN


def test_entry_of_another_kind_is_called_by_it(home: Home) -> None:
    add(Store(home.store), kind="film", name="holiday")
    (found,) = collect(home, NOTHING, dry_run=True).removed
    assert (found.kind, found.name) == ("film", "holiday")
