"""Giving an engine that was built without its weights those of the model that TensorRT parsed, since TensorRT 10.

Worker and runtime share it; it takes the standard library alone. No machine at hand has run it on a GPU: names and
arguments are those of the recorded bindings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .loading import load_failure

if TYPE_CHECKING:
    from collections.abc import Callable


def refit(trt: Any, logger: Any, said: Callable[[], list[str]], engine: Any, model: bytes, path: str = "") -> None:
    """Refit an engine before it gets a context.

    `model`: content of the very ONNX file that the engine was built from; with other weights the engine is undefined.
    `path`: where that file lies, if it keeps weights in another one beside it. `said`: the errors logged so far.

    Raises:
        StageFailure: engine-invalid with TensorRT's words, out-of-memory, library-missing.

    """
    before = len(said())
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    taken = parser.refit_from_bytes(model, path) if path else parser.refit_from_bytes(model)
    if taken and refitter.refit_cuda_engine():
        return
    words = said()[before:] + [parser.get_error(index).desc() for index in range(parser.num_errors)]
    missing = refitter.get_missing_weights() if taken else []
    if missing:
        words.append(f"it lacks {', '.join(missing[:5])}" + (f" and {len(missing) - 5} more" if missing[5:] else ""))
    raise load_failure(words, "TensorRT cannot give the engine its weights")
