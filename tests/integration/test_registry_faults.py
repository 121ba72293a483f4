"""Pushing and pulling through a connection that breaks: nothing half visible, every retry ends with equal digests."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import requests

from builder import oci, publish_index, registry_retry
from builder.artifact import parse_artifact, parse_index
from builder.engine_folder import FILES
from builder.errors import EnginefarmError, Reason
from builder.mirror import mirror
from builder.places import Located, Talk, locate
from builder.policy_rules import Policy
from builder.project import Home
from builder.publish import Destination, choose_packages, push_engines
from builder.publish_seal import Seal
from builder.pull import Order, Puller
from builder.registry import Registry
from builder.store import Entry, Store
from builder.titles import ENGINE
from tests.artifacts import document
from tests.integration.farm import ROOT
from tests.integration.fault_proxy import Fault, faults_before
from tests.published import MODEL, Parcel, add_parcel, header, machine, parcel, sha256

pytestmark = pytest.mark.integration

T = TypeVar("T")

FAULTS = 200
SIZE = 300_000
TRIES = 40
# what a broken connection may be told as; all else would be a mistake of ours
TOLD = frozenset(
    {
        Reason.REGISTRY_UNREACHABLE,
        Reason.REGISTRY_REFUSED,
        Reason.DOWNLOAD_CORRUPT,
        Reason.SIZE_REFUSED,
        Reason.ARTIFACT_INVALID,
        Reason.ARTIFACT_MISSING,
        Reason.UNSIGNED,
    }
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_retry, "_PAUSE_S", 0.0)
    monkeypatch.setattr(publish_index, "_PAUSE_S", 0.0)


def large(variant: int, precision: str = "fp16", size: int = SIZE) -> Parcel:
    """Make an engine of some size."""
    noise = random.Random(f"{variant} {precision}").randbytes(size)  # noqa: S311 - the same bytes each time
    return parcel(precision=precision, variant=variant, engine=header() + noise)


def located(address: str) -> Located:
    return locate(f"{address}/farm/{MODEL}", Talk(cancel=threading.Event(), listen=lambda _: None))


def push(store: Store, address: str) -> str:
    destination = Destination(registry=address, prefix="farm", tag="latest")
    (pushed,) = push_engines(
        choose_packages(store, ()),
        destination,
        cancel=threading.Event(),
        listen=lambda _: None,
        seal=Seal(store=store, signer=None),
    )
    return pushed.digest


def pull(home: Home, address: str, policy: Policy | None = None) -> None:
    order = Order(machine=machine(), policy=policy or Policy(), allow_unsigned=policy is None)
    Puller(home=home, cancel=threading.Event(), listen=lambda _: None).pull(located(address), order)


def attempt(action: Callable[[], T]) -> T | EnginefarmError:
    """Do it, or say why not."""
    try:
        return action()
    except EnginefarmError as error:
        return error


def insist(action: Callable[[], T], look: Callable[[], object], told: Counter[Reason]) -> T:
    """Do it again until it works; look after each failure."""
    for _ in range(TRIES):
        done = attempt(action)
        if not isinstance(done, EnginefarmError):
            return done
        assert done.reason in TOLD, str(done)
        told[done.reason] += 1
        look()
    pytest.fail(f"{TRIES} tries were not enough: {told}")


def look_at_registry(registry: str, older: str | None) -> str | None:
    """Check, past the proxy, that the index is the older one or a whole newer one; return its digest."""
    repository = Registry(registry, f"farm/{MODEL}", cancel=threading.Event(), listen=lambda _: None)
    found = repository.manifest("latest", (oci.INDEX_TYPE,))
    if found is None:
        assert older is None
        return None
    index = parse_index(found[0], "the index", MODEL)
    for entry in index.entries:
        content = repository.manifest(entry["digest"], (oci.MANIFEST_TYPE,))
        assert content is not None
        for one in parse_artifact(content[0], "an engine").files.values():
            url = f"http://{registry}/v2/farm/{MODEL}/blobs/{one['digest']}"
            assert requests.head(url, timeout=10).headers["Content-Length"] == str(one["size"])
    return index.digest


def look_at_home(home: Home) -> None:
    """Check that what can be seen is whole."""
    store, folder = Store(home.store), home.engines / MODEL
    assert store.verify() == ()
    assert len(store.entries()) <= 1
    if folder.exists():
        assert sha256((folder / ENGINE).read_bytes()) == document(folder / "trust.json")["engine_sha256"]


def pull_until_done(home: Home, address: str, one: Parcel, pushed: Entry, told: Counter[Reason]) -> None:
    """Pull until it works; what has arrived must be what was pushed."""
    insist(lambda: pull(home, address), lambda: look_at_home(home), told)
    look_at_home(home)
    (entry,) = Store(home.store).entries()
    assert entry.digest == pushed.digest
    for title in FILES:
        assert (home.engines / MODEL / title).read_bytes() == one.files[title]


def test_two_hundred_faults(registry: str, tmp_path: Path) -> None:
    source, told, older, rounds = Store(tmp_path / "source"), Counter[Reason](), list[str | None]([None]), 0
    with faults_before(registry, seed=20261121, rate=0.4) as proxy:
        while proxy.injected.total() < FAULTS or set(proxy.injected) != set(Fault):
            rounds += 1
            assert rounds < 40, proxy.injected
            one = large(rounds)
            pushed = add_parcel(source, one)
            digest = insist(lambda: push(source, proxy.address), lambda: look_at_registry(registry, older[-1]), told)
            assert look_at_registry(registry, digest) == digest
            older.append(digest)
            pull_until_done(Home(root=tmp_path / f"home-{rounds}"), proxy.address, one, pushed, told)
    # some were more than retries within a command could bear
    assert told[Reason.REGISTRY_UNREACHABLE] > 0
    assert rounds > 1


def test_a_mirror_through_a_bad_connection(serve_registry: Callable[..., str], tmp_path: Path) -> None:
    outside, inside = serve_registry(), serve_registry()
    source, home, told = Store(tmp_path / "source"), Home(root=tmp_path / "home"), Counter[Reason]()
    one = large(1)
    pushed = add_parcel(source, one)
    digest = push(source, outside)
    with faults_before(outside, 1, 0.4) as near, faults_before(inside, 2, 0.4) as far:

        def copy() -> str:
            return mirror(located(near.address), located(far.address), home, threading.Event(), lambda _: None).digest

        assert insist(copy, lambda: look_at_registry(inside, None), told) == digest
        assert near.injected.total() + far.injected.total() > 5
    assert look_at_registry(inside, None) == digest
    pull_until_done(home, inside, one, pushed, told)


def test_a_registry_that_goes_away_while_it_is_pushed_to(registry: str, tmp_path: Path) -> None:
    source = Store(tmp_path / "source")
    add_parcel(source, large(0))
    with faults_before(registry) as proxy:
        older, needed = push(source, proxy.address), 0
        for gone_after in range(0, 200, 5):
            add_parcel(source, large(gone_after + 1, size=1000))
            proxy.die_after(gone_after)
            done = attempt(lambda: push(source, proxy.address))
            if isinstance(done, str):
                needed = gone_after
                break
            assert done.reason is Reason.REGISTRY_UNREACHABLE
            proxy.die_after(None)
            # one that died after its index has done all that matters
            seen, digest = look_at_registry(registry, older), push(source, proxy.address)
            assert seen in {older, digest}
            assert look_at_registry(registry, older) == digest
            older = digest
    # it went away after each request that a push consists of
    assert needed > 10


def test_a_download_that_is_cut_goes_on_where_it_was(registry: str, tmp_path: Path) -> None:
    source, home = Store(tmp_path / "source"), Home(root=tmp_path / "home")
    one = large(1, size=2_000_000)
    pushed = add_parcel(source, one)
    push(source, registry)
    with faults_before(registry, faults=[Fault.CUT_ANSWER]) as proxy:
        # every time, until so little is left that a command gives up
        proxy.only, proxy.rate = f"/blobs/sha256:{one.told.engine.sha256}", 1.0
        with pytest.raises(EnginefarmError) as caught:
            pull(home, proxy.address)
        assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
        assert proxy.injected[Fault.CUT_ANSWER] > 1
        look_at_home(home)
        (part,) = home.pulls.glob(f"*/{one.told.engine.sha256}.part")
        came = part.stat().st_size
        assert came > 1_000_000
        # the next pull takes up what that one left
        proxy.rate, proxy.blob_bytes = 0.0, 0
        pull_until_done(home, proxy.address, one, pushed, Counter())
        assert proxy.blob_bytes <= sum(len(content) for content in one.files.values()) - came


def test_bits_that_flip_on_the_way_never_get_in(registry: str, tmp_path: Path) -> None:
    source, one = Store(tmp_path / "source"), large(1)
    add_parcel(source, one)
    push(source, registry)
    with faults_before(registry, faults=[Fault.FLIPPED_BIT]) as proxy:
        for title, content in one.files.items():
            home = Home(root=tmp_path / title)
            proxy.only, proxy.rate = f"/blobs/sha256:{sha256(content)}", 1.0
            with pytest.raises(EnginefarmError) as caught:
                pull(home, proxy.address)
            assert (title, caught.value.reason) == (title, Reason.DOWNLOAD_CORRUPT)
            assert not home.store.exists()
            assert not home.engines.exists()


PULL = """
import sys, threading
from pathlib import Path
from builder.policy_rules import Policy
from builder.project import Home
from tests.integration.test_registry_faults import pull
pull(Home(root=Path(sys.argv[1])), sys.argv[2])
"""


def start(home: Home, address: str) -> subprocess.Popen[bytes]:
    """Pull in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", PULL, str(home.root), address], env=environ)


def test_pulls_that_are_killed(registry: str, tmp_path: Path) -> None:
    source, home, one = Store(tmp_path / "source"), Home(root=tmp_path / "home"), large(1, size=8_000_000)
    entry = add_parcel(source, one)
    push(source, registry)
    # half a second of imports, and then a few tenths of work
    started = time.monotonic()
    assert start(Home(root=tmp_path / "probe"), registry).wait(timeout=60) == 0
    whole_s = time.monotonic() - started
    killed = 0
    for number in range(12):
        process = start(home, registry)
        # from before the first byte until just before the end
        time.sleep(whole_s * (0.5 + 0.5 * number / 12))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        look_at_home(home)
        if number == 6:
            shutil.rmtree(home.engines, ignore_errors=True)
            shutil.rmtree(home.store, ignore_errors=True)
    assert killed > 3
    assert start(home, registry).wait(timeout=60) == 0
    look_at_home(home)
    assert Store(home.store).entries()[0].digest == entry.digest
    assert [path for path in home.pulls.iterdir() if path.is_dir()] == []


def test_pulls_side_by_side(registry: str, tmp_path: Path) -> None:
    source, home, one = Store(tmp_path / "source"), Home(root=tmp_path / "home"), large(1, size=8_000_000)
    entry = add_parcel(source, one)
    push(source, registry)
    processes = [start(home, registry) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    look_at_home(home)
    assert [one.digest for one in Store(home.store).entries()] == [entry.digest]
