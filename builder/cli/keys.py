"""`enginefarm keys`."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import click

from builder import keys
from builder.cli import options, signing
from builder.errors import EnginefarmError, Reason
from builder.keys import KeyPair
from builder.project import find_home
from builder.report.keys import key_json, key_rows, policy_lines

_DAYS = click.IntRange(1, 36500)
_passphrase = click.option("--passphrase", "covered", is_flag=True, help="Encrypt the private key.")


@click.group("keys")
def command() -> None:
    """Make, list, replace and revoke keys that sign.

    Keys lie under keys/ of the farm's home, private ones readable by their owner only. Whom a machine trusts is said
    by its policy, not by the keys that lie there.
    """


@command.command("generate")
@click.argument("name")
@click.option("--days", type=_DAYS, metavar="N", help="Let it expire after N days [default: never].")
@_passphrase
@options.as_json
def generate(*, name: str, days: int | None, covered: bool, as_json: bool) -> None:
    """Make a key pair on the curve P-256.

    With --passphrase the private key is encrypted; $ENGINEFARM_KEY_PASSPHRASE holds the passphrase, or it is asked for.
    """
    now = datetime.now(tz=timezone.utc)
    _show(keys.generate_key(find_home(), name, now, _end(now, days), _new_passphrase(covered=covered)), as_json=as_json)


@command.command("rotate")
@click.argument("name")
@click.option("--days", type=_DAYS, metavar="N", help="Let it expire after N days [default: as many as the older].")
@_passphrase
@options.as_json
def rotate(*, name: str, days: int | None, covered: bool, as_json: bool) -> None:
    """Make a new key of a name, which signs from now on.

    The older one stays until it is revoked: policies name both while engines are signed anew.
    """
    now = datetime.now(tz=timezone.utc)
    _show(keys.rotate_key(find_home(), name, now, _end(now, days), _new_passphrase(covered=covered)), as_json=as_json)


@command.command("list")
@options.as_json
def list_all(*, as_json: bool) -> None:
    """List the keys of this machine."""
    home, now = find_home(), datetime.now(tz=timezone.utc)
    found, revoked = keys.list_keys(home), _revoked(keys.revocation_list(home))
    if as_json:
        options.print_json([key_json(one, now, revoked) for one in found])
    elif found:
        out = options.stdout()
        options.print_lines(key_rows(found, now, revoked, out.width, out.paint))
    else:
        options.stderr().line("this machine has no keys: `enginefarm keys generate NAME` makes one")


@command.command("revoke")
@click.argument("key_id", metavar="KEYID")
@click.option("--why", required=True, help="What happened; whoever is refused reads it.")
def revoke(*, key_id: str, why: str) -> None:
    """Note that a key must never be trusted again.

    KEYID is all of a key's id, or its first eight or more digits where it is one of this machine. The list counts on
    this machine at once; other machines need a copy of it, named in their policies.
    """
    home = find_home()
    found = keys.find_key_id(home, key_id)
    path = keys.revoke_key(home, found, why, datetime.now(tz=timezone.utc))
    options.stderr().line(f"{found} is revoked: give {path} to the machines that trusted it")


@command.command("export")
@click.argument("name")
@click.option("--policy", "as_policy", is_flag=True, help="As the lines of a policy instead of PEM.")
def export(*, name: str, as_policy: bool) -> None:
    """Write the public key of a name, the current one, in PEM."""
    key = keys.find_key(find_home(), name)
    try:
        pem = key.public.read_text(encoding="utf-8")
    except OSError as error:
        raise EnginefarmError(Reason.POLICY_INVALID, "the public key cannot be read", why=str(error)) from error
    options.print_lines(policy_lines(key, pem) if as_policy else [pem.rstrip("\n")])


def _end(now: datetime, days: int | None) -> datetime | None:
    return None if days is None else now + timedelta(days=days)


def _new_passphrase(*, covered: bool) -> bytes | None:
    from builder.signers import PASSPHRASE  # noqa: PLC0415 - slow to import

    if not covered:
        return None
    given = signing.given_passphrase("Passphrase for the new key", PASSPHRASE, confirm=True)
    if given is None:
        raise click.UsageError(f"--passphrase needs one: set {PASSPHRASE}, or run it in a terminal")
    return given


def _revoked(path: Path) -> dict[str, str]:
    from builder.policy import read_revocations  # noqa: PLC0415 - slow to import

    return read_revocations(path) if path.exists() else {}


def _show(key: KeyPair, *, as_json: bool) -> None:
    if as_json:
        options.print_json(key_json(key, key.created, {}))
        return
    options.print_lines([f"{key.name}  {key.key_id}", f"  private: {key.private}", f"  public:  {key.public}"])
    options.stderr().line(f"policies that trust it say: `enginefarm keys export {key.name} --policy`")
