"""Texts below were said by TensorRT-RTX 1.7.1; what it does with a graph is tested with the real thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from builder.worker.protocol import StageFailure
from builder.worker.trt import session


class _ILogger:
    def __init__(self) -> None:
        pass


FAKE = SimpleNamespace(ILogger=_ILogger)


def _failure(*errors: str) -> StageFailure:
    log = session.Log(FAKE)
    for text in errors:
        log.logger.log(1, text)
    return session.build_failure(log, "no engine")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "API Usage Error (Dimension mismatch for tensor x and profile 0. At dimension axis 1, ...)",
            "profile-invalid",
        ),
        (
            "(?: Input dimensions with this name have different constant values In getBounds)",
            "profile-invalid",
        ),
        ("IElementWiseLayer Add: broadcast dimensions must be conformable In op", "profile-invalid"),
        (
            "(kOPT values for profile 0 violate shape constraints: /Reshape: reshape would change volume)",
            "profile-invalid",
        ),
        ("(kv_slice: optimization profile is missing values for shape input)", "op-unsupported"),
        ("(Optimization profile 0 is missing values for shape input tensor s. In validate)", "op-unsupported"),
        ("Error Code 2: OutOfMemory (Requested size was 9 bytes.)", "out-of-memory"),
        (
            "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16.",
            "precision-unsupported",
        ),
        ("Cannot compile operation 'fc/MatMul' for Turing (SM75): FP32 GEMM is not supported. In x", "op-unsupported"),
        ("Internal error of a kind never seen", "build-failed"),
    ],
)
def test_what_tensorrt_says_gives_the_reason(text: str, reason: str) -> None:
    failure = _failure(text)
    assert (failure.reason, failure.why, failure.details["errors"]) == (reason, text, [text])


def test_a_node_without_a_kernel_is_named() -> None:
    failure = _failure("Cannot compile operation 'fc/MatMul' for Turing (SM75): FP32 GEMM is not supported. In x")
    assert failure.message == "TensorRT cannot compile node fc/MatMul for Turing (SM75): FP32 GEMM is not supported"


def test_a_missing_driver_is_never_the_cause() -> None:
    noise = "Cuda Runtime (In catchCudaError (cudaError 35: CUDA driver version is insufficient))"
    failure = _failure(noise, "the cause", noise)
    assert failure.why == "the cause"
    assert failure.details["errors"] == [noise, "the cause", noise]


def test_a_small_workspace_is_recognised() -> None:
    assert _failure("no tactics to implement the operation within workspace limit").fix == "raise build.workspace_mib"


def test_chatter_is_dropped_and_warnings_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    log = session.Log(FAKE)
    log.logger.log(2, "careful")
    log.logger.log(4, "chatter")
    assert (log.warnings, log.errors) == (["careful"], [])
    assert capsys.readouterr().err == "warning: careful\n"


class _Parser:
    def __init__(self, errors: list[tuple[str, str, str]]) -> None:
        self.errors = errors
        self.num_errors = len(errors)

    def parse_from_file(self, path: str) -> bool:
        return not self.errors

    def get_error(self, index: int) -> Any:
        node, op, text = self.errors[index]
        return SimpleNamespace(node_name=lambda: node, node_operator=lambda: op, desc=lambda: text)


def _parse(errors: list[tuple[str, str, str]]) -> StageFailure:
    trt = SimpleNamespace(ILogger=_ILogger, OnnxParser=lambda network, logger: _Parser(errors))
    builder = SimpleNamespace(create_network=lambda flags: object())
    with pytest.raises(StageFailure) as caught:
        session.parse(trt, builder, session.Log(trt), "in/lowered.onnx", 1)
    return caught.value


def test_every_refused_node_is_named() -> None:
    failure = _parse([("a", "Foo", "no importer"), ("b", "Bar", "no plugin")])
    assert failure.reason == "op-unsupported"
    assert failure.message == "TensorRT refuses node a (Foo) and 1 more"
    assert failure.why == "a (Foo): no importer\nb (Bar): no plugin"


def test_a_graph_refused_as_a_whole_is_an_invalid_model() -> None:
    assert _parse([("", "", "failed to parse")]).reason == "model-invalid"
