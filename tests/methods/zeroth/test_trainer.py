"""Zeroth-order steps against a plain reference, their noise, their sensitivity, and what they refuse."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_directions import ReferenceDirections
from torch import nn
from torch.nn.functional import cross_entropy

from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.trainer import SILENT, ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

BATCH = 12


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def data(rows=BATCH, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(rows, 6, generator=generator).to(dtype), "y": torch.randint(0, 3, (rows,), generator=generator)}


def losses(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def plan(bound=1.0, noise=0.0, kind="gaussian", steps=50, **options):
    clipping = None if bound is None else Clipping(bound=bound)
    return Mechanism(Sampling("fixed", 100, BATCH), steps, clipping, noise, noise=kind, **options)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(method="dpzero", steps=4, mechanism=None, model=None, rate=0.1, batches=None, **options):
    model = model or net()
    optimizer = ZerothOrder(method, model, mechanism or plan(), rate, 1e-4, **options)
    seen = [optimizer.step(losses, batches or [data()]) for _ in range(steps)]
    return flat(model), seen


def directions_of(model, step, kind="gaussian", seed=0):
    zeros = [torch.zeros_like(p) for p in model.parameters()]
    directions = Directions(zeros, seed, kind)
    directions.add_(step, 1.0)
    return torch.cat([z.flatten() for z in zeros])


def by_gradients(method, bound, steps, rate, kind="gaussian"):
    """The same with exact directional derivatives, in fp64: lambda -> 0."""
    model, batch = net(), data()
    for step in range(steps):
        u = directions_of(model, step, kind)
        rows = []
        for k in range(BATCH):
            grads = torch.autograd.grad(losses(model, {n: v[k : k + 1] for n, v in batch.items()})[0], list(model.parameters()))
            rows.append(torch.cat([g.flatten() for g in grads]) @ u)
        derivatives = torch.stack(rows)
        if bound is not None:
            length = float(u.norm()) if method == "dpgd_0th" else 1.0
            derivatives = derivatives * (bound / (length * derivatives.abs())).clamp(max=1)
        at = flat(model) - rate * derivatives.sum() / BATCH * u
        nn.utils.vector_to_parameters(at, model.parameters())
    return flat(model)


@pytest.mark.parametrize(
    ("method", "bound", "kind"),
    [("mezo", None, "gaussian"), ("dpzero", 1.0, "gaussian"), ("dpzero", 0.3, "sphere"), ("dpgd_0th", 5.0, "gaussian")],
)
def test_without_noise_a_step_is_that_of_exact_derivatives(method, bound, kind):
    final_weights, _ = trained(method, mechanism=plan(bound), directions=kind)
    expected = by_gradients(method, bound, 4, 0.1, kind)
    assert float((final_weights - expected).norm() / (expected - flat(net())).norm()) < 1e-5


def test_an_unbounded_noiseless_dpzero_is_mezo_bit_for_bit():
    assert torch.equal(trained("dpzero", mechanism=plan(1e30))[0], trained("mezo", mechanism=plan(None))[0])
    float32 = [
        trained(m, mechanism=plan(b), model=net(torch.float32), batches=[data(dtype=torch.float32)])[0]
        for m, b in (("dpzero", 1e30), ("mezo", None))
    ]
    assert torch.equal(*float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_place_and_reference_go_the_same_way(dtype, monkeypatch):
    ways = []
    for directions in (Directions, ReferenceDirections):
        monkeypatch.setattr("dpbench.methods.zeroth.trainer.Directions", directions)
        ways.append(trained(mechanism=plan(noise=0.5), model=net(dtype), batches=[data(dtype=dtype)])[0].double())
    assert torch.allclose(*ways, rtol=0, atol=1e-9 if dtype == torch.float64 else 2e-3)


def test_physical_batches_do_not_matter():
    full_batch = data()
    parts = [{n: v[at] for n, v in full_batch.items()} for at in (slice(0, 5), slice(5, 6), slice(6, BATCH))]
    assert torch.allclose(trained()[0], trained(batches=parts)[0], rtol=0, atol=1e-9)


def released(method, kind, noise, count, bound=2.0, seed=0):
    """What was released, over what would have been without noise, in units of the bound."""
    model = net()
    optimizer = ZerothOrder(method, model, plan(bound, noise, kind, count, seed=seed), 0.0, 1e-4)
    return np.array([optimizer.step(losses, []).slope for _ in range(count)]) * BATCH / bound


@pytest.mark.parametrize(("method", "kind"), [("dpzero", "gaussian"), ("dp_zo_laplace", "laplace")])
def test_the_noise_has_the_mechanisms_size_and_law(method, kind):
    noises = released(method, kind, 3.0, 1500) / 3.0
    assert abs(noises.mean()) < 0.12
    if kind == "gaussian":
        assert 0.92 < noises.std() < 1.08
        assert abs((np.abs(noises) < 1).mean() - 0.683) < 0.04
    else:
        assert 1.26 < noises.std() < 1.58  # sqrt(2) b
        assert abs((np.abs(noises) < 1).mean() - (1 - math.exp(-1))) < 0.04


def test_vector_noise_is_one_number_a_weight():
    before = flat(net())
    noise = (trained("dpgd_0th", 1, plan(2.0, 3.0), rate=0.1, batches=[])[0] - before) / (0.1 * 3.0 * 2.0 / BATCH)
    assert 0.75 < float(noise.std()) < 1.25
    assert len(set(noise.round(decimals=9).tolist())) == len(noise)


def test_noise_depends_on_the_seed_and_on_no_direction():
    """Fails for noise drawn from the direction's generator (deviation ZERO-2): another kind of direction would move it."""

    def noise(directions, seed=0):
        optimizer = ZerothOrder("dpzero", net(), plan(1.0, 1.0, seed=seed), 0.0, 1e-4, directions)
        return [optimizer.step(losses, []).slope for _ in range(3)]

    assert noise("gaussian") == noise("sphere")
    assert not set(noise("gaussian")) & set(noise("gaussian", seed=1))
    assert len(set(noise("gaussian"))) == 3


@settings(deadline=None)
@given(st.floats(1e-3, 1e3), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e9, 1e9))
def test_an_example_more_moves_the_sum_by_the_bound_at_most(bound, derivatives, more):
    optimizer = ZerothOrder("dpzero", net(), plan(bound), 0.1)
    both = torch.tensor([*derivatives, more], dtype=torch.float64)
    with_it, without = optimizer._bounded(both, 0)[1], optimizer._bounded(both[:-1], 0)[1]
    assert abs(with_it - without) <= bound * (1 + 1e-9) + 1e-9 * abs(without)


def test_an_example_that_is_not_finite_contributes_nothing():
    bad = data()
    bad["x"][3] = float("inf")
    less = {n: v[[k for k in range(BATCH) if k != 3]] for n, v in bad.items()}
    model, other = net(), net()
    first, second = (ZerothOrder("dpzero", m, plan(noise=1.0), 0.1, 1e-4) for m in (model, other))
    first.step(losses, [bad])
    second.step(losses, [less])
    assert torch.allclose(flat(model), flat(other), rtol=0, atol=1e-9)
    assert first.non_finite_examples == 1


def all_bad():
    bad = data()
    bad["x"][:] = float("nan")
    return bad


def test_without_privacy_a_step_of_lost_examples_stops_the_run():
    model = net()
    before = flat(model)
    with pytest.raises(DpbenchError, match="step 0: no example's loss is finite"):
        ZerothOrder("mezo", model, plan(None), 0.1, 1e-4).step(losses, [all_bad()])
    assert torch.allclose(flat(model), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("method", "kind"), [("dpzero", "gaussian"), ("dp_zo_laplace", "laplace"), ("dpgd_0th", "gaussian")])
def test_under_privacy_a_step_without_finite_losses_is_noise(method, kind):
    """A run that stops would say so without noise."""
    model, other = net(), net()
    first, second = (ZerothOrder(method, m, plan(noise=1.0, kind=kind), 0.1, 1e-4) for m in (model, other))
    step = first.step(losses, [all_bad()])
    second.step(losses, [])
    assert torch.equal(flat(model), flat(other))
    assert not torch.equal(flat(model), flat(net()))
    assert (step.count, step.loss, first.non_finite_examples) == (BATCH, None, BATCH)


def test_a_loss_that_is_not_per_example_is_refused():
    def mean(model, batch):
        return losses(model, batch).mean()

    with pytest.raises(DpbenchError, match=r"losses of shape \[\] where \[B\] was expected"):
        ZerothOrder("mezo", net(), plan(None), 0.1).step(mean, [data()])


@pytest.mark.parametrize(
    ("method", "mechanism", "message"),
    [
        ("mezo", plan(1.0), "mezo takes no clipping"),
        ("dpzero", plan(None), "dpzero needs a clipping"),
        ("dpzero", plan(1.0, 1.0, "laplace"), "dpzero adds gaussian noise, not laplace"),
        ("dp_zo_laplace", plan(1.0, 1.0), "adds laplace noise, not gaussian"),
        ("dpzero", Mechanism(Sampling("fixed", 9, 3), 2, Clipping("auto_s")), "function abadi, scope flat"),
        ("dpzero", Mechanism(Sampling("fixed", 9, 3), 2, Clipping(scope="per_layer")), "function abadi, scope flat"),
    ],
)
def test_what_is_not_the_methods_is_refused(method, mechanism, message):
    with pytest.raises(DpbenchError, match=message):
        ZerothOrder(method, net(), mechanism, 0.1)


def test_a_frozen_model_is_refused_and_frozen_weights_stay():
    with pytest.raises(DpbenchError, match="no weight is trainable"):
        ZerothOrder("mezo", net().requires_grad_(False), plan(None), 0.1)
    model = net()
    model[0].requires_grad_(False)
    before = [p.clone() for p in model[0].parameters()]
    trained("dpzero", model=model)
    assert all(torch.equal(a, b) for a, b in zip(before, model[0].parameters(), strict=True))


def test_training_lowers_the_loss():
    batch = [data(200)]
    mechanism = Mechanism(Sampling("fixed", 200, 200), 300)
    optimizer = ZerothOrder("mezo", model := net(), mechanism, 0.05)
    first = losses(model, batch[0]).mean().item()
    seen = SimpleNamespace(last=None)
    for _ in range(300):
        seen.last = optimizer.step(losses, batch)
    assert seen.last.loss < 0.95 * first
    assert seen.last.count == 200
    assert seen.last.clipped is None


def coarse(model, batch):
    return losses(model, batch).mul(8).round() / 8


def test_without_privacy_losses_that_never_move_stop_the_run():
    """As half precision has it: both losses are the same to the last bit. An empty batch says nothing."""
    optimizer = ZerothOrder("mezo", net(), plan(None), 0.1, 1e-7)
    for _ in range(SILENT - 1):
        optimizer.step(coarse, [data()])
        optimizer.step(coarse, [])
    with pytest.raises(DpbenchError, match="no example's loss has moved for 20 steps"):
        optimizer.step(coarse, [data()])
    optimizer.step(losses, [data()])  # finer ones move: the count begins again
    optimizer.step(coarse, [data()])
    assert optimizer.longest_silence == SILENT


def test_under_privacy_losses_that_never_move_are_only_counted():
    optimizer = ZerothOrder("dpzero", net(), plan(), 0.1, 1e-7)
    for _ in range(SILENT + 2):
        optimizer.step(coarse, [data()])
    assert optimizer.longest_silence == SILENT + 2
