"""INT8 by calibration: TensorRT runs the model on batches of the recipe's inputs and takes ranges from what it sees."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inputs import make
from ..protocol import StageFailure
from .session import DTYPES, WARNING

if TYPE_CHECKING:
    from ..cuda import Cuda
    from . import Calibration, Request
    from .session import Log

CALIBRATION_CACHE = "out/calibration.cache"
BASES = {"entropy": "IInt8EntropyCalibrator2", "minmax": "IInt8MinMaxCalibrator"}


class Source:
    """What a calibrator feeds and keeps.

    `cache`: what was read, later what TensorRT wrote. `fed`: batches given since TensorRT last began; `ran`: whether
    there ever were any. `failure`: what went wrong inside a call that TensorRT made; there it would be lost.
    """

    def __init__(
        self, cuda: Cuda, calibration: Calibration, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, str]
    ) -> None:
        """Make room on the GPU, and the first batch to see that it can be made.

        Raises:
            StageFailure: input-invalid, out-of-memory.

        """
        self._cuda, self._calibration, self._shapes, self._dtypes = cuda, calibration, shapes, dtypes
        self.given = b""
        if calibration.cache is not None:
            with open(calibration.cache, "rb") as file:
                self.given = file.read()
        self.cache, self.fed, self.ran = self.given, 0, False
        self.failure: StageFailure | None = None
        first = {name: self.batch(name, 0) for name in shapes}
        self._addresses = {name: cuda.allocate(values.nbytes) for name, values in first.items()}

    def batch(self, name: str, index: int) -> np.ndarray:
        """Return the values of one input in one batch, in the type that the network wants."""
        shape = self._shapes[name]
        # a file is read on: each batch begins where the one before it ended, and after its end at its beginning
        start = shape[0] * index if shape else 0
        values = make(self._calibration.inputs[name], shape, name, f"calibration/{index}", start)
        return np.ascontiguousarray(values, dtype=np.dtype(self._dtypes[name]))

    def begin(self) -> bytes | None:
        """Answer with the cache, if there is one; without, TensorRT asks for batches from the first on."""
        self.fed = 0
        return self.cache or None

    def next(self, names: list[str]) -> list[int] | None:
        """Put the next batch on the GPU and return the addresses of the inputs; None after the last."""
        if self.fed == self._calibration.batches or self.failure is not None:
            return None
        try:
            for name in names:
                self._cuda.upload(self._addresses[name], self.batch(name, self.fed))
        except StageFailure as failure:
            self.failure = failure
            return None
        self.fed, self.ran = self.fed + 1, True
        return [self._addresses[name] for name in names]

    def save(self, log: Log) -> dict[str, Any]:
        """Write what was found, and say how: `reused` where all of it came from the cache that was read.

        Raises:
            StageFailure: what failed while TensorRT calibrated; build-failed where it never did.

        """
        if self.failure is not None:
            raise self.failure
        if not self.cache:
            what = "TensorRT asked for no calibration, so nothing of the engine is INT8"
            raise StageFailure("build-failed", what, fix="build this model in fp16")
        if self.given and self.ran:
            log.note(WARNING, "TensorRT did not take the calibration cache and calibrated anew")
        with open(CALIBRATION_CACHE, "wb") as file:
            file.write(self.cache)
        return {
            "method": self._calibration.method,
            "batches": self._calibration.batches,
            "shapes": {name: list(shape) for name, shape in self._shapes.items()},
            "read": hashlib.sha256(self.given).hexdigest() if self.given else None,
            "reused": not self.ran,
            "bytes": len(self.cache),
            "sha256": hashlib.sha256(self.cache).hexdigest(),
        }

    def free(self) -> None:
        """Give the memory on the GPU back."""
        for address in self._addresses.values():
            self._cuda.free(address)
        self._addresses = {}


def attach(trt: Any, builder: Any, network: Any, config: Any, cuda: Cuda, request: Request) -> Source | None:
    """Give the builder a calibrator at the opt shapes of the first profile; None where the precision needs none.

    Raises:
        StageFailure: as `Source`; profile-invalid.

    """
    calibration = request.calibration
    if calibration is None:
        return None
    profile = request.profiles[0]
    shapes = {name: tuple(ranges.opt) for name, ranges in profile.inputs.items()}
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    source = Source(cuda, calibration, shapes, {one.name: DTYPES[one.dtype.name] for one in inputs})
    config.int8_calibrator = _calibrator(getattr(trt, BASES[calibration.method]), source)
    fixed = builder.create_optimization_profile()
    for name, shape in shapes.items():
        fixed.set_shape(name, shape, shape, shape)
    if not config.set_calibration_profile(fixed):
        what = f"TensorRT refuses to calibrate at the opt shapes of profile {profile.name}"
        raise StageFailure("profile-invalid", what, fix="choose opt shapes that the graph can compute")
    return source


def _calibrator(base: Any, source: Source) -> Any:
    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            # the batch is an axis of the shape, as in all networks with explicit batch
            return 1

        def get_batch(self, names: list[str]) -> list[int] | None:
            return source.next(names)

        def read_calibration_cache(self) -> bytes | None:
            return source.begin()

        def write_calibration_cache(self, cache: Any) -> None:
            source.cache = bytes(cache)

    return Calibrator()
