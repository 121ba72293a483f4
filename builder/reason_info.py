"""What a reason code carries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from builder.exit_codes import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonInfo:
    """What a reason code means, for messages and for the generated page."""

    code: str
    slug: str
    exit_code: ExitCode

    @property
    def meaning(self) -> str:
        """One line."""
        return _texts()[self.slug]["meaning"]

    @property
    def fix(self) -> str:
        """What to do where the message knows nothing better."""
        return _texts()[self.slug]["fix"]


def info(code: str, slug: str, exit_code: ExitCode) -> ReasonInfo:
    """Make a row of the table; the code is without its prefix."""
    return ReasonInfo(code=f"EF-{code}", slug=slug, exit_code=exit_code)


@cache
def _texts() -> dict[str, dict[str, str]]:
    from builder.tables import load_table  # noqa: PLC0415  # read when something fails

    return load_table("reasons.toml")
