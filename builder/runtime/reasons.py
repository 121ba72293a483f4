"""Why an engine is not used: the farm's stable codes, as far as an application can meet them.

The farm's own table (builder/reasons.py) needs packages that an application lacks; a test holds both equal.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

# slug of a reason to its code
CODES: Dict[str, str] = {
    "file-missing": "EF-106",
    "digest-mismatch": "EF-107",
    "sm-mismatch": "EF-201",
    "precision-unsupported": "EF-202",
    "gpu-needed": "EF-206",
    "tensorrt-version": "EF-211",
    "driver-too-old": "EF-213",
    "platform-mismatch": "EF-214",
    "plugin-missing": "EF-215",
    "host-code-refused": "EF-216",
    "unsigned": "EF-218",
    "disk-full": "EF-305",
    "input-invalid": "EF-406",
    "profile-invalid": "EF-407",
    "op-unsupported": "EF-408",
    "build-failed": "EF-409",
    "out-of-memory": "EF-410",
    "engine-invalid": "EF-416",
    "engine-version": "EF-417",
    "library-missing": "EF-420",
    "run-failed": "EF-424",
    "manifest-invalid": "EF-503",
    "artifact-too-new": "EF-703",
    "name-unsafe": "EF-706",
    "identity-mismatch": "EF-707",
    "engine-header": "EF-716",
}


class EngineRefused(Exception):  # noqa: N818  (a situation, not a programming error)
    """An engine cannot be used, or not for this call.

    `reason` is a slug of CODES, `code` its code, `what` happened, `why`, and `fix` says what to do.
    """

    def __init__(self, reason: str, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.reason = reason
        self.code = CODES[reason]
        self.what = what
        self.why = why
        self.fix = fix

    def again(self) -> EngineRefused:
        """Return a new one that says the same; a traceback would hold on to a call's tensors."""
        return EngineRefused(self.reason, self.what, why=self.why, fix=self.fix)

    def __reduce__(self) -> Tuple[Any, ...]:
        """Let it travel between processes: worker pools pickle what a task raises."""
        return _again, (self.reason, self.what, self.why, self.fix)

    def __str__(self) -> str:
        """Say everything in as many lines as there is to say."""
        lines = [f"{self.code} {self.reason}: {self.what}"]
        lines += [f"why: {self.why}"] if self.why else []
        lines += [f"fix: {self.fix}"] if self.fix else []
        return "\n".join(lines)


def _again(reason: str, what: str, why: str, fix: str) -> EngineRefused:
    return EngineRefused(reason, what, why=why, fix=fix)
