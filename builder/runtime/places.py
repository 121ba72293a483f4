"""Where engines lie on this machine: a path, or a model's name among those that were pulled."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from typing import List

from .reasons import EngineRefused


def engines_folder() -> str:
    """Name the folder of pulled engines: below ENGINEFARM_HOME, or the user's cache folder as the farm has it."""
    home = os.environ.get("ENGINEFARM_HOME")
    if not home:
        home = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "enginefarm")
    return os.path.join(os.path.abspath(os.path.expanduser(home)), "engines")


def locate(model: str) -> str:
    """Return the folder or file that a model's name or path stands for; a pulled model goes before a path.

    Links are followed once: a pull that replaces the model meanwhile does not mix two engines.

    Raises:
        EngineRefused: file-missing, with what there is.

    """
    is_name = model not in {"", ".", ".."} and not model.startswith(".") and os.path.basename(model) == model
    pulled = os.path.join(engines_folder(), model)
    if is_name and os.path.isdir(pulled):
        found = os.path.realpath(pulled)
        # the cache removes first what was not used for longest; another user's is read-only, and that is well
        with suppress(OSError):
            os.utime(found)
        return found
    if os.path.exists(model):
        return os.path.realpath(model)
    if not is_name:
        raise EngineRefused("file-missing", f"there is no {model}", fix="pull or export the engine")
    near = difflib.get_close_matches(model, _names(), n=1)
    why = f"did you mean {near[0]}?" if near else f"pulled are: {', '.join(_names()) or 'none'}"
    raise EngineRefused("file-missing", f"no engine of {model} was pulled to {engines_folder()}", why=why, fix=_PULL)


_PULL = "`enginefarm pull REGISTRY/MODEL`"


def _names() -> List[str]:
    try:
        return sorted(name for name in os.listdir(engines_folder()) if not name.startswith("."))
    except OSError:
        return []
