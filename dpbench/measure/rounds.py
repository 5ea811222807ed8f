"""Rounds of timed calls: whose turn it is, how long a call takes, and results that could not be measured. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from dpbench.methods import timing
from dpbench.records.schema import Metric

T = TypeVar("T")


def turns(names: Sequence[T], rounds: range) -> Iterator[tuple[int, list[T]]]:
    """Yield (round, its names in order). The order rotates, so that no name always follows the same one."""
    for number in rounds:
        first = number % max(len(names), 1)
        yield number, [*names[first:], *names[:first]]


def seconds_per_call(call: Callable[[], object], calls: int, wait: Callable[[], object] = lambda: None) -> float:
    """Return the mean seconds of a call; `wait` returns when all pending work is done."""
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls


def wait_for(device: str) -> None:
    """Return when all pending work of a device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def split_missing(methods: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the methods whose package is installed, and for each of the others why it is skipped."""
    reasons = {name: f"skipped: {missing}" for name in methods if (missing := timing.missing(name))}
    return [name for name in methods if name not in reasons], reasons


def unmeasured(
    units: Mapping[str, str], labels: dict[str, str], why: str, kind: Literal["measured", "simulated", "counted"] = "measured"
) -> list[Metric]:
    """Return an empty metric for each name in `units`, with the reason; one that is out of memory is printed as OOM."""
    text = "OOM" if why.startswith("OOM") else ""
    return [Metric(name=n, value=None, unit=u, labels=labels, kind=kind, note=why, text=text) for n, u in units.items()]
