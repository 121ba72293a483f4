"""Remembers how far each list of engines had come, so that nobody can show an older one unnoticed."""

from __future__ import annotations

import json
from typing import Any

from filelock import FileLock

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.project import Home

_FILE, _SCHEMA = "serials.json", 1


class PullMemory:
    """The highest serial seen per place, below the farm's home."""

    def __init__(self, home: Home) -> None:
        self._folder = home.pulls
        self._path = home.pulls / _FILE

    def serial(self, place: str) -> int | None:
        """Say the serial that a place has shown; null where it was never asked.

        Raises:
            EnginefarmError: STORE_CORRUPT where the memory cannot be read.

        """
        return self._read().get(place)

    def note(self, place: str, serial: int, *, accept_older: bool = False) -> None:
        """Note the serial of an index that is about to be believed.

        `accept_older` takes a lower one, too, and from then on counts from there.

        Raises:
            EnginefarmError: INDEX_ROLLED_BACK, STORE_CORRUPT, STORE_READ_ONLY, DISK_FULL.

        """
        with durable.unobstructed(str(self._path)), durable.writing(str(self._path)):
            self._folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._folder / ".serials.lock"):
                known = self._read()
                seen = known.get(place)
                if seen is not None and serial < seen and not accept_older:
                    why = f"serial {seen} was seen before, this is {serial}"
                    raise EnginefarmError(Reason.INDEX_ROLLED_BACK, f"{place} shows an older list of engines", why=why)
                if serial != seen:
                    document = {"schema": _SCHEMA, "serials": known | {place: serial}}
                    content = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
                    durable.write_atomically(self._path, content, self._folder)

    def _read(self) -> dict[str, int]:
        try:
            document: Any = json.loads(self._path.read_bytes())
            serials = {str(place): int(serial) for place, serial in document["serials"].items()}
            known = document["schema"] == _SCHEMA
        except FileNotFoundError:
            return {}
        except (OSError, ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(str(error) or repr(error)) from error
        if not known:
            raise self._unreadable("it has another schema")
        return serials

    def _unreadable(self, why: str) -> EnginefarmError:
        # it must not be taken for an empty one: that would let an older list pass
        what = "what earlier pulls have seen cannot be read"
        fix = "remove the file if you know why it is damaged; older lists of engines then go unnoticed once"
        return EnginefarmError(Reason.STORE_CORRUPT, what, where=str(self._path), why=why, fix=fix)
