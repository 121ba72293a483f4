"""Reproducing engines around a farm that only pretends: levels, what they rest on, and what is written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder import built
from builder import reproduce as module
from builder.errors import EnginefarmError, ExitCode, Reason
from builder.gpu import Gpu
from builder.job_stages import Tuned
from builder.jobs import read_manifest
from builder.key import Key, Runtime, canonical
from builder.manifest import Manifest, WeightsFile
from builder.project import Home
from builder.report.reproduced import reproduction_lines
from builder.reproduce import Ask, Reproduction
from builder.stage import StageRequest, StageResult
from builder.store import Entry, Store
from builder.titles import CALIBRATION_CACHE, KEY, MANIFEST, PROOF_ANNOTATION
from tests.artifacts import refusal
from tests.rebuilds import (
    A100,
    CACHE_BYTES,
    CLASSIC,
    ENGINE_BYTES,
    EQUAL,
    FAR,
    H200,
    NEAR,
    ROOT,
    RTX,
    Farm,
    changed,
)


def started(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> Farm:
    monkeypatch.setattr(built, "EXECUTORS", {"local": lambda context: farm})
    monkeypatch.setattr(module, "JobRunner", farm.job_runner)
    monkeypatch.setattr(module, "make_keys", farm.make_keys)
    monkeypatch.setattr(module, "visible_gpus", lambda environ: farm.gpus)
    monkeypatch.setattr(module, "lease", farm.lease)
    return farm


@pytest.fixture
def gpu_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a farm whose engine was tuned on an H200."""
    return started(Farm(home=Home(root=tmp_path), stack=CLASSIC), monkeypatch)


@pytest.fixture
def rtx_farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a farm whose engine was built without a GPU."""
    return started(Farm(home=Home(root=tmp_path), stack=RTX, gpus=()), monkeypatch)


def code(monkeypatch: pytest.MonkeyPatch, found: Reproduction, *options: str, ask: Ask | None = None) -> int:
    from builder.cli import main

    def pretend(*arguments: Any) -> Reproduction:
        assert arguments[-1] == (ask or Ask())
        return found

    monkeypatch.setattr("builder.cli.reproduce.reproduce", pretend)
    return main(["reproduce", found.job, "--project", str(ROOT), *options])


def test_without_a_gpu_one_rebuild_is_compared_byte_for_byte(
    rtx_farm: Farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rtx_farm.reproduce()
    assert (found.level, found.rebuilds, found.same, found.first_difference) == ("bitwise", 1, True, None)
    assert (found.details, found.timing_cache, found.repeats) == ((), None, None)
    assert rtx_farm.tuned == [None]
    assert rtx_farm.level() == "bitwise"
    assert code(monkeypatch, found) == ExitCode.OK
    digests = [f"  engine   {found.engine_sha256}", f"  rebuilt  {found.engine_sha256}"]
    assert capsys.readouterr().out.splitlines() == [f"{rtx_farm.job}: bitwise", *digests]


def test_without_a_gpu_other_bytes_are_a_drift(
    rtx_farm: Farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx_farm.rebuilt = [changed(1000, 1001, 3000)]
    found = rtx_farm.reproduce()
    assert (found.level, found.same) == ("drifted", False)
    assert found.first_difference is not None
    assert found.first_difference.startswith("the engine: ")
    assert found.details[1:] == (
        "3 bytes differ in 2 stretches, the first at offset 1000; both engines are 5000 bytes long",
        "offset+length of what differs: 1000+2, 3000+1",
    )
    assert rtx_farm.requests == []
    assert rtx_farm.level() == "drifted"
    assert code(monkeypatch, found) == ExitCode.NOT_REPRODUCIBLE
    assert "differs first in the engine: " in capsys.readouterr().out


def test_an_engine_that_needs_no_gpu_is_run_on_one_that_is_there(rtx_farm: Farm) -> None:
    rtx_farm.rebuilt, rtx_farm.compared, rtx_farm.gpus = [changed(7)], [EQUAL], (H200, A100)
    found = rtx_farm.reproduce()
    assert found.level == "outputs"
    # the H200 is none of its SMs
    assert rtx_farm.leases == [A100.uuid]
    assert [request.gpu for request in rtx_farm.requests] == [A100.uuid]


def test_a_driver_that_does_not_answer_leaves_the_bytes(rtx_farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def trouble(environ: Any) -> tuple[Gpu, ...]:
        raise EnginefarmError(Reason.GPU_UNREADABLE, "no answer")

    monkeypatch.setattr(module, "visible_gpus", trouble)
    rtx_farm.rebuilt = [changed(7)]
    assert rtx_farm.reproduce().level == "drifted"


def test_on_a_gpu_three_rebuilds_from_the_engines_own_cache(gpu_farm: Farm) -> None:
    found = gpu_farm.reproduce()
    assert (found.level, found.rebuilds, found.same) == ("bitwise", 3, True)
    digest = hashlib.sha256(CACHE_BYTES).hexdigest()
    assert found.timing_cache == digest
    for tuned in gpu_farm.tuned:
        assert tuned is not None
        assert tuned.gpus == (H200,)
        assert tuned.sealed is not None
        assert hashlib.sha256(tuned.sealed.read_bytes()).hexdigest() == digest
    # the key is compared as the engine was built: without a seal
    assert gpu_farm.keys_for == [Tuned(gpus=(H200,))]
    assert gpu_farm.requests == []
    assert found.repeats is None


def test_an_int8_engine_is_rebuilt_with_its_own_ranges(gpu_farm: Farm) -> None:
    files: dict[str, Path | bytes] = {title: blob.path for title, blob in gpu_farm.store.files(gpu_farm.entry).items()}
    older, gpu_farm.entry = gpu_farm.entry, gpu_farm.add(gpu_farm.store, {**files, CALIBRATION_CACHE: b"ranges"})
    gpu_farm.store.remove(older)
    gpu_farm.reproduce()
    for tuned in gpu_farm.tuned:
        assert tuned is not None
        assert tuned.calibration is not None
        assert tuned.calibration.read_bytes() == b"ranges"
    gpu_farm.tuned.clear()
    gpu_farm.reproduce(Ask(cold=True))
    assert gpu_farm.tuned == [Tuned(gpus=(H200,))] * 3
    (entry,) = gpu_farm.store.entries("engine")
    assert gpu_farm.store.read(entry, CALIBRATION_CACHE) == b"ranges"


def test_a_sealed_engine_is_compared_with_the_key_of_a_sealed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm = Farm(home=Home(root=tmp_path), stack=CLASSIC)
    document = {**farm.key.document, "timing_cache": "0" * 64}
    files: dict[str, Path | bytes] = {title: blob.path for title, blob in farm.store.files(farm.entry).items()}
    farm.store.remove(farm.entry)
    farm.add(farm.store, files | {KEY: canonical(document)})
    started(farm, monkeypatch).reproduce()
    (compared,) = farm.keys_for
    assert compared is not None
    assert compared.sealed is not None


@pytest.mark.parametrize(
    ("compared", "level", "exit_code"),
    [
        ([EQUAL] * 3, "outputs", ExitCode.OK),
        ([EQUAL, NEAR, EQUAL], "tolerance", ExitCode.OK),
        ([NEAR, EQUAL, FAR], "drifted", ExitCode.NOT_REPRODUCIBLE),
    ],
)
def test_the_worst_of_three_counts(
    gpu_farm: Farm, monkeypatch: pytest.MonkeyPatch, compared: list[dict[str, Any]], level: str, exit_code: ExitCode
) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [changed(1), changed(2), changed(3)], compared
    found = gpu_farm.reproduce()
    assert (found.level, found.same, found.repeats) == (level, False, True)
    assert gpu_farm.level() == level
    assert code(monkeypatch, found) == exit_code
    worst = next(one for one in found.measured if one.level == level)
    assert found.rebuilt_sha256 == worst.sha256


def test_rebuilds_of_the_same_bytes_need_no_run(gpu_farm: Farm) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [ENGINE_BYTES, changed(9), ENGINE_BYTES], [EQUAL]
    found = gpu_farm.reproduce()
    assert [one.level for one in found.measured] == ["bitwise", "outputs", "bitwise"]
    assert found.level == "outputs"
    (request,) = gpu_farm.requests
    assert sorted(request.inputs) == ["engine", "rebuilt_1"]


def test_what_the_outputs_stage_is_given(gpu_farm: Farm) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [changed(1)], [EQUAL] * 3
    seen: list[bytes] = []
    run = gpu_farm.run

    def look(stack: Any, request: StageRequest) -> StageResult:
        seen.extend(request.inputs[name].read_bytes() for name in ("engine", "rebuilt_0", "rebuilt_2"))
        return run(stack, request)

    gpu_farm.run = look  # type: ignore[method-assign]
    gpu_farm.reproduce()
    assert seen == [ENGINE_BYTES, changed(1), changed(1)]
    (request,) = gpu_farm.requests
    assert (request.stage, request.gpu, request.job) == ("outputs", H200.uuid, gpu_farm.job)
    assert request.params["tolerance"]["default"] == {"max_abs": 2e-3, "cosine": 0.9999}
    assert request.params["family"] == "trt8"
    assert gpu_farm.leases == [H200.uuid]


def test_measured_differences_are_stated(gpu_farm: Farm) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [changed(100, 101)], [NEAR] * 3
    found = gpu_farm.reproduce()
    assert found.details[-1] == (
        "outputs differ, within the tolerance, at 3 shapes on NVIDIA H200: logits max_abs 0.0001, mse 2e-09 (batch/max)"
    )
    (entry,) = gpu_farm.store.entries("engine")
    part = read_manifest(gpu_farm.store, entry).reproducibility
    assert (part.level, part.rebuilds) == ("tolerance", 3)
    assert part.detail == f"2 bytes of the engine differ; {found.details[-1]}"
    lines = reproduction_lines(found)
    assert lines[0].endswith(f": tolerance (3 rebuilds from timing cache {found.timing_cache[:12]})")  # type: ignore[index]
    assert lines[-1].startswith("  rebuild 3: tolerance, built in 0.52 s, sha256 ")


def test_an_engine_that_does_not_repeat_itself_is_said_so(gpu_farm: Farm) -> None:
    gpu_farm.rebuilt, gpu_farm.compared, gpu_farm.repeats = [changed(1)], [NEAR] * 3, False
    assert any("gives other outputs each time" in line for line in reproduction_lines(gpu_farm.reproduce()))


def test_other_sizes(gpu_farm: Farm) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [ENGINE_BYTES[:-10]], [FAR] * 3
    found = gpu_farm.reproduce()
    assert found.level == "drifted"
    assert "the engines are 5000 and 4990 bytes long" in found.details[1]
    assert "logits cannot be compared (batch/opt)" in found.details[-1]


def test_every_file_of_the_engine_stays(gpu_farm: Farm) -> None:
    before = {title: blob.digest for title, blob in gpu_farm.store.files(gpu_farm.entry).items()}
    gpu_farm.reproduce()
    (entry,) = gpu_farm.store.entries("engine")
    after = {title: blob.digest for title, blob in gpu_farm.store.files(entry).items()}
    assert {title for title in after if after[title] != before[title]} == {MANIFEST}
    assert (entry.name, entry.key, dict(entry.annotations)) == (
        gpu_farm.entry.name,
        gpu_farm.entry.key,
        {PROOF_ANNOTATION: "proof"},
    )
    assert gpu_farm.store.verify() == ()


def test_a_proof_made_meanwhile_is_kept(gpu_farm: Farm) -> None:
    files: dict[str, Path | bytes] = {t: b.path for t, b in gpu_farm.store.files(gpu_farm.entry).items()}
    proved = read_manifest(gpu_farm.store, gpu_farm.entry).model_copy(update={"farm_version": "later"})

    def prove_again() -> None:
        gpu_farm.add(gpu_farm.store, files | {MANIFEST: proved.to_json().encode()})
        gpu_farm.store.remove(gpu_farm.entry)

    runtime = gpu_farm.runtime
    calls: list[int] = []

    def during(stack: Any) -> Runtime:
        if not calls:
            prove_again()
        calls.append(1)
        return runtime(stack)

    gpu_farm.runtime = during  # type: ignore[method-assign]
    gpu_farm.reproduce()
    (entry,) = gpu_farm.store.entries("engine")
    part = read_manifest(gpu_farm.store, entry)
    assert (part.farm_version, part.reproducibility.level) == ("later", "bitwise")


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_stopped_in_between_nothing_is_written(gpu_farm: Farm, stop_at: int) -> None:
    gpu_farm.rebuilt, gpu_farm.stop_at = [changed(1)], stop_at
    assert refusal(gpu_farm.reproduce).reason is Reason.INTERRUPTED
    assert gpu_farm.store.entries("engine") == (gpu_farm.entry,)
    assert gpu_farm.level() == "unmeasured"
    assert list(gpu_farm.home.work.glob("*")) == []


def test_as_many_rebuilds_as_asked_for(gpu_farm: Farm) -> None:
    found = gpu_farm.reproduce(Ask(rebuilds=5))
    assert (found.rebuilds, len(gpu_farm.tuned)) == (5, 5)


def test_cold_rebuilds_have_no_cache_and_leave_the_manifest(gpu_farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [changed(1)], [NEAR] * 3
    found = gpu_farm.reproduce(Ask(cold=True))
    assert (found.level, found.cold, found.timing_cache) == ("tolerance", True, None)
    assert gpu_farm.tuned == [Tuned(gpus=(H200,))] * 3
    assert gpu_farm.level() == "unmeasured"
    assert "without a timing cache; not written into the manifest" in reproduction_lines(found)[0]


def test_cold_without_a_gpu_means_nothing(rtx_farm: Farm) -> None:
    error = refusal(lambda: rtx_farm.reproduce(Ask(cold=True)))
    assert error.reason is Reason.OPTION_UNSUPPORTED
    assert rtx_farm.tuned == []


@pytest.mark.parametrize(("gpus", "reason"), [((), Reason.GPU_NEEDED), ((A100,), Reason.SM_MISMATCH)])
def test_without_the_right_gpu(gpu_farm: Farm, gpus: tuple[Gpu, ...], reason: Reason) -> None:
    gpu_farm.gpus = gpus
    assert refusal(gpu_farm.reproduce).reason is reason
    assert gpu_farm.tuned == []


def test_a_changed_driver_is_named(gpu_farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Key(document={**gpu_farm.key.document, "driver": "600.1"}, sha256="9" * 64)
    monkeypatch.setattr(module, "make_keys", lambda *_: SimpleNamespace(engine=now))
    error = refusal(gpu_farm.reproduce)
    assert (error.reason, error.why) == (Reason.INPUTS_CHANGED, "changed since: driver")
    assert gpu_farm.tuned == []


def test_options_of_the_command(
    gpu_farm: Farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_farm.rebuilt, gpu_farm.compared = [changed(1)], [EQUAL] * 2
    found = gpu_farm.reproduce(Ask(rebuilds=2))
    assert (
        code(monkeypatch, found, "--rebuilds", "2", "--cold", "--json", ask=Ask(rebuilds=2, cold=True)) == ExitCode.OK
    )
    document = json.loads(capsys.readouterr().out)
    assert document["measured"][0]["difference"] == {
        "sizes": [5000, 5000],
        "count": 1,
        "stretches": 1,
        "first": [{"offset": 1, "length": 1}],
    }
    assert document["measured"][1]["outputs"]["equal"] is True


class Stripped(Farm):
    """Its engine was built without weights; `lowered`: what each rebuild was built from."""

    weights = b"weights"
    lowered: tuple[bytes, ...] = (b"weights",) * 4

    def described(self, content: bytes) -> Manifest:
        made = super().described(content)
        file = self.weights if content == ENGINE_BYTES else self.lowered[len(self.tuned) - 1]
        told = WeightsFile(file="weights.onnx", sha256=hashlib.sha256(file).hexdigest(), size=len(file))
        return made.model_copy(update={"engine": made.engine.model_copy(update={"weights": (told,)})})

    def add(self, store: Store, files: dict[str, Path | bytes]) -> Entry:
        return super().add(store, {**files, "weights.onnx": self.weights})


@pytest.mark.parametrize("same", [True, False])
def test_engines_without_weights_run_with_those_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    farm = Stripped(home=Home(root=tmp_path), stack=CLASSIC, rebuilt=[changed(1)], compared=[EQUAL] * 3)
    if not same:
        farm.lowered = (b"weights", b"others", b"weights")
    found = started(farm, monkeypatch).reproduce()
    if same:
        (request,) = farm.requests
        assert request.inputs["lowered"].read_bytes() == b"weights"
        assert found.level == "outputs"
    else:
        # with the weights of another model they would compute something undefined
        assert (farm.requests, found.level) == ([], "drifted")
