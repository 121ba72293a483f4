"""ONNX models: exported or fetched once per recipe, kept in the store, shared by all jobs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.executors import Executor
from builder.fetch import Fetcher
from builder.key import Key, canonical, export_key, make_key, profiles_document
from builder.locks import named_lock
from builder.project import Home, Project
from builder.recipe import FileInput, OnnxSource, PretrainedWeights, PythonSource, Recipe
from builder.stacks import Stack
from builder.stage_runner import StageRunner, Subject
from builder.store import Entry, Store
from builder.worker_source import EXPORT_STAGES, worker_sha256

MODEL, EXTERNAL, REFERENCE, EXPORT_DATA = "model.onnx", "model.onnx.data", "reference.npz", "export.json"
EXPORT_STACK = "export"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """An ONNX model in the store. `identity` maps each of its own files to its SHA-256."""

    key: Key
    entry: Entry
    identity: Mapping[str, str]
    paths: Mapping[str, Path]
    size: int
    export: Mapping[str, Any] | None

    def inputs(self, *names: str) -> dict[str, Path]:
        """Return the stage inputs among `model`, `external` and `reference` that this model has."""
        titles = {"model": MODEL, "external": EXTERNAL, "reference": REFERENCE}
        return {name: self.paths[titles[name]] for name in names if titles[name] in self.paths}


@dataclass(slots=True, kw_only=True)
class Models:
    """Finds and makes the ONNX model of each recipe."""

    project: Project
    home: Home
    store: Store
    executor: Executor
    stacks: Mapping[str, Stack]
    _keys: dict[str, Key] = field(default_factory=dict)
    _unchanged: set[str] = field(default_factory=set)

    def key(self, recipe: Recipe) -> Key:
        """Key of the recipe's ONNX model.

        Raises:
            EnginefarmError: STACK_UNKNOWN where a Python source has no export stack, PYTHON_MISSING.

        """
        if recipe.name not in self._keys:
            self._keys[recipe.name] = self._make_key(recipe)
        return self._keys[recipe.name]

    def identity(self, recipe: Recipe) -> Mapping[str, str] | None:
        """SHA-256 per file of the model, if known without work.

        Raises:
            EnginefarmError: DIGEST_MISMATCH, FILE_MISSING for a file of the recipe's folder that is another one now:
                what the store has of the older one is not what the recipe's author expects.

        """
        if recipe.name not in self._unchanged:
            if isinstance(recipe.source, OnnxSource):
                self._own(recipe, recipe.source)
            self.sample_files(recipe)
            self._unchanged.add(recipe.name)
        if not isinstance(recipe.source, PythonSource):
            return {MODEL: recipe.source.sha256}
        entries = self.store.find("onnx", self.key(recipe).sha256)
        if not entries:
            return None
        self.store.touch(entries[0])
        return _identity(self.store, entries[0])

    def find(self, recipe: Recipe) -> OnnxModel | None:
        """Find the model in the store and re-check its digests; a corrupt one is set aside and counts as absent."""
        for entry in self.store.find("onnx", self.key(recipe).sha256):
            try:
                self.store.check(entry)
            except EnginefarmError as error:
                if error.reason is not Reason.STORE_CORRUPT:
                    raise
                self.store.quarantine(entry)
                continue
            self.store.touch(entry)
            return self._load(recipe, entry)
        return None

    def obtain(self, recipe: Recipe, fetcher: Fetcher, stages: StageRunner) -> OnnxModel:
        """Find the model, or fetch or export it; a second process that wants the same waits and finds it.

        Raises:
            EnginefarmError: as `Fetcher.model` and `StageRunner.run`.

        """
        with named_lock(self.home, f"onnx-{self.key(recipe).sha256}", stages.cancel):
            found = self.find(recipe)
            if found is not None:
                return found
            files = self._export(recipe, fetcher, stages) if self.exports(recipe) else self._fetch(recipe, fetcher)
            key = self.key(recipe)
            entry = self.store.add(
                kind="onnx", key=key.sha256, name=recipe.name, files={**files, "key.json": canonical(key.document)}
            )
            return self._load(recipe, entry)

    def exports(self, recipe: Recipe) -> bool:
        """Say whether the recipe's model needs the export stack."""
        return isinstance(recipe.source, PythonSource)

    def export_stack(self) -> Stack:
        """Return the stack that exports.

        Raises:
            EnginefarmError: STACK_UNKNOWN.

        """
        if EXPORT_STACK not in self.stacks:
            raise EnginefarmError(Reason.STACK_UNKNOWN, f"images/{EXPORT_STACK} is missing: it exports Python models")
        return self.stacks[EXPORT_STACK]

    def sample_files(self, recipe: Recipe) -> dict[str, Path]:
        """Map `sample.<input>` to the .npy file of each input that comes from one.

        Raises:
            EnginefarmError: DIGEST_MISMATCH.

        """
        folder = self.project.recipes / recipe.name
        found = {}
        for name, spec in recipe.inputs.items():
            if isinstance(spec.values, FileInput):
                _checked(folder / spec.values.path, spec.values.sha256)
                found[f"sample.{name}"] = folder / spec.values.path
        return found

    def _make_key(self, recipe: Recipe) -> Key:
        if not isinstance(recipe.source, PythonSource):
            return make_key("fetched-onnx", {"sha256": recipe.source.sha256})
        runtime = self.executor.runtime(self.export_stack())
        return export_key(recipe, self._recipe_files(recipe), runtime, worker_sha256(EXPORT_STAGES))

    def _recipe_files(self, recipe: Recipe) -> dict[str, str]:
        folder = self.project.recipes / recipe.name
        files = sorted(path for path in folder.rglob("*") if path.is_file() and _matters(path.relative_to(folder)))
        return {path.relative_to(folder).as_posix(): durable.sha256_file(path) for path in files}

    def _fetch(self, recipe: Recipe, fetcher: Fetcher) -> dict[str, Path | bytes]:
        source = recipe.source
        if isinstance(source, PythonSource):
            msg = f"recipe {recipe.name} is exported, not fetched"
            raise TypeError(msg)
        return {MODEL: self._own(recipe, source) if isinstance(source, OnnxSource) else fetcher.model(source)}

    def _own(self, recipe: Recipe, source: OnnxSource) -> Path:
        return _checked(self.project.recipes / recipe.name / source.path, source.sha256)

    def _export(self, recipe: Recipe, fetcher: Fetcher, stages: StageRunner) -> dict[str, Path | bytes]:
        subject = Subject(label=f"export {recipe.name}", recipe=recipe.name, precision="-", stack=self.export_stack())
        inputs = {"recipe_dir": self.project.recipes / recipe.name, **self.sample_files(recipe)}
        if isinstance(recipe.weights, PretrainedWeights):
            inputs["weights"] = fetcher.weights(recipe.weights.file)
        result = stages.run(subject, "export", inputs, export_params(recipe))
        titles = {"model": MODEL, "external": EXTERNAL, "reference": REFERENCE}
        files: dict[str, Path | bytes] = {titles[name]: path for name, path in result.outputs.items()}
        files[EXPORT_DATA] = json.dumps(result.data, indent=1, sort_keys=True).encode()
        return files

    def _load(self, recipe: Recipe, entry: Entry) -> OnnxModel:
        blobs = self.store.files(entry)
        export = json.loads(self.store.read(entry, EXPORT_DATA)) if EXPORT_DATA in blobs else None
        return OnnxModel(
            key=self.key(recipe),
            entry=entry,
            identity=_identity(self.store, entry),
            paths={title: blob.path for title, blob in blobs.items()},
            size=sum(blobs[title].size for title in (MODEL, EXTERNAL) if title in blobs),
            export=export,
        )


def export_params(recipe: Recipe) -> dict[str, Any]:
    """Return the parameters of the export stage.

    Raises:
        TypeError: the recipe's source is not Python.

    """
    if not isinstance(recipe.source, PythonSource) or recipe.export is None or recipe.weights is None:
        msg = f"recipe {recipe.name} is not exported"
        raise TypeError(msg)
    weights: dict[str, Any] = {"kind": recipe.weights.kind}
    if isinstance(recipe.weights, PretrainedWeights):
        weights["sha256"] = recipe.weights.file.sha256
    else:
        weights["seed"] = recipe.weights.seed
    return {
        "entry": recipe.source.entry,
        "weights": weights,
        "export": recipe.export.model_dump(mode="json"),
        "profiles": profiles_document(recipe),
        "inputs": inputs_document(recipe),
    }


def inputs_document(recipe: Recipe) -> dict[str, Any]:
    """Return the input generators as the worker wants them: one flat table per input."""
    document = {}
    for name, spec in recipe.inputs.items():
        values = spec.values.model_dump(mode="json")
        if isinstance(spec.values, FileInput):
            values = {"kind": "file", "path": f"in/sample.{name}.npy"}
        document[name] = {"dtype": spec.dtype, **values}
    return document


def _checked(path: Path, sha256: str) -> Path:
    try:
        actual = durable.sha256_file(path)
    except OSError as error:
        raise EnginefarmError(Reason.FILE_MISSING, f"{path} cannot be read", why=str(error)) from error
    if actual != sha256:
        why = f"expected {sha256}\nactual   {actual}"
        raise EnginefarmError(Reason.DIGEST_MISMATCH, f"{path} is another file than the recipe says", why=why)
    return path


def _identity(store: Store, entry: Entry) -> dict[str, str]:
    return {
        title: blob.digest.removeprefix("sha256:")
        for title, blob in store.files(entry).items()
        if title in {MODEL, EXTERNAL}
    }


def _matters(relative: Path) -> bool:
    # the recipe's own fields are in the key one by one; notes for people change nothing
    hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
    return not hidden and relative.as_posix() != "recipe.yaml" and relative.suffix.lower() != ".md"
