"""Noise of the std that goes with the sensitivity: of every allocation, seeded or secret, fresh each step."""

from __future__ import annotations

import pytest
import torch
from small_models import Language, data, gradients, mechanism


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
def test_noise_of_every_allocation_in_the_released_gradient(allocation):
    import math

    from dpbench.methods import engines
    from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling, noise_stds

    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clipping = Clipping(scope="per_layer", bound=2.0, allocation=allocation)
    handle = engines.attach("fused", model, optimizer, Mechanism(Sampling("poisson", 100, 1.0), 10, clipping, 1.5))
    stds = noise_stds(handle.bounds, 1.5, allocation, handle.layout.sizes)
    for cluster in handle.layout.clusters:
        for layer in cluster.layers:
            for parameter in layer.parameters.values():
                assert handle.noise_stds[id(parameter)] == pytest.approx(stds[cluster.group])
    optimizer.step()
    big = max(model.parameters(), key=lambda p: p.numel())
    assert float(big.grad.std()) == pytest.approx(handle.noise_stds[id(big)], rel=4 / math.sqrt(2 * big.numel()))
    handle.detach()


def test_noise_is_seeded_and_fresh_each_step():
    first, _ = gradients("fused", Language(), mechanism("per_layer", noise_multiplier=1.0, seed=1), [])
    again, _ = gradients("fused", Language(), mechanism("per_layer", noise_multiplier=1.0, seed=1), [])
    other, _ = gradients("fused", Language(), mechanism("per_layer", noise_multiplier=1.0, seed=2), [])
    secret, _ = gradients("fused", Language(), mechanism("per_layer", noise_multiplier=1.0, seed=1, randomness="secret"), [])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, secret)


def test_engines_of_a_seed_share_their_noise():
    flat = [
        gradients(n, Language(), mechanism("flat", noise_multiplier=1.0), [data(4)])[0] for n in ("loop", "ghost", "bookkeeping")
    ]
    assert all(torch.allclose(f, flat[0], rtol=0, atol=1e-5) for f in flat[1:])


def test_noise_of_two_steps_is_independent():
    from dpbench.methods import engines

    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach("fused", model, optimizer, mechanism("per_layer", noise_multiplier=1.0))
    seen = []
    for _ in range(2):
        optimizer.step()
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        optimizer.zero_grad()
    handle.detach()
    assert abs(float(torch.corrcoef(torch.stack(seen))[0, 1])) < 0.15
