"""Policies as people write them, and what is said of those that do not hold."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.policy import IndexRule, Policy, Unsigned, load_policy, read_revocations
from builder.toml_places import locate
from tests.artifacts import refusal
from tests.signing import authority, private_pem, public_pem, trusted_key

ID = "ab" * 32
WHOLE = f"""\
# who may sign
unsigned = "refuse"
index = "signed"
revoked = ["{ID}"]
revocation_lists = ["revoked.toml"]

[[rules]]
models = ["vocos-*", "tiny"]
host_code = true

[[rules.keys]]
name = "release"
file = "alice.pub"
not_before = 2026-01-01
not_after = 2026-12-31

[[rules.keys]]
name = "next"
pem = '''
{public_pem("bob").decode()}'''

[[rules]]
models = ["*"]

[[rules.certificates]]
name = "builders"
ca = "ca.pem"
identity = "ci@example.org"
not_after = 2027-01-01T10:00:00+02:00

[[rules.identities]]
name = "ci"
issuer = "https://issuer.example"
subject = "https://example.org/workflow"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the files that the policies here name."""
    (tmp_path / "alice.pub").write_bytes(public_pem("alice"))
    (tmp_path / "ca.pem").write_bytes(authority(tmp_path / "ca").pem)
    (tmp_path / "revoked.toml").write_text(
        f'[[revoked]]\nkey = "{"cd" * 32}"\nwhy = "lost"\nat = 2026-11-01T00:00:00Z\n', encoding="utf-8"
    )
    return tmp_path


def written(folder: Path, text: str) -> Path:
    """Write a policy."""
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problem(folder: Path, text: str) -> EnginefarmError:
    """Read a policy that must be refused."""
    error = refusal(lambda: load_policy(written(folder, text)))
    assert error.reason is Reason.POLICY_INVALID
    return error


def test_every_field_is_read(folder: Path) -> None:
    """Files lie beside the policy; days count whole, in UTC."""
    policy = load_policy(written(folder, WHOLE))
    assert (policy.unsigned, policy.index) == (Unsigned.REFUSE, IndexRule.SIGNED)
    assert policy.revoked == {ID: f"listed in {folder / 'policy.toml'}", "cd" * 32: "lost"}
    first, second = policy.rules
    release, following = first.keys
    assert (first.models, first.host_code, second.host_code) == (("vocos-*", "tiny"), True, False)
    assert (release.key_id, following.key_id) == (trusted_key("alice").key_id, trusted_key("bob").key_id)
    assert release.validity.not_before == datetime(2026, 1, 1, tzinfo=timezone.utc)
    assert release.validity.not_after == datetime(2026, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    assert second.certificates[0].validity.not_after == datetime(2027, 1, 1, 8, tzinfo=timezone.utc)
    assert second.identities[0].subject == "https://example.org/workflow"


def test_policy_of_the_page_is_one(folder: Path) -> None:
    """What docs/trust.md shows can be copied."""
    page = (Path(__file__).parents[2] / "docs" / "trust.md").read_text(encoding="utf-8")
    text = page.split("```toml\n")[1].split("```")[0].replace("<id of a key>", ID)
    (folder / "release.pub").write_bytes(public_pem("alice"))
    (folder / "sigstore.json").write_text("{}", encoding="utf-8")
    (rule,) = load_policy(written(folder, text)).rules
    assert (len(rule.keys), len(rule.certificates), len(rule.identities)) == (1, 1, 1)


def test_first_rule_that_matches_decides(folder: Path) -> None:
    """Order counts."""
    policy = load_policy(written(folder, WHOLE))
    assert [policy.rules.index(rule) for model in ("tiny", "vocos-decoder", "resnet50")
            if (rule := policy.rule_for(model)) is not None] == [0, 0, 1]  # fmt: skip
    assert Policy().rule_for("tiny") is None


def test_without_a_policy_nobody_is_trusted() -> None:
    """Silence means no."""
    assert load_policy() == Policy()
    assert Policy().unsigned is Unsigned.REFUSE


def test_policy_is_found_by_option_variable_and_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest word counts."""
    home = folder / "home"
    (home / "keys").mkdir(parents=True)
    monkeypatch.setenv("ENGINEFARM_HOME", str(home))
    (home / "policy.toml").write_text('index = "signed"', encoding="utf-8")
    assert load_policy().index is IndexRule.SIGNED
    monkeypatch.setenv("ENGINEFARM_POLICY", str(written(folder, 'unsigned = "allow"')))
    assert load_policy().unsigned is Unsigned.ALLOW
    other = folder / "other.toml"
    other.write_text("", encoding="utf-8")
    assert load_policy(other) == Policy(where=str(other))


def test_policy_that_was_named_must_be_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in a path must not mean another policy."""
    assert refusal(lambda: load_policy(folder / "none.toml")).reason is Reason.POLICY_INVALID
    monkeypatch.setenv("ENGINEFARM_POLICY", str(folder / "none.toml"))
    assert refusal(load_policy).reason is Reason.POLICY_INVALID


def test_keys_revoked_on_this_machine_count_with_every_policy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with none."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(folder / "home"))
    (folder / "home" / "keys").mkdir(parents=True)
    (folder / "revoked.toml").rename(folder / "home" / "keys" / "revoked.toml")
    assert load_policy().revoked == {"cd" * 32: "lost"}
    assert load_policy(written(folder, f'revoked = ["{ID}"]')).revoked.keys() == {ID, "cd" * 32}


RULE = '[[rules]]\nmodels = ["*"]\n'
WRONG = {
    "no TOML": ("\na = = 1", "2:5", "not TOML: Invalid value"),
    "cut short": ("\nrules = [", "2:1", "not TOML: "),
    "unknown key": ('unsinged = "allow"', "1:1", "unknown key 'unsinged'"),
    "unknown key in a key": (RULE + "[[rules.keys]]\nname = 'a'\nfiel = 'b'", "5:1", "unknown key 'fiel'"),
    "not a choice": ('\nunsigned = "maybe"', "2:1", "'refuse' or 'allow'"),
    "models missing": ("[[rules]]\nhost_code = true", "1:1", "models is missing in rules[0]"),
    "models empty": ("[[rules]]\nmodels = []", "2:1", "at least 1 item"),
    "host_code is text": (RULE + 'host_code = "yes"', "3:1", "valid boolean"),
    "short id": ('revoked = ["abc"]', "1:1", "revoked[0]"),
    "date in quotes": (RULE + "[[rules.keys]]\nname = 'a'\nfile = 'alice.pub'\nnot_after = '2027-01-01'", "6:1",
                       "a date without quotes"),
    "time without zone": (RULE + "[[rules.keys]]\nname = 'a'\nfile = 'alice.pub'\nnot_after = 2027-01-01T00:00:00",
                          "6:1", "lacks its time zone"),
    "time beyond the calendar": (RULE + "[[rules.keys]]\nname = 'a'\nfile = 'alice.pub'\n"
                                 "not_after = 9999-12-31T23:59:59-23:00", "6:1", "beyond the calendar"),
    "lists too deep": ("a = " + "[" * 100_000, "1:1", "cannot be read as TOML"),
    "number too long": ("a = " + "9" * 5000, "1:1", "cannot be read as TOML"),
    "home of nobody": (RULE + "[[rules.keys]]\nname = 'a'\nfile = '~nobody.is.called.so/x'", "5:1", "no such file"),
    "name too long": (f"revocation_lists = ['{'a' * 300}']", "1:1", "no such file"),
    "neither file nor pem": (RULE + "[[rules.keys]]\nname = 'a'", "3:1", "needs one of file and pem"),
    "key not there": (RULE + "[[rules.keys]]\nname = 'a'\nfile = 'none.pub'", "5:1", "there is no file"),
    "key that is none": (RULE + "[[rules.keys]]\nname = 'a'\npem = 'x'", "5:1", "no public key in PEM"),
    "authority that is none": (RULE + "[[rules.certificates]]\nname = 'a'\nidentity = 'b'\nca = 'alice.pub'", "6:1",
                               "holds no certificates"),
    "list not there": ('revocation_lists = ["none.toml"]', "1:1", "there is no file"),
    "trust config not there": (RULE + "[[rules.identities]]\nname = 'a'\nissuer = 'b'\nsubject = 'c'\n"
                               "trust_config = 'none'", "7:1", "there is no file"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "place", "said"), WRONG.values(), ids=WRONG)
def test_mistakes_are_told_with_their_line(folder: Path, text: str, place: str, said: str) -> None:
    """Where it stands and what is wrong."""
    error = problem(folder, text)
    assert error.where == f"{folder / 'policy.toml'}:{place}"
    assert said in str(error)


def test_private_key_in_a_policy_is_refused(folder: Path) -> None:
    """It would be in everybody's hands by then; the message says what it is."""
    text = RULE + f"[[rules.keys]]\nname = 'a'\npem = '''\n{private_pem('alice').decode()}'''"
    assert "private key" in str(problem(folder, text))


def test_all_problems_are_told_at_once(folder: Path) -> None:
    """One reading is enough to mend a policy."""
    text = RULE + "[[rules.keys]]\nname = 'a'\n[[rules.keys]]\nname = 'b'\nfile = 'none'\n"
    error = problem(folder, text)
    assert isinstance(error, ErrorGroup)
    assert [one.where for one in error.errors] == [f"{folder / 'policy.toml'}:{place}" for place in ("3:1", "7:1")]


def test_policy_that_everybody_may_change_decides_nothing(folder: Path) -> None:
    """As of a lock to which all have a key."""
    path = written(folder, "")
    path.chmod(0o666)
    assert "everybody may write to it (mode 666)" in str(refusal(lambda: load_policy(path)))
    spaced = path.rename(folder / "my policy.toml")
    assert refusal(lambda: load_policy(spaced)).fix == f"chmod o-w '{spaced}'"


@pytest.mark.parametrize("name", ["alice.pub", "ca.pem"])
def test_keys_that_everybody_may_change_are_refused(folder: Path, name: str) -> None:
    """Whoever may change them chooses who is trusted."""
    (folder / name).chmod(0o646)
    keys = "[[rules.keys]]\nname = 'a'\nfile = 'alice.pub'\n"
    error = problem(folder, f"{RULE}{keys}[[rules.certificates]]\nname = 'b'\nidentity = 'c'\nca = 'ca.pem'")
    assert "everybody may write to it" in error.what
    assert error.fix == f"chmod o-w {folder / name}"
    assert str(error.where).startswith(f"{folder / 'policy.toml'}:{5 if name == 'alice.pub' else 9}:")


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff", "byte 0 is not UTF-8"), (b"#" * (2 << 20), "at most 1 MiB")], ids=["bytes", "huge"]
)
def test_what_is_no_text_is_refused(folder: Path, content: bytes, said: str) -> None:
    """Neither is it read into memory whole."""
    path = folder / "policy.toml"
    path.write_bytes(content)
    assert said in str(refusal(lambda: load_policy(path)))


def test_broken_revocation_list_is_refused(folder: Path) -> None:
    """A list that cannot be read revokes nobody: better no policy at all."""
    path = folder / "revoked.toml"
    path.write_text('[[revoked]]\nkey = "abc"\nwhy = ""\n', encoding="utf-8")
    error = refusal(lambda: read_revocations(path))
    assert isinstance(error, ErrorGroup)
    assert "revoked.toml:2:1" in str(error)
    assert problem(folder, 'revocation_lists = ["revoked.toml"]').reason is Reason.POLICY_INVALID


TABLES = '''\
a = 1
text = """
b = 2
[c]
"""
  "quoted" = 3
[c]
d.e = 4
[[f]]
g = 5
[[f]] # second
[[f.h]]
i = 6
[f.h.j]
k = """one line"""
l = 7
'''


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("a",), (1, 1)),
        (("b",), (1, 1)),
        (("quoted",), (6, 3)),
        (("c",), (7, 1)),
        (("c", "d", "e"), (8, 1)),
        (("f", 0, "g"), (10, 1)),
        (("f", 0, "missing"), (9, 1)),
        (("f", 1), (11, 1)),
        (("f", 1, "h", 0, "i"), (13, 1)),
        (("f", 1, "h", 0, "j", "l"), (16, 1)),
        ((), (1, 1)),
    ],
)
def test_values_are_found_in_their_lines(path: tuple[str | int, ...], place: tuple[int, int]) -> None:
    """What stands inside of text is no table."""
    assert locate(TABLES, path) == place
