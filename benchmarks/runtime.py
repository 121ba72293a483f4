"""Proves the runtime on a GPU: equal outputs, fallbacks, overhead over TensorRT's own call, flat memory, threads.

Usage: python3 benchmarks/runtime.py ENGINES OUT [--calls N]

ENGINES is a folder that `enginefarm export` wrote, of one engine or of several; OUT gets runtime.json and runtime.md.
It takes the standard library, NumPy and TensorRT, on Python 3.8 or later, so it runs inside a stack's image:
benchmarks/in_image.py puts it there. The exit code is 1 where a check fails.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.runtime_damage import Damage, damages
from benchmarks.runtime_subject import POINTS, Case, Subject, count_copies, log_lines, rss_bytes
from benchmarks.runtime_table import summary, table
from builder.runtime import Engine, EngineRefused, load, loaded
from builder.worker.trt import loading

LIMIT_US = 30.0
BLOCKS, PER_BLOCK = 12, 250
THREADS, PER_THREAD = 8, 200
# what the process may grow by in 10,000 calls, after a warm-up: the interpreter's own ups and downs
RSS_LIMIT = 4 << 20
RELOADS = 20
Work = Callable[[], Any]
Ways = Tuple[Tuple[str, Dict[str, Any]], ...]
_WATCHED: Ways = (("engine", {}), ("graph", {"cuda_graphs": True}), ("reused", {"reuse_outputs": True}))
_THREADED: Ways = (("arrays", {}), ("arrays, graphs", {"cuda_graphs": True}), ("NumPy", {}))


class Proof:
    """All checks of one engine. `failed` names those that did not hold."""

    def __init__(self, folder: str, calls: int) -> None:
        self.subject, self.calls = Subject(folder), calls
        self.driver, self.stream = self.subject.driver, self.subject.raw.stream
        self.failed: List[str] = []

    def open(self, fallback: Any = None, *, folder: str = "", **options: Any) -> Engine:
        """Load the engine, as an application would."""
        return load(folder or self.subject.folder, fallback, **{"trust": "local", **options})

    def check(self, name: str, said: Any, *, good: bool) -> None:
        """Note a check that does not hold."""
        if not good:
            self.failed.append(name)
            print(f"FAILED {name}: {said}", flush=True)

    def equal(self) -> Dict[str, bool]:
        """Run every way there is and compare with TensorRT's own calls, bit for bit."""
        found = {
            "TensorRT repeats itself": all(
                case.same(tuple(self.subject.raw.run(case.feeds))) for case in self.subject.cases
            )
        }
        with self.open() as engine, self.open(cuda_graphs=True) as graphs:
            copies = count_copies(engine)
            for case in self.subject.first.values():
                arrays = self.subject.given(case, self.stream)
                found[f"arrays, {case.point}"] = case.same(engine(*arrays))
                found[f"no address but the caller's, {case.point}"] = self._reads(
                    engine, [one.address for one in arrays]
                )
                on_default = self.subject.given(case, 1)
                found[f"on the default stream, {case.point}"] = case.same(engine(*on_default))
                named = dict(zip(self.subject.raw.inputs, arrays))
                found[f"by name, {case.point}"] = case.same(engine(**named))
                found[f"graph, {case.point}"] = _always(case, graphs, arrays)
            found["nothing copied"] = not copies
            for case in self.subject.cases:
                found[f"NumPy, {case.point}"] = case.same(engine(*case.feeds)) and found.get(
                    f"NumPy, {case.point}", True
                )
            case = self.subject.first["opt"]
            found["NumPy, graph"] = _always(case, graphs, case.feeds)
            found["unaligned"] = case.same(engine(*self.subject.given(case, self.stream, shift=4)))
            found["many outputs at once"] = _all_kept(engine, self.subject, self.stream)
            found["no fallback"] = engine.refusal is None and graphs.refusal is None
        for name, good in found.items():
            self.check(f"equal: {name}", good, good=good)
        return found

    def fallbacks(self) -> List[Dict[str, Any]]:
        """Load what must be refused: nothing is deserialized, the fallback answers, one line is logged."""
        return [*(self._refused(damage) for damage in damages()), self._odd_shape(), self._full_gpu()]

    def overhead(self) -> Dict[str, Dict[str, float]]:
        """Let TensorRT's own call and the runtime's ways take turns; microseconds of the host per call."""
        case, raw = self.subject.first["opt"], self.subject.raw
        raw.run(case.feeds)
        arrays, on_default = self.subject.given(case, self.stream), self.subject.given(case, 1)
        graph = self.driver.capture(self.stream, raw.execute)
        engines = {
            "engine": self.open(),
            "engine, outputs reused": self.open(reuse_outputs=True),
            "engine, graph": self.open(cuda_graphs=True),
            "engine, graph, outputs reused": self.open(cuda_graphs=True, reuse_outputs=True),
        }
        ways: Dict[str, Work] = {"raw": raw.execute, "raw graph": lambda: self.driver.replay(graph, self.stream)}
        for name, engine in engines.items():
            ways[name] = lambda engine=engine: engine(*arrays)  # type: ignore[misc]
        ways["engine on the default stream"] = lambda: engines["engine"](*on_default)
        ways["engine, NumPy"] = lambda: engines["engine"](*case.feeds)
        times: Dict[str, Tuple[List[float], List[float]]] = {name: ([], []) for name in ways}
        for block in range(BLOCKS + 1):
            for name, work in ways.items():
                calls, ends = self._time(work)
                if block:  # the first one warms up
                    times[name][0].extend(calls)
                    times[name][1].extend(ends)
        for engine in engines.values():
            engine.close()
        self.driver.destroy(graph=graph)
        base = {kind: statistics.median(times[kind][0]) for kind in ("raw", "raw graph")}
        found = {
            name: summary(calls, ends, base["raw graph" if "graph" in name else "raw"])
            for name, (calls, ends) in times.items()
        }
        for name, row in found.items():
            # NumPy's calls wait for the GPU
            self.check(f"overhead: {name}", row, good="NumPy" in name or row["over_raw_us"] <= LIMIT_US)
        return found

    def memory(self) -> Dict[str, Any]:
        """Call many times and look at the process's and the GPU's memory on the way."""
        first = self.subject.first
        arrays = [self.subject.given(first[point], self.stream) for point in POINTS]
        found: Dict[str, Any] = {}
        for name, options in _WATCHED:
            with self.open(**options) as engine:
                found[name] = self._watch(name, lambda _, call=engine: call(*arrays[1]), self.calls)  # type: ignore[misc]
                turns = f"{name}, three shapes in turn"
                found[turns] = self._watch(turns, lambda index, call=engine: call(*arrays[index % 3]), self.calls)  # type: ignore[misc]
        with self.open() as engine:
            found["NumPy"] = self._watch("NumPy", lambda _: engine(*first["opt"].feeds), self.calls)
        with self.open(lambda *_: "fallback", folder=self._missing()) as engine, log_lines():
            found["fallback"] = self._watch("fallback", lambda _: engine(*arrays[1]), self.calls)
        found["load, call, close"] = self._watch("load, call, close", self._load_and_close, RELOADS)
        return found

    def threads(self) -> Dict[str, Any]:
        """Call from many threads at once, with values and a stream of their own, and compare every output."""
        found: Dict[str, Any] = {}
        for name, options in _THREADED:
            wrong: List[str] = []
            with self.open(lambda *_: "fallback", max_contexts=4, **options) as engine, log_lines() as lines:
                targets = [(engine, name == "NumPy", place, wrong) for place in range(THREADS)]
                workers = [threading.Thread(target=self._thread, args=target) for target in targets]
                started = time.perf_counter()
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
                seconds = round(time.perf_counter() - started, 3)
            found[name] = {"threads": THREADS, "calls": THREADS * PER_THREAD, "seconds": seconds, "wrong": len(wrong)}
            self.check(f"threads: {name}", [*wrong[:3], *lines[:3]], good=not wrong and not lines)
        return found

    def hook(self) -> Dict[str, int]:
        """Count what the timing hook is told."""
        seen: List[Tuple[float, str]] = []
        arrays = self.subject.given(self.subject.first["opt"], self.stream)
        with self.open(cuda_graphs=True, on_call=lambda seconds, how: seen.append((seconds, how))) as engine:
            for _ in range(10):
                engine(*arrays)
        found = {how: sum(one == how for _, one in seen) for how in ("engine", "graph", "fallback")}
        self.check("hook", found, good=found == {"engine": 2, "graph": 8, "fallback": 0} and min(seen)[0] > 0)
        return found

    def _thread(self, engine: Engine, host: bool, place: int, wrong: List[str]) -> None:  # noqa: FBT001
        self.driver.enter()
        stream, cases = self.driver.stream(), self.subject.cases
        try:
            arrays = [case.feeds if host else self.subject.given(case, stream) for case in cases]
            for index in range(PER_THREAD):
                which = (index * 5 + place) % len(cases)
                outputs = engine(*arrays[which])
                if isinstance(outputs, str) or not cases[which].same(outputs):
                    wrong.append(f"thread {place}, call {index}, {cases[which].point}")
        except Exception as error:  # noqa: BLE001  # a thread's error would be lost
            wrong.append(repr(error))

    def _reads(self, engine: Engine, addresses: List[int]) -> bool:
        """Ask TensorRT where it read the inputs of the last call."""
        lane = engine._lanes.of_stream(self.stream)  # noqa: SLF001
        lane.lock.release()
        context = lane.context._trt  # noqa: SLF001
        return [context.get_tensor_address(name) for name in self.subject.raw.inputs] == addresses

    def _refused(self, damage: Damage) -> Dict[str, Any]:
        deserialized: List[int] = []
        real = loading.deserialize

        def spy(*args: Any, **options: Any) -> Any:
            deserialized.append(1)
            return real(*args, **options)

        case = self.subject.first["opt"]
        with tempfile.TemporaryDirectory() as temp:
            folder = os.path.join(temp, "engine")
            shutil.copytree(self.subject.folder, folder)
            damage.do(folder)
            setattr(loaded, "deserialize", spy)  # noqa: B010  # under the name that the runtime calls
            try:
                with log_lines() as lines, load(folder, lambda *_: "fallback", **damage.options) as engine:
                    answers = [engine(*case.feeds) for _ in range(3)]
                    refusal = engine.refusal
                raised = _raised(folder, damage.options)
            finally:
                setattr(loaded, "deserialize", real)  # noqa: B010
        reason = refusal.reason if refusal is not None else None
        good = (
            answers == ["fallback"] * 3 and reason == raised == damage.reason and not deserialized and len(lines) == 1
        )
        row = {
            "case": damage.name,
            "reason": reason,
            "raised": raised,
            "deserialized": len(deserialized),
            "lines": lines,
        }
        self.check(f"fallback: {damage.name}", row, good=good)
        return {**row, "good": good}

    def _odd_shape(self) -> Dict[str, Any]:
        case = self.subject.first["opt"]
        odd = [np.zeros((*value.shape, 3), value.dtype) for value in case.feeds]
        with self.open(lambda *_: "fallback") as engine, log_lines() as lines:
            answers = [engine(*odd) for _ in range(3)]
            goes_on = case.same(engine(*case.feeds)) and engine.refusal is None
        good = answers == ["fallback"] * 3 and goes_on and len(lines) == 1
        row = {"case": "a shape that no profile takes", "reason": "profile-invalid", "lines": lines, "good": good}
        self.check("fallback: shape", row, good=good)
        return row

    def _full_gpu(self) -> Dict[str, Any]:
        case, held, size = self.subject.first["max"], [], self.driver.memory()[0]
        while size >= 1 << 20:
            try:
                held.append(self.driver.allocate(size))
            except Exception:  # noqa: BLE001  # until nothing more is given
                size //= 2
        try:
            with log_lines() as lines, self.open(lambda *_: "fallback") as engine:
                answer = engine(*case.feeds)
        finally:
            for address in held:
                self.driver.free(address)
        with self.open() as engine:
            afterwards = case.same(engine(*case.feeds))
        # a small engine may find room in what CUDA holds already
        good = len(lines) == 1 if isinstance(answer, str) else case.same(answer)
        reason = lines[0].split(":")[1].split()[-1] if lines else "it found room"
        row = {"case": "a GPU without free memory", "reason": reason, "lines": lines, "good": good and afterwards}
        self.check("fallback: full GPU", row, good=good and afterwards)
        return row

    def _missing(self) -> str:
        return os.path.join(tempfile.gettempdir(), "no-such-engine")

    def _time(self, work: Work) -> Tuple[List[float], List[float]]:
        calls, ends = [], []
        clock, finish = time.perf_counter_ns, self.driver.synchronize
        for _ in range(PER_BLOCK):
            start = clock()
            kept = work()
            stop = clock()
            finish()
            calls.append((stop - start) / 1000)
            ends.append((clock() - start) / 1000)
            del kept
        return calls, ends

    def _watch(self, name: str, work: Callable[[int], Any], calls: int) -> Dict[str, Any]:
        for index in range(max(calls // 10, 5)):
            work(index)
        rows = []
        for index in range(calls + 1):
            if index % max(calls // 10, 1) == 0:
                self.driver.synchronize()
                gc.collect()
                rows.append((rss_bytes(), self.driver.memory()[0]))
            work(index)
        self.driver.synchronize()
        grown, taken = rows[-1][0] - rows[0][0], rows[0][1] - rows[-1][1]
        found = {
            "calls": calls,
            "rss_bytes": rows[0][0],
            "rss_growth": grown,
            "gpu_growth": taken,
            "rss": [r for r, _ in rows],
        }
        # what TensorRT itself leaves behind when an engine is loaded is not the runtime's to judge
        self.check(f"memory: {name}", found, good=taken <= 0 and (grown <= RSS_LIMIT or calls == RELOADS))
        return found

    def _load_and_close(self, index: int) -> None:
        with self.open(cuda_graphs=bool(index % 2)) as engine:
            engine(*self.subject.first["opt"].feeds)


def _raised(folder: str, options: Dict[str, Any]) -> Any:
    try:
        load(folder, **options).close()
    except EngineRefused as refused:
        return refused.reason
    return None


def _always(case: Case, engine: Engine, values: Sequence[Any]) -> bool:
    """Call until a graph is replayed, and then some; every answer counts."""
    return min([case.same(engine(*values)) for _ in range(5)])


def _all_kept(engine: Engine, subject: Subject, stream: int) -> bool:
    """Hold outputs while others are made: none may be written over."""
    held: List[Tuple[Case, Any, Any]] = []
    for case in subject.cases:
        arrays = subject.given(case, stream)
        held.append((case, engine(*arrays), arrays))
    return all(case.same(outputs) for case, outputs, _ in held)


def prove(folder: str, calls: int, save: Callable[[Dict[str, Any]], None]) -> None:
    """Run all checks of one engine; what is known is saved step by step."""
    proof = Proof(folder, calls)
    device, raw = proof.driver.device, proof.subject.raw
    found: Dict[str, Any] = {
        "job": proof.subject.manifest["job"],
        "engine": proof.subject.manifest["engine"]["sha256"],
        "gpu": device._asdict(),
        "tensorrt": raw.trt.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    for step in (proof.equal, proof.overhead, proof.memory, proof.threads, proof.hook, proof.fallbacks):
        started = time.perf_counter()
        found[step.__name__] = step()
        print(f"{found['job']}: {step.__name__}: {time.perf_counter() - started:.1f} s", flush=True)
        save({**found, "failed": [*proof.failed]})


def main() -> int:
    """Prove all engines of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines")
    parser.add_argument("out")
    parser.add_argument("--calls", type=int, default=10_000, help="calls per row of the memory table")
    arguments = parser.parse_args()
    folders = [
        arguments.engines,
        *sorted(os.path.join(arguments.engines, name) for name in os.listdir(arguments.engines)),
    ]
    results: Dict[str, Dict[str, Any]] = {}
    os.makedirs(arguments.out, exist_ok=True)

    def save(found: Dict[str, Any]) -> None:
        results[found["engine"]] = found
        with open(os.path.join(arguments.out, "runtime.json"), "w", encoding="utf-8") as file:
            json.dump(list(results.values()), file, indent=1)
        with open(os.path.join(arguments.out, "runtime.md"), "w", encoding="utf-8") as file:
            file.write(table(list(results.values())))

    for folder in (one for one in folders if os.path.isfile(os.path.join(one, "manifest.json"))):
        prove(folder, arguments.calls, save)
    print(table(list(results.values())))
    whole = all("fallbacks" in found and not found["failed"] for found in results.values())
    return 0 if results and whole else 1


if __name__ == "__main__":
    sys.exit(main())
