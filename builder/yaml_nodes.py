"""YAML with two things that PyYAML lacks: duplicate keys are mistakes, and every value knows its line."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml: slower, otherwise the same
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

# YAML 1.1 takes 1e-3 for text because it lacks a point; everybody means a number
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_MOST_NODES = 100_000
_TAGS: dict[str, str] = {}
_KINDS = {"timestamp": "date", "int": "number", "float": "number", "bool": "true or false"}
_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A position in a file, counted from 1 as editors do."""

    line: int
    column: int


class YamlProblem(Exception):  # noqa: N818  # the caller turns it into an error with a reason
    """The text is not YAML as the farm takes it."""

    def __init__(self, what: str, place: Place) -> None:
        super().__init__(what)
        self.what = what
        self.place = place


class _Loader(_SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nodes = 0

    def resolve(self, kind: type[yaml.Node], value: str | None, implicit: Any) -> str:
        # the type of a plain scalar follows from its text; recipes repeat the same few hundred texts
        if kind is yaml.ScalarNode and value is not None and implicit[0]:
            tag = _TAGS.get(value)
            if tag is None:
                tag = str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
                if len(_TAGS) < _MOST_NODES:
                    _TAGS[value] = tag
            return tag
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002
        self.nodes += len(node.value)
        if self.nodes > _MOST_NODES:
            raise YamlProblem("the aliases of this file expand without end", _place(node))
        seen: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    first = _place(seen[key.value]).line
                    raise YamlProblem(f"key {key.value!r} is given twice, first in line {first}", _place(key))
                seen[key.value] = key
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


class _Blaming(_Loader):
    """Slower: knows which value Python cannot make, such as the 30th of February."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, LookupError, ValueError) as error:
            kind = str(node.tag).rpartition(":")[2]
            said = f"{node.value[:_SHOWN]!r} is no {_KINDS.get(kind, kind)}" if isinstance(node.value, str) else error
            raise YamlProblem(f"{said}; for text put it into quotes", _place(node)) from error


def load(text: str) -> Any:
    """Parse a document.

    Raises:
        YamlProblem: not YAML, a duplicate key, a value that none can be, or aliases that explode.

    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(line=mark.line + 1, column=mark.column + 1) if mark else Place(line=1, column=1)
        raise YamlProblem(_plain(error, text, place), place) from error
    except yaml.reader.ReaderError as error:
        lines = text.encode()[: error.position].decode(errors="replace").split("\n")
        what = f"not YAML: character #x{error.character:04x}: {error.reason}"
        raise YamlProblem(what, Place(line=len(lines), column=len(lines[-1]) + 1)) from error
    except RecursionError as error:
        raise YamlProblem("the document contains itself", Place(line=1, column=1)) from error
    except (ArithmeticError, LookupError, ValueError):
        return yaml.load(text, Loader=_Blaming)  # noqa: S506  # derived from SafeLoader


def locate(text: str, path: Sequence[str | int], *, key: bool) -> Place:
    """Find where a value stands; the deepest part of the path that exists counts. `key`: the place of its key."""
    node = yaml.compose(text, Loader=_Loader)
    place = Place(line=1, column=1)
    for step in path:
        found = _child(node, step)
        if found is not None:
            key_node, node = found
            place = _place(key_node if key else node)
    return place


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step], node.value[step]
    return None


def _place(node: yaml.Node) -> Place:
    return Place(line=node.start_mark.line + 1, column=node.start_mark.column + 1)


def _plain(error: yaml.MarkedYAMLError, text: str, place: Place) -> str:
    line = text.splitlines()[place.line - 1] if place.line <= len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "a tab indents this line; YAML allows spaces only"
    said = [error.problem or "", error.context or ""]
    if said[0].startswith("but "):
        said.reverse()
    return f"not YAML: {' '.join(said).strip()}"
