"""enginefarm: build TensorRT engines from recipes, prove them, and keep them with a manifest."""

__version__ = "0.1.0"
