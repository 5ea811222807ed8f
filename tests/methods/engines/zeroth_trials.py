"""One random model under one zeroth-order method: held to differences formed one example at a time."""

from __future__ import annotations

import math

import oracle
import torch
from grammar import Sample
from outcomes import EXPECTED, RATE, Outcome, quietly, refused
from torch import Tensor, nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

PERTURBATION = 1e-3
ROUNDING = 1e-12
"""Of a zeroth-order move in fp64, relative to what one loss over the perturbation would make."""


def check(sample: Sample, method: str, directions: str) -> Outcome:
    """Hold one zeroth-order step to differences formed one example at a time."""
    plugin = plugins.get("zeroth", method)
    clipping = Clipping("abadi", "flat", 0.5 * oracle.typical_norm(sample)) if plugin.extra["private"] else None
    plan = Mechanism(
        Sampling("poisson", 100, EXPECTED), 10, clipping, 0.0, noise=plugin.extra["noise"] or "gaussian", seed=sample.seed
    )
    built = sample.build(torch.float64)
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    tensors = oracle.trained(built.model)
    batches = [built.batch(piece) for piece in sample.pieces]

    def step() -> None:
        ZerothOrder(method, built.model, plan, RATE, PERTURBATION, directions).step(built.losses, batches)  # type: ignore[arg-type]

    try:
        quietly(step)
    except DpbenchError as refusal:
        return refused(refusal)
    except Exception as error:
        return Outcome("wrong", f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    for name, value in built.model.state_dict().items():
        if name not in _every_name(built.model, tensors) and not torch.equal(value.nan_to_num(), before[name].nan_to_num()):
            return Outcome("wrong", f"wrote {name} into the model without noise")
    expected_move, scale = _zeroth_move(sample, plan, plugin, directions)
    moved = {name: p.detach() - before[name] for name, p in tensors.items()}
    apart = math.sqrt(sum(float((moved[n] - w).square().sum()) for n, w in expected_move.items()))
    if not apart <= ROUNDING * scale:
        return Outcome("wrong", f"weights are off by {apart / scale:.1e} of the largest move allowed")
    return Outcome("right")


def _every_name(model: nn.Module, tensors: dict[str, nn.Parameter]) -> set[str]:
    """All names of the trained tensors, of tied ones too."""
    kept = {id(p) for p in tensors.values()}
    return {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in kept}


def _zeroth_move(sample: Sample, plan: Mechanism, plugin: plugins.Plugin, directions: str) -> tuple[dict[str, Tensor], float]:
    """(the update of each tensor, the length that rounding is measured by)."""
    shapes = oracle.trained(sample.build(torch.float64).model)
    u = {name: torch.zeros_like(p) for name, p in shapes.items()}
    Directions(list(u.values()), plan.seed, directions).add_(0, 1.0)  # type: ignore[arg-type]
    length = math.sqrt(sum(float(value.square().sum()) for value in u.values()))
    slope, largest = 0.0, 1.0
    for index in (i for piece in sample.pieces for i in piece):
        above, below = (loss_at(sample, index, u, sign * PERTURBATION) for sign in (1, -1))
        derivative = (above - below) / (2 * PERTURBATION)
        if not math.isfinite(derivative):
            continue
        largest = max(largest, abs(above) / PERTURBATION)
        if plan.clipping is not None:
            bound = plan.clipping.bound / (length if plugin.extra["clips"] == "vector" else 1.0)
            derivative = max(-bound, min(bound, derivative))
        slope += derivative / EXPECTED
    return {name: -RATE * slope * value for name, value in u.items()}, largest * length


def loss_at(sample: Sample, index: int, u: dict[str, Tensor], scale: float) -> float:
    built = sample.build(torch.float64)
    with torch.no_grad():
        for name, p in oracle.trained(built.model).items():
            p.add_(u[name], alpha=scale)
        return float(built.losses(built.model, built.batch([index])))
