"""The names of an engine's files, in the store, in registries and in folders."""

from __future__ import annotations

ENGINE, MANIFEST, KEY, PROOF = "model.plan", "manifest.json", "key.json", "proof.json"
CALIBRATION_CACHE = "calibration.cache"
# beside an engine that was built without its weights: the model that TensorRT parsed, and what ONNX keeps outside of it
WEIGHTS = ("weights.onnx", "lowered.onnx.data")
# what a store's entry says of the proof that it holds
PROOF_ANNOTATION = "org.enginefarm.proof"
