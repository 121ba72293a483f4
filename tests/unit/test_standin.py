"""Stand-in bases: what is taken from a distribution's archive, and how its maker may fail."""

from __future__ import annotations

import io
import random
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from builder import oci, process, standin
from builder.bases import Standin
from builder.errors import Reason
from builder.image_layout import ImageLayout
from tests.artifacts import refusal

EPOCH = 1_767_225_600
OLD = EPOCH - 1000
RECIPE = Standin(suite="bookworm", python="3.11", variant="custom", include=["python3-minimal", "x"], hooks=["merged"])
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **changes: Any) -> Member:
    """Describe a member of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = kind, len(content), EPOCH + 5, 0o644
    info.uname, info.gname = "root", "root"
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def archive(path: Path, members: Sequence[Member]) -> Path:
    """Write an archive as mmdebstrap does: all below `./`."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as target:
        for info, content in members:
            target.addfile(info, io.BytesIO(content))
    return path


def cleaned(folder: Path, members: Sequence[Member], drop: Sequence[str] = ()) -> dict[str, tarfile.TarInfo]:
    """Clean an archive and list what is left in its order."""
    raw, layer = archive(folder / "raw.tar", members), folder / "layer.tar"
    standin._clean(raw, layer, EPOCH, drop)
    with tarfile.open(layer) as found:
        return {info.name: info for info in found}


FILES = [
    member("./", kind=tarfile.DIRTYPE, mode=0o755),
    member("./usr/", kind=tarfile.DIRTYPE, mode=0o755),
    member("./usr/bin/", kind=tarfile.DIRTYPE, mode=0o755),
    member("./usr/bin/python3.11", b"\x7fELF", mode=0o755),
    member("./usr/bin/python3", kind=tarfile.SYMTYPE, linkname="python3.11"),
    member("./usr/bin/zpython", kind=tarfile.LNKTYPE, linkname="./usr/bin/python3.11"),
    member("./bin", kind=tarfile.SYMTYPE, linkname="usr/bin"),
    member("./etc/passwd", b"root:x:0:0", mtime=OLD),
    member(f"./usr/{'long/' * 40}name", b"far down"),
]


def test_names_lose_their_dot_and_are_sorted(tmp_path: Path) -> None:
    names = list(cleaned(tmp_path, FILES))
    assert names == sorted(names)
    assert {"usr", "usr/bin", "usr/bin/python3.11", "bin", "etc/passwd"} <= set(names)
    assert len(names) == len(FILES) - 1


def test_folder_comes_before_what_is_in_it(tmp_path: Path) -> None:
    members = [member("./a/b", b"1"), member("./a-b", b"2"), member("./a/", kind=tarfile.DIRTYPE)]
    names = list(cleaned(tmp_path, members))
    assert names.index("a") < names.index("a/b")


def test_patterns_drop_paths(tmp_path: Path) -> None:
    members = [
        *(member(f"./{name}", b"x") for name in ("usr/share/doc/a/b", "usr/share/docs", "etc/passwd-old", "a/b.pyc")),
        member("./usr/share/doc/", kind=tarfile.DIRTYPE),
        member("./usr/lib/__pycache__/", kind=tarfile.DIRTYPE),
        member("./etc/MACHINE-ID", b"x"),
        member("./etc/machine-id", b"x"),
    ]
    drop = ["usr/share/doc/*", "*-old", "*.pyc", "*/__pycache__", "etc/machine-id"]
    # the folder itself stays, and case counts
    assert list(cleaned(tmp_path, members, drop)) == ["etc/MACHINE-ID", "usr/share/doc", "usr/share/docs"]


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_nodes_go(tmp_path: Path, kind: bytes) -> None:
    members = [member("./dev/", kind=tarfile.DIRTYPE), member("./dev/thing", kind=kind), member("./dev/fd", b"x")]
    assert list(cleaned(tmp_path, members)) == ["dev", "dev/fd"]


def test_times_are_no_later_than_the_epoch_and_older_ones_stay(tmp_path: Path) -> None:
    members = [
        member("a", b"", mtime=EPOCH + 1),
        member("b", b"", mtime=EPOCH),
        member("c", b"", mtime=OLD),
        member("d", b"", mtime=OLD + 0.75),
        member("e", kind=tarfile.DIRTYPE, mtime=EPOCH + 10**6),
    ]
    times = [info.mtime for info in cleaned(tmp_path, members).values()]
    assert times == [EPOCH, EPOCH, OLD, OLD, EPOCH]


def test_owner_mode_and_content_stay(tmp_path: Path) -> None:
    found = cleaned(tmp_path, [member("./a", b"content", uid=3, gid=4, mode=0o4755)])["a"]
    assert (found.uid, found.gid, found.mode, found.size) == (3, 4, 0o4755, 7)
    with tarfile.open(tmp_path / "layer.tar") as layer:
        stream = layer.extractfile("a")
        assert stream is not None
        assert stream.read() == b"content"


def test_user_names_and_extra_headers_go(tmp_path: Path) -> None:
    extra = {"SCHILY.xattr.user.x": "1", "mtime": f"{OLD}.25", "comment": "built today"}
    found = cleaned(tmp_path, [member("./a", b"x", pax_headers=extra, uname="builder", gname="staff")])["a"]
    assert (found.uname, found.gname, found.pax_headers) == ("", "", {})
    assert b"builder" not in (tmp_path / "layer.tar").read_bytes()


def test_links_work(tmp_path: Path) -> None:
    cleaned(tmp_path, FILES)
    target = tmp_path / "root"
    with tarfile.open(tmp_path / "layer.tar") as layer:
        layer.extractall(target, filter="tar")
    assert (target / "bin" / "python3").read_bytes() == b"\x7fELF"
    assert (target / "bin").readlink() == Path("usr/bin")
    assert (target / "usr/bin/zpython").samefile(target / "usr/bin/python3.11")


def test_hard_link_never_comes_before_its_file(tmp_path: Path) -> None:
    # perl and perl5.36.0 in Debian; tar names as the file whichever it met first
    members = [member("./usr/bin/perl5", b"perl", mode=0o755)]
    members += [member("./usr/bin/perl", kind=tarfile.LNKTYPE, linkname="./usr/bin/perl5")]
    cleaned(tmp_path, members)
    seen: set[str] = set()
    with tarfile.open(tmp_path / "layer.tar") as layer:
        for info in layer:
            assert not info.islnk() or info.linkname in seen
            seen.add(info.name)
    assert seen == {"usr/bin/perl", "usr/bin/perl5"}


@pytest.mark.parametrize("seed", range(5))
def test_order_of_the_archive_does_not_matter(tmp_path: Path, seed: int) -> None:
    cleaned(tmp_path, FILES)
    first = (tmp_path / "layer.tar").read_bytes()
    other = FILES.copy()
    random.Random(seed).shuffle(other)  # noqa: S311  # a test's own
    assert other != FILES
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    cleaned(other_folder, other)
    assert (other_folder / "layer.tar").read_bytes() == first


Make = Callable[..., ImageLayout]


class Maker:
    """Stands in for mmdebstrap: writes the archive that it is asked for, or fails as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "base"
        self.log = folder / "log"
        self.argv: list[str] = []
        self.env: Mapping[str, str] = {}
        self.end: dict[str, Any] = {}
        self.said = ""

    def run(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str], **_: object) -> process.Outcome:
        """Have the signature of process.run."""
        self.argv, self.env = list(argv), env
        log.write_text(self.said, encoding="utf-8")
        end = {"exit_code": 0, "signal": None, "cancelled": False} | self.end
        if end["exit_code"] == 0:
            archive(Path(argv[-1]), FILES)
        return process.Outcome(argv=tuple(argv), duration_s=0.1, log=log, max_rss_bytes=1, timed_out=False, **end)

    def make(self, platform: str = "linux/amd64", **changes: Any) -> ImageLayout:
        """Make a stand-in."""
        recipe = RECIPE.model_copy(update=changes)
        tools = self.folder.parent / "tools"
        drop, cancel = ("etc/*",), threading.Event()
        return standin.make_standin(recipe, platform, self.folder, EPOCH, drop, tools, self.log, cancel)


@pytest.fixture
def maker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """No program is really run."""
    fake = Maker(tmp_path)
    monkeypatch.setattr(process, "run", fake.run)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    return fake


def test_base_is_an_image_of_one_layer(maker: Maker) -> None:
    layout = maker.make("linux/arm64")
    config = layout.config()
    assert (config["os"], config["architecture"], config["created"]) == ("linux", "arm64", "2026-01-01T00:00:00Z")
    assert config["config"]["Labels"] == {"org.enginefarm.base": "stand-in bookworm, Python 3.11"}
    assert "LANG=C.UTF-8" in config["config"]["Env"]
    ((digest, _, _, path),) = layout.layers()
    assert config["rootfs"]["diff_ids"] == [digest] == [oci.digest_of(path.read_bytes())]
    with tarfile.open(path) as layer:
        assert "etc/passwd" not in layer.getnames()
    assert sorted(one.name for one in maker.folder.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_maker_is_told_all_that_counts(maker: Maker) -> None:
    maker.make("linux/arm64")
    assert maker.argv[0] == "/usr/bin/mmdebstrap"
    assert {"--variant=custom", "--architectures=arm64", "--include=python3-minimal", "--include=x"} < set(maker.argv)
    assert "--hook-dir=/usr/share/mmdebstrap/hooks/merged" in maker.argv
    assert maker.argv[-2:] == ["bookworm", str(maker.folder / "raw.tar")]
    assert maker.env["SOURCE_DATE_EPOCH"] == str(EPOCH)


def test_equal_archives_give_equal_images(maker: Maker) -> None:
    first = maker.make().digest
    maker.folder = maker.folder.with_name("again")
    assert maker.make().digest == first
    maker.folder = maker.folder.with_name("other")
    assert maker.make("linux/arm64").digest != first


def test_missing_tool(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    error = refusal(maker.make)
    assert error.reason is Reason.TOOL_MISSING
    assert "apt-get install mmdebstrap" in (error.fix or "")
    assert not maker.folder.exists()
    assert maker.argv == []


def test_failing_tool_has_the_last_word(maker: Maker) -> None:
    maker.end, maker.said = {"exit_code": 25}, "I: starting\n" * 50 + "E: cannot resolve deb.debian.org\n"
    error = refusal(maker.make)
    assert (error.reason, error.where) == (Reason.BASE_UNAVAILABLE, str(maker.log))
    assert (error.why or "").endswith("E: cannot resolve deb.debian.org")
    assert not ImageLayout(maker.folder).complete


def test_killed_tool_is_a_failure(maker: Maker) -> None:
    maker.end = {"exit_code": None, "signal": 9}
    assert refusal(maker.make).reason is Reason.BASE_UNAVAILABLE


def test_full_disk_is_named(maker: Maker) -> None:
    maker.end, maker.said = {"exit_code": 1}, "dpkg: error: write failed: No space left on device\n"
    error = refusal(maker.make)
    assert error.reason is Reason.DISK_FULL
    assert "No space left" in (error.why or "")


def test_stopped_tool(maker: Maker) -> None:
    maker.end, maker.said = {"exit_code": None, "signal": 15, "cancelled": True}, "No space left on device"
    assert refusal(maker.make).reason is Reason.INTERRUPTED


def test_tool_that_is_not_installed_is_unpacked_once(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "mmdebstrap" else f"/usr/bin/{name}")
    ran: list[list[str]] = []

    def run(argv: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str], **_: object) -> process.Outcome:
        ran.append(list(argv))
        if "download" in argv:
            (cwd / "mmdebstrap_1_all.deb").write_bytes(b"")
        if argv[0] == "dpkg-deb":
            program = Path(argv[-1]) / "usr/bin/mmdebstrap"
            program.parent.mkdir(parents=True)
            program.write_text("#!/bin/false\n", encoding="utf-8")
        return maker.run(argv, log=log, env=env) if argv[0].endswith("mmdebstrap") else ended(argv, log)

    monkeypatch.setattr(process, "run", run)
    maker.make()
    program = str(tmp_path / "tools" / "mmdebstrap" / "usr/bin/mmdebstrap")
    assert [words[0] for words in ran] == ["apt-get", "apt-get", "dpkg-deb", program]
    assert f"--hook-dir={tmp_path}/tools/mmdebstrap/usr/share/mmdebstrap/hooks/merged" in maker.argv
    maker.folder = maker.folder.with_name("again")
    maker.make()
    assert [words[0] for words in ran[4:]] == [program]


def test_tool_that_cannot_be_fetched(maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "mmdebstrap" else f"/usr/bin/{name}")
    maker.end, maker.said = {"exit_code": 100}, "E: Failed to fetch\n"
    error = refusal(maker.make)
    assert (error.reason, error.why) == (Reason.TOOL_MISSING, "E: Failed to fetch")
    assert list((tmp_path / "tools").iterdir()) == []


def ended(argv: Sequence[str], log: Path) -> process.Outcome:
    """Say that a program has done its work."""
    facts: dict[str, Any] = {"exit_code": 0, "signal": None, "cancelled": False, "timed_out": False}
    return process.Outcome(argv=tuple(argv), duration_s=0.1, log=log, max_rss_bytes=1, **facts)
