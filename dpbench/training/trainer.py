"""The training loop: every task, every method, one mechanism or one that is cut into phases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context, metric
from dpbench.methods.engines.batches import Batch
from dpbench.methods.protocol import Method, StepReport
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.sampling import batches
from dpbench.records.schema import Metric

LINES = 200
"""Values of a list over steps that a record holds at most, about: thousands of them would make it hundreds of kilobytes."""

_REPORT = "report this: it is a fault of the loop, or of a task's `physical` or `batch`"


class Batches(Protocol):
    """A model and its training data."""

    model: nn.Module

    def physical(self, drawn: np.ndarray[Any, Any]) -> Iterator[Any]:
        """Cut a logical batch, indices of examples, into pieces that fit the memory."""
        ...

    def batch(self, rows: Any) -> Any:
        """Return what a method gets of one piece."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the losses [B], each a function of that example alone."""
        ...


Attach = Callable[[nn.Module, Optimizer, Mechanism], Method]


@dataclass
class Training:
    """What training did. Losses and clipped fractions are not private.

    batch_sizes, clipped_fractions, step_seconds: of each step; processor: seconds of this process' threads in all steps, on a
    CPU; None on another device, whose work this process does not see.
    """

    trainable_parameters: int = 0
    unprotected: list[str] = field(default_factory=list)
    groups: int = 0
    batch_sizes: list[int] = field(default_factory=list)
    clipped_fractions: list[float | None] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    processor: float | None = None
    warnings: list[str] = field(default_factory=list)
    threshold_facts: dict[str, Any] = field(default_factory=dict)
    threshold_metrics: list[Metric] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record."""
        clipped = [fraction for fraction in self.clipped_fractions if fraction is not None]
        return {
            "trainable_parameters": self.trainable_parameters,
            "unprotected": self.unprotected,
            "groups": self.groups,
            "training_seconds": round(sum(self.step_seconds), 3),
            "mean_batch_size": sum(self.batch_sizes) / len(self.batch_sizes),
            "clipped_fraction_not_private": clipped[:: max(1, len(clipped) // LINES)],
            **self.threshold_facts,
        }

    def metrics(self, plan: Mechanism) -> list[Metric]:
        """Return what every training run reports beside what its task measures.

        training_seconds: of all steps, with whatever else the machine did meanwhile; processor_seconds: beside it on a CPU,
        which other runs hardly move; clipped_fraction: mean over the steps that had examples, not private; noise_ratio: noise
        multiplier of the gradients over that of the full release, which is what adaptive thresholds cost: counted.
        """
        metrics = [metric("training_seconds", sum(self.step_seconds), "s")]
        if self.processor is not None:
            metrics.append(metric("processor_seconds", self.processor, "s"))
        clipped = [fraction for fraction in self.clipped_fractions if fraction is not None]
        if plan.private:
            metrics.append(metric("clipped_fraction", sum(clipped) / max(1, len(clipped)), ""))
        else:
            metrics.append(Metric(name="clipped_fraction", value=None, unit="", note="no clipping"))
        if plan.noise_multiplier > 0:
            ratio = plan.gradient_noise_multiplier / plan.noise_multiplier
            metrics.append(Metric(name="noise_ratio", value=ratio, unit="x", kind="counted"))
        return [*metrics, *self.threshold_metrics]


class _Schedule(LRScheduler):
    """Sets the learning rate of every parameter group to a closed form of its largest one and of the steps done."""

    def __init__(self, optimizer: Optimizer, rate: Callable[[float, int], float]) -> None:
        self._rate = rate
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        return [self._rate(float(largest), self.last_epoch) for largest in self.base_lrs]


class Callback:
    """Called by the trainer; every method may be left out.

    Guarantee: a callback that looks at released gradients and weights alone costs no privacy; none may look at a batch.
    """

    def gradients_released(self, trainer: Trainer) -> None:
        """Run once the released gradients are in place, with their noise, before the optimizer uses them."""

    def step_done(self, trainer: Trainer) -> None:
        """Run after the optimizer's step; its time counts as training time."""

    def observe(self, trainer: Trainer) -> None:
        """Run after `step_done`; its time does not count, and it leaves the model as it was."""

    def phase_done(self, trainer: Trainer, number: int) -> None:
        """Run after phase `number` of the mechanism, with the method detached: the model may change its shape."""

    def training_done(self, trainer: Trainer) -> None:
        """Run after the last step, before the model is evaluated."""


class Draws:
    """The logical batches of a mechanism, for a loop that tells of each how many examples it has counted.

    Guarantee: a loop that counts a physical batch twice or leaves one out, releases a step twice or not at all, or ends too
    early is stopped, so that no record states an epsilon of examples other than those that were drawn.
    """

    def __init__(self, plan: Mechanism) -> None:
        self.plan = plan
        self.steps = 0
        self._drawn: int | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the indices of each logical step's examples; under Poisson sampling there may be none.

        Raises:
            DpbenchError: the step before has been drawn and not released.
        """
        for drawn in batches(self.plan):
            self._require_released()
            self._drawn = len(drawn)
            yield drawn

    def counted(self, examples: int) -> None:
        """Call once a step, before the weights move where that can be: so many examples are in what is released, over all
        processes and without padding.

        Raises:
            DpbenchError: nothing was drawn since the last call, or another number of examples.
        """
        if self._drawn is None:
            raise DpbenchError(f"step {self.steps + 1} is released without a draw", _REPORT)
        if examples != self._drawn:
            what = f"step {self.steps + 1}: {examples} examples were counted, where {self._drawn} were drawn"
            raise DpbenchError(what, _REPORT)
        self._drawn = None
        self.steps += 1

    def finish(self) -> None:
        """Call after the loop.

        Raises:
            DpbenchError: fewer steps were released than the mechanism has, or more.
        """
        self._require_released()
        if self.steps != self.plan.steps:
            raise DpbenchError(f"{self.steps} of the {self.plan.steps} steps that are accounted for were released", _REPORT)

    def _require_released(self) -> None:
        if self._drawn is not None:
            raise DpbenchError(f"step {self.steps + 1}: {self._drawn} examples were drawn and never released", _REPORT)


class Trainer:
    """Trains a task's model by a method for all steps of a mechanism.

    done: steps so far; model: the task's.
    """

    def __init__(
        self,
        task: Batches,
        optimizer: Optimizer,
        attach: Attach,
        phases: Sequence[Mechanism],
        context: Context | None = None,
        rate: Callable[[float, int, float], float] = lambda largest, step, scale: largest * scale,
        callbacks: Sequence[Callback] = (),
        scale_by_bound: bool = False,
        title: str = "",
    ) -> None:
        """Prepare training.

        Args:
            context: where steps are logged and progress is shown; None: nowhere.
            attach: attaches the method to (model, optimizer, mechanism), once a phase.
            phases: mechanisms that follow one another, see `composition.phases`; usually one.
            rate: (largest learning rate of a parameter group, step, factor) -> its learning rate.
            scale_by_bound: keep the learning rates' product with the total bound, so that SGD's steps do not grow with adaptive
                thresholds.
            title: of the method, for the progress line.
        """
        self.task, self.model, self.optimizer, self.context = task, task.model, optimizer, context
        self.done, self.steps = 0, sum(plan.steps for plan in phases)
        self._attach, self._phases, self._callbacks, self._title = attach, phases, callbacks, title
        self._method: Method | None = None
        self._scale_by_bound, self._first_sensitivity = scale_by_bound, math.inf
        self._line: dict[str, Any] = {}
        self._schedule = _Schedule(optimizer, lambda largest, step: rate(largest, step, self._scale()))

    def fit(self) -> Training:
        """Train; the task's model then holds the result.

        Guarantee: that of the mechanism, as the method keeps it; callbacks look at what has been released alone.

        Raises:
            DpbenchError: the method cannot serve the model, or one of its guards stopped the run.
        """
        training = Training()
        for number, plan in enumerate(self._phases):
            self._phase(plan, training)
            for callback in self._callbacks:
                callback.phase_done(self, number)
        for callback in self._callbacks:
            callback.training_done(self)
        return training

    def log(self, **values: Any) -> None:
        """Add values to the line of this step in the step log."""
        self._line |= values

    def _phase(self, plan: Mechanism, training: Training) -> None:
        method = self._method = self._attach(self.model, self.optimizer, plan)
        self._first_sensitivity = method.sensitivity
        draws = Draws(plan)
        method.before_release(draws.counted)
        released = self.optimizer.register_step_pre_hook(lambda *_: self._tell_released())
        on_cpu = all(p.device.type == "cpu" for p in method.trainable.values())
        processor = 0.0
        self.model.train(method.in_training_mode)
        for drawn in draws:
            begun, worked = time.perf_counter(), time.process_time()
            for piece in self.task.physical(drawn):
                method.backward(self.task.losses, self.task.batch(piece))
            report = method.step()
            self.done += 1
            self._line = {"learning_rate": self.optimizer.param_groups[-1]["lr"]}
            self._schedule.step()
            for callback in self._callbacks:
                callback.step_done(self)
            training.step_seconds.append(time.perf_counter() - begun)
            processor += time.process_time() - worked
            training.batch_sizes.append(len(drawn))
            training.clipped_fractions.append(report.clipped_fraction)
            for callback in self._callbacks:
                callback.observe(self)
            self._write(report, len(drawn))
        draws.finish()
        released.remove()
        method.detach()
        training.processor = (training.processor or 0.0) + processor if on_cpu else None
        training.trainable_parameters = sum(p.numel() for p in method.trainable.values())
        training.unprotected, training.groups = method.unprotected, method.groups
        training.warnings += [warning for warning in method.warnings() if warning not in training.warnings]
        if (thresholds := method.thresholds) is not None:
            training.threshold_facts = thresholds.facts
            training.threshold_metrics = [
                metric("clipped_share", 100 * fmean(thresholds.clipped), "%"),
                metric("final_bound", math.hypot(*thresholds.trajectory[-1]), ""),
            ]

    def _scale(self) -> float:
        if not self._scale_by_bound or self._method is None:
            return 1.0
        return self._first_sensitivity / self._method.sensitivity

    def _tell_released(self) -> None:
        for callback in self._callbacks:
            callback.gradients_released(self)

    def _write(self, report: StepReport, drawn: int) -> None:
        if self.context is None:
            return
        loss = report.loss
        line = {"step": self.done - 1, "batch_size": drawn, "loss": loss, "clipped_fraction": report.clipped_fraction}
        self.context.steps.write(**line, **self._line, **report.details)
        text = f"{self._title}, loss {loss:.3f} (not private)" if loss is not None else f"{self._title}, no loss"
        self.context.report(self.done, self.steps, text)
