"""Which stacks a change touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from builder import process
from builder.changes import changed_stacks
from builder.errors import Reason
from builder.project import Project
from tests.artifacts import refusal

NAMES = ("export", "trt10", "trtrtx")


@dataclass
class Git:
    """Stands in for git: names changed files, or fails as told."""

    said: str = ""
    exit_code: int = 0
    missing: bool = False
    argv: list[str] = field(default_factory=list)
    cwd: Path = Path()

    def run(self, argv: Sequence[str], *, cwd: Path, log: Path, **_: object) -> process.Outcome:
        """Have the signature of process.run."""
        if self.missing:
            raise FileNotFoundError(argv[0])
        self.argv, self.cwd = list(argv), cwd
        log.write_text(self.said, encoding="utf-8")
        return process.Outcome(
            argv=tuple(argv),
            exit_code=self.exit_code,
            signal=None,
            duration_s=0.1,
            log=log,
            max_rss_bytes=1,
            timed_out=False,
            cancelled=False,
        )


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch) -> Git:
    """No program is really run."""
    fake = Git()
    monkeypatch.setattr(process, "run", fake.run)
    return fake


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that need not exist."""
    return Project(root=tmp_path)


@pytest.mark.parametrize(
    ("said", "touched"),
    [
        ("", set()),
        ("export/requirements.lock\n", {"export"}),
        ("export/Dockerfile\nexport/check.py\ntrt10/stack.toml\n", {"export", "trt10"}),
        ("steps/check.py\n", set(NAMES)),
        ("bases.toml\n", set(NAMES)),
        ("trt10/stack.toml\nbases.toml\n", set(NAMES)),
        # a stack that is gone, and a file that is no stack's
        ("trt8/stack.toml\nREADME.md\n", set()),
        ("trt10-old/stack.toml\n", set()),
        ("export/bases.toml\nexport/steps/x\n", {"export"}),
    ],
)
def test_files_name_their_stacks(git: Git, project: Project, said: str, touched: set[str]) -> None:
    git.said = said
    assert changed_stacks(project, "origin/main", NAMES) == touched


def test_names_may_be_an_iterator(git: Git, project: Project) -> None:
    git.said = "steps/check.py\n"
    assert changed_stacks(project, "HEAD~1", iter(NAMES)) == set(NAMES)


def test_git_is_asked_below_the_images(git: Git, project: Project) -> None:
    changed_stacks(project, "HEAD~1", NAMES)
    assert git.cwd == project.images
    assert git.argv[0] == "git"
    assert "--relative" in git.argv


def test_revision_is_never_taken_for_an_option(git: Git, project: Project) -> None:
    changed_stacks(project, "--output=/etc/passwd", NAMES)
    assert git.argv.index("--end-of-options") + 1 == git.argv.index("--output=/etc/passwd")
    assert git.argv[-2:] == ["--", "."]


def test_unknown_revision(git: Git, project: Project) -> None:
    git.said, git.exit_code = "fatal: bad revision 'nowhere'\n", 128
    error = refusal(lambda: changed_stacks(project, "nowhere", NAMES))
    assert (error.reason, error.why) == (Reason.NAME_UNKNOWN, git.said)
    assert "'nowhere'" in error.what


def test_missing_git(git: Git, project: Project) -> None:
    git.missing = True
    error = refusal(lambda: changed_stacks(project, "HEAD", NAMES))
    assert error.reason is Reason.TOOL_MISSING
    assert "git" in error.what
