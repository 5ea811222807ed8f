"""What every discovered clipping function and scope is held to, as plain functions."""

from __future__ import annotations

import math
import random

import torch

from dpbench import plugins
from dpbench.privacy.clipping.probe import allowed, check_factor, grid
from dpbench.privacy.mechanism import Clipping

BOUNDS = (1e-6, 0.01, 0.3, 1.0, 50.0, 1e6)
GAMMAS = (0.0, 1e-12, 0.01, 1.0)


def factor_keeps_the_bound(name: str, dtype: torch.dtype) -> None:
    """Finite factors >= 0 with factor x norm <= bound: over 0, denormals, 1e-38 to 1e38 and many norms near the bound."""
    form = plugins.get("function", name).load().factor
    generator = torch.Generator().manual_seed(0)
    for bound in BOUNDS if dtype != torch.float16 else BOUNDS[1:5]:  # others are no numbers of it
        random_norms = 10 ** (torch.rand(300, generator=generator, dtype=torch.float64) * 76 - 38)
        near = bound * (1 + torch.randn(300, generator=generator, dtype=torch.float64) * 0.1).abs()
        every = torch.cat([grid(bound, dtype).double(), random_norms, near])
        norms = every[every <= torch.finfo(dtype).max].to(dtype)
        for gamma in GAMMAS:
            factors = form(norms.clone(), bound, gamma)
            assert factors.shape == norms.shape
            assert torch.isfinite(factors).all()
            assert (factors >= 0).all()
            assert (factors.double() * norms.double() <= allowed(norms, bound)).all()
    assert form(torch.zeros(0, dtype=dtype), 1.0, 0.01).shape == (0,)


def factor_passes_the_probe(name: str) -> None:
    """What an engine asks of it when it is attached."""
    form = plugins.get("function", name).load().factor
    for gamma in GAMMAS:
        check_factor(name, form, BOUNDS, gamma)


def threshold_leaves_alone_what_is_within(name: str) -> None:
    """With a threshold, norms within the bound keep factor 1, and no others do."""
    plugin = plugins.get("function", name)
    module = plugin.load()
    for bound in (0.01, 0.3, 1.0, 50.0):
        norms = torch.tensor([0.0, 0.5, 0.999, 1.001, 2.0, 1e6]) * bound
        over = torch.tensor([False, False, False, True, True, True])
        if plugin.extra.get("threshold"):
            assert torch.equal(module.factor(norms, bound, 0.01) == 1, ~over)


def each_example_is_scaled_by_itself(name: str) -> None:
    """A factor depends on its own norm alone, not on the other examples'."""
    form = plugins.get("function", name).load().factor
    norms = torch.tensor([0.0, 1e-3, 0.2, 0.9, 5.0, 1e4])
    together = form(norms.clone(), 0.5, 0.01)
    alone = torch.cat([form(norm.reshape(1).clone(), 0.5, 0.01) for norm in norms])
    assert torch.equal(together, alone)


def scope_is_a_partition(name: str, rounds: int = 60) -> None:
    """Each layer of a random model is in exactly one group; no group is empty, and the same names give the same groups."""
    plugin, draw = plugins.get("scope", name), random.Random(0)
    for _ in range(rounds):
        layers = random_names(draw)
        known = {"sizes": [draw.randint(1, 1000) for _ in layers], "devices": draw.randint(1, len(layers))}
        needs = {need: known[need] for need in plugin.extra.get("needs", ())}
        groups = plugin.load().groups(list(layers), **needs)
        assert all(groups), "an empty group"
        assert sorted(layer for group in groups for layer in group) == sorted(layers)
        assert plugin.load().groups(list(layers), **needs) == groups
        bounds = Clipping(bound=0.7).bounds(len(groups))
        assert math.isclose(math.hypot(*bounds), 0.7)


def random_names(draw: random.Random) -> list[str]:
    """Names as models have them: blocks with indices, tied layers, names without an index."""
    blocks = draw.randint(0, 12)
    inside = draw.sample(["attn.q", "attn.out", "mlp.up", "mlp.down", "norm", "0", "1"], draw.randint(1, 5))
    names = [f"{draw.choice(['h', 'model.layers'])}.{block}.{part}" for block in range(blocks) for part in inside]
    outside = draw.sample(["wte", "wpe", "head", "(model)", "block1.conv2", "wte+lm_head", "ln_f"], draw.randint(1, 6))
    cut = draw.randint(0, len(outside))
    return outside[:cut] + names + outside[cut:]
