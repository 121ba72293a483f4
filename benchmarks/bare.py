"""The yardstick: what a person would write by hand against TensorRT-RTX. One model, one process, no farm.

Usage: python bare.py LOWERED.onnx ENGINE.plan PROFILES.json SM,SM
"""

from __future__ import annotations

import json
import sys

import tensorrt_rtx_bindings as trt


def main(model: str, engine: str, profiles: str, sms: str) -> None:
    """Build one engine."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(model):
        sys.exit("\n".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    names = [f"SM{sm.replace('.', '')}" for sm in sms.split(",")]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    with open(profiles, encoding="utf-8") as stream:
        for shapes in json.load(stream):
            profile = builder.create_optimization_profile()
            for name, shape in shapes["inputs"].items():
                profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
            config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    with open(engine, "wb") as stream:
        stream.write(plan)


if __name__ == "__main__":
    main(*sys.argv[1:])
