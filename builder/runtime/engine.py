"""The engine as an application calls it."""

from __future__ import annotations

import atexit
import ctypes
import os
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Dict, NamedTuple, Optional, Set, Tuple

import numpy as np

from builder.worker.protocol import StageFailure

from .callers import ArrayCaller, TorchCaller, loaded_torch, run_on_host, unfit
from .fallback import Answer, bind
from .lanes import LAST_DEFAULT, Lanes, Outputs
from .loaded import as_refused
from .messages import LOGGER
from .reasons import EngineRefused
from .signature import by_name

if TYPE_CHECKING:
    from .callers import Inputs
    from .folder import Checked
    from .lanes import Lane
    from .loaded import Loaded
    from .signature import Plan, Tensor

# what says something of a call, not of the engine: the next call may be another
OF_THE_CALL = {"input-invalid", "profile-invalid"}
# failures in a row after which TensorRT is not asked again
ENOUGH = 3
ENGINE, GRAPH, FALLBACK = "engine", "graph", "fallback"
_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()
_SPAWN = 'load it in each process, or start processes with "spawn"'


class Settings(NamedTuple):
    """How an engine runs; `load` explains them."""

    cuda_graphs: bool = False
    reuse_outputs: bool = False
    max_contexts: int = 4
    on_call: Optional[Callable[[float, str], object]] = None


class Engine:
    """An engine of TensorRT, or its fallback: call it with the model's inputs. Made by `load`.

    It may be called from several threads. `refusal` is None as long as TensorRT answers, else why it does not.
    """

    def __init__(self, settings: Settings, fallback: Optional[Answer], refusal: Optional[EngineRefused] = None) -> None:
        self._settings, self._fallback, self.refusal = settings, fallback, refusal
        self._hook = settings.on_call
        self._keeps = settings.cuda_graphs or settings.reuse_outputs
        self._copies = settings.cuda_graphs and not settings.reuse_outputs
        self._said: Set[str] = set()
        self._failures = 0
        self._loaded: Optional[Loaded] = None
        self.inputs: Tuple[Tensor, ...] = ()
        self.outputs: Tuple[Tensor, ...] = ()
        self.checked: Optional[Checked] = None
        if refusal is not None:
            self._say(refusal)

    def attach(self, loaded: Loaded, checked: Checked) -> None:
        """Take an engine that TensorRT has loaded.

        Raises:
            EngineRefused: out-of-memory or engine-invalid.

        """
        signature = loaded.signature
        self._lanes = Lanes(loaded, limit=self._settings.max_contexts, graphs=self._settings.cuda_graphs)
        self._loaded, self._driver, self._signature = loaded, loaded.driver, signature
        self._enter, self._leave = loaded.driver.enter, loaded.driver.leave
        self.inputs, self.outputs = signature.inputs, signature.outputs
        # the bytes have done their work
        self.checked = checked._replace(content=b"", weights=b"")
        self._names, self._places = [tensor.name for tensor in self.inputs], by_name(self.inputs)
        self._count = len(self._names)
        self._callers: Dict[type, Any] = {}
        self._array = ArrayCaller(signature)
        self._torch: Optional[TorchCaller] = None
        _OPEN.add(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on inputs by place or by name; return the output, or a tuple of them in the engine's order.

        PyTorch tensors and arrays with `__cuda_array_interface__` run on their stream without a copy and without
        waiting; NumPy arrays are copied, and waited for.

        Raises:
            EngineRefused: without a fallback, whatever kept TensorRT from answering.

        """
        if self._hook is None:
            return self._answer(args, kwargs)[0]
        start = time.perf_counter()
        result, how = self._answer(args, kwargs)
        seconds = time.perf_counter() - start
        try:
            self._hook(seconds, how)
        except Exception:  # noqa: BLE001  # an observer must not change what it observes
            self._say_of_hook()
        return result

    def close(self) -> None:
        """Wait for running calls and give the GPU's memory back; a fallback answers later calls."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        if self.refusal is None:
            self.refusal = EngineRefused("run-failed", "the engine is closed", fix="call it before close()")
        _OPEN.discard(self)
        try:
            before = loaded.driver.enter()
        except StageFailure:
            LOGGER.debug("nothing can be given back", exc_info=True)
            return
        try:
            self._lanes.close()
            loaded.close()
        finally:
            loaded.driver.leave(before)

    def disown(self) -> None:
        """Let the fallback answer in a forked process; what is on the GPU stays the parent's."""
        loaded, self._loaded = self._loaded, None
        # never taken apart here, not even when Python ends: TensorRT would call CUDA
        ctypes.pythonapi.Py_IncRef(ctypes.py_object((loaded, self._lanes)))
        self.refusal = EngineRefused("run-failed", "the engine was loaded before this process was forked", fix=_SPAWN)

    def __enter__(self) -> Engine:  # noqa: PYI034  # Self came with Python 3.11
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> Tuple[Any, ...]:
        """Refuse to be pickled or copied: a copy would share the GPU's memory, and close it.

        Raises:
            TypeError: always.

        """
        raise TypeError("an engine cannot be pickled or copied: load it where it is used")

    def __del__(self) -> None:
        # an interpreter that ends has taken apart what this needs
        with suppress(Exception):
            self.close()

    def _answer(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, str]:
        if self.refusal is not None:
            return self._fall_back(self.refusal, args, kwargs), FALLBACK
        try:
            bound = args if not kwargs and len(args) == self._count else bind(self._names, self._places, args, kwargs)
            caller = self._callers.get(type(bound[0])) or self._recognise(bound[0])
            found, graph = self._on_host(bound) if caller is run_on_host else self._on_device(caller, bound)
        except EngineRefused as error:
            # a new one: the traceback would hold on to this call's tensors until Python collects its garbage
            refused = error.again()
        except StageFailure as failure:
            refused = as_refused(failure)
        except Exception as error:  # noqa: BLE001  # whatever it is, it came from asking TensorRT
            LOGGER.debug("unexpected", exc_info=True)
            refused = _unexpected(error)
        else:
            self._failures = 0
            return found[0] if len(found) == 1 else found, GRAPH if graph else ENGINE
        return self._fail(refused, args, kwargs), FALLBACK

    def _on_device(self, caller: Any, args: Tuple[Any, ...]) -> Tuple[Tuple[Any, ...], bool]:
        inputs = caller.read(args)
        stream = inputs.stream
        before = self._enter()
        try:
            lane = self._lanes.of_stream(stream)
            try:
                return self._in_lane(lane, caller, inputs, stream)
            finally:
                lane.release(stream)
        finally:
            self._leave(before)

    def _in_lane(self, lane: Lane, caller: Any, inputs: Inputs, stream: int) -> Tuple[Tuple[Any, ...], bool]:
        if inputs.others or inputs.unaligned:
            self._settle(lane, inputs)
        plan = lane.plan(inputs.shapes, stream if stream > LAST_DEFAULT else lane.stream)
        if self._keeps:
            outputs: Outputs = lane.outputs(caller, plan, lambda: caller.allocate(plan, lane))
        else:
            outputs = caller.allocate(plan, lane)
        graph = lane.run(plan, (*inputs.addresses, *outputs.addresses), stream)
        if self._copies:
            outputs = self._copy(caller, lane, plan, outputs, stream)
        caller.finish(outputs.arrays, stream)
        return outputs.arrays, graph

    def _on_host(self, args: Tuple[np.ndarray, ...]) -> Tuple[Tuple[np.ndarray, ...], bool]:
        before = self._enter()
        try:
            lane = self._lanes.own()
            try:
                return run_on_host(lane, self._signature, args, copy=not self._settings.reuse_outputs)
            finally:
                lane.release(lane.stream)
        finally:
            self._leave(before)

    def _settle(self, lane: Lane, inputs: Inputs) -> None:
        """Wait for the streams of further inputs, and copy those that begin where no engine may read."""
        for other in inputs.others:
            lane.wait_for(other, inputs.stream)
        for place in inputs.unaligned:
            size = self._signature.size(place, inputs.shapes[place])
            address, rounded = lane.blocks.take(size)
            self._driver.copy(address, inputs.addresses[place], size, inputs.stream)
            inputs.addresses[place] = address
            # what comes later on this stream may write there
            lane.blocks.give(address, rounded)

    def _copy(self, caller: Any, lane: Lane, plan: Plan, kept: Outputs, stream: int) -> Outputs:
        made: Outputs = caller.allocate(plan, lane)
        for target, source, size in zip(made.addresses, kept.addresses, plan.output_bytes):
            self._driver.copy(target, source, size, stream)
        return made

    def _recognise(self, value: Any) -> Any:
        """Find out how a type of inputs is called with; it is remembered."""
        torch = loaded_torch()
        if torch is not None and torch.is_tensor(value):
            if self._torch is None:
                self._torch = TorchCaller(torch, self._signature, self._driver.ordinal)
            caller: Any = self._torch
        elif getattr(value, "__cuda_array_interface__", None) is not None:
            caller = self._array
        elif isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
            caller = run_on_host
        else:
            raise unfit(self.inputs[0], type(value).__name__)
        self._callers[type(value)] = caller
        return caller

    def _fail(self, refused: EngineRefused, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        if refused.reason not in OF_THE_CALL:
            self._failures += 1
            if self._failures >= ENOUGH and self.refusal is None:
                # without its traceback, which holds the call's tensors
                self.refusal = refused.again()
        return self._fall_back(refused, args, kwargs)

    def _fall_back(self, refused: EngineRefused, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        if self._fallback is None:
            raise refused.again()
        self._say(refused)
        return self._fallback(*args, **kwargs)

    def _say(self, refused: EngineRefused) -> None:
        if refused.reason not in self._said:
            self._said.add(refused.reason)
            where = "this call" if refused.reason in OF_THE_CALL else "the model"
            LOGGER.warning("the fallback runs %s: %s", where, refused)

    def _say_of_hook(self) -> None:
        if "on_call" not in self._said:
            self._said.add("on_call")
            LOGGER.warning("on_call raised; it goes on being called", exc_info=True)


def _unexpected(error: Exception) -> EngineRefused:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return EngineRefused("out-of-memory", "there is no memory for this call", why=text)
    return EngineRefused("run-failed", "the engine could not run", why=text, fix="see the debug log")


def _leave_to_parent() -> None:
    # CUDA does not work in a forked process, and locks stay as another thread of the parent held them
    for engine in list(_OPEN):
        engine.disown()
    _OPEN.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


@atexit.register
def _close_all() -> None:
    # CUDA and TensorRT end before Python's objects do
    for engine in list(_OPEN):
        with suppress(Exception):
            engine.close()
