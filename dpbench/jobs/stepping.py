"""Training by a zeroth-order method, step after step: what `fitting` is for engines. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from dpbench.jobs.contract import Context, metric
from dpbench.jobs.drawing import Draws
from dpbench.jobs.fitting import Task
from dpbench.mechanism import Mechanism
from dpbench.records.schema import Metric
from dpbench.zeroth.directions import Kind
from dpbench.zeroth.trainer import SILENT, Step, ZerothOrder

LINES = 200
"""Steps that a run's log and record hold at most, about: thousands of them would make records of hundreds of kilobytes."""


@dataclass
class ZerothFit:
    """What training left: the optimizer, and per step what it did and its seconds.

    processor: seconds of this process' threads in all steps, on a CPU; None on another device.
    """

    optimizer: ZerothOrder
    steps: list[Step]
    step_seconds: list[float]
    processor: float | None

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {
            "trainable_parameters": self.optimizer.directions.size,
            "training_seconds": round(sum(self.step_seconds), 3),
            "mean_batch_size": sum(s.count for s in self.steps) / len(self.steps),
            "clipped_fraction_not_private": [s.clipped for s in self.steps[:: _stride(len(self.steps))] if s.clipped is not None],
        }

    @property
    def metrics(self) -> list[Metric]:
        """Beside what a job itself measures; as those of `fitting.Fit`."""
        found = [metric("training_seconds", sum(self.step_seconds), "s")]
        if self.processor is not None:
            found.append(metric("processor_seconds", self.processor, "s"))
        return found

    @property
    def warnings(self) -> list[str]:
        ignored, silent = self.optimizer.non_finite_examples, self.optimizer.longest_silence
        found = [f"{ignored} examples had losses that are not finite and contributed 0"] if ignored else []
        if silent >= SILENT:  # mezo has stopped; whether a private run does must not depend on losses
            found.append(
                f"no example's loss moved in {silent} steps one after another: the perturbation is lost in weights or losses"
            )
        return found


def _stride(steps: int) -> int:
    return max(1, steps // LINES)


def fit_zeroth(
    method: str,
    task: Task,
    plan: Mechanism,
    context: Context,
    rate: float,
    perturbation: float,
    directions: Kind = "gaussian",
    schedule: Literal["constant", "linear"] = "constant",
    watch: Callable[[int], None] = lambda done: None,
    published: bool = False,
) -> ZerothFit:
    """Train `task.model` for `plan.steps` logical steps, without dropout; `linear` lowers the learning rate to 0.

    Args:
        watch: gets the number of steps done, and its time is not training's.
        published: `method` is a paper's published code.

    Guarantee: that of `plan`, as `ZerothOrder` keeps it; `watch` must look at what has been released alone.

    Raises:
        DpbenchError: the method cannot serve the model, or a guard of it stopped the run.
    """
    task.model.eval()
    optimizer = ZerothOrder(method, task.model, plan, rate, perturbation, directions, published=published)
    on_cpu = all(p.device.type == "cpu" for p in optimizer.trainable.values())
    draws = Draws(plan)
    done: list[Step] = []
    seconds: list[float] = []
    processor = 0.0
    for number, drawn in enumerate(draws):
        begun, worked = time.perf_counter(), time.process_time()
        optimizer.rate = rate * (1 - number / plan.steps if schedule == "linear" else 1.0)
        step = optimizer.step(task.losses, (task.batch(rows) for rows in task.physical(drawn)))
        draws.counted(step.count)
        seconds.append(time.perf_counter() - begun)
        processor += time.process_time() - worked
        watch(number + 1)
        task.model.eval()
        done.append(step)
        if number % _stride(plan.steps) == 0 or number + 1 == plan.steps:
            context.steps.write(
                step=number, batch_size=step.count, loss=step.loss, clipped_fraction=step.clipped, slope=step.slope
            )
        said = f"{method}, loss {step.loss:.3f} (not private)" if step.loss is not None else "empty batch"
        context.report(number + 1, plan.steps, said)
    draws.finish()
    return ZerothFit(optimizer, done, seconds, processor if on_cpu else None)
