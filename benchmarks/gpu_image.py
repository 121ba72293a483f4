"""Builds and runs models with a classic TensorRT inside its image, on a GPU: what pruning removed must not be missed.

Usage, inside the image: python3 gpu_image.py MODELS OUT. MODELS holds ONNX files; toy models that exercise what cuDNN
is for are made on the spot. Each is built in FP32 and FP16 and compared with ONNX Runtime on the CPU. OUT gets a
Markdown table.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

# shapes for models with dynamic axes
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "ppocrv4-cls": [(1, 3, 48, 192), (4, 3, 48, 192), (8, 3, 48, 192)],
    "ppocrv4-det": [(1, 3, 160, 160), (1, 3, 320, 320), (1, 3, 640, 640)],
    "ppocrv4-rec": [(1, 3, 48, 160), (2, 3, 48, 320), (4, 3, 48, 640)],
    "vocos-decoder": [(1, 100, 64), (1, 100, 256), (1, 100, 512)],
}
ROUNDS = 50


class Cuda:
    """The few calls of the CUDA runtime that running an engine takes."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcudart.so.12")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; anything but success raises."""
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name}: cudaError {code}")

    def upload(self, array: np.ndarray) -> int:
        """Copy an array to the device and return its address."""
        address = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(array.nbytes, 1)))
        self.call("cudaMemcpy", address, array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes), 1)
        return int(address.value or 0)

    def download(self, address: int, array: np.ndarray) -> None:
        """Copy from the device."""
        size = ctypes.c_size_t(array.nbytes)
        self.call("cudaMemcpy", array.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(address), size, 2)

    def synchronize(self) -> None:
        """Wait for the device."""
        self.call("cudaDeviceSynchronize")


def toy_models() -> dict[str, onnx.ModelProto]:
    """Make models of layers that TensorRT hands to cuDNN, cuBLAS or its own compiler."""
    random = np.random.RandomState(0)

    def weight(*shape: int, over: float) -> np.ndarray:
        return (random.randn(*shape) / over).astype(np.float32)

    def model(nodes: list[Any], x: list[int], y: list[int], weights: dict[str, Any]) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y))]
        tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
        graph = helper.make_graph(nodes, "toy", ends[:1], ends[1:], tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    node = helper.make_node
    lstm = {"w": weight(2, 256, 32, over=6), "r": weight(2, 256, 64, over=8), "b": weight(2, 512, over=10)}
    norm = {"w": weight(32, 16, 3, 3, over=12), "s": np.ones(32, np.float32), "b": weight(32, over=5)}
    block = {"d": weight(96, 1, 7, 7, over=7), "g": np.ones(96, np.float32), "e": weight(96, over=9)}
    block |= {"u": weight(96, 384, over=10), "v": weight(384, 96, over=20)}
    mixed = {"w": weight(32, 4, 3, 3, over=6), "t": weight(32, 16, 2, 2, over=8)}
    return {
        "lstm": model(
            [node("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=64, direction="bidirectional")],
            [20, 2, 32],
            [20, 2, 2, 64],
            lstm,
        ),
        "gru": model(
            [node("GRU", ["x", "w", "r"], ["y"], hidden_size=64)],
            [20, 2, 32],
            [20, 1, 2, 64],
            {"w": weight(1, 192, 32, over=6), "r": weight(1, 192, 64, over=8)},
        ),
        "instance-norm": model(
            [
                node("Conv", ["x", "w"], ["c"], pads=[1] * 4),
                node("InstanceNormalization", ["c", "s", "b"], ["n"]),
                node("Relu", ["n"], ["y"]),
            ],
            [2, 16, 64, 64],
            [2, 32, 64, 64],
            norm,
        ),
        "convnext-block": model(
            [
                node("Conv", ["x", "d"], ["c"], pads=[3] * 4, group=96),
                node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
                node("LayerNormalization", ["t", "g", "e"], ["n"], axis=-1),
                node("MatMul", ["n", "u"], ["m"]),
                node("Erf", ["m"], ["a"]),
                node("MatMul", ["a", "v"], ["o"]),
                node("Transpose", ["o"], ["q"], perm=[0, 3, 1, 2]),
                node("Add", ["q", "x"], ["y"]),
            ],
            [2, 96, 28, 28],
            [2, 96, 28, 28],
            block,
        ),
        "mixed": model(
            [
                node("Conv", ["x", "w"], ["a"], pads=[1] * 4, strides=[2, 2], group=4),
                node("ConvTranspose", ["a", "t"], ["b"], strides=[2, 2]),
                node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
                node("AveragePool", ["c"], ["d"], kernel_shape=[3, 3], pads=[1] * 4),
                node("Softmax", ["d"], ["y"], axis=1),
            ],
            [1, 16, 32, 32],
            [1, 16, 16, 16],
            mixed,
        ),
    }


def build(trt: Any, logger: Any, model: bytes, shapes: list[tuple[int, ...]] | None, *, half: bool) -> bytes:
    """Build an engine."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise RuntimeError(parser.get_error(0).desc())
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if half:
        config.set_flag(trt.BuilderFlag.FP16)
    if shapes is not None:
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, *shapes)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("no engine")
    return bytes(engine)


def run(trt: Any, logger: Any, cuda: Cuda, engine: bytes, x: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Run an engine; return its outputs and the milliseconds of one of many runs."""
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    inputs = [name for name in names if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    context.set_input_shape(inputs[0], x.shape)
    context.set_tensor_address(inputs[0], cuda.upload(x))
    outputs: dict[str, tuple[int, np.ndarray]] = {}
    for name in names:
        if name not in inputs:
            array = np.zeros(tuple(context.get_tensor_shape(name)), trt.nptype(loaded.get_tensor_dtype(name)))
            outputs[name] = (cuda.upload(array), array)
            context.set_tensor_address(name, outputs[name][0])
    for _ in range(5):
        context.execute_async_v3(0)
    cuda.synchronize()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        context.execute_async_v3(0)
    cuda.synchronize()
    milliseconds = (time.perf_counter() - started) / ROUNDS * 1000
    for address, array in outputs.values():
        cuda.download(address, array)
    return {name: array for name, (_, array) in outputs.items()}, milliseconds


def try_model(trt: Any, logger: Any, cuda: Cuda, name: str, model: bytes, *, half: bool) -> str:
    """Build, run and compare one model; return a row of the table."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    shapes = SHAPES.get(name)
    shape = shapes[1] if shapes else tuple(session.get_inputs()[0].shape)
    x = np.random.RandomState(1).uniform(-1, 1, shape).astype(np.float32)
    wanted = session.run(None, {session.get_inputs()[0].name: x})
    started = time.perf_counter()
    engine = build(trt, logger, model, shapes, half=half)
    seconds = time.perf_counter() - started
    got, milliseconds = run(trt, logger, cuda, engine, x)
    outputs = [got[value.name] for value in session.get_outputs()]
    error = max(float(np.abs(one - other).max()) for one, other in zip(outputs, wanted))  # noqa: B905  # Python 3.9 has no strict
    largest = max(float(np.abs(other).max()) for other in wanted)
    precision = "fp16" if half else "fp32"
    cells = [name, precision, f"{seconds:.1f} s", f"{len(engine) / 1e6:.1f} MB", f"{milliseconds:.3f} ms"]
    return f"| {' | '.join(cells)} | {error:.2g} of {largest:.2g} |"


def main() -> int:
    """Try all models; 1 if one fails."""
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    trt = importlib.import_module("tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_bindings")
    logger, cuda = trt.Logger(trt.Logger.ERROR), Cuda()
    gpu = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    models = {name: model.SerializeToString() for name, model in toy_models().items()}
    models |= {path.stem: path.read_bytes() for path in sorted(folder.glob("*.onnx"))}
    lines = [f"TensorRT {trt.__version__}, Python {sys.version.split()[0]}, GPU {gpu}", ""]
    lines += ["| model | precision | build | engine | run | largest error |", "|---|---|---:|---:|---:|---|"]
    failed = 0
    for name, model in models.items():
        for half in (False, True):
            try:
                lines.append(try_model(trt, logger, cuda, name, model, half=half))
            except Exception as error:  # noqa: BLE001  # one model's trouble is a row, not the end
                failed = 1
                lines.append(f"| {name} | {'fp16' if half else 'fp32'} | failed | | | {error!r} |")
            print(lines[-1], flush=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
