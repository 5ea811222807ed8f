"""Peak memory of engines, each in a fresh process: `python -m dpbench.jobs.memory`, asked on stdin, answers a line each.

The imports cost seconds, so they are made once, and every engine is measured in a fork of this process, which itself has
run nothing in parallel.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

STEPS = 2


def main() -> None:
    """Read one request, answer for every engine: {"engine", "found": bytes or why not} or {"engine", "error"}."""
    request = json.load(sys.stdin)
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401  what the forks will need

    import dpbench.engines.base  # noqa: F401
    from dpbench.jobs.throughput import Settings

    settings = Settings(**request["settings"])
    ids = np.asarray(request["ids"], dtype=np.int64)
    for engine in request["engines"]:
        answer = _in_fork(settings, engine, ids, request["seed"], request["threads"])
        print(json.dumps({"engine": engine, **answer}), flush=True)


def _in_fork(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    if not hasattr(os, "fork"):
        return _answer(settings, engine, ids, seed, threads)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with os.fdopen(write, "w") as pipe:
            json.dump(_answer(settings, engine, ids, seed, threads), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"found": "out of memory: its process was ended"}


def _answer(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    try:
        return {"found": measure(settings, engine, ids, seed, threads)}
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return {"found": f"out of memory: {error}"}
        return {"error": f"{type(error).__name__}: {error}"}


def measure(settings: Any, engine: str, ids: np.ndarray, seed: int, threads: int) -> dict[str, Any]:
    """Peak bytes of live tensors in each of a few steps, after one that makes the optimizer's state, and of the process."""
    import torch

    from dpbench.jobs.throughput import Bench
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
    """Peak resident bytes of this process; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


if __name__ == "__main__":
    main()
