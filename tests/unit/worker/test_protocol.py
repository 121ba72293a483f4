from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.worker.protocol import ProtocolError, ShapeRange, StageFailure, did_you_mean, read_job, write_json

JOB = {
    "protocol": 1,
    "stage": "build",
    "job": "toy-fp16",
    "inputs": {"lowered": "in/lowered.onnx"},
    "params": {
        "precision": "fp16",
        "profiles": [{"name": "default", "inputs": {"x": {"min": [1], "opt": [2], "max": [3], "also": [[2]]}}}],
    },
}


def _write(folder: Path, document: object) -> str:
    path = folder / "job.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_job_is_read_with_types(tmp_path: Path) -> None:
    job = read_job(_write(tmp_path, JOB))
    assert (job.stage, job.precision, job.inputs["lowered"]) == ("build", "fp16", "in/lowered.onnx")
    assert job.profiles[0].inputs["x"] == ShapeRange((1,), (2,), (3,), ((2,),))


def test_another_protocol_is_refused_by_number(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="speaks protocol 2, this worker speaks 1"):
        read_job(_write(tmp_path, {**JOB, "protocol": 2}))


def test_a_job_without_params_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="params"):
        read_job(_write(tmp_path, {key: value for key, value in JOB.items() if key != "params"}))


def test_a_failure_keeps_everything_it_knows() -> None:
    failure = StageFailure("op-unsupported", "no", why="because", fix="do", details={"nodes": [1]})
    assert failure.as_json() == {
        "reason": "op-unsupported",
        "message": "no",
        "why": "because",
        "fix": "do",
        "details": {"nodes": [1]},
    }


def test_json_is_replaced_and_nothing_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(str(path), {"a": 1})
    write_json(str(path), {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "expected"), [("imags", " (did you mean image?)"), ("zzz", "")])
def test_near_names(name: str, expected: str) -> None:
    assert did_you_mean(name, ["image", "mask"]) == expected
