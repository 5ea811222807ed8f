"""The faults of FlashDP's review-time code (benchmarks/flashdp/deviations.yaml), each as a test of ours."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from small_models import Language, Twice, data, gradients, losses, mechanism, relative
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpbench.kernels.leaf import Sums, Use
from dpbench.kernels.linear.cpu import Conv1DLeaf, LinearLeaf
from dpbench.methods import engines
from dpbench.privacy.clipping import abadi
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.report.deviations import deviations

OURS = ["fused", "bookkeeping"]


def plan(noise=0.0, bound=0.5, seed=0, expected=4.0):
    return mechanism("per_layer", bound=bound, noise_multiplier=noise, seed=seed, expected=expected)


def noise_of(name, batches, bound=0.5, seeds=40):
    """parameter name -> draws [seeds, ...]: released gradient minus that without noise, times expected batch size."""
    model = Language()

    def released(noise, seed):
        model_copy = copy.deepcopy(model)
        optimizer = torch.optim.SGD(model_copy.parameters(), lr=0.1)
        handle = engines.attach(name, model_copy, optimizer, plan(noise, bound, seed))
        for batch in batches:
            handle.backward(losses, batch)
        optimizer.step()
        handle.detach()
        return {key: 4.0 * parameter.grad for key, parameter in model_copy.named_parameters()}, handle

    clean, handle = released(0.0, seed=0)
    noisy = [released(2.0, seed)[0] for seed in range(seeds)]
    return {key: torch.stack([gradients[key] - value for gradients in noisy]) for key, value in clean.items()}, handle


def test_every_deviation_names_a_test_that_is_there():
    flashdp_deviations = deviations("flashdp")
    assert [d.id for d in flashdp_deviations] == [f"FLASH-{n}" for n in range(1, 14)]
    for deviation in flashdp_deviations:
        path, name = deviation.test.split("::")
        assert path == "tests/methods/engines/test_flash.py"
        assert callable(globals()[name])


@pytest.mark.parametrize("name", OURS)
def test_flash_1_noise_follows_the_bounds_and_not_the_batch(name):
    for bound, batch in ((0.5, 2), (0.5, 8), (5.0, 2)):
        noises, handle = noise_of(name, [data(batch)], bound, seeds=12)
        expected_std = 2.0 * handle.sensitivity
        assert handle.sensitivity == pytest.approx(len(handle.bounds) ** 0.5 * handle.bounds[0])
        every = torch.cat([v.flatten() for v in noises.values()])
        assert float(every.std()) == pytest.approx(expected_std, rel=0.05)


@pytest.mark.parametrize("name", OURS)
def test_flash_2_layernorm_is_clipped_by_its_norm_and_gets_noise(name):
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, plan(bound=1e-3))
    handle.backward(losses, data(4))
    optimizer.step()
    norm = torch.cat([model.block.norm.weight.grad, model.block.norm.bias.grad]).norm() * 4
    assert 0 < float(norm) <= 4 * handle.bounds[0] * (1 + 1e-5)
    noise, _ = noise_of(name, [data(4)], seeds=2)
    assert noise["block.norm.weight"].abs().min() > 0


def test_flash_3_layernorm_weight_and_bias_get_the_same_noise():
    noises, handle = noise_of("fused", [data(4)], seeds=150)
    weight, bias = noises["block.norm.weight"], noises["block.norm.bias"]
    for value in (weight, bias):
        assert float(value.std()) == pytest.approx(2.0 * handle.sensitivity, rel=0.1)
    assert abs(float(torch.corrcoef(torch.stack([weight.flatten(), bias.flatten()]))[0, 1])) < 0.12


@pytest.mark.parametrize("name", OURS)
def test_flash_4_embedding_and_tied_head_are_protected(name):
    model = Language(tied=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, plan(1.0))
    assert handle.unprotected == []
    assert handle.noise_stds[id(model.embed.weight)] > 0
    actual, _ = gradients(name, Language(tied=True), plan(), [data(4)])
    expected, _ = gradients("loop", Language(tied=True), plan(), [data(4)], dtype=torch.float64)
    assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("name", OURS)
def test_flash_5_dirty_memory_does_not_reach_a_norm(name, poisoned_empty):
    actual, _ = gradients(name, Twice(), plan(), [data(4), data(2, seed=1)])
    expected, _ = gradients("loop", Twice(), plan(), [data(4), data(2, seed=1)], dtype=torch.float64)
    assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("name", OURS)
def test_flash_6_noise_is_drawn_once_a_step(name):
    full_batch = data(4)
    parts = [{k: v[i : i + 1] for k, v in full_batch.items()} for i in range(4)]
    at_once, _ = gradients(name, Language(), plan(2.0), [full_batch])
    in_parts, _ = gradients(name, Language(), plan(2.0), parts)
    assert relative(in_parts, at_once) < 1e-5
    fixed = Mechanism(Sampling("fixed", 100, 4), 10, Clipping(), 1.0)
    assert fixed.reasons  # so its epsilon is only nominal


@pytest.mark.parametrize("name", OURS)
def test_flash_7_the_input_gradient_is_autograds(name):
    """What arrives at the first layer, behind a residual block whose layers all clip."""
    model, seen = Language(), []
    batch = data(4)
    batch["weight"] = batch["weight"] * 100

    def watch(_module, _inputs, output):
        if output.requires_grad:
            output.register_hook(lambda g: seen.append(g.clone()))

    out = model.embed.register_forward_hook(watch)
    losses(model, batch).sum().backward()
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, plan(bound=1e-3))
    handle.backward(losses, batch)  # before the first batch the model is looked at
    del seen[1:]
    handle.backward(losses, batch)
    out.remove()
    assert handle.counted().clipped > 0
    assert relative(seen[1].double(), seen[0].double()) < 1e-6


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(37, 50, 41), (16, 65, 64), (3, 1, 129)])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_flash_8_norms_are_exact_where_no_tile_divides_the_size(kind, tokens, inputs, outputs):
    leaf, use = layer(kind, tokens, inputs, outputs)
    exact_norms = torch.einsum("bti,bto->bio", use.x.double(), use.g.double()).flatten(1).norm(dim=1)
    norms = leaf.clip_into(use, lambda n: abadi.factor(n, 0.5, 0.0), into_zeros(leaf))
    assert relative(norms.double(), exact_norms) < 1e-6


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_flash_9_nothing_beside_the_sum_is_written(kind):
    leaf, use = layer(kind, 37, 41, 50)
    shape = leaf.parameters["weight"].shape
    room = torch.full((shape.numel() + 2000,), 7.0)
    inside = room[1000:-1000].view(shape)
    leaf.clip_into(use, lambda n: abadi.factor(n, 0.5, 0.0), Sums({"weight": inside.zero_()}))
    assert inside.abs().sum() > 0
    assert (room[:1000] == 7).all()
    assert (room[-1000:] == 7).all()


def test_flash_10_the_bias_is_summed_over_tokens_before_its_norm():
    module = nn.Linear(3, 4)
    module.weight.requires_grad_(False)
    leaf, g = LinearLeaf(module), torch.randn(5, 7, 4)
    norms = leaf.sq_norms(Use(torch.randn(5, 7, 3), g)).sqrt()
    assert torch.allclose(norms, g.sum(1).norm(dim=1), rtol=1e-5)


def test_flash_11_one_forward_one_backward_one_clip_a_layer(monkeypatch):
    model, calls = Language(), Counter()
    model.register_forward_hook(lambda *_: calls.update(["forward"]))
    backward = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.update(["backward"]) or backward(*a, **k))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach("fused", model, optimizer, plan())
    handle.backward(losses, data(4))  # before the first batch the model is looked at
    calls.clear()
    for one in handle.layout.layers:
        clip_into = one.leaf.clip_into
        monkeypatch.setattr(one.leaf, "clip_into", lambda *a, clip_into=clip_into: calls.update(["clip"]) or clip_into(*a))
    handle.backward(losses, data(4))
    assert calls == {"forward": 1, "backward": 1, "clip": len(handle.layout.layers)}


def test_flash_12_two_runs_are_the_same_bits():
    one, _ = gradients("fused", Language(), plan(1.0), [data(4)])
    two, _ = gradients("fused", Language(), plan(1.0), [data(4)])
    assert torch.equal(one, two)


def test_flash_13_a_layer_without_a_bias_has_none():
    model = nn.Linear(3, 4, bias=False)
    handle = engines.attach("fused", model, torch.optim.SGD(model.parameters(), lr=0.1), plan(1.0))
    assert handle.layout.layers[0].leaf.names == ["weight"]
    assert list(handle.noise_stds) == [id(model.weight)]


def into_zeros(leaf):
    return Sums({n: torch.zeros_like(p) for n, p in leaf.parameters.items()})


def layer(kind, tokens, inputs, outputs):
    torch.manual_seed(tokens)
    if kind == "linear":
        leaf = LinearLeaf(nn.Linear(inputs, outputs, bias=False))
    else:
        module = Conv1D(outputs, inputs)
        module.bias.requires_grad_(False)
        leaf = Conv1DLeaf(module)
    return leaf, Use(torch.randn(3, tokens, inputs), torch.randn(3, tokens, outputs))
