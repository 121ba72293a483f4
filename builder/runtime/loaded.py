"""An engine that TensorRT has taken, its execution contexts, and what sets of shapes mean to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from builder.worker.protocol import StageFailure
from builder.worker.trt.loading import deserialize, load_failure, refusal
from builder.worker.trt.refit import refit

from .messages import messages
from .reasons import EngineRefused
from .signature import Plan, Shape, plan, read_signature

if TYPE_CHECKING:
    from .driver import Driver
    from .folder import Checked

# sets of input shapes that are remembered: one more than this, and all are worked out anew
PLANS = 1024
Addresses = Tuple[int, ...]


class Loaded:
    """TensorRT's engine on one GPU. Nothing here is called before everything about the file was checked."""

    def __init__(self, trt: Any, driver: Driver, checked: Checked, place: str, *, host_code: bool) -> None:
        """Deserialize, and give an engine that was built without its weights those beside it.

        `place`: where TensorRT finds what does not fit into the file of the weights, if anything does not.

        Raises:
            EngineRefused: engine-invalid, engine-version, sm-mismatch, library-missing, plugin-missing, out-of-memory
                or op-unsupported.

        """
        self.driver = driver
        self.log = messages(trt)
        register = getattr(trt, "init_libnvinfer_plugins", None)
        if register is not None:
            register(self.log.logger, "")
        mark = self.log.mark()
        self._runtime, self._engine = deserialize(trt, self.log.logger, checked.content, host_code=host_code)
        if self._engine is None:
            raise as_refused(refusal(trt, self.log.since(mark), checked.content, driver.device.sm))
        if checked.weights:
            refit(trt, self.log.logger, lambda: self.log.since(mark), self._engine, checked.weights, place)
        self.signature = read_signature(trt, self._engine)
        self.names = [tensor.name for tensor in (*self.signature.inputs, *self.signature.outputs)]
        self.plans: Dict[Tuple[Shape, ...], Plan] = {}
        # whether several contexts may be used, as far as is known. A further one may take a shape profile that the
        # first has left for another, and the first does not get it back
        self.shares_profiles = len(self.signature.profiles) == 1 or not str(trt.__version__).startswith("8.")

    def context(self) -> Context:
        """Make an execution context, which has memory of its own on the GPU.

        Raises:
            EngineRefused: out-of-memory or engine-invalid; run-failed for a further one, where TensorRT 8 gives an
                engine's shape profile to one context at a time.

        """
        mark = self.log.mark()
        made = self._engine.create_execution_context()
        if made is None:
            raise as_refused(load_failure(self.log.since(mark), "TensorRT could not make a context for the engine"))
        if made.active_optimization_profile < 0:
            self.shares_profiles = False
            raise EngineRefused("run-failed", "TensorRT lets one context at a time use a shape profile of this engine")
        return Context(self, made)

    def failed(self, mark: int, what: str) -> EngineRefused:
        """Say why a call of TensorRT came to nothing."""
        failure = load_failure(self.log.since(mark), what)
        reason = "run-failed" if failure.reason == "engine-invalid" else failure.reason
        return EngineRefused(reason, what, why=failure.why, fix=failure.fix)

    def close(self) -> None:
        """Let TensorRT go; contexts have to be gone before."""
        self.plans.clear()
        self._engine = self._runtime = None


class Context:
    """An execution context and what was set in it: it is told only what has changed."""

    __slots__ = ("_addresses", "_execute", "_loaded", "_plan", "_profile", "_trt")

    def __init__(self, loaded: Loaded, trt: Any) -> None:
        self._loaded, self._trt = loaded, trt
        self._execute = trt.execute_async_v3
        self._plan: Optional[Plan] = None
        self._profile = 0
        self._addresses: Addresses = (0,) * len(loaded.names)

    def plan(self, shapes: Tuple[Shape, ...], stream: int) -> Plan:
        """Return what input shapes mean; TensorRT is asked for shapes that are new to the engine.

        Raises:
            EngineRefused: profile-invalid or op-unsupported.

        """
        known = self._loaded.plans.get(shapes)
        if known is not None:
            return known
        signature = self._loaded.signature
        # PyTorch's sizes are tuples of a kind of their own
        shapes = tuple(tuple(int(size) for size in shape) for shape in shapes)
        profile = signature.choose(shapes)
        self._set_shapes(shapes, profile, stream)
        outputs = [tuple(int(n) for n in self._trt.get_tensor_shape(tensor.name)) for tensor in signature.outputs]
        made = plan(signature, shapes, profile, tuple(outputs))
        if len(self._loaded.plans) >= PLANS:
            self._loaded.plans.clear()
        self._loaded.plans[shapes] = self._plan = made
        return made

    def run(self, wanted: Plan, addresses: Addresses, stream: int) -> None:
        """Put one run on a stream. `addresses`: of all inputs, then of all outputs.

        Raises:
            EngineRefused: profile-invalid, out-of-memory or run-failed.

        """
        if wanted is not self._plan:
            self._set_shapes(wanted.shapes, wanted.profile, stream)
            self._plan = wanted
        if addresses != self._addresses:
            self._set_addresses(addresses)
        mark = self._loaded.log.mark()
        if not self._execute(stream):
            raise self._loaded.failed(mark, "TensorRT could not run the engine")

    def _set_shapes(self, shapes: Tuple[Shape, ...], profile: int, stream: int) -> None:
        self._plan = None
        mark = self._loaded.log.mark()
        if profile != self._profile:
            if not self._trt.set_optimization_profile_async(profile, stream):
                raise self._loaded.failed(mark, f"TensorRT refuses shape profile {profile}")
            self._profile, self._addresses = profile, (0,) * len(self._addresses)
        for tensor, shape in zip(self._loaded.signature.inputs, shapes):
            if not self._trt.set_input_shape(tensor.name, shape):
                why = "\n".join(self._loaded.log.since(mark))
                what = f"the engine refuses {'x'.join(map(str, shape))} for input {tensor.name}"
                raise EngineRefused("profile-invalid", what, why=why, fix="build it with a wider shape profile")

    def _set_addresses(self, addresses: Addresses) -> None:
        mark, before = self._loaded.log.mark(), self._addresses
        # until all are set, none counts as set
        self._addresses = ()
        changed = zip(self._loaded.names, addresses, before if len(before) == len(addresses) else (0,) * len(addresses))
        for name, address, old in changed:
            if address != old and not self._trt.set_tensor_address(name, address):
                raise self._loaded.failed(mark, f"TensorRT refuses the memory given for {name}")
        self._addresses = addresses


def as_refused(failure: StageFailure) -> EngineRefused:
    """Turn a failure of the worker's into one of the runtime's."""
    return EngineRefused(failure.reason, failure.message, why=failure.why, fix=failure.fix)
