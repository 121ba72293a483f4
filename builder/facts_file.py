"""Facts of a machine as a JSON file: written on one machine, judged on another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from builder import durable
from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.machine import ARCHITECTURES, Facts, GpuFacts

SCHEMA = 1
_LARGEST_BYTES = 1 << 20
_FIX = "write one with `enginefarm check --write-facts FILE` on the machine"


def facts_json(facts: Facts) -> str:
    """Serialise facts, for people and for `load_facts`."""
    return json.dumps({"schema": SCHEMA, **asdict(facts)}, indent=2, ensure_ascii=False) + "\n"


def write_facts(path: Path, facts: Facts) -> None:
    """Write a facts file.

    Raises:
        EnginefarmError: DISK_FULL; PATH_OCCUPIED where it cannot be written for another reason.

    """
    content = facts_json(facts).encode()
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)  # what a link such as /dev/stdout names is meant, not the link
        else:
            durable.write_atomically(path, content, path.parent)
    except OSError as error:
        if error.errno in durable.FULL:
            what = f"the facts cannot be written: {error.strerror}"
            raise EnginefarmError(Reason.DISK_FULL, what, where=str(path), fix="free space there") from error
        raise EnginefarmError(
            Reason.PATH_OCCUPIED,
            "the facts cannot be written",
            where=str(path),
            why=str(error),
            fix="name a file in a folder that you may write to",
        ) from error


def load_facts(path: Path) -> Facts:
    """Read a facts file. What it leaves out is not known; `os` and `architecture` have to be there.

    Raises:
        EnginefarmError: FACTS_INVALID with file and line; several problems come together. FILE_MISSING.

    """
    try:
        content = path.read_bytes()[: _LARGEST_BYTES + 1]
        if len(content) > _LARGEST_BYTES:
            raise _invalid(str(path), "the file is larger than 1 MiB")
        return read_document(content.decode("utf-8-sig"), str(path))
    except OSError as error:
        raise EnginefarmError(
            Reason.FILE_MISSING, "the facts cannot be read", where=str(path), why=str(error)
        ) from error
    except UnicodeDecodeError as error:
        raise _invalid(str(path), "the file is not JSON", str(error)) from error


def read_document(text: str, where: str) -> Facts:
    """Read the text of a facts file; `where` is what messages call it.

    Raises:
        EnginefarmError: FACTS_INVALID.

    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"{where}:{error.lineno}", "the file is not JSON", error.msg) from error
    except (ValueError, RecursionError) as error:
        # a number longer than Python reads, or lists too deep
        raise _invalid(where, "the file cannot be read as JSON", str(error)) from error
    problems = _Problems(where, text)
    facts = problems.facts(document)
    problems.raise_any()
    return facts


class _Problems:
    """Reads fields one by one and keeps all that is wrong with them."""

    def __init__(self, where: str, text: str) -> None:
        self._where = where
        self._lines = text.splitlines()
        self._found: list[EnginefarmError] = []

    def raise_any(self) -> None:
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            what = f"{len(self._found)} problems in {self._where}"
            raise ErrorGroup(Reason.FACTS_INVALID, what, tuple(self._found))

    def facts(self, document: Any) -> Facts:
        empty = Facts(os="", architecture="")
        if not isinstance(document, dict):
            self._add(None, "the facts are no object with named values")
            return empty
        if type(document.get("schema", SCHEMA)) is not int or document.get("schema", SCHEMA) != SCHEMA:
            self._add("schema", f"schema {document['schema']!r} is not {SCHEMA}, which this enginefarm reads")
            return empty
        known = {field.name for field in fields(Facts)}
        for name in document:
            if name not in known and name != "schema":
                self._add(name, f"there is no fact {name!r}", f"facts: {', '.join(sorted(known))}")
        read = {
            "os": self._value(document, "os", _system, required=True),
            "architecture": self._value(document, "architecture", _architecture, required=True),
            "plugins": self._value(document, "plugins", _words) or (),
            "disk_free_bytes": self._value(document, "disk_free_bytes", _count),
            "gpus": self._gpus(document.get("gpus", [])),
        }
        versions = ("l4t", "driver", "driver_cuda", "tensorrt", "tensorrt_rtx", "cuda")
        read |= {name: self._value(document, name, _version) for name in versions}
        return empty if self._found else Facts(**read)

    def _gpus(self, value: Any) -> tuple[GpuFacts, ...]:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self._add("gpus", "gpus is no list of objects")
            return ()
        return tuple(self._gpu(one) for one in value)

    def _gpu(self, row: Mapping[str, Any]) -> GpuFacts:
        for name in row:
            if name not in {field.name for field in fields(GpuFacts)}:
                self._add(name, f"there is no fact {name!r} of a GPU")
        return GpuFacts(
            name=self._value(row, "name", _word, required=True),
            sm=self._value(row, "sm", _sm, required=True),
            memory_bytes=self._value(row, "memory_bytes", _count) or 0,
            uuid=self._value(row, "uuid", _word),
        )

    def _value(self, row: Mapping[str, Any], name: str, read: Callable[[Any], Any], *, required: bool = False) -> Any:
        value = row.get(name)
        if value is None:
            if required:
                self._add(None, f"{name} is missing")
            return None
        try:
            return read(value)
        except ValueError as error:
            self._add(name, f"{name}: {value!r} {error}")
            return None

    def _add(self, name: str | None, what: str, fix: str = _FIX) -> None:
        quoted = json.dumps(name) if name is not None else None
        line = next((number for number, text in enumerate(self._lines, 1) if quoted and quoted in text), None)
        self._found.append(_invalid(self._where if line is None else f"{self._where}:{line}", what, fix=fix))


def _invalid(where: str, what: str, why: str | None = None, fix: str = _FIX) -> EnginefarmError:
    return EnginefarmError(Reason.FACTS_INVALID, what, where=where, why=why, fix=fix)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 200:
        raise ValueError("is no text")
    # it comes from elsewhere and is shown on terminals
    if not value.isprintable():
        raise ValueError("has characters that cannot be shown")
    return value


def _system(value: Any) -> str:
    return _word(value).lower()


def _architecture(value: Any) -> str:
    name = _word(value).lower()
    return ARCHITECTURES.get(name, name)


def _words(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("is no list")  # noqa: TRY004 - one kind of error, turned into a problem of the file
    return tuple(_word(one) for one in value)


def _version(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,5}(\.[0-9A-Za-z+~-]{1,30}){0,6}", value):
        raise ValueError('is no version such as "10.9.0.34"')
    return value


def _sm(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,2}\.\d", value):
        raise ValueError('is no compute capability such as "8.6"')
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("is no number of bytes")
    return value
