"""What a reason code carries."""

from __future__ import annotations

from dataclasses import dataclass

from builder.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonInfo:
    """What a reason code means, for messages and for the generated page."""

    code: str
    slug: str
    exit_code: ExitCode
    meaning: str
    fix: str


def info(code: str, slug: str, exit_code: ExitCode, meaning: str, fix: str) -> ReasonInfo:
    """Make a row of the table; the code is without its prefix."""
    return ReasonInfo(code=f"EF-{code}", slug=slug, exit_code=exit_code, meaning=meaning, fix=fix)
