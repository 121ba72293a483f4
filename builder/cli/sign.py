"""`enginefarm sign`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli import options, signing
from builder.project import Home, find_home
from builder.report.planned import counted
from builder.report.units import short

if TYPE_CHECKING:
    from builder.signatures import Signed
    from builder.signers import Signer
    from builder.trust import Trusted


@click.command("sign")
@click.argument("target")
@signing.signer
@click.option("--check", is_flag=True, help="Say who signed it and whether the policy trusts them; sign nothing.")
@signing.policy
@click.option("--model", help="With --check: the model that it must be of [default: what its manifest says].")
@click.option("--plain-http", is_flag=True, help="Talk to the registry without TLS.")
@options.as_json
def command(  # noqa: PLR0913 - click hands over one argument per option
    *,
    target: str,
    key: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    keyless: bool,
    trust_config: Path | None,
    check: bool,
    policy_file: Path | None,
    model: str | None,
    plain_http: bool,
    as_json: bool,
) -> None:
    """Sign an engine, or check who signed it.

    TARGET is a folder as `enginefarm export` writes it, an engine of the store, or REGISTRY/REPOSITORY:TAG. A folder
    gets its signature as a file, the store keeps it beside the engine for the next push. In a registry all engines of
    the tag and their list are signed, if the store holds them too. All files are signed, the manifest among them: sign
    after `verify` and `bench`, which write to it.

    The passphrase of a key is read from $ENGINEFARM_KEY_PASSPHRASE or asked for.
    """
    home, now = find_home(), datetime.now(tz=timezone.utc)
    if check:
        _check(target, policy_file, model, home, now, as_json=as_json)
        return
    asked = signing.SignerOptions(
        key=key, certificate=certificate, chain=chain, keyless=keyless, trust_config=trust_config
    )
    signer = signing.make_signer(asked, home, now, options.stderr())
    if signer is None:
        raise click.UsageError("name who signs: --key FILE or NAME, or --keyless")
    _show(_sign(target, signer, home, plain_http=plain_http), as_json=as_json)


def _sign(target: str, signer: Signer, home: Home, *, plain_http: bool) -> Sequence[Signed]:
    from builder import signatures  # noqa: PLC0415 - slow to import
    from builder.query import find_engine  # noqa: PLC0415
    from builder.store import Store  # noqa: PLC0415

    store = Store(home.store)
    if Path(target).is_dir():
        return [signatures.sign_in_folder(Path(target), signer)]
    if "/" not in target:
        return [signatures.sign_entry(store, find_engine(store, target), signer)]
    from builder.publish_seal import Seal  # noqa: PLC0415
    from builder.registry import Registry, parse_reference  # noqa: PLC0415
    from builder.sign_remote import sign_in_registry  # noqa: PLC0415

    reference = parse_reference(target)
    registry = Registry(
        reference.registry,
        reference.repository,
        plain_http=plain_http,
        cancel=threading.Event(),
        listen=lambda _: None,
    )
    return sign_in_registry(registry, reference.version or "latest", Seal(store=store, signer=signer))


def _check(
    target: str, policy_file: Path | None, model: str | None, home: Home, now: datetime, *, as_json: bool
) -> None:
    from builder import signatures  # noqa: PLC0415 - slow to import
    from builder.policy import load_policy  # noqa: PLC0415
    from builder.query import find_engine  # noqa: PLC0415
    from builder.store import Store  # noqa: PLC0415

    policy = load_policy(policy_file)
    if Path(target).is_dir():
        found, trusted = signatures.check_folder(Path(target), policy, now, model)
    else:
        store = Store(home.store)
        found, trusted = signatures.check_entry(store, find_engine(store, target), policy, now, model)
    if as_json:
        options.print_json({"model": found, "signed": trusted is not None, **_as_json(trusted)})
    elif trusted is None:
        options.print_lines([f"{found}: unsigned, and the policy takes it so"])
    else:
        host_code = "allowed" if trusted.host_code else "refused"
        lines = [f"{found}: signed by {trusted.signer}", f"  key {trusted.key_id}", f"  host code: {host_code}"]
        options.print_lines(lines)


def _as_json(trusted: Trusted | None) -> dict[str, object]:
    if trusted is None:
        return {"signer": None, "key_id": None, "signed_at": None, "host_code": False}
    signed_at = None if trusted.signed_at is None else trusted.signed_at.isoformat()
    return {
        "signer": trusted.signer,
        "key_id": trusted.key_id,
        "signed_at": signed_at,
        "host_code": trusted.host_code,
    }


def _show(signed: Sequence[Signed], *, as_json: bool) -> None:
    if as_json:
        options.print_json([{"name": one.name, "sha256": one.sha256, "signature": one.where} for one in signed])
        return
    out = options.stdout()
    for one in signed:
        out.line(f"{one.name}  {short(one.sha256)}  {one.where or 'in the store'}")
    options.stderr().line(f"{counted(len(signed), 'signature')} made")
