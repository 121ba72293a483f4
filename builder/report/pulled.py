"""What a pull or a mirroring has brought, as people and scripts read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from builder.mirror import Mirrored
from builder.pull import Pulled
from builder.report.planned import counted
from builder.report.units import short, size

if TYPE_CHECKING:
    from builder.build_here import Built


def pulled_line(done: Pulled | Built) -> str:
    """Say where the engine is, as a script would take it: folder first."""
    engine = done.manifest.engine
    return f"{done.folder}  {done.job}  {size(engine.size)}  {short(engine.sha256)}"


def pulled_remarks(done: Pulled | Built) -> list[str]:
    """Say how well it fits, who signed it and what speaks against it."""
    on = f" on {done.verdict.gpu}" if done.verdict.gpu is not None else ""
    lines = [f"fit: {done.verdict.fit.value}{on}"]
    lines += [f"warning: {one.reason.value.code} {one.text}" for one in done.verdict.warnings]
    if not isinstance(done, Pulled):
        return [*lines, "built here: no engine in the registry fits this machine"]
    signer = f"signed by {done.signer}" if done.signer is not None else "signed by nobody"
    came = f"{size(done.downloaded)} came" if done.downloaded else "nothing had to come"
    return [*lines, f"{signer}; {came}; {done.reference}"]


def pulled_json(done: Pulled | Built) -> dict[str, Any]:
    """Return all that is known."""
    pulled = done if isinstance(done, Pulled) else None
    return {
        "result": "built" if pulled is None else "pulled",
        "model": done.model,
        "job": done.job,
        "key": done.manifest.key,
        "folder": str(done.folder.absolute()),
        "engine_sha256": done.manifest.engine.sha256,
        "engine_bytes": done.manifest.engine.size,
        "fit": done.verdict.fit.value,
        "gpu": done.verdict.gpu,
        "warnings": [
            {"code": one.reason.value.code, "reason": one.reason.value.slug, "text": one.text}
            for one in done.verdict.warnings
        ],
        "signer": pulled.signer if pulled is not None else None,
        "reference": pulled.reference if pulled is not None else None,
        "serial": pulled.serial if pulled is not None else None,
        "downloaded_bytes": pulled.downloaded if pulled is not None else None,
    }


def mirrored_line(done: Mirrored) -> str:
    """Say what is where now."""
    digest = short(done.digest.removeprefix("sha256:"))
    return f"{done.destination}  serial {done.serial}  {counted(done.engines, 'engine')}  {digest}"


def mirrored_remark(done: Mirrored) -> str:
    """Say what had to be copied."""
    if not done.documents:
        return f"{done.destination} had it all"
    return f"{counted(done.documents, 'document')} and {counted(done.blobs, 'file')} copied, {size(done.size)}"


def mirrored_json(done: Mirrored) -> dict[str, Any]:
    """Return all that is known."""
    return {
        "source": done.source,
        "destination": done.destination,
        "digest": done.digest,
        "serial": done.serial,
        "engines": done.engines,
        "copied_documents": done.documents,
        "copied_files": done.blobs,
        "copied_bytes": done.size,
    }
