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
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dpbench.errors import DpbenchError, is_out_of_memory
from dpbench.execution.processes import die_with

if TYPE_CHECKING:
    from dpbench.execution.contract import Context

STEPS = 2

Peaks = dict[str, Any]
"""`tensors` are the peak bytes of each measured step, `process` those of the process, 0 if unknown."""


def out_of_memory(settings: Any, why: object) -> str:
    """Return the text in place of the values of a step that did not fit."""
    return f"OOM: {settings.batch_size} examples of {settings.tokens} tokens ({str(why).splitlines()[0]})"


def measure_memory(settings: Any, engines: list[str], ids: np.ndarray, context: Context) -> Iterator[tuple[str, Peaks | str]]:
    """Yield (engine, peak bytes of a step or why there are none), one engine after another.

    `tensors` counts live tensors. `process` is, on the CPU, the peak of a fresh process that does nothing else, and on a GPU the
    reserved memory.
    """
    if settings.device == "cuda":
        for engine in engines:
            yield engine, _cuda_memory(settings, engine, ids, context.seed)
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
            yield answer["engine"], answer["found"]
    for engine in unmeasured:  # the kernel ended the worker itself, because memory ran out
        yield engine, out_of_memory(settings, "its process was ended")


def _cuda_memory(settings: Any, engine: str, ids: np.ndarray, seed: int) -> Peaks | str:
    import torch

    from dpbench.measure.bench import Bench

    gc.collect()
    torch.cuda.empty_cache()
    bench = handle = None
    try:
        bench = Bench(settings, ids, seed)
        handle = bench.attach(engine)
        bench.step(handle)
        peaks = []
        for _ in range(STEPS):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            bench.step(handle)
            torch.cuda.synchronize()
            peaks.append(float(torch.cuda.max_memory_allocated()))
        return {"tensors": peaks, "process": float(torch.cuda.max_memory_reserved())}
    except torch.OutOfMemoryError as error:
        return out_of_memory(settings, error)
    finally:
        del bench, handle
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Read one request and answer for every engine: {"engine", "found": bytes or why not} or {"engine", "error"}."""
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


def _in_fork(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        return _answer(settings, engine, ids, seed, threads)
    read, write = os.pipe()
    worker = os.getpid()
    child = os.fork()
    if child == 0:
        die_with(worker)
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(_answer(settings, engine, ids, seed, threads), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"found": out_of_memory(settings, "its process was ended")}


def _answer(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    try:
        return {"found": measure(settings, engine, ids, seed, threads)}
    except Exception as error:
        if is_out_of_memory(error):
            return {"found": out_of_memory(settings, error)}
        return {"error": f"{type(error).__name__}: {error}"}


def measure(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    """Return the peak bytes of the process, and of live tensors in each of a few steps after one that allocates the optimizer."""
    import torch

    from dpbench.measure.bench import Bench
    from dpbench.simulate.peak import PeakBytes

    torch.set_num_threads(threads)
    with PeakBytes() as tensors:
        bench = Bench(settings, ids, seed)
        handle = bench.attach(engine)
        bench.step(handle)
        peaks = []
        for _ in range(STEPS):
            tensors.reset_peak()
            bench.step(handle)
            peaks.append(float(tensors.peak))
    return {"tensors": peaks, "process": _process_peak()}


def _process_peak() -> float:
    """Return the peak resident bytes of this process; 0 where the system does not report them."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    main()
