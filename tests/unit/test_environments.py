"""Python environments of stacks: found, installed once, never half."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builder import environments, process
from builder.environments import BasePython, Environment, find_python, install, locate
from builder.errors import EnginefarmError, Reason
from builder.project import Home
from builder.stacks import BuildStackFile, ExportStackFile, ImageSpec, Stack

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def make_stack(folder: Path, *, python: str = OWN, extra_index: str | None = None, lock: str = "numpy==1.0\n") -> Stack:
    """Make a stack that nothing is built with."""
    spec = ExportStackFile(
        name="export",
        title="Export",
        role="export",
        platform="linux/amd64",
        python=[python],
        confirmed=True,
        installed_mib=1,
        image=ImageSpec(base="b", budget_mib=1),
        extra_index=extra_index,
    )
    return Stack(folder=folder, spec=spec, lock=lock)


@dataclass
class Programs:
    """Stands in for other programs: remembers what was called, ends as told."""

    calls: list[tuple[str, ...]] = field(default_factory=list)
    envs: list[Mapping[str, str]] = field(default_factory=list)
    ends: list[dict[str, Any]] = field(default_factory=list)
    during: Callable[[Sequence[str]], None] = lambda argv: None

    def run(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str], **_: object) -> process.Outcome:
        """Have the signature of process.run."""
        self.calls.append(tuple(argv))
        self.envs.append(env)
        self.during(argv)
        end = {
            "exit_code": 0,
            "output": "",
            "cancelled": False,
            "timed_out": False,
            **(self.ends.pop(0) if self.ends else {}),
        }
        log.write_text(end.pop("output"), encoding="utf-8")
        return process.Outcome(argv=tuple(argv), signal=None, duration_s=0.1, log=log, max_rss_bytes=1, **end)


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """No program is really run."""
    fake = Programs()
    monkeypatch.setattr(process, "run", fake.run)
    return fake


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


@pytest.fixture
def environment(tmp_path: Path, home: Home) -> Environment:
    """An environment yet to be installed."""
    return locate(make_stack(tmp_path / "images" / "export"), home)


def log(home: Home) -> Path:
    """Name the log of an installation."""
    return home.logs / "install-export.log"


def test_the_lock_and_the_python_name_the_folder(tmp_path: Path, home: Home) -> None:
    first = locate(make_stack(tmp_path), home)
    again = locate(make_stack(tmp_path / "other checkout"), home)
    changed = locate(make_stack(tmp_path, lock="numpy==2.0\n"), home)
    assert first.folder == again.folder
    assert changed.folder != first.folder
    assert first.folder.name.startswith(f"export-py{OWN}-")
    assert not home.root.exists()


def test_installs_once(environment: Environment, home: Home, programs: Programs) -> None:
    before = environment.installed
    install(environment, home, log(home), threading.Event())
    assert (before, environment.installed) == (False, True)
    install(environment, home, log(home), threading.Event())
    venv, pip = programs.calls
    assert venv[:4] == (sys.executable, "-m", "venv", "--without-pip")
    assert "--require-hashes" in pip
    assert str(environment.stack.lock_path) in pip
    assert list(home.envs.iterdir()) == [environment.folder]


def test_packages_of_the_user_do_not_count_as_installed(
    environment: Environment, home: Home, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/ros/site-packages")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/etc/pip.conf")
    install(environment, home, log(home), threading.Event())
    assert all("PYTHONPATH" not in env for env in programs.envs)
    assert all(env["PIP_CONFIG_FILE"] == "/etc/pip.conf" for env in programs.envs)


def test_replaces_a_half_installed_environment(environment: Environment, home: Home, programs: Programs) -> None:
    (environment.folder / "lib").mkdir(parents=True)
    stale = home.envs / f".{environment.folder.name}.killed"
    stale.mkdir()
    install(environment, home, log(home), threading.Event())
    assert len(programs.calls) == 2
    assert not (environment.folder / "lib").exists()
    assert not stale.exists()


def test_nothing_is_visible_under_the_final_name_while_installing(
    environment: Environment, home: Home, programs: Programs
) -> None:
    seen: list[bool] = []
    programs.during = lambda argv: seen.append(environment.folder.exists())
    install(environment, home, log(home), threading.Event())
    assert seen == [False, False]


def test_a_failed_installation_leaves_nothing_and_shows_the_log(
    environment: Environment, home: Home, programs: Programs
) -> None:
    programs.ends = [{}, {"exit_code": 1, "output": "ERROR: no matching distribution for numpy==1.0"}]
    with pytest.raises(EnginefarmError) as caught:
        install(environment, home, log(home), threading.Event())
    assert caught.value.reason is Reason.INSTALL_FAILED
    assert caught.value.why == "ERROR: no matching distribution for numpy==1.0"
    assert caught.value.where == str(log(home))
    assert list(home.envs.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "fix"),
    [
        ("/usr/bin/python3: No module named pip", "ensurepip"),
        ("no such option: --python", "pip install --upgrade pip"),
        ("ERROR: something else", Reason.INSTALL_FAILED.value.fix),
    ],
)
def test_the_fix_fits_the_failure(
    environment: Environment, home: Home, programs: Programs, output: str, fix: str
) -> None:
    programs.ends = [{}, {"exit_code": 1, "output": output}]
    with pytest.raises(EnginefarmError) as caught:
        install(environment, home, log(home), threading.Event())
    assert fix in (caught.value.fix or "")


def test_a_full_disk_has_its_own_reason(environment: Environment, home: Home, programs: Programs) -> None:
    programs.ends = [{}, {"exit_code": 1, "output": "OSError: [Errno 28] No space left on device"}]
    with pytest.raises(EnginefarmError) as caught:
        install(environment, home, log(home), threading.Event())
    assert caught.value.reason is Reason.DISK_FULL


def test_stopped_while_installing(environment: Environment, home: Home, programs: Programs) -> None:
    programs.ends = [{"exit_code": None, "cancelled": True}]
    with pytest.raises(EnginefarmError) as caught:
        install(environment, home, log(home), threading.Event())
    assert caught.value.reason is Reason.INTERRUPTED
    assert list(home.envs.iterdir()) == []


def test_stopped_while_another_process_installs(
    environment: Environment, home: Home, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.locks._TRY_S", 0.01)
    cancel = threading.Event()
    cancel.set()

    def during(argv: Sequence[str]) -> None:
        if "venv" in argv:
            with pytest.raises(EnginefarmError) as caught:
                _in_a_thread(lambda: install(environment, home, log(home), cancel))
            assert caught.value.reason is Reason.INTERRUPTED

    programs.during = during
    install(environment, home, log(home), threading.Event())
    assert len(programs.calls) == 2


def test_the_extra_index_is_a_second_try(tmp_path: Path, home: Home, programs: Programs) -> None:
    environment = locate(make_stack(tmp_path, extra_index="https://example.org/whl"), home)
    programs.ends = [{}, {"exit_code": 1, "output": "ERROR: no matching distribution"}, {}]
    install(environment, home, log(home), threading.Event())
    assert environment.installed
    assert "--extra-index-url" not in programs.calls[1]
    assert programs.calls[2][-2:] == ("--extra-index-url", "https://example.org/whl")


def test_no_second_try_on_a_full_disk(tmp_path: Path, home: Home, programs: Programs) -> None:
    environment = locate(make_stack(tmp_path, extra_index="https://example.org/whl"), home)
    programs.ends = [{}, {"exit_code": 1, "output": "No space left on device"}]
    with pytest.raises(EnginefarmError):
        install(environment, home, log(home), threading.Event())
    assert len(programs.calls) == 2


def test_the_running_python_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_python(("3.99", OWN), "export") == BasePython(path=Path(sys.executable), version=OWN)


def make_python(path: Path, *, executable: bool = True) -> Path:
    """Make a file that looks like an interpreter."""
    path.parent.mkdir(parents=True)
    path.touch(mode=0o755 if executable else 0o644)
    return path


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any other Python."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.delenv("UV_PYTHON_INSTALL_DIR", raising=False)
    return tmp_path


def test_found_on_path_newest_version_first(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_python(bare / "a" / "python3.98")
    newest = make_python(bare / "b" / "python3.99")
    monkeypatch.setenv("PATH", f"{bare / 'a'}:{bare / 'b'}")
    assert find_python(("3.98", "3.99"), "export") == BasePython(path=newest, version="3.99")


@pytest.mark.parametrize(
    "place",
    [".pyenv/versions/3.99.1/bin/python3.99", ".local/share/uv/python/cpython-3.99.1-linux-x86_64-gnu/bin/python3.99"],
)
def test_found_where_pyenv_and_uv_put_them(bare: Path, place: str) -> None:
    path = make_python(bare / place)
    assert find_python(("3.99",), "export") == BasePython(path=path, version="3.99")


def test_passes_over_shims_plain_files_and_the_current_folder(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_python(bare / "shims" / "python3.99")
    make_python(bare / "plain" / "python3.99", executable=False)
    make_python(bare / "here" / "python3.99")
    monkeypatch.chdir(bare / "here")
    monkeypatch.setenv("PATH", f"{bare / 'shims'}::{bare / 'plain'}:")
    with pytest.raises(EnginefarmError) as caught:
        find_python(("3.99",), "export")
    assert caught.value.reason is Reason.PYTHON_MISSING
    assert caught.value.what == f"stack export needs Python 3.99; this is {OWN} and no other was found"
    assert "uv python install 3.99" in caught.value.fix


def test_build_stacks_are_located_alike(tmp_path: Path, home: Home) -> None:
    spec = BuildStackFile(
        name="rtx",
        title="RTX",
        role="build",
        family="rtx",
        import_name="tensorrt_rtx_bindings",
        tensorrt="1",
        cuda="13",
        platform="linux/amd64",
        python=[OWN],
        confirmed=True,
        installed_mib=1,
        image=ImageSpec(base="b", budget_mib=1),
        needs_gpu=False,
        sms=["8.0"],
        grouping="together",
        precisions=["fp32"],
    )
    located = locate(Stack(folder=tmp_path, spec=spec, lock=""), home)
    assert located.python == located.folder / "bin" / "python"
    assert environments.locate(Stack(folder=tmp_path, spec=spec, lock="#"), home).folder != located.folder


def _in_a_thread(function: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except EnginefarmError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    if errors:
        raise errors[0]
