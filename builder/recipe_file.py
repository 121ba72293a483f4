"""Reads recipe.yaml files. Every problem of every file is reported at once, with line and nearest valid name."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from builder import yaml_nodes
from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.recipe import FileInput, OnnxSource, PythonSource, Recipe
from builder.recipe_fields import MEANING
from builder.targets import suggestion

FILE = "recipe.yaml"
_LARGEST = 1 << 20
_WANTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "model_attributes_type": "must be a mapping of names to values",
    "finite_number": "must be a finite number",
}


_SIGNS = {
    "greater_than_equal": "at least",
    "less_than_equal": "at most",
    "greater_than": "more than",
    "less_than": "less than",
}


def load_recipes(
    folder: Path, stacks: Iterable[str] | None = None, targets: Iterable[str] | None = None
) -> dict[str, Recipe]:
    """Read all recipes of a project, by name. With `stacks` and `targets`, names that recipes mention are checked too.

    Raises:
        EnginefarmError: RECIPE_INVALID (or the single problem's own reason), holding every problem of every file.

    """
    known = _Known(stacks, targets)
    recipes: dict[str, Recipe] = {}
    errors: list[EnginefarmError] = []
    with _no_collection():
        for path in sorted(folder.glob(f"*/{FILE}")):
            found = _read(path, known)
            if isinstance(found, Recipe):
                recipes[found.name] = found
            else:
                errors += found
    _raise(errors)
    return recipes


def load_recipe(path: Path) -> Recipe:
    """Read one recipe.

    Raises:
        EnginefarmError: as `load_recipes`.

    """
    found = _read(path, _Known(None, None))
    if isinstance(found, Recipe):
        return found
    _raise(found)
    raise AssertionError(path)


@contextmanager
def _no_collection() -> Iterator[None]:
    # reading makes many objects and no cycles: looking for cycles again and again takes a third of the time
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Known:
    def __init__(self, stacks: Iterable[str] | None, targets: Iterable[str] | None) -> None:
        self.names = {
            "stacks": None if stacks is None else sorted(stacks),
            "targets": None if targets is None else list(targets),
        }


def _raise(errors: Sequence[EnginefarmError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        files = len({(error.where or "").rsplit(":", 2)[0] for error in errors})
        many = f"{files} recipe files have" if files > 1 else "the recipe has"
        raise ErrorGroup(Reason.RECIPE_INVALID, f"{many} {len(errors)} problems", tuple(errors))


def _read(path: Path, known: _Known) -> Recipe | list[EnginefarmError]:
    try:
        text = _text(path)
        content = yaml_nodes.load(text)
    except yaml_nodes.YamlProblem as problem:
        where = f"{_shown(path)}:{problem.place.line}:{problem.place.column}"
        return [EnginefarmError(Reason.RECIPE_INVALID, problem.what, where=where)]
    except EnginefarmError as error:
        return [error]
    if not isinstance(content, dict):
        what = "the file is empty" if content is None else "the file is not a mapping of names to values"
        fix = "start from recipes/tiny-mlp/recipe.yaml"
        return [EnginefarmError(Reason.RECIPE_INVALID, what, where=f"{_shown(path)}:1:1", fix=fix)]
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        shown = _shown(path)
        return [*_folder_name(content.get("name"), path, text), *(_translate(e, text, shown) for e in error.errors())]
    return _beyond_the_model(recipe, path, text, known) or recipe


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EnginefarmError(Reason.FILE_MISSING, f"{_shown(path)} cannot be read", why=str(error)) from error
    if len(content) > _LARGEST:
        raise EnginefarmError(Reason.RECIPE_INVALID, "a recipe is at most 1 MiB long", where=_shown(path))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is not UTF-8"
        raise EnginefarmError(Reason.RECIPE_INVALID, what, where=_shown(path), fix="save the file as UTF-8") from error


def _beyond_the_model(recipe: Recipe, path: Path, text: str, known: _Known) -> list[EnginefarmError]:
    """Check what needs more than the file itself: its folder's name, files beside it, names of stacks and targets."""
    errors = _folder_name(recipe.name, path, text)

    def complain(reason: Reason, place: Sequence[str | int], what: str, fix: str) -> None:
        found = yaml_nodes.locate(text, place, key=False)
        where = f"{_shown(path)}:{found.line}:{found.column}"
        errors.append(EnginefarmError(reason, what, where=where, fix=fix))

    for place, relative in _files(recipe):
        if not (path.parent / relative).is_file():
            complain(
                Reason.FILE_MISSING, place, f"{relative} is not in the recipe's folder", "add it or correct the path"
            )
    named: list[tuple[str, tuple[str, ...], list[str]]] = [("stacks", ("stacks",), recipe.stacks or [])]
    named.append(("targets", ("targets",), recipe.targets or []))
    for precision, settings in recipe.precisions.items():
        named.append(("targets", ("precisions", precision.value, "targets"), settings.targets or []))
    for kind, place, names in named:
        valid = known.names[kind]
        for index, name in enumerate(names):
            if valid is not None and name not in valid:
                fix = suggestion(name, valid, kind)
                complain(Reason.RECIPE_INVALID, [*place, index], f"there is no {kind[:-1]} {name!r}", fix)
    return errors


def _folder_name(name: Any, path: Path, text: str) -> list[EnginefarmError]:
    if not isinstance(name, str) or name == path.parent.name:
        return []
    place = yaml_nodes.locate(text, ["name"], key=False)
    what = f"name is {name!r}, but the recipe's folder is {path.parent.name!r}"
    where = f"{_shown(path)}:{place.line}:{place.column}"
    return [EnginefarmError(Reason.RECIPE_INVALID, what, where=where, fix="give both the same name")]


def _files(recipe: Recipe) -> list[tuple[Sequence[str], str]]:
    files: list[tuple[Sequence[str], str]] = []
    if isinstance(recipe.source, OnnxSource):
        files.append((("source", "path"), recipe.source.path))
    if isinstance(recipe.source, PythonSource):
        files.append((("source", "entry"), recipe.source.entry.rpartition(":")[0]))
    for name, spec in recipe.inputs.items():
        if isinstance(spec.values, FileInput):
            files.append((("inputs", name, "values", "path"), spec.values.path))
    return files


def _translate(item: ErrorDetails, text: str, shown: str) -> EnginefarmError:
    location = tuple(step for step in item["loc"] if step != "[key]")
    is_key = "[key]" in item["loc"] or item["type"] in {"extra_forbidden", "invalid_key", "missing"}
    place = yaml_nodes.locate(text, location, key=is_key)
    annotation, path = _follow(location)
    what, fix = _words(item, path, annotation)
    return EnginefarmError(Reason.RECIPE_INVALID, what, where=f"{shown}:{place.line}:{place.column}", fix=fix)


def _words(item: ErrorDetails, path: str, parent: Any) -> tuple[str, str | None]:
    kind, value = item["type"], item["input"]
    if kind in _SPEAKERS:
        return _SPEAKERS[kind](item, path, parent)
    if kind == "string_type" and isinstance(value, bool | int | float | date):
        read = f"the date {value}" if isinstance(value, date) else repr(value)
        return f"{path}: YAML reads {read} here, text is wanted", "put the value into quotes"
    if kind in _SIGNS:
        return f"{path}: {value!r} must be {_SIGNS[kind]} {next(iter(item.get('ctx', {}).values()))}", None
    return f"{path}: {value!r} {_WANTED.get(kind, item['msg'])}", None


def _missing(_: ErrorDetails, path: str, parent: Any) -> tuple[str, str | None]:
    section, _dot, name = path.rpartition(".")
    return f"{name} is missing{f' in {section}' if section else ''}", f"add {name}: {_description(parent, name)}"


def _unknown(_: ErrorDetails, path: str, parent: Any) -> tuple[str, str | None]:
    name = path.rpartition(".")[2]
    return f"unknown key {name!r}", suggestion(name, list(getattr(parent, "model_fields", {})), "known keys")


def _no_text_for_key(item: ErrorDetails, _: str, __: Any) -> tuple[str, str | None]:
    return f"YAML reads the key {item['input']!r} here, text is wanted", "put the key into quotes"


def _not_a_choice(item: ErrorDetails, path: str, _: Any) -> tuple[str, str | None]:
    context = item.get("ctx", {})
    expected = str(context.get("expected") or context.get("expected_tags"))
    allowed = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
    given = context.get("tag", item["input"])
    label = f"{path}.kind" if item["type"] == "union_tag_invalid" else path
    return f"{label}: {given!r} is not one of the values allowed", suggestion(str(given), allowed, "values")


def _no_kind(_: ErrorDetails, path: str, __: Any) -> tuple[str, str | None]:
    return f"kind is missing in {path}", "add kind: and one of the kinds in docs/recipe.md"


def _own_rule(item: ErrorDetails, path: str, _: Any) -> tuple[str, str | None]:
    said = item["msg"].removeprefix("Value error, ")
    return f"{path}: {said}" if path else said, None


def _wrong_form(item: ErrorDetails, path: str, _: Any) -> tuple[str, str | None]:
    pattern = item.get("ctx", {})["pattern"]
    return f"{path}: {item['input']!r} must be {MEANING.get(pattern, pattern)}", None


def _empty(_: ErrorDetails, path: str, __: Any) -> tuple[str, str | None]:
    return f"{path}: must not be empty", None


_SPEAKERS: dict[str, Callable[[ErrorDetails, str, Any], tuple[str, str | None]]] = {
    "missing": _missing,
    "extra_forbidden": _unknown,
    "invalid_key": _no_text_for_key,
    "enum": _not_a_choice,
    "literal_error": _not_a_choice,
    "union_tag_invalid": _not_a_choice,
    "union_tag_not_found": _no_kind,
    "value_error": _own_rule,
    "string_pattern_mismatch": _wrong_form,
    "too_short": _empty,
    "string_too_short": _empty,
}


def _description(model: Any, name: str) -> str:
    fields: Mapping[str, Any] = getattr(model, "model_fields", {})
    return fields[name].description or "" if name in fields else ""


def _follow(location: Sequence[str | int]) -> tuple[Any, str]:
    """Follow a location through the model: the model that holds its last step, and the path without union tags."""
    current: Any = Recipe
    holder: Any = Recipe
    path = ""
    for step in location:
        options = _options(current)
        tagged = next((option for option in options if _tag(option) == step), None)
        if tagged is not None and len(options) > 1:
            current = tagged
            continue
        holder = next((option for option in options if _is_model(option)), current)
        current = _child(options, step)
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else str(step)
    return holder, path


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [option for part in get_args(annotation) if part is not type(None) for option in _options(part)]
    return [annotation]


def _child(options: list[Any], step: str | int) -> Any:
    for option in options:
        if _is_model(option) and step in option.model_fields:
            return option.model_fields[step].annotation
        if get_origin(option) in {list, dict}:
            return get_args(option)[-1]
    return None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(model: Any) -> str | None:
    kind = getattr(model, "model_fields", {}).get("kind")
    if kind is None or get_origin(kind.annotation) is not Literal:
        return None
    return str(get_args(kind.annotation)[0])


def _shown(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)
