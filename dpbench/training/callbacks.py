"""What happens beside a training step: averages of weights, learning curves, bounds on the released gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dpbench.training.trainer import Callback, Trainer


class LearningCurve(Callback):
    """Evaluates the released weights along training. Not private: evaluated rows are the task's.

    points: [steps done, value of the first metric]; last: all metrics of the last evaluation, by name.
    """

    def __init__(self, model: nn.Module, evaluate: Callable[[], dict[str, float]], every: int) -> None:
        """evaluate: returns metric -> value; every: steps between two points, of which the last is after the last step."""
        self._model, self._evaluate, self._every = model, evaluate, every
        self.points: list[list[float]] = []
        self.last: dict[str, float] = {}

    def evaluate(self, done: int) -> None:
        """Add the point of the weights as they are after `done` steps."""
        training = self._model.training
        self.last = self._evaluate()
        self._model.train(training)
        self.points.append([done, next(iter(self.last.values()))])

    def observe(self, trainer: Trainer) -> None:
        if trainer.done % self._every == 0 or trainer.done == trainer.steps:
            self.evaluate(trainer.done)
            trainer.log(validation=self.points[-1][1])


class WeightAverage(Callback):
    """An exponential average of a model's weights over steps.

    The decay starts low, min(decay, (1 + t) / (10 + t)) at step t, so that the initial weights are forgotten.
    Guarantee: a function of released weights alone: costs no privacy.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._steps, self._now = decay, 0, 0.0
        self._averaged = AveragedModel(model, avg_fn=lambda mean, weight, _: mean.lerp(weight, 1 - self._now))
        self._averaged.update_parameters(model)  # the first update takes the weights as they are

    def step_done(self, trainer: Trainer) -> None:
        self._now = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        self._averaged.update_parameters(trainer.model)

    @torch.no_grad()
    def training_done(self, trainer: Trainer) -> None:
        """Put the average in place of the model's weights."""
        for mean, parameter in zip(self._averaged.module.parameters(), trainer.model.parameters(), strict=True):
            parameter.copy_(mean)


class GradientClip(Callback):
    """Brings the released gradient to at most an L2 norm. It follows the noise and costs no privacy."""

    def __init__(self, longest: float) -> None:
        self.longest = longest

    def gradients_released(self, trainer: Trainer) -> None:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), self.longest)
