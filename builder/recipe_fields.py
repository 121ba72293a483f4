"""The kinds of values in a recipe: names, digests, paths, shapes. Pure data."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_SHA256 = r"^[0-9a-f]{64}$"
_REVISION = r"^[0-9a-f]{40}$"
_PINNED = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*$"
_ENTRY = r"^(?!/)(?!.*(^|/)\.\.(/|$))[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$"
_RELATIVE = r"^(?!/)(?!.*(^|/)\.\.(/|$)).+$"
_HTTPS = r"^https://[^\s]+$"
_REPOSITORY = r"^[^/\s]+/[^/\s]+$"

# What the patterns ask for, in words.
MEANING = {
    _NAME: "lower-case letters, digits, dots, dashes and underscores",
    _SHA256: "a SHA-256: 64 lower-case hex digits",
    _REVISION: "a full commit hash: 40 lower-case hex digits; branches and tags move",
    _PINNED: "name==version, nothing looser",
    _ENTRY: "file.py:function inside the recipe's folder",
    _RELATIVE: "a path inside the recipe's folder, without ..",
    _HTTPS: "an https:// address",
    _REPOSITORY: "owner/name",
}

Name = Annotated[str, StringConstraints(pattern=_NAME, max_length=80)]
Sha256 = Annotated[str, StringConstraints(pattern=_SHA256)]
GitRevision = Annotated[str, StringConstraints(pattern=_REVISION)]
PinnedPackage = Annotated[str, StringConstraints(pattern=_PINNED)]
EntryPoint = Annotated[str, StringConstraints(pattern=_ENTRY)]
RelativePath = Annotated[str, StringConstraints(pattern=_RELATIVE)]
HttpUrl = Annotated[str, StringConstraints(pattern=_HTTPS)]
Repository = Annotated[str, StringConstraints(pattern=_REPOSITORY)]
Dim = Annotated[StrictInt, Field(ge=1, le=2**31 - 1)]
Shape = list[Dim]


class Strict(BaseModel):
    """Unknown keys are mistakes; a recipe never changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, regex_engine="python-re", allow_inf_nan=False)


def low_to_high(values: Any) -> Any:
    """Check that a generator has a value to give: whole numbers end one below `high`.

    Raises:
        ValueError: it has none.

    """
    if isinstance(values.high, int) and not -(2**63) <= values.low < values.high <= 2**63:
        msg = f"low {values.low} must be less than high {values.high}, both within 64 bits"
        raise ValueError(msg)
    if values.low > values.high:
        msg = f"low {values.low:g} is above high {values.high:g}"
        raise ValueError(msg)
    return values
