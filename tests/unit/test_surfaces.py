"""What was recorded of TensorRT's bindings, and the fakes made of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from builder.stacks import Stack, build_stacks, load_stacks
from tests.surfaces import (
    SURFACES,
    FakeLayer,
    FakeTensor,
    FakeTensorRT,
    fake_tensorrt,
    has_symbol,
    read_surface,
    recorded_versions,
)

STACKS = build_stacks(load_stacks(Path(__file__).parents[2] / "images"))
WITH_LOCKS = [*STACKS.values(), *(one.with_lock(name) for one in STACKS.values() for name in one.spec.image.locks)]
KIB_150 = 150 * 1024
each_version = pytest.mark.parametrize("version", recorded_versions())


class Logger:
    """Keeps what TensorRT says."""

    def __init__(self) -> None:
        self.said: list[tuple[int, str]] = []

    def log(self, severity: Any, message: str) -> None:
        self.said.append((int(severity), message))


def config_of(trt: FakeTensorRT) -> Any:
    return trt.Builder(Logger()).create_builder_config()


def build(trt: FakeTensorRT, logger: Logger, network_flags: int = 0, **settings: Any) -> tuple[Any, Any]:
    """Parse and build as an adapter does; return the engine and the configuration."""
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags)
    assert trt.OnnxParser(network, logger).parse_from_file("model.onnx")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 3), (2, 3), (4, 3))
    assert config.add_optimization_profile(profile) == 0
    for name, value in settings.items():
        setattr(config, name, value)
    return builder.build_serialized_network(network, config), config


def flag(trt: FakeTensorRT, name: str) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag[name])


# --- records ---


@pytest.mark.parametrize("stack", WITH_LOCKS, ids=lambda stack: f"{stack.name}-{stack.build.tensorrt}")
def test_each_stack_has_a_record_of_its_tensorrt(stack: Stack) -> None:
    surface = read_surface(stack.build.tensorrt)
    assert surface["tensorrt"].partition(".post")[0] == stack.build.tensorrt
    if "sha256" in surface and any("bindings" in pin for pin in stack.packages(surface["python"])):
        locked = {digest for one in stack.requirements(surface["python"]) for digest in one.hashes}
        assert surface["sha256"] in locked


@each_version
def test_a_record_is_small_and_of_one_form(version: str) -> None:
    path = SURFACES / f"{version}.json"
    assert path.stat().st_size < KIB_150
    surface = read_surface(version)
    assert surface["method"] in {"import", "import without its libraries"}
    assert re.fullmatch(r"3\.\d+", surface["python"])
    assert {"Builder", "IBuilderConfig", "OnnxParser", "Runtime", "ICudaEngine"} <= surface["classes"].keys()
    assert {"BuilderFlag", "DataType", "LayerType", "ILogger.Severity"} <= surface["enums"].keys()


def test_versions_are_in_their_order() -> None:
    assert recorded_versions()[:3] == ["1.7.1.116", "8.6.0", "8.6.1"]
    assert recorded_versions().index("10.9.0.34") < recorded_versions().index("10.16.1.11")


@pytest.mark.parametrize(
    ("version", "symbol", "there"),
    [
        ("8.6.1", "BuilderFlag.FP16", True),
        ("11.3.0.99", "BuilderFlag.FP16", False),
        ("8.6.0", "IConvolutionLayer.name", True),  # of its base
        ("8.6.0", "IConvolutionLayer.kernel_size_nd", True),
        ("8.6.0", "IProgressMonitor", False),
        ("8.6.0", "IProgressMonitor.phase_start", False),
        ("8.6.0", "init_libnvinfer_plugins", True),
        ("8.6.0", "Logger.INFO", True),
    ],
)
def test_symbols_are_looked_up(version: str, symbol: str, there: bool) -> None:
    assert has_symbol(version, symbol) is there


# --- fakes ---


@each_version
def test_every_recorded_name_is_in_the_fake(version: str) -> None:
    trt = fake_tensorrt(version)
    for name, described in trt.surface["classes"].items():
        for part in ("methods", "properties", "constants"):
            assert all(hasattr(getattr(trt, name), member) for member in described.get(part, ()))
    for name in trt.surface["enums"]:
        owner, _, member = name.rpartition(".")
        enum = getattr(getattr(trt, owner), member) if owner else getattr(trt, name)
        assert {key: int(value) for key, value in enum.__members__.items()} == trt.surface["enums"][name]
    assert all(callable(getattr(trt, name)) for name in trt.surface["functions"])


def test_what_was_not_recorded_is_not_there() -> None:
    trt = fake_tensorrt("8.6.1")
    with pytest.raises(AttributeError, match=r"TensorRT 8\.6\.1 has no 'IProgressMonitor'"):
        _ = trt.IProgressMonitor
    config = config_of(trt)
    with pytest.raises(AttributeError, match=r"TensorRT 8\.6\.1: IBuilderConfig has no 'progress_monitor' to set"):
        config.progress_monitor = None
    with pytest.raises(AttributeError, match=r"TensorRT 8\.6\.1: IBuilderConfig has no 'max_num_tactics'"):
        _ = config.max_num_tactics
    with pytest.raises(AttributeError):
        _ = trt.BuilderFlag.BF16
    with pytest.raises(AttributeError):
        config.num_optimization_profiles = 2


def test_arguments_are_those_of_a_signature() -> None:
    trt = fake_tensorrt("8.6.1")
    config = config_of(trt)
    config.set_memory_pool_limit(pool=trt.MemoryPoolType.WORKSPACE, pool_size=5)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 5
    for wrong in ({}, {"pool": 1}, {"pool": 1, "pool_size": 2, "more": 3}):
        with pytest.raises(TypeError, match=r"IBuilderConfig\.set_memory_pool_limit"):
            config.set_memory_pool_limit(**wrong)
    with pytest.raises(TypeError, match="no constructor"):
        trt.IBuilderConfig()
    with pytest.raises(TypeError, match="BuilderFlag"):
        config.set_flag(0)
    with pytest.raises(TypeError, match="HardwareCompatibilityLevel"):
        config.hardware_compatibility_level = 1


def test_flags_keep_state_and_calls_are_kept_in_order() -> None:
    trt = fake_tensorrt("10.16.1.11")
    config = config_of(trt)
    flags = trt.BuilderFlag
    assert [name for name, one in flags.__members__.items() if config.get_flag(one)] == ["TF32"]
    trt.calls.clear()
    config.clear_flag(flags.TF32)
    config.set_flag(flags.REFIT)
    config.builder_optimization_level = 5
    assert trt.calls == [
        ("IBuilderConfig.clear_flag", (flags.TF32,)),
        ("IBuilderConfig.set_flag", (flags.REFIT,)),
        ("IBuilderConfig.builder_optimization_level=", (5,)),
    ]
    assert trt.called("IBuilderConfig.set_flag") == [(flags.REFIT,)]
    assert (config.get_flag(flags.TF32), config.get_flag(flags.REFIT)) == (False, True)
    assert (config.builder_optimization_level, config_of(trt).builder_optimization_level) == (5, 3)


def test_pythons_own_subclasses_may_have_more() -> None:
    trt = fake_tensorrt("10.9.0.34")

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.said.append(f"{severity.name} {message}")

    log = Log()
    trt.scene.parse_errors = [("conv", "Foo", "no importer")]
    parser = trt.OnnxParser(trt.Builder(log).create_network(flag(trt, "STRONGLY_TYPED")), log)
    assert not parser.parse_from_file("model.onnx")
    assert log.said == ["ERROR Foo: no importer"]
    error = parser.get_error(0)
    assert (parser.num_errors, error.node_name(), error.node_operator(), error.desc()) == (
        1,
        "conv",
        "Foo",
        "no importer",
    )


def test_the_described_network_is_parsed() -> None:
    trt = fake_tensorrt("8.6.1")
    trt.scene.inputs, trt.scene.outputs = [FakeTensor("x", shape=(-1, 3))], [FakeTensor("y", "HALF", (-1, 4))]
    convolution = FakeLayer(
        "c", "CONVOLUTION", "[ONNX Layer: n]", trt.scene.inputs, trt.scene.outputs, {"num_groups": 2}
    )
    trt.scene.layers = [convolution]
    network = trt.Builder(Logger()).create_network(flag(trt, "EXPLICIT_BATCH"))
    assert trt.OnnxParser(network, Logger()).parse_from_file("model.onnx")
    layer = network.get_layer(0)
    assert (network.num_layers, layer.name, layer.type, layer.metadata) == (
        1,
        "c",
        trt.LayerType.CONVOLUTION,
        "[ONNX Layer: n]",
    )
    assert not hasattr(layer, "num_groups")
    layer.__class__ = trt.IConvolutionLayer
    assert layer.num_groups == 2
    assert layer.get_input(0) is network.get_input(0)
    assert (network.get_output(0).dtype.name, network.get_output(0).shape) == ("HALF", (-1, 4))
    layer.precision = trt.DataType.HALF
    assert layer.precision_is_set


def test_86_needs_its_flag_of_explicit_batch() -> None:
    trt, logger = fake_tensorrt("8.6.1"), Logger()
    assert not trt.OnnxParser(trt.Builder(logger).create_network(0), logger).parse_from_file("model.onnx")
    with pytest.raises(ValueError, match="network flags"):
        trt.Builder(logger).create_network(1 << 9)


def test_a_build_gives_an_engine_that_loads() -> None:
    trt, logger = fake_tensorrt("10.9.0.34"), Logger()
    trt.scene.inputs, trt.scene.outputs = [FakeTensor("x", shape=(-1, 3))], [FakeTensor("y", shape=(-1, 5))]
    engine, _ = build(trt, logger, flag(trt, "STRONGLY_TYPED"))
    assert engine[:4] == b"ftrt"
    assert engine[0x18:0x1C] == bytes([10, 9, 0, 34])
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    assert [(name, loaded.get_tensor_mode(name).name) for name in names] == [("x", "INPUT"), ("y", "OUTPUT")]
    context = loaded.create_execution_context()
    assert [context.set_input_shape("x", (size, 3)) for size in (1, 4, 5)] == [True, True, False]
    assert context.get_tensor_shape("y") == (4, 5)
    assert trt.Runtime(logger).deserialize_cuda_engine(engine[:-1]) is None
    assert logger.said[-1][0] == 1


def test_builds_fail_as_told_and_tell_why() -> None:
    trt, logger = fake_tensorrt("11.3.0.99"), Logger()
    trt.scene.failing.append(["Error Code 2: OutOfMemory"])
    assert build(trt, logger)[0] is None
    assert logger.said == [(1, "Error Code 2: OutOfMemory")]
    assert build(trt, logger)[0] is not None


def test_flags_that_a_strongly_typed_network_forbids_fail_the_build() -> None:
    trt, logger = fake_tensorrt("10.16.1.11"), Logger()
    flags = (1 << int(trt.BuilderFlag.FP16)) | (1 << int(trt.BuilderFlag.TF32))
    assert build(trt, logger, flag(trt, "STRONGLY_TYPED"), flags=flags)[0] is None
    assert "!config.getFlag(BuilderFlag::kFP16)" in logger.said[0][1]
    assert build(trt, logger, flag(trt, "EXPLICIT_BATCH"), flags=flags)[0] is not None


def test_timing_caches_grow_once_and_combine() -> None:
    trt, logger = fake_tensorrt("10.9.0.34"), Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(flag(trt, "STRONGLY_TYPED"))
    config = builder.create_builder_config()
    cache = config.create_timing_cache(b"old")
    other = config.create_timing_cache(b"other")
    assert cache.combine(other, False)
    assert config.set_timing_cache(cache, False)
    for _ in range(2):
        builder.build_serialized_network(network, config)
        assert config.get_timing_cache().serialize() == b"oldother[timings]"
    config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)
    assert builder.build_serialized_network(network, config) is not None
    config.set_timing_cache(config.create_timing_cache(b""), False)
    assert builder.build_serialized_network(network, config) is None
    assert "Timing cache miss" in logger.said[-1][1]
    trt.scene.refuses_caches = True
    assert config.create_timing_cache(b"foreign") is None
    assert config.create_timing_cache(b"") is not None


def test_a_progress_monitor_is_told_and_may_stop_the_build() -> None:
    trt, logger = fake_tensorrt("10.9.0.34"), Logger()
    told: list[str] = []

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            told.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return False

        def phase_finish(self, phase_name: str) -> None:
            told.append(phase_name)

    assert build(trt, logger, flag(trt, "STRONGLY_TYPED"), progress_monitor=Monitor())[0] is None
    assert told == ["Building Engine", "Building Engine"]
    assert logger.said == [(1, "the build was cancelled")]
