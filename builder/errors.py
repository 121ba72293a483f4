"""Every refusal of the farm: a stable reason code, an exit code, what happened, why, and what to do."""

from __future__ import annotations

from pathlib import Path

from builder.exit_codes import EXIT_MEANING, ExitCode
from builder.reason_info import ReasonInfo
from builder.reasons import Reason

__all__ = ["EXIT_MEANING", "EnginefarmError", "ErrorGroup", "ExitCode", "Reason", "ReasonInfo"]


class EnginefarmError(Exception):
    """A situation that the user can act on. Rendered without a traceback."""

    def __init__(
        self, reason: Reason, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix if fix is not None else reason.value.fix
        self.log: Path | None = None

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the command when this error ends it."""
        return self.reason.value.exit_code

    def __str__(self) -> str:
        """Plain text for logs: code, place, what, why, fix; one line each."""
        info = self.reason.value
        head = f"{info.code} {info.slug}: {self.what}"
        lines = [head if self.where is None else f"{self.where}: {head}"]
        if self.why:
            lines += _indented("why: ", self.why)
        if self.fix:
            lines += _indented("fix: ", self.fix)
        return "\n".join(lines)

    def as_json(self) -> dict[str, str | int | None]:
        """Return the error as plain data for `--json`."""
        info = self.reason.value
        return {
            "code": info.code,
            "reason": info.slug,
            "exit_code": int(info.exit_code),
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "fix": self.fix,
            "log": str(self.log) if self.log else None,
        }


class ErrorGroup(EnginefarmError):  # noqa: N818  # as ExceptionGroup
    """Several errors of one reason, reported together, for example every problem of a recipe file."""

    def __init__(self, reason: Reason, what: str, errors: tuple[EnginefarmError, ...]) -> None:
        super().__init__(reason, what)
        self.errors = errors

    def __str__(self) -> str:
        """All errors, one block each, then the summary."""
        return "\n\n".join([*(str(error) for error in self.errors), f"{self.reason.value.code}: {self.what}"])


def _indented(label: str, text: str) -> list[str]:
    first, *rest = text.splitlines()
    return [f"  {label}{first}", *(f"       {line}" for line in rest)]
