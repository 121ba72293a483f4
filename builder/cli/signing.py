"""Options of commands that sign, and of those that check signatures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from builder.keys import is_encrypted, open_to_others
from builder.project import Home
from builder.terminal import Terminal

if TYPE_CHECKING:
    from builder.signers import Signer

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)

policy = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Who is trusted [default: $ENGINEFARM_POLICY, then policy.toml of the farm's home].",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerOptions:
    """How to sign, as asked for."""

    key: str | None
    certificate: Path | None
    chain: tuple[Path, ...]
    keyless: bool
    trust_config: Path | None


def signer(command: F) -> F:
    """Add --key, --certificate, --chain, --keyless and --trust-config."""
    for option in (
        click.option("--trust-config", type=_FILE, help="With --keyless: a Sigstore of your own."),
        click.option("--keyless", is_flag=True, help="Sign with an identity token, as CI jobs have one."),
        click.option("--chain", type=_FILE, multiple=True, help="Certificates between yours and the authority."),
        click.option("--certificate", type=_FILE, help="Certificate of the key, where an authority vouches for it."),
        click.option("--key", metavar="FILE|NAME", help="Private key, or the name of one of `enginefarm keys list`."),
    ):
        command = option(command)
    return command


def make_signer(asked: SignerOptions, home: Home, now: datetime, err: Terminal) -> Signer | None:
    """Return what signs; null where nothing was asked for. A passphrase comes from the environment or is asked for."""
    from builder import signers  # noqa: PLC0415 - slow to import

    if asked.keyless:
        if asked.key is not None or asked.certificate is not None:
            raise click.UsageError("--keyless signs without --key and --certificate")
        return signers.KeylessSigner(token=os.environ.get(signers.TOKEN), trust_config=asked.trust_config)
    if asked.key is None:
        if asked.certificate is not None:
            raise click.UsageError("--certificate needs the --key that it is for")
        return None
    path = signers.key_file(home, asked.key)
    if open_to_others(path):
        err.line(f"{path} can be read by others than its owner: chmod 600 {shlex.quote(str(path))}")
    if asked.certificate is not None:
        return signers.CertificateSigner(key=path, certificate=asked.certificate, chain=asked.chain)
    return signers.own_signer(home, asked.key, passphrase(path), now)


def passphrase(path: Path) -> bytes | None:
    """Read the passphrase of a private key; null where it has none."""
    from builder.signers import PASSPHRASE  # noqa: PLC0415 - slow to import

    if not is_encrypted(path):
        return None
    return given_passphrase(f"Passphrase of {path}", PASSPHRASE, confirm=False)


def given_passphrase(prompt: str, variable: str, *, confirm: bool) -> bytes | None:
    """Take a passphrase from a variable, else from a person; null where there is neither."""
    value = os.environ.get(variable)
    if value is None and sys.stdin.isatty():
        value = click.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True)
    return value.encode() if value else None
