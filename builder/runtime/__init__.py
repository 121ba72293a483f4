"""Load an engine safely and call it like the model; where TensorRT cannot answer, a fallback does.

    from builder.runtime import load

    engine = load("vocos-decoder", fallback=model)
    audio = engine(mel)

It needs NumPy and the engine's TensorRT; PyTorch and ONNX Runtime are optional. docs/runtime.md explains it.
"""

from .engine import Engine
from .memory import DeviceArray
from .opening import load
from .reasons import EngineRefused

__all__ = ["DeviceArray", "Engine", "EngineRefused", "load"]
