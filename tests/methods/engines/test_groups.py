"""Groups, bounds and noise of every scope and allocation in attached engines."""

from __future__ import annotations

import math

import pytest
import torch
from checks import pairs
from small_models import Language, Twice, data, gradients, losses, mechanism, relative
from torch import nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines

SCOPES = ("flat", "per_layer", "per_tensor", "per_block", "per_device")


class Blocks(nn.Module):
    """45 parameters: embed 5 x 2, two blocks of a linear layer (2 x 2 + 2) and a LayerNorm (2 + 2), head 2 x 5 + 5."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(5, 2)
        self.h = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(2))
        self.head = nn.Linear(2, 5)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.h:
            x = x + torch.tanh(block(x))
        return self.head(x)


# Labels and sizes d_k of the groups of `Blocks`, counted by hand. Two devices: 45 / 2 = 22.5 parameters each; a cut after h.0.1
# leaves 20, one after h.1.0 leaves 26, so the first is nearer.
GROUPS = {
    "flat": {"all": 45},
    "per_layer": {"embed": 10, "h.0.0": 6, "h.0.1": 4, "h.1.0": 6, "h.1.1": 4, "head": 15},
    "per_tensor": {
        "embed.weight": 10,
        "h.0.0.weight": 4, "h.0.0.bias": 2, "h.0.1.weight": 2, "h.0.1.bias": 2,
        "h.1.0.weight": 4, "h.1.0.bias": 2, "h.1.1.weight": 2, "h.1.1.bias": 2,
        "head.weight": 10, "head.bias": 5,
    },
    "per_block": {"embed": 10, "h.0": 10, "h.1": 10, "head": 15},
    "per_device": {"group0": 20, "group1": 25},
}  # fmt: skip


def attached(name, scope, allocation="global", model=None, noise_multiplier=2.0, **options):
    model = model or Blocks()
    plan = mechanism(scope, noise_multiplier=noise_multiplier, allocation=allocation, **options)
    return engines.attach(name, model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["bookkeeping", "vmap"])
def test_groups_counted_by_hand(name, scope):
    handle = attached(name, scope)
    labels = handle.layout.labels if handle.layout else ["all"]
    sizes = handle.layout.sizes if handle.layout else [45]
    assert dict(zip(labels, sizes, strict=True)) == GROUPS[scope]
    count = len(labels)
    assert handle.bounds == pytest.approx([0.5 / math.sqrt(count)] * count)
    assert handle.sensitivity == pytest.approx(0.5)


# Noise by hand, for thresholds C_k = k and noise multiplier 2, from std_k = 2 g_k sqrt(sum_j (C_j / g_j)^2):
#   global,   g = 1:            2 sqrt(1 + 4 + ... + K^2) everywhere: the sum is 1, 91, 506, 30, 5 for K = 1, 6, 11, 4, 2;
#   equal,    g = C_k:          C_j / g_j = 1, so 2 sqrt(K) k;
#   weighted, g = C_k/sqrt(d_k): C_j / g_j = sqrt(d_j), and all d_j add to 45, so 2 sqrt(45 / d_k) k.
SQUARES = {"flat": 1, "per_layer": 91, "per_tensor": 506, "per_block": 30, "per_device": 5}


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["bookkeeping", "loop"])
def test_sensitivity_and_noise_derived_by_hand(name, scope, allocation):
    sizes = list(GROUPS[scope].values())
    count = len(sizes)
    handle = attached(name, scope, allocation, thresholds=[float(k) for k in range(1, count + 1)])
    expected = {
        "global": [2 * math.sqrt(SQUARES[scope])] * count,
        "equal": [2 * math.sqrt(count) * k for k in range(1, count + 1)],
        "weighted": [2 * math.sqrt(45 / d) * k for k, d in enumerate(sizes, 1)],
    }[allocation]
    assert handle.sensitivity == pytest.approx(math.sqrt(SQUARES[scope]))
    if handle.layout is None:
        assert list(handle.noise_stds.values()) == pytest.approx(expected * len(handle.trainable))
        return
    for cluster in handle.layout.clusters:
        for parameter in (p for layer in cluster.layers for p in layer.parameters.values()):
            assert handle.noise_stds[id(parameter)] == pytest.approx(expected[cluster.group])


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
@pytest.mark.parametrize("scope", SCOPES)
def test_released_noise_has_the_std_of_its_group(scope, allocation):
    """Over 400 steps a group of d elements gives its std to 5 / sqrt(2 x 400 d)."""
    count = len(GROUPS[scope])
    handle = attached("bookkeeping", scope, allocation, thresholds=[float(k) for k in range(1, count + 1)], steps=400)
    noises_by_parameter = {id(p): [] for p in handle.trainable.values()}
    for _ in range(400):
        handle.optimizer.step()
        for parameter in handle.trainable.values():
            noises_by_parameter[id(parameter)].append(parameter.grad.flatten().clone())
        handle.optimizer.zero_grad()
    for key, pieces in noises_by_parameter.items():
        values = torch.cat(pieces).double() * 4.0  # expected_batch_size
        assert float(values.square().mean().sqrt()) == pytest.approx(handle.noise_stds[key], rel=5 / math.sqrt(2 * len(values)))


@pytest.mark.parametrize("scope", SCOPES)
def test_each_group_is_bounded_by_its_own_threshold(scope):
    """One example far over every bound: each group of the released sum is as long as its given threshold."""
    model, batch = Language(), data(1)
    batch["weight"] = torch.full((1,), 1e3)
    probe = attached("bookkeeping", scope, model=model)
    count = len(probe.bounds)
    probe.detach()
    thresholds = [0.1 * (k + 1) for k in range(count)]
    handle = attached("bookkeeping", scope, model=model, noise_multiplier=0.0, thresholds=thresholds)
    handle.backward(losses, batch)
    handle.optimizer.step()
    squares = [0.0] * count
    for cluster in handle.layout.clusters:
        for parameter in (p for layer in cluster.layers for p in layer.parameters.values()):
            squares[cluster.group] += float((parameter.grad.double() * 4.0).square().sum())
    assert [math.sqrt(s) for s in squares] == pytest.approx(thresholds, rel=1e-5)


def test_thresholds_given_by_label_are_those_given_in_order():
    by_label = {label: 0.1 * (k + 1) for k, label in enumerate(GROUPS["per_block"])}
    assert attached("bookkeeping", "per_block", thresholds=by_label).bounds == list(by_label.values())
    with pytest.raises(DpbenchError, match=r"4 thresholds for 6 groups: embed, h\.0\.0"):
        attached("fused", "per_layer", thresholds=[1.0] * 4)
    with pytest.raises(DpbenchError, match=r"unknown group 'h\.2'"):
        attached("bookkeeping", "per_block", thresholds=by_label | {"h.2": 1.0})


@pytest.mark.parametrize("name", ["loop", "vmap", "bookkeeping", "fused"])
def test_a_weight_and_its_bias_are_clipped_apart(name):
    """As the oracle does it, and not as one layer."""
    plan = mechanism("per_tensor", bound=0.3)
    expected, _ = gradients("loop", Language(), plan, [data(5)], dtype=torch.float64)
    actual, handle = gradients(name, Language(), plan, [data(5)])
    assert relative(actual, expected) < 1e-5
    together, _ = gradients(name, Language(), mechanism("per_layer", bound=0.3), [data(5)])
    assert relative(actual, together) > 1e-2
    assert len(handle.bounds) == len(list(Language().parameters()))


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_per_tensor_with_every_kernel_and_a_frozen_weight(kernels):
    model = Language()
    model.block.up.weight.requires_grad_(False)
    model.block.norm.bias.requires_grad_(False)
    plan = mechanism("per_tensor", "auto_s")
    expected, _ = gradients("loop", model, plan, [data(6)], dtype=torch.float64)
    for name in ("bookkeeping", "fused"):
        actual, _ = gradients(name, model, plan, [data(6)], kernels=kernels)
        assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("name", ["loop", "bookkeeping", "fused"])
def test_tied_per_use_per_tensor(name):
    plan = mechanism("per_tensor", tied="per_use", bound=0.3)
    expected, _ = gradients("loop", Language(tied=True), plan, [data(5)], dtype=torch.float64)
    actual, handle = gradients(name, Language(tied=True), plan, [data(5)])
    assert relative(actual, expected) < 1e-5
    each = handle.bounds[0]
    assert handle.sensitivity == pytest.approx(each * math.sqrt(6 + 4))  # six tensors, and one whose two uses may add up


@pytest.mark.parametrize("scope", ["per_block", "per_device"])
def test_tied_per_use_has_no_bound_inside_a_larger_group(scope):
    class Tied(Blocks):
        def __init__(self) -> None:
            super().__init__()
            self.h[1][0].weight = self.h[0][0].weight

    with pytest.raises(DpbenchError, match="has no separate bound"):
        attached("bookkeeping", scope, model=Tied(), tied="per_use")
    assert attached("bookkeeping", scope, model=Tied()).unprotected == []


def test_a_module_called_twice_per_tensor():
    plan = mechanism("per_tensor")
    expected, _ = gradients("loop", Twice(), plan, [data(4)], dtype=torch.float64)
    actual, _ = gradients("fused", Twice(), plan, [data(4)])
    assert relative(actual, expected) < 1e-5


def test_engines_name_the_scopes_they_lack():
    for name, scope in (("fused", "per_block"), ("ghost", "per_tensor"), ("opacus", "per_device")):
        with pytest.raises(DpbenchError, match=f"'{name}' does not do {scope} clipping"):
            attached(name, scope)


def test_every_scope_is_done_by_the_oracle_and_a_fast_engine():
    for scope in plugins.discover("scope"):
        able = {p.values[0] for p in pairs() if p.values[1] == scope}
        assert {"loop", "vmap"} <= able
        assert able & {"fused", "bookkeeping"}
