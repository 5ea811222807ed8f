"""Training by an engine, step after step: what the jobs that train a classifier share. Imports torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dpbench import engines
from dpbench.engines.base import Handle
from dpbench.engines.batches import Losses
from dpbench.engines.layers import Layout
from dpbench.errors import DpbenchError
from dpbench.jobs.contract import Context, metric
from dpbench.jobs.drawing import watched
from dpbench.mechanism import Mechanism
from dpbench.records.schema import Metric


class Task(Protocol):
    """A model and its data. `physical`: a logical batch in pieces; `batch`: what `backward` gets of one; `losses`: [B]."""

    model: nn.Module

    def physical(self, drawn: np.ndarray) -> Iterator[Any]: ...
    def batch(self, rows: Any) -> Any: ...
    def losses(self, model: nn.Module, batch: Any) -> Tensor: ...


Backward = Callable[[Losses, Any], Tensor]
"""(losses, batch) -> the detached losses, as `Handle.backward`."""

Attach = Callable[[str, nn.Module, torch.optim.Optimizer, Mechanism], tuple[Handle, Backward]]


def alone(engine: str, model: nn.Module, optimizer: torch.optim.Optimizer, plan: Mechanism) -> tuple[Handle, Backward]:
    """The engine on a process of its own."""
    handle = engines.attach(engine, model, optimizer, plan)
    return handle, handle.backward


@dataclass
class Fit:
    """What training left: the handle, already detached, and per step the batch sizes, clipped fractions and seconds.

    processor: seconds of this process' threads in all steps, on a CPU; None on another device, which works apart.
    """

    handle: Handle
    counts: list[int]
    clipped: list[float | None]
    step_seconds: list[float]
    processor: float | None

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {
            "trainable_parameters": sum(p.numel() for p in self.handle.trainable.values()),
            "unprotected": self.handle.unprotected,
            "groups": len(self.handle.bounds),
            "training_seconds": round(self.seconds, 3),
            "mean_batch_size": sum(self.counts) / len(self.counts),
            "clipped_fraction_not_private": [c for c in self.clipped if c is not None],
            **(self.handle.thresholds.facts if self.handle.thresholds is not None else {}),
        }

    @property
    def metrics(self) -> list[Metric]:
        """Beside what a job itself measures.

        training_seconds: of all steps, with whatever else the machine did meanwhile; processor_seconds: beside it on a CPU, which
        other runs hardly move. noise_ratio: noise multiplier of the gradients over that of the whole release, which is what
        adaptive thresholds cost: counted, not measured. clipped_share and final_bound: of adaptive thresholds, made of their
        releases alone.
        """
        plan, thresholds = self.handle.mechanism, self.handle.thresholds
        found = [metric("training_seconds", self.seconds, "s")]
        if self.processor is not None:
            found.append(metric("processor_seconds", self.processor, "s"))
        if plan.noise_multiplier > 0:
            ratio = plan.gradient_noise_multiplier / plan.noise_multiplier
            found.append(Metric(name="noise_ratio", value=ratio, unit="x", kind="counted"))
        if thresholds is not None:
            found.append(metric("clipped_share", 100 * fmean(thresholds.clipped), "%"))
            found.append(metric("final_bound", math.hypot(*thresholds.trajectory[-1]), ""))
        return found

    @property
    def warnings(self) -> list[str]:
        ignored = self.handle.non_finite_examples
        return [f"{ignored} examples had non-finite gradients and contributed 0"] if ignored else []


def fit(
    engine: str,
    task: Task,
    optimizer: torch.optim.Optimizer,
    plan: Mechanism,
    context: Context,
    schedule: Literal["constant", "linear"] = "constant",
    after_step: Callable[[], None] = lambda: None,
    by_bound: bool = False,
    watch: Callable[[int], None] = lambda done: None,
    attach: Attach = alone,
) -> Fit:
    """Train `task.model` for `plan.steps` logical steps; `linear` lowers every learning rate to 0, `by_bound` keeps its product
    with the whole bound, so that SGD's steps do not grow with adaptive thresholds.

    Args:
        after_step: part of training; watch: gets the number of steps done, and its time is not training's.

    Guarantee: that of `plan`, as the engine keeps it; bounds are made of releases, and `after_step` and `watch` must look at what
    has been released alone.

    Raises:
        DpbenchError: the engine cannot serve the model, or one of its guards stopped the run.
    """
    task.model.train()
    handle, backward = attach(engine, task.model, optimizer, plan)
    draws = watched(plan, handle, optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    counts, clipped, seconds, processor = [], [], [], 0.0
    whole = handle.sensitivity
    on_cpu = all(p.device.type == "cpu" for p in handle.trainable.values())
    for step, drawn in enumerate(draws):
        begun, worked = time.perf_counter(), time.process_time()
        share = 1 - step / plan.steps if schedule == "linear" else 1.0
        share *= whole / handle.sensitivity if by_bound else 1.0
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        total = torch.zeros((), dtype=torch.float64)
        for physical in task.physical(drawn):
            total += backward(task.losses, task.batch(physical)).double().sum().cpu()
        optimizer.step()
        optimizer.zero_grad()
        after_step()
        seconds.append(time.perf_counter() - begun)
        processor += time.process_time() - worked
        watch(step + 1)
        counts.append(len(drawn))
        clipped.append(handle.clipped_fraction)
        loss = float(total) / len(drawn) if len(drawn) else None
        context.steps.write(
            step=step,
            batch_size=len(drawn),
            loss=loss if loss is None or loss == loss else None,
            clipped_fraction=handle.clipped_fraction,
            **(handle.thresholds.last if handle.thresholds is not None else {}),
        )
        context.report(step + 1, plan.steps, f"{engine}, loss {loss:.3f} (not private)" if loss is not None else "empty batch")
    draws.finish()
    handle.detach()
    return Fit(handle, counts, clipped, seconds, processor if on_cpu else None)


def proven(
    engine: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Mechanism,
    whole: Callable[[Layout], Layout] | None = None,
) -> list[str]:
    """For a job's check: attach the engine to a model on the meta device, and say what would be trained and at which noise.

    Raises:
        DpbenchError: the engine cannot serve the model, or leaves a parameter unprotected.
    """
    handle = engines.attach(engine, model, optimizer, plan, whole=whole)
    unprotected, trainable = list(handle.unprotected), sum(p.numel() for p in handle.trainable.values())
    handle.detach()
    if unprotected:
        raise DpbenchError(f"engine {engine} leaves {unprotected[0]} unprotected")
    every = sum(p.numel() for p in model.parameters())
    of = "" if every == trainable else f" of {every / 1e6:.2f} M"
    remarks = [f"{trainable / 1e6:.2f} M trainable parameters{of}"]
    if plan.private and plan.noise_multiplier > 0:
        remarks.append(f"epsilon {plan.epsilon():.3f} at noise multiplier {plan.noise_multiplier:.3f}")
    return remarks
