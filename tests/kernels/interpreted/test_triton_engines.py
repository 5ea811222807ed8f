"""Engines on Triton kernels against the fp64 loop, and the choice of kernels."""

from __future__ import annotations

import pytest
import torch
from small_models import Language, Twice, data, gradients, losses, mechanism, relative
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpbench.errors import DpbenchError
from dpbench.kernels.embedding.triton import EmbeddingTritonLeaf
from dpbench.kernels.layernorm.triton import LayerNormTritonLeaf
from dpbench.kernels.linear.triton import Conv1DTritonLeaf, LinearTritonLeaf
from dpbench.methods import engines
from dpbench.methods.engines import rescue
from dpbench.privacy.clipping import abadi

MODELS = {
    "plain": Language,
    "tied": lambda: Language(tied=True),
    "twice": Twice,
    "rmsnorm": lambda: Language(middle=lambda: nn.RMSNorm(5)),
}
PAIRS = [("fused", "per_layer"), ("bookkeeping", "flat"), ("bookkeeping", "per_layer"), ("ghost", "flat")]


def released(name, model, plan, batches, kernels="triton", dtype=torch.float32):
    """(gradients of one logical step, the handle)."""
    return gradients(name, model, plan, batches, losses, dtype, kernels)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_parity_with_the_oracle_over_physical_batches(name, scope, model, poisoned_empty):
    function = {"fused": "abadi", "bookkeeping": "auto_s", "ghost": "auto_v"}[name]
    plan, batches = mechanism(scope, function), [data(4), data(3, seed=1)]
    if model in ("plain", "rmsnorm"):  # a tensor of several layers is summed by torch, which wants at least one example
        batches.append(data(0))
    expected, oracle = released("loop", MODELS[model](), plan, batches, "auto", torch.float64)
    actual, handle = released(name, MODELS[model](), plan, batches)
    assert relative(actual, expected) < 1e-5
    assert handle.clipped_fraction == oracle.clipped_fraction
    assert handle.unprotected == []


@pytest.mark.parametrize("name", ["fused", "bookkeeping"])
def test_tied_per_use(name):
    plan = mechanism("per_layer", tied="per_use", bound=0.3)
    expected, _ = released("loop", Language(tied=True), plan, [data(5)], "auto", torch.float64)
    actual, _ = released(name, Language(tied=True), plan, [data(5)])
    assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize(("name", "scope"), PAIRS)
def test_one_bad_example_adds_nothing_and_is_counted(name, scope):
    batch = data(5)
    good = {k: v[[0, 1, 3, 4]] for k, v in batch.items()}
    expected, _ = released("loop", Language(), mechanism(scope), [good], "auto", torch.float64)
    batch["weight"] = batch["weight"].clone()
    batch["weight"][2] = float("nan")
    actual, handle = released(name, Language(), mechanism(scope), [batch])
    assert relative(actual, expected) < 1e-5
    assert handle.non_finite_examples == 1


def test_an_empty_step_releases_noise_alone():
    noisy, handle = released("fused", Language(), mechanism("per_layer", noise_multiplier=2.0), [])
    assert float(noisy.std()) == pytest.approx(2.0 * handle.sensitivity / 4.0, rel=0.15)


def test_one_example_moves_the_sum_by_at_most_the_sensitivity():
    batch = {k: v if k != "weight" else v * 100 for k, v in data(5).items()}
    fewer = {k: v[:4] for k, v in batch.items()}
    plan = mechanism("per_layer", bound=0.3)
    full_sum, handle = released("fused", Language(), plan, [batch])
    moved = 4.0 * (full_sum - released("fused", Language(), plan, [fewer])[0]).norm()
    assert float(moved) == pytest.approx(handle.sensitivity, rel=1e-5)  # every layer of the example is clipped


def test_the_leaves_that_are_taken():
    model = Language()
    handle = engines.attach("fused", model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism("per_layer"), kernels="triton")
    kinds = {layer.name: type(layer.leaf) for layer in handle.layout.layers}
    assert kinds == {
        "embed": EmbeddingTritonLeaf,
        "block.norm": LayerNormTritonLeaf,
        "block.up": Conv1DTritonLeaf,
        "block.down": LinearTritonLeaf,
        "head": LinearTritonLeaf,
    }
    handle.detach()
    handle = engines.attach("fused", model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism("per_layer"))
    assert all("triton" not in type(layer.leaf).__module__ for layer in handle.layout.layers)  # auto, on the CPU


@pytest.mark.parametrize(
    ("name", "model", "match"),
    [
        ("fused", lambda: Language(middle=lambda: nn.Conv1d(8, 8, 3, padding=1)), "layer middle .Conv1d.: it has no Triton"),
        ("ghost", lambda: Language().double(), "layer embed .Embedding.: weight is float64"),
        ("loop", Language, "engine 'loop' does not use kernels of ours"),
        ("nonprivate", Language, "engine 'nonprivate' does not"),
    ],
)
def test_what_triton_cannot_serve_is_named_before_any_work(name, model, match):
    model = model()
    scope = "flat" if name == "ghost" else "per_layer"
    with pytest.raises(DpbenchError, match=match):
        engines.attach(name, model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism(scope), kernels="triton")


def test_a_function_of_the_user_takes_the_way_of_two_kernels(monkeypatch):
    """A clipping function without a formula on the chip: any callable will do."""
    from dpbench.kernels import onchip

    monkeypatch.delitem(onchip.FUNCTIONS, "abadi")
    calls = []
    form = abadi.factor
    monkeypatch.setattr(abadi, "factor", lambda norms, *arguments: calls.append(len(norms)) or form(norms, *arguments))
    expected, _ = released("loop", Language(), mechanism("per_layer"), [data(4)], "auto", torch.float64)
    calls.clear()
    actual, handle = released("fused", Language(), mechanism("per_layer"), [data(4)])
    assert relative(actual, expected) < 1e-5
    assert calls.count(4) == len(handle.bounds)  # the other calls are the probe of many norms, when it is attached


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            getattr(i, "dtype", None) == torch.bool for i in args[1] if i is not None
        )
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_consecutive", "_unique2") or by_mask:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "scope"), [p for p in PAIRS if p[0] != "ghost"])  # ghost may have to go through again
def test_nothing_waits_for_the_device(name, scope, monkeypatch):
    monkeypatch.setattr(rescue._Doubt, "on_its_way", property(lambda _: True, lambda *_: None), raising=False)
    model = Language(middle=lambda: nn.RMSNorm(5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, mechanism(scope), kernels="triton")
    handle.backward(losses, data(3))  # the first batch is looked at, which waits
    with NoWaiting():
        handle.backward(losses, data(3))
    handle.detach()
    handle = engines.attach(name, model, optimizer, mechanism(scope), kernels="torch")
    handle.backward(losses, data(3))
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        handle.backward(losses, data(3))
