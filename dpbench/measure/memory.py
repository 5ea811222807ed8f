"""Peak memory of engines, each in a fresh process.

`python -m dpbench.measure.memory` reads a request on stdin and answers with one line for each engine. The imports take seconds,
so they happen once, and every engine is measured in a fork of this process, which itself has run nothing in parallel.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from dpbench.errors import DpbenchError, is_out_of_memory
from dpbench.execution.processes import die_with

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext, SpawnContext

    from dpbench.execution.contract import Context
    from dpbench.measure.config import StepSettings, ThroughputSettings

STEPS = 2


class Peaks(TypedDict):
    """Peak bytes: `tensors` of live tensors in each measured step, `process` those of the process, 0 if unknown."""

    tensors: list[float]
    process: float


def out_of_memory(settings: StepSettings, why: object) -> str:
    """Return the text in place of the values of a step that did not fit."""
    return f"OOM: {settings.batch_size} examples of {settings.tokens} tokens ({str(why).splitlines()[0]})"


def measure_memory(
    settings: ThroughputSettings, engines: list[str], ids: np.ndarray, context: Context
) -> Iterator[tuple[str, Peaks | str]]:
    """Yield (engine, peak bytes of a step or why there are none), one engine after another.

    `tensors` counts live tensors. `process` is, on the CPU, the peak of a fresh process that does nothing else, and on a GPU the
    reserved memory.
    """
    if settings.device == "cuda":
        import torch

        for engine in engines:
            peaks_or_reason = _peaks_or_reason(settings, engine, ids, context.seed)
            gc.collect()
            torch.cuda.empty_cache()
            yield engine, peaks_or_reason
        return
    request = {
        "settings": settings.model_dump(),
        "engines": engines,
        "ids": ids.tolist(),
        "seed": context.seed,
        "threads": context.threads,
        "owner": os.getpid(),
    }
    words = [sys.executable, "-m", "dpbench.measure.memory"]
    unmeasured = list(engines)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps(request))
        worker.stdin.close()
        _import_model()  # while the worker does, as the timed rounds need it too
        for line in worker.stdout:
            answer = json.loads(line)
            unmeasured.remove(answer["engine"])
            if "error" in answer:
                raise DpbenchError(f"engine {answer['engine']}: {answer['error']}")
            yield answer["engine"], answer["peaks"]
    for engine in unmeasured:  # the kernel ended the worker itself, because memory ran out
        yield engine, out_of_memory(settings, "its process was ended")


def _peaks_or_reason(settings: ThroughputSettings, engine: str, ids: np.ndarray, seed: int) -> Peaks | str:
    """Return what `measure` returns, or the text for a step that did not fit."""
    try:
        return measure(settings, engine, ids, seed)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return out_of_memory(settings, error)


@contextmanager
def peak_meter(device: str) -> Iterator[Callable[[Callable[[], object]], float]]:
    """Yield a function that takes a step and returns the peak bytes of live tensors; on a CPU those created inside the block."""
    if device == "cuda":
        import torch

        def peak_on_gpu(step: Callable[[], object]) -> float:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            return float(torch.cuda.max_memory_allocated())

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        yield peak_on_gpu
        return
    from dpbench.simulate.peak import PeakBytes

    with PeakBytes() as tensors:

        def peak_on_cpu(step: Callable[[], object]) -> float:
            tensors.reset_peak()
            step()
            return float(tensors.peak)

        yield peak_on_cpu


def measure(settings: ThroughputSettings, engine: str, ids: np.ndarray, seed: int) -> Peaks:
    """Return the peak bytes of the process, and of live tensors in each of a few steps after one that allocates the optimizer."""
    from dpbench.measure.bench import Bench

    with peak_meter(settings.device) as peak_of:
        bench = Bench(settings, ids, seed)
        handle = bench.attach(engine)
        bench.step(handle)
        peaks = [peak_of(lambda: bench.step(handle)) for _ in range(STEPS)]
    return {"tensors": peaks, "process": process_peak(settings.device)}


def process_peak(device: str) -> float:
    """Return the peak reserved bytes of a GPU, or resident bytes of this process; 0 where the system does not report them."""
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_reserved())
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def main() -> None:
    """Read one request and answer for every engine: {"engine", "peaks": bytes or why not} or {"engine", "error"}."""
    request = json.load(sys.stdin)
    die_with(request["owner"])
    _import_model()
    from dpbench.measure.config import ThroughputSettings

    settings = ThroughputSettings(**request["settings"])
    ids = np.asarray(request["ids"], dtype=np.int64)
    for engine in request["engines"]:
        answer = _in_fork(settings, engine, ids, request["seed"], request["threads"])
        print(json.dumps({"engine": engine, **answer}), flush=True)


def _import_model() -> None:
    """Import what every engine needs, which takes seconds."""
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401

    import dpbench.methods.engines.base  # noqa: F401


def _in_fork(*arguments: Any) -> dict[str, Any]:
    """Return `_answer(*arguments)` from a fork of this process; a process without fork starts a new one."""
    processes: ForkContext | SpawnContext = get_context("fork") if hasattr(os, "fork") else get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=_send_answer, args=(sender, os.getpid(), *arguments))
    child.start()
    sender.close()
    try:
        answer: dict[str, Any] = receiver.recv()
    except EOFError:  # the kernel ended it, because memory ran out
        answer = {"peaks": out_of_memory(arguments[0], "its process was ended")}
    child.join()
    return answer


def _send_answer(sender: Connection, owner: int, *arguments: Any) -> None:
    die_with(owner)
    sender.send(_answer(*arguments))


def _answer(settings: ThroughputSettings, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    try:
        return {"peaks": _peaks_or_reason(settings, engine, ids, seed)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
