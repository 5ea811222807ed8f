"""All engines against the fp64 loop at noise 0."""

from __future__ import annotations

import pytest
import torch
from models import MODELS, Language, data, gradients, losses, mechanism, plain, relative

from dpbench import plugins
from dpbench.errors import DpbenchError

FUNCTIONS = ("abadi", "auto_s", "auto_v")
OURS = ("fused", "bookkeeping", "ghost", "loop", "vmap")
PEERS = ("opacus", "opacus_ghost", "opake", "fastdp")


def pairs():
    """(engine, scope) of every engine that clips; a peer that is not installed is skipped, and says so."""
    for name, plugin in plugins.discover("engine").items():
        skip = pytest.mark.skipif(plugin.missing is not None, reason=str(plugin.missing))
        for scope in plugin.extra["scopes"]:
            yield pytest.param(name, scope, id=f"{name}-{scope}", marks=skip)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if p.values[0] in OURS])
def test_parity_with_the_oracle(name, scope, function, model, poisoned_empty):
    plan = mechanism(scope, function)
    batches = [data(4), data(3, seed=1)]
    wanted, oracle = gradients("loop", MODELS[model](), plan, batches, dtype=torch.float64)
    found, handle = gradients(name, MODELS[model](), plan, batches)
    assert 0 < oracle.clipped_fraction < 1, "the data do not make clipping bite"
    assert relative(found, wanted) < 1e-5
    assert handle.clipped_fraction == oracle.clipped_fraction
    assert handle.unprotected == []


@pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if p.values[0] in PEERS])
@pytest.mark.parametrize("model", ["plain", "conv"])
def test_peers_agree_with_the_oracle(name, scope, model):
    plan = mechanism(scope, "abadi")
    batches = [data(4), data(3, seed=1)]
    wanted, _ = gradients("loop", MODELS[model](), plan, batches, dtype=torch.float64)
    found, handle = gradients(name, MODELS[model](), plan, batches)
    assert relative(found, wanted) < 2e-5  # Opacus adds 1e-6 to the norm it divides by
    assert handle.unprotected == []


@pytest.mark.parametrize("name", ["fused", "bookkeeping"])
def test_tied_per_use(name):
    plan = mechanism("per_layer", "abadi", tied="per_use", bound=0.3)
    wanted, _ = gradients("loop", Language(tied=True), plan, [data(5)], dtype=torch.float64)
    found, handle = gradients(name, Language(tied=True), plan, [data(5)])
    assert relative(found, wanted) < 1e-5
    each = handle.bounds[0]
    assert handle.sensitivity == pytest.approx((3 * each**2 + (2 * each) ** 2) ** 0.5)


def test_tied_sum_is_not_tied_per_use():
    batches = [data(5)]
    summed, _ = gradients("fused", Language(tied=True), mechanism("per_layer", bound=0.3), batches)
    apart, _ = gradients("fused", Language(tied=True), mechanism("per_layer", bound=0.3, tied="per_use"), batches)
    assert relative(summed, apart) > 1e-3


@pytest.mark.parametrize(("name", "scope"), list(pairs()))
def test_accumulation_changes_nothing(name, scope):
    whole = data(6)
    parts = [{k: v[:1] for k, v in whole.items()}, {k: v[1:4] for k, v in whole.items()}, {k: v[4:] for k, v in whole.items()}]
    at_once, _ = gradients(name, Language(), mechanism(scope), [whole])
    in_parts, _ = gradients(name, Language(), mechanism(scope), parts)
    assert relative(in_parts, at_once) < 1e-5


@pytest.mark.parametrize(("name", "scope"), list(pairs()))
def test_an_empty_batch_releases_noise_alone(name, scope):
    quiet, handle = gradients(name, Language(), mechanism(scope), [])
    assert torch.equal(quiet, torch.zeros_like(quiet))
    noisy, handle = gradients(name, Language(), mechanism(scope, noise_multiplier=2.0), [])
    wanted = 2.0 * handle.sensitivity / 4.0
    assert float(noisy.std()) == pytest.approx(wanted, rel=0.15)


def test_nonprivate_is_plain_autograd():
    model = Language().double()
    found, _ = gradients("nonprivate", model, plain(), [data(4), data(3, seed=1)], dtype=torch.float64)
    (losses(model, data(4)).sum() + losses(model, data(3, seed=1)).sum()).backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters()]) / 4
    assert relative(found, wanted) < 1e-12


@pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if p.values[0] in OURS])
def test_bf16_under_autocast(name, scope):
    """Half-precision products; norms and sums in fp32: within 2e-2 of the oracle on the same model under autocast."""

    def half(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = losses(model, batch)
        return out.float()

    plan = mechanism(scope, "auto_s")
    wanted, _ = gradients("loop", Language(), plan, [data(6)], loss=half)
    found, _ = gradients(name, Language(), plan, [data(6)], loss=half)
    assert relative(found, wanted) < 2e-2


@pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if p.values[0] in OURS])
def test_one_bad_example_adds_nothing(name, scope):
    batch = data(5)
    wanted, _ = gradients(
        "loop", Language(), mechanism(scope), [{k: v[[0, 1, 3, 4]] for k, v in batch.items()}], dtype=torch.float64
    )
    batch["weight"] = batch["weight"].clone()
    batch["weight"][2] = float("nan")
    found, handle = gradients(name, Language(), mechanism(scope), [batch])
    assert relative(found, wanted) < 1e-5
    assert handle.non_finite_examples == 1


@pytest.mark.parametrize(("name", "scope"), [p for p in pairs() if p.values[0] in OURS and p.values[0] != "vmap"])
def test_the_input_gradient_is_plain_autograds(name, scope):
    """Clipping touches parameters only: what flows back to a frozen input layer is what autograd gives (FLASH-7)."""
    from dpbench import engines

    seen = {}

    def watched(model, batch):
        x = model.embed(batch["ids"]).detach().requires_grad_()
        x.register_hook(lambda g: seen.setdefault("g", []).append(g.clone()))
        logits = model.head(model.block(x))
        return torch.nn.functional.cross_entropy(logits.mT, batch["targets"], reduction="none").mean(1)

    model = Language()
    model.embed.weight.requires_grad_(False)
    batch = data(1) if name == "loop" else data(4)
    watched(model, batch).sum().backward()
    model.zero_grad()
    handle = engines.attach(
        name, model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), mechanism(scope)
    )
    handle.backward(watched, batch)
    handle.detach()
    if len(seen["g"]) == 1:
        pytest.skip("this engine's pass ends at the first trained layer: nothing flows to the input")
    torch.testing.assert_close(seen["g"][1], seen["g"][0])


@pytest.mark.parametrize(("name", "scope"), list(pairs()))
def test_detach_leaves_nothing_behind(name, scope):
    from dpbench import engines

    model = Language()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = engines.attach(name, model, optimizer, mechanism(scope))
    handle.backward(losses, data(3))
    optimizer.step()
    optimizer.zero_grad()
    handle.detach()
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(not hasattr(p, "grad_sample") for p in model.parameters())
    losses(model, data(3)).sum().backward()
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    engines.attach(name, model, optimizer, mechanism(scope)).detach()


def test_opacus_ghost_refuses_tied_weights():
    with pytest.raises((DpbenchError, NotImplementedError)):
        gradients("opacus_ghost", Language(tied=True), mechanism("flat"), [data(3)])
