"""TensorRT 8.6: the graph's types are hints only, so FP16 is a builder flag and a wish for each layer that computes."""

from __future__ import annotations

from . import classic, weak

FLAGS = {
    "fp32": (),
    "tf32": ("TF32",),
    "fp16": ("FP16", "PREFER_PRECISION_CONSTRAINTS"),
    "int8": weak.INT8_FLAGS,
}

ADAPTER = classic.Classic(network_flags=("EXPLICIT_BATCH",), precision_flags=FLAGS, constrain=weak.constrain)
