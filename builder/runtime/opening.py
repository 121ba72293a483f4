"""`load`: from a place of an engine to something that can be called."""

from __future__ import annotations

import operator
import os
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

from builder.worker.protocol import StageFailure

from .driver import open_driver
from .engine import Engine, Settings
from .fallback import make_fallback
from .folder import LOCAL, read_engine, weights_place
from .loaded import Loaded, as_refused
from .machine import check_gpu, check_machine, check_tensorrt, import_tensorrt
from .messages import LOGGER
from .places import locate
from .reasons import EngineRefused

if TYPE_CHECKING:
    from .folder import Checked


def load(  # noqa: PLR0913  # each is a choice of the application's, by name
    model: Union[str, os.PathLike[str]],
    fallback: Any = None,
    *,
    trust: Optional[str] = None,
    allow_untrusted: bool = False,
    allow_host_code: bool = False,
    device: int = 0,
    cuda_graphs: bool = False,
    reuse_outputs: bool = False,
    max_contexts: int = 4,
    on_call: Optional[Callable[[float, str], object]] = None,
) -> Engine:
    """Load an engine, after everything about it was checked.

    Args:
        model: a folder that `enginefarm pull` or `export` wrote, an engine's file, or the name of a model that was
            pulled to this machine.
        fallback: answers where TensorRT does not: a callable such as the PyTorch model, an ONNX file or a session of
            ONNX Runtime. Without one, EngineRefused is raised.
        trust: "local" for engines that this machine built or exported; otherwise there has to be the record that
            `pull` writes once a signature was checked.
        allow_untrusted: load an engine that nobody vouches for. It can run any code here.
        allow_host_code: load an engine that carries code for the host.
        device: the GPU, counted as CUDA does.
        cuda_graphs: replay calls whose shapes and addresses come again as CUDA graphs; needs memory for each.
        reuse_outputs: return the same outputs again: they are overwritten by the next call with these shapes on the
            same stream, and the engine is then for one thread per stream.
        max_contexts: how many calls may be under way at once; each takes memory.
        on_call: called after each call with the seconds it took on the host, and "engine", "graph" or "fallback".

    Raises:
        EngineRefused: without a fallback, why the engine cannot be used.
        TypeError, ValueError: an argument says nothing that there is.

    """
    if trust not in {None, LOCAL}:
        raise ValueError(f'trust is None or "{LOCAL}", not {trust!r}')
    device, max_contexts = _count("device", device, 0), _count("max_contexts", max_contexts, 1)
    if on_call is not None and not callable(on_call):
        raise TypeError(f"on_call is a callable, not {type(on_call).__name__}")
    settings = Settings(cuda_graphs, reuse_outputs, max_contexts, on_call)
    answer = make_fallback(fallback, lambda: open_driver(device))
    engine = Engine(settings, answer)
    try:
        checked = _read(os.fsdecode(model), trust, allow_untrusted=allow_untrusted)
        check_machine(checked, allow_host_code=allow_host_code)
        _attach(engine, checked, device, host_code=allow_host_code)
    except EngineRefused as refused:
        if answer is None:
            raise
        return Engine(settings, answer, refused.again())
    return engine


def _count(name: str, given: Any, least: int) -> int:
    try:
        count = operator.index(given)
    except TypeError:
        raise TypeError(f"{name} is a number such as {least}, not {given!r}") from None
    if count < least:
        raise ValueError(f"{name} is at least {least}, not {count}")
    return count


def _read(model: str, trust: Optional[str], *, allow_untrusted: bool) -> Checked:
    path = locate(model)
    try:
        return read_engine(path, trust=trust, allow_untrusted=allow_untrusted)
    except EngineRefused:
        again = locate(model)
        if again == path:
            raise
        # pulled anew while it was read
        return read_engine(again, trust=trust, allow_untrusted=allow_untrusted)


def _attach(engine: Engine, checked: Checked, device: int, *, host_code: bool) -> None:
    driver = open_driver(device)
    check_gpu(checked, driver.device)
    trt = import_tensorrt(str(checked.header.kind))
    check_tensorrt(checked, trt)
    allowed = host_code and (checked.facts is None or checked.facts.host_code)
    before = driver.enter()
    try:
        with weights_place(checked) as place:
            engine.attach(Loaded(trt, driver, checked, place, host_code=allowed), checked)
    except StageFailure as failure:
        raise as_refused(failure) from failure
    except EngineRefused:
        raise
    except Exception as error:
        LOGGER.debug("unexpected", exc_info=True)
        why = f"{type(error).__name__}: {error}"
        raise EngineRefused("engine-invalid", "TensorRT cannot load the engine", why=why) from error
    finally:
        driver.leave(before)
