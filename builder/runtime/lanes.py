"""Where calls run: each lane has an execution context and serves one stream at a time, so calls never meet in one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from builder.worker.protocol import StageFailure

from .memory import Blocks, Staging
from .messages import LOGGER
from .reasons import EngineRefused

if TYPE_CHECKING:
    from .loaded import Addresses, Context, Loaded
    from .signature import Plan, Shape

# CUDA's default streams: 0 and 1 are the old one, 2 the one per thread. TensorRT waits for the GPU before and after a
# run on one of them.
LAST_DEFAULT = 2
# of one lane: graphs, each with a context of its own; calls remembered to see whether one comes again; sets of outputs;
# streams whose memory is kept
GRAPHS, SEEN, OUTPUTS, POOLS = 4, 32, 16, 4
FRESH, OWN = -1, -2


class Captured(NamedTuple):
    """A CUDA graph and the context that it was captured of, which nothing else may touch while there is the graph."""

    graph: int
    context: Context


class Outputs(NamedTuple):
    """Outputs that a lane keeps: what the caller gets, and where they lie."""

    arrays: Tuple[Any, ...]
    addresses: Tuple[int, ...]


class Lane:
    """One context with a stream of its own. Who uses it holds `lock`; `serves` is a stream, OWN or FRESH."""

    def __init__(self, loaded: Loaded, *, graphs: bool) -> None:
        """Make a context.

        Raises:
            EngineRefused: out-of-memory or engine-invalid.

        """
        self.lock = threading.Lock()
        self.serves = FRESH
        self.graphs = graphs
        self._loaded, self._driver = loaded, loaded.driver
        self.context = loaded.context()
        self.stream = self._driver.stream()
        self._events = (self._driver.untimed_event(), self._driver.untimed_event())
        self._done = self._driver.untimed_event()
        self._pools: OrderedDict[int, Blocks] = OrderedDict()
        self.staging = [Staging(self._driver) for _ in loaded.names]
        self._kept: OrderedDict[Tuple[object, Tuple[Shape, ...]], Outputs] = OrderedDict()
        self._captured: OrderedDict[Tuple[Tuple[Shape, ...], Addresses], Captured] = OrderedDict()
        self._seen: OrderedDict[Tuple[Tuple[Shape, ...], Addresses], None] = OrderedDict()

    def plan(self, shapes: Tuple[Shape, ...], stream: int) -> Plan:
        """Return what input shapes mean.

        Raises:
            EngineRefused: profile-invalid or op-unsupported.

        """
        if shapes not in self._loaded.plans:
            self._free_context(stream)
        return self.context.plan(shapes, stream)

    def run(self, plan: Plan, addresses: Addresses, stream: int) -> bool:
        """Put a run on a stream; say whether it was a graph.

        Raises:
            EngineRefused: profile-invalid, out-of-memory, run-failed.
            StageFailure: build-failed with CUDA's words.

        """
        if self.graphs:
            captured = self._captured.get((plan.shapes, addresses))
            if captured is not None:
                self._driver.replay(captured.graph, stream)
                return True
        if stream > LAST_DEFAULT:
            self._run(plan, addresses, stream)
            return False
        own, (begin, end) = self.stream, self._events
        self._driver.order(stream, own, begin)
        try:
            self._run(plan, addresses, own)
        finally:
            self._driver.order(own, stream, end)
        return False

    def release(self, stream: int) -> None:
        """Note what was put on a stream, and let others in."""
        try:
            self._driver.mark(self._done, stream)
        finally:
            self.lock.release()

    def finish(self) -> None:
        """Wait for all calls, on whatever stream they were.

        Not for the whole GPU: that is forbidden while another thread captures a graph.
        """
        try:
            self._driver.wait(self._done)
            self._driver.finish(self.stream)
        except StageFailure:
            # the application captured a call in a graph of its own: the event belongs to that now
            self._driver.synchronize()

    def serve(self, stream: int) -> None:
        """Be there for a stream: outputs that are kept, and memory that is used again, belong to one stream."""
        if self.serves not in (FRESH, stream):
            self.finish()
            self._kept.clear()
        self.serves = stream
        # the application may still read, on that other stream, what it has let go already
        self.blocks = self._pools.pop(stream) if stream in self._pools else Blocks(self._driver)
        self._pools[stream] = self.blocks
        while len(self._pools) > POOLS:
            self._pools.popitem(last=False)[1].close()

    def wait_for(self, other: int, stream: int) -> None:
        """Let what comes on a stream wait for what is on another one."""
        self._driver.order(other, stream, self._events[0])

    def outputs(self, kind: object, plan: Plan, make: Callable[[], Outputs]) -> Outputs:
        """Return the outputs that the lane keeps for a set of shapes."""
        key = (kind, plan.shapes)
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= OUTPUTS:
                self._kept.popitem(last=False)
            found = self._kept[key] = make()
        return found

    def close(self) -> None:
        """Give everything back; the GPU has to be done with it."""
        for captured in self._captured.values():
            self._driver.destroy(graph=captured.graph)
        self._captured.clear()
        self._kept.clear()
        del self.context
        for staging in self.staging:
            staging.close()
        for blocks in self._pools.values():
            blocks.close()
        self._driver.destroy(streams=(self.stream,), events=(*self._events, self._done))

    def _run(self, plan: Plan, addresses: Addresses, stream: int) -> None:
        if self.graphs:
            key = (plan.shapes, addresses)
            if key in self._seen:
                del self._seen[key]
                self._capture(plan, addresses, stream)
                return
            # any other call ends the graph of a lane's own context: only what comes twice in a row pays
            if len(self._seen) >= (SEEN if self._loaded.shares_profiles else 1):
                self._seen.popitem(last=False)
            self._seen[key] = None
        self._free_context(stream)
        self.context.run(plan, addresses, stream)

    def _capture(self, plan: Plan, addresses: Addresses, stream: int) -> None:
        """Run in a new context, which does what cannot be captured, and capture that for the next time."""
        while len(self._captured) >= GRAPHS:
            self._drop(next(iter(self._captured)), stream)
        try:
            context = self._context_to_capture(stream)
            context.run(plan, addresses, stream)
            self._driver.finish(stream)
            graph = self._driver.capture(self.stream, lambda: context.run(plan, addresses, self.stream))
        except (EngineRefused, StageFailure) as failure:
            self.graphs = False
            LOGGER.warning("CUDA graphs are not used for this engine: %s", failure)
            self.context.run(plan, addresses, stream)
            return
        self._captured[plan.shapes, addresses] = Captured(graph, context)

    def _context_to_capture(self, stream: int) -> Context:
        """Make a context for a graph; where the engine lets only one be used, it is the lane's own."""
        if self._loaded.shares_profiles:
            try:
                return self._loaded.context()
            except EngineRefused:
                if self._loaded.shares_profiles:
                    raise
        self._free_context(stream)
        return self.context

    def _free_context(self, stream: int) -> None:
        """Give up the graph of the lane's own context, if there is one, so that this may change."""
        for key in [key for key, captured in self._captured.items() if captured.context is self.context]:
            self._drop(key, stream)

    def _drop(self, key: Tuple[Tuple[Shape, ...], Addresses], stream: int) -> None:
        captured = self._captured.pop(key)
        self.finish()
        self._driver.finish(stream)
        self._driver.destroy(graph=captured.graph)


class Lanes:
    """All lanes of an engine: made when they are needed, at most `limit`."""

    def __init__(self, loaded: Loaded, *, limit: int, graphs: bool) -> None:
        """Make the first lane, so that an engine that finds no room says so when it is loaded.

        Raises:
            EngineRefused: out-of-memory or engine-invalid.

        """
        self._loaded, self._graphs = loaded, graphs
        self._limit = limit if loaded.shares_profiles else 1
        self._guard = threading.Lock()
        self._all: List[Lane] = [Lane(loaded, graphs=graphs)]
        self._of_stream: Dict[int, Lane] = {}
        self._own: List[Lane] = []

    def of_stream(self, stream: int) -> Lane:
        """Return the lane of a caller's stream, locked."""
        lane = self._of_stream.get(stream)
        if lane is not None:
            lane.lock.acquire()
            if lane.serves == stream:
                return lane
            lane.lock.release()
        return self._assign(stream)

    def own(self) -> Lane:
        """Return a lane that runs on its own stream, locked."""
        for lane in list(self._own):
            if lane.lock.acquire(blocking=False):
                if lane.serves == OWN:
                    return lane
                lane.lock.release()
        return self._assign(OWN)

    def close(self) -> None:
        """Wait for all calls and give everything back."""
        with self._guard:
            for lane in self._all:
                lane.lock.acquire()
            for lane in self._all:
                # where CUDA itself is broken there is nothing to wait for
                with suppress(StageFailure):
                    lane.finish()
                lane.close()
                lane.serves = FRESH
                lane.lock.release()
            self._all, self._own, self._of_stream = [], [], {}

    def _assign(self, stream: int) -> Lane:
        with self._guard:
            known = self._of_stream.get(stream)
            if known is not None:
                # another thread made it meanwhile
                known.lock.acquire()
                return known
            if not self._all:
                raise EngineRefused("run-failed", "the engine is closed", fix="call it before close()")
            lane = self._fresh() or self._new() or self._steal()
            self._forget(lane)
            try:
                lane.serve(stream)
            except StageFailure:
                # a lane that stays locked holds everybody up
                lane.lock.release()
                raise
            if stream == OWN:
                self._own.append(lane)
            else:
                self._of_stream[stream] = lane
            return lane

    def _fresh(self) -> Optional[Lane]:
        for lane in self._all:
            if lane.serves == FRESH:
                lane.lock.acquire()
                return lane
        return None

    def _new(self) -> Optional[Lane]:
        if len(self._all) >= self._limit:
            return None
        try:
            lane = Lane(self._loaded, graphs=self._graphs)
        except EngineRefused as refused:
            # fewer lanes mean waiting, not failing
            LOGGER.debug("no further context: %s", refused)
            self._limit = len(self._all)
            return None
        lane.lock.acquire()
        self._all.append(lane)
        return lane

    def _steal(self) -> Lane:
        """Take the lane that was assigned first and is free; where none is, wait for one."""
        lane = next((one for one in self._all if one.lock.acquire(blocking=False)), None)
        if lane is None:
            lane = self._all[0]
            lane.lock.acquire()
        self._all.remove(lane)
        self._all.append(lane)
        return lane

    def _forget(self, lane: Lane) -> None:
        self._own = [one for one in self._own if one is not lane]
        for stream in [stream for stream, one in self._of_stream.items() if one is lane]:
            del self._of_stream[stream]
