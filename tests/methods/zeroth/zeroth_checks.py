"""What every discovered zeroth-order method is held to, as plain functions of its name.

`test_discovered_zeroth.py` runs them over discovery and feeds them methods that are wrong. What a step has released is told by
what it did to the weights, not by what the method declares: one number along the direction, or one a weight.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dpbench import plugins
from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

BATCH, FEATURES, CLASSES = 12, 6, 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def data(rows=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=generator, dtype=torch.float64)
    return {"x": x, "y": torch.randint(0, CLASSES, (rows,), generator=generator), "weight": torch.ones(rows, dtype=torch.float64)}


def losses(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["weight"]


def only(batch, index):
    return {name: value[index] for name, value in batch.items()}


def private(name: str) -> bool:
    return bool(plugins.get("zeroth", name).extra["private"])


def plan(name: str, bound=1.0, noise=0.0, seed=0) -> Mechanism:
    """A mechanism as the method wants it; a method that is not private has no bound."""
    extra = plugins.get("zeroth", name).extra
    clipping = Clipping(bound=bound) if private(name) else None
    law = extra.get("noise", "gaussian") if private(name) else "gaussian"
    return Mechanism(Sampling("fixed", 100, BATCH), 5000, clipping, noise if private(name) else 0.0, seed=seed, noise=law)


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def direction(model, step=0, kind="gaussian", seed=0) -> torch.Tensor:
    zeros = [torch.zeros_like(p) for p in model.parameters()]
    Directions(zeros, seed, kind).add_(step, 1.0)
    return torch.cat([z.flatten() for z in zeros])


def released(name, *batches, steps=1, kind="gaussian", model=None, **options) -> list[torch.Tensor]:
    """What each step released, [weights]: its change of the weights at learning rate 1, x expected batch size.

    All steps begin at the same weights.
    """
    model = model or net()
    start = copy.deepcopy(model.state_dict())
    trainer = ZerothOrder(name, model, plan(name, **options), 1.0, 1e-4, kind)
    sums = []
    for _ in range(steps):
        before = flat(model)
        trainer.step(losses, batches)
        sums.append((before - flat(model)) * BATCH)
        model.load_state_dict(start)
    return sums


def along(vector: torch.Tensor, u: torch.Tensor) -> float | None:
    """c where the vector is c u; None where it is not along u."""
    c = float(vector @ u / (u @ u))
    return c if float((vector - c * u).norm()) <= 1e-5 * max(float(vector.norm()), 1e-9) else None


def one_number(name: str) -> bool:
    """Whether a step's noise is one number along the direction."""
    return along(released(name, noise=3.0)[0], direction(net())) is not None


def parity(name: str, kind: str, bound: float) -> None:
    """Without noise a step is that of exact directional derivatives, each bounded: as a number, or as a vector along u."""
    model, batch = net(), data()
    u, parameters = direction(model, kind=kind), list(model.parameters())
    gradients = [torch.autograd.grad(losses(model, only(batch, slice(k, k + 1)))[0], parameters) for k in range(BATCH)]
    derivatives = torch.stack([torch.cat([g.flatten() for g in row]) @ u for row in gradients])
    if private(name):
        length = 1.0 if one_number(name) else float(u.norm())
        over = derivatives.abs() * length > bound
        assert bound > 1e3 or 0 < int(over.sum()) < BATCH, "the data do not make clipping bite"
        derivatives = derivatives * (bound / (length * derivatives.abs())).clamp(max=1)
    (sums,) = released(name, batch, kind=kind, bound=bound)
    expected = derivatives.sum() * u
    assert float((sums - expected).norm() / expected.norm()) < 1e-5


def unbiased(name: str) -> None:
    """Over directions the mean of what is released without noise and bound is the gradient."""
    model, batch, steps = net(), data(4), 600
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(losses(model, batch).sum(), list(model.parameters()))])
    mean = torch.stack(released(name, batch, steps=steps, bound=1e6)).mean(0)
    assert float((mean - gradient).norm() / gradient.norm()) < 2.5 * math.sqrt((len(gradient) + 1) / steps)


def physical_batches(name: str) -> None:
    """Do not matter."""
    parts = [only(data(), index) for index in (slice(0, 5), slice(5, 6), slice(6, BATCH))]
    assert torch.allclose(released(name, data())[0], released(name, *parts)[0], rtol=0, atol=1e-8)


def bound_by_search(name: str, cases: int = 25) -> None:
    """An example more moves what is released by the bound at most, in the space in which noise is added."""
    if not private(name):
        return
    generator, number = torch.Generator().manual_seed(0), one_number(name)
    u, worst = direction(net()), 0.0
    for case in range(cases):
        rows = int(torch.randint(1, 7, (), generator=generator))
        bound = 10 ** float(torch.rand((), generator=generator) * 4 - 2)
        batch = data(rows, seed=case)
        batch["weight"] = 10 ** (torch.rand(rows, generator=generator, dtype=torch.float64) * 6 - 2)
        (with_it,), (without,) = (released(name, b, bound=bound) for b in (batch, only(batch, slice(1, None))))
        moved = with_it - without
        distance = abs(float(moved @ u / (u @ u))) if number else float(moved.norm())
        assert distance <= bound * (1 + 1e-5) + 1e-7, f"an example moves the sum by {distance / bound:.6g} bounds"
        worst = max(worst, distance / bound)
    assert worst > 0.99, "no example reaches its bound: nothing is looked at"


def noise(name: str) -> None:
    """Of the mechanism's size and law, once in every step whether it has examples or not, another one each time."""
    if not private(name):
        return
    law, bound, multiplier, number = plan(name).noise, 2.0, 3.0, one_number(name)
    steps = 160 if number else 5  # a number a step, or one a weight
    options = {"bound": bound, "noise": multiplier, "steps": steps}
    empty, other = released(name, **options), released(name, **(options | {"seed": 1}))
    full, clean = released(name, data(3), **options), released(name, data(3), **(options | {"noise": 0.0}))
    draws = [
        numbers(number, empty, 0),
        numbers(number, other, 1),
        numbers(number, [a - b for a, b in zip(full, clean, strict=True)], 0),
    ]
    share, size = (0.683, 1.0) if law == "gaussian" else (1 - math.exp(-1), math.sqrt(2))
    for values in (draw / (multiplier * bound) for draw in draws):
        assert len(set(values.round(9).tolist())) == len(values), "a number is drawn twice"
        assert abs(values.mean()) < 4 * size / math.sqrt(len(values))
        assert values.std() == pytest.approx(size, rel=0.3)
        assert abs((np.abs(values) < 1).mean() - share) < 0.12
        kurtosis = float(((values - values.mean()) ** 4).mean() / values.var() ** 2)  # 3 of a Gaussian, 6 of Laplace's law
        assert kurtosis < 4.4 if law == "gaussian" else kurtosis > 3.8
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 0.3, "two seeds share their noise"


def numbers(number: bool, draws: list[torch.Tensor], seed: int) -> np.ndarray:
    """The numbers of noise in what was released: one a step, or one a weight."""
    if not number:
        return torch.cat(draws).numpy()
    model = net()
    along_u = [along(draw, direction(model, step, seed=seed)) for step, draw in enumerate(draws)]
    assert None not in along_u, "what is released is not along the direction of its step"
    return np.array(along_u)


def noise_is_secret(name: str) -> None:
    """Whoever knows the directions, which are public, knows nothing of the noise: it is the same whatever the direction."""
    if not private(name):
        return
    first, second = (released(name, noise=3.0, steps=3, kind=kind) for kind in ("gaussian", "sphere"))
    if one_number(name):
        for step, (a, b) in enumerate(zip(first, second, strict=True)):
            assert along(a, direction(net(), step)) == pytest.approx(along(b, direction(net(), step, "sphere")), rel=1e-4)
    else:
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    public = Directions([torch.zeros_like(p) for p in net().parameters()], 0, "gaussian")
    assert float(first[0].abs().max()) > 0
    assert abs((along(first[0], direction(net())) or 0.0) / 3.0) != pytest.approx(abs(public.next_number(0)), rel=1e-6)


def bad_example(name: str) -> None:
    """An example whose loss is not finite contributes nothing and is counted."""
    for value in (math.nan, math.inf):
        batch = data()
        batch["weight"][3] = value
        kept = only(batch, [k for k in range(BATCH) if k != 3])
        assert torch.allclose(released(name, batch, noise=1.0)[0], released(name, kept, noise=1.0)[0], rtol=0, atol=1e-8)
        trainer = ZerothOrder(name, net(), plan(name), 0.1, 1e-4)
        trainer.step(losses, [batch])
        assert trainer.non_finite_examples == 1


def empty_step(name: str) -> None:
    """A step without an example is a step: it moves the weights by noise alone, or not at all."""
    (quiet,) = released(name)
    assert float(quiet.norm()) < 1e-8
    if private(name):
        (noisy,) = released(name, noise=3.0)
        assert float(noisy.norm()) > 0.01
    trainer = ZerothOrder(name, net(), plan(name), 0.1, 1e-4)
    trainer.step(losses, [])
    assert trainer.steps == 1
