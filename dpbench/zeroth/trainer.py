"""One zeroth-order step: two forward passes along a random direction, what is released of them, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dpbench import plugins
from dpbench.engines.noise import Noise
from dpbench.errors import DpbenchError
from dpbench.mechanism import Mechanism
from dpbench.zeroth.directions import Directions, Kind, check_perturbation

SILENT = 20
"""Steps in a row without a single example whose loss moves, after which a run is stopped."""

Losses = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> the per-example losses [B]."""


@dataclass(frozen=True)
class Step:
    """What one step did. count: examples; loss: their mean at the unmoved weights to second order, None without any;
    clipped: share whose derivative was bounded; slope: what was released, over the expected batch size.

    count, loss and clipped are not private.
    """

    count: int
    loss: float | None
    clipped: float | None
    slope: float


class ZerothOrder:
    """Trains `model` in place by one of the methods of `dpbench/zeroth`.

    An example's derivative along u is D_i = (f_i(x + lambda u) - f_i(x - lambda u)) / (2 lambda). With B the expected batch size,
    C the bound and z noise of std m C:

    - `mezo`: x <- x - lr (sum D_i / B) u
    - `dpzero`, `dp_zo_laplace`: x <- x - lr ((sum clip_C(D_i) + z) / B) u, one number z (Laplace of scale m C)
    - `dpgd_0th`: x <- x - lr (sum clip_C(D_i u) + z) / B, one z for each weight

    Source: Zhang et al., ICML 2024, Algorithms 1 and 2, in its experiments' mini-batch form; Malladi et al., NeurIPS 2023.

    Guarantee: that of the mechanism, over the released slopes (and for `dpgd_0th` weights): noise has streams of its own, of
    which the public directions say nothing. An example whose loss is not finite contributes 0. None under `published`.

    Args:
        published: `method` names what a paper's published code does, faults included.
        rate: learning rate of the next step; may be set between steps.
        perturbation: lambda.

    Raises:
        DpbenchError: no trainable weight; a perturbation lost in the weights' precision or absurd; clipping or noise that is not
            the method's.
    """

    def __init__(
        self,
        method: str,
        model: nn.Module,
        mechanism: Mechanism,
        rate: float,
        perturbation: float = 1e-3,
        directions: Kind = "gaussian",
        kernels: Literal["auto", "reference"] = "auto",
        published: bool = False,
    ) -> None:
        self.method = plugins.get("published_zeroth" if published else "zeroth", method)
        self.model, self.mechanism = model, mechanism
        self.rate, self.perturbation = rate, perturbation
        self.trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise DpbenchError("no weight is trainable", "unfreeze some before training")
        _must_suit(self.method, mechanism)
        weights = list(self.trainable.values())
        check_perturbation(weights, perturbation)
        self.directions = Directions(weights, mechanism.seed, directions, kernels)
        self.steps = self.non_finite_examples = self._silent = 0
        self._noise = Noise(mechanism)

    def step(self, losses: Losses, batches: Iterable[Any]) -> Step:
        """One logical step over the physical batches of a logical one; none at all is an empty batch, which is released too.

        Raises:
            DpbenchError: `losses` are not one number an example; no example's is finite; for `SILENT` steps none has moved.
        """
        physical, number, size = list(batches), self.steps, self.perturbation
        self.directions.add_(number, size)
        above = self._losses(losses, physical)
        self.directions.add_(number, -2 * size)
        below = self._losses(losses, physical)
        derivatives = (above - below) / (2 * size)
        finite = derivatives.isfinite()
        if len(finite) and not finite.any():
            self.directions.add_(number, size)
            raise DpbenchError(
                f"step {number}: no example's loss is finite", "lower the learning rate or the perturbation, or use a wider dtype"
            )
        self.non_finite_examples += int((~finite).sum())
        derivatives = derivatives.where(finite, 0.0)
        self._must_move(derivatives, number)
        clipped, total = self._bounded(derivatives, number)
        slope = self._released(total, number) / self.mechanism.sampling.expected_batch_size
        self.directions.add_(number, size - self.rate * slope)  # back, and on
        self._add_vector_noise_()
        self.steps += 1
        mean = (above + below)[finite].mean().item() / 2 if finite.any() else None
        return Step(len(derivatives), mean, clipped, slope)

    def _must_move(self, derivatives: Tensor, number: int) -> None:
        """Stop where the losses are too coarse for the perturbation, as in half precision. The weights stay as they are."""
        if not len(derivatives):
            return
        self._silent = 0 if derivatives.any() else self._silent + 1
        if self._silent >= SILENT:
            self.directions.add_(number, self.perturbation)
            raise DpbenchError(
                f"step {number}: no example's loss has moved for {SILENT} steps: the perturbation {self.perturbation:g} is lost",
                "raise it, or use wider weights and losses",
            )

    def _losses(self, losses: Losses, physical: list[Any]) -> Tensor:
        """[B] of all physical batches, fp64 on the host."""
        found = [torch.zeros(0, dtype=torch.float64)]
        with torch.inference_mode():
            for batch in physical:
                values = losses(self.model, batch)
                if values.dim() != 1:
                    raise DpbenchError(
                        f"losses of shape {list(values.shape)} where [B] was wanted",
                        "return one loss an example: reduction='none'",
                    )
                found.append(values.double().cpu())
        return torch.cat(found)

    def _bounded(self, derivatives: Tensor, number: int) -> tuple[float | None, float]:
        """(share that was bounded, sum of the bounded derivatives)."""
        clipping = self.mechanism.clipping
        if clipping is None:
            return None, float(derivatives.sum())
        bound = clipping.bound
        if self.method.extra["clips"] == "vector":
            bound /= self.directions.length(number)  # |D_i u| <= C
        over = derivatives.abs() > bound
        return (float(over.double().mean()) if len(over) else None), float(derivatives.clamp(-bound, bound).sum())

    def _released(self, total: float, number: int) -> float:
        """The sum with its one number of noise."""
        std = self.mechanism.noise_multiplier * self.mechanism.sensitivity if self.mechanism.clipping else 0.0
        if std == 0 or self.method.extra["clips"] == "vector":
            return total
        if self.method.extra.get("noise_of_directions"):
            return total + std * self.directions.next_number(number)
        if self.mechanism.noise == "laplace":
            a, b, c, d = self._noise.on_counts([0.0] * 4, 1.0)
            return total + std * (a * a + b * b - c * c - d * d) / 2  # two exponential numbers' difference
        return self._noise.on_counts([total], std)[0]

    def _add_vector_noise_(self) -> None:
        plan = self.mechanism
        if self.method.extra["clips"] != "vector" or plan.noise_multiplier == 0:
            return
        std = self.rate * plan.noise_multiplier * plan.sensitivity / plan.sampling.expected_batch_size
        wide = (torch.float32, torch.float64)
        self._noise.release_([(w, std) for w in self.directions.weights if w.dtype in wide], 1.0)
        for weight in self.directions.weights:
            if weight.dtype not in wide:
                moved = weight.float()
                self._noise.release_([(moved, std)], 1.0)
                weight.copy_(moved)


def _must_suit(method: plugins.Plugin, mechanism: Mechanism) -> None:
    private, clipping = method.extra["private"], mechanism.clipping
    if private != (clipping is not None):
        wanted = "needs a clipping" if private else "takes no clipping and no noise"
        raise DpbenchError(f"{method.name} {wanted}", "mezo is the method without, dpzero that with")
    if clipping is None:
        return
    if clipping.function != "abadi" or clipping.scope != "flat" or clipping.adaptive is not None or clipping.given is not None:
        raise DpbenchError(
            f"{method.name} bounds one number an example: {clipping.function}, scope {clipping.scope} has no meaning for it",
            "use function abadi, scope flat, and one bound",
        )
    if mechanism.noise != method.extra["noise"]:
        raise DpbenchError(
            f"{method.name} adds {method.extra['noise']} noise, not {mechanism.noise}", "give the mechanism that noise"
        )
    if not math.isfinite(clipping.bound):
        raise DpbenchError("an infinite bound protects nothing", "use mezo")
