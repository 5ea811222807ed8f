"""FlashDP's published code as an engine: its faults are there, and nothing takes it for a private engine."""

from __future__ import annotations

import pytest
import torch
from small_models import gradients, mechanism, relative

from dpbench import methods, plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.published import flashdp
from dpbench.models import registry as models
from dpbench.report.deviations import deviations
from dpbench.spec.tables import load_named

NAME = "flashdp_published"


def gpt(tied=False):
    return models.language_model("tiny", seed=0, vocabulary=64, context=8, tied=tied)


def data(batch, seed=0):
    return {"input_ids": torch.randint(0, 64, (batch, 8), generator=torch.Generator().manual_seed(seed))}


def losses(model, batch):
    """Far above any bound of these tests, so that clipping bites."""
    return 50 * models.language_model_losses(model, batch)


def released(model, plan, batches, name=NAME):
    """name -> sum that one step releases; and the handle. Published code goes torch's way, so what it is held to does too."""
    stepper = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = methods.attach(name, model, stepper, plan, kernels="torch")
    for batch in batches:
        handle.backward(losses, batch)
    stepper.step()
    sums_by_name = {n: p.grad.clone() * plan.sampling.expected_batch_size for n, p in model.named_parameters()}
    stepper.zero_grad()
    handle.detach()
    return sums_by_name, handle


def plan(noise=0.0, bound=0.5, seed=0):
    return mechanism("per_layer", bound=bound, noise_multiplier=noise, seed=seed)


def outside(name):
    return "ln_" in name or "wte" in name or "wpe" in name or "lm_head" in name


def test_nothing_offers_it_as_an_engine():
    assert NAME not in plugins.discover("engine")
    assert plugins.get("published_engine", NAME).extra["private"] is False
    with pytest.raises(DpbenchError, match=f"unknown engine '{NAME}'"):
        engines.attach(NAME, gpt(), torch.optim.SGD(gpt().parameters(), lr=0.1), plan(1.0))


@pytest.mark.parametrize("tied", [False, True])
def test_unprotected_tensors_are_listed_and_epsilon_is_none(tied):
    model = gpt(tied)
    _, handle = released(model, plan(1.0), [data(3)])
    assert handle.unprotected == [n for n, _ in model.named_parameters() if outside(n)]
    assert handle.epsilon() is None
    assert handle.sensitivity == float("inf")


def test_linear_layers_alone_get_noise():
    """Two seeds of the noise: what is the same bits has none."""
    one, _ = released(gpt(), plan(1.0, seed=1), [data(3)])
    two, _ = released(gpt(), plan(1.0, seed=2), [data(3)])
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert same == {name for name in one if outside(name)}


def test_embeddings_and_head_have_plain_gradients():
    """FLASH-4."""
    actual, _ = released(gpt(), plan(), [data(3), data(2, seed=1)])
    model = gpt()
    (losses(model, data(3)).sum() + losses(model, data(2, seed=1)).sum()).backward()
    for name, parameter in model.named_parameters():
        if outside(name) and "ln_" not in name:
            assert relative(actual[name].double(), parameter.grad.double()) < 1e-5


def test_linear_layers_are_those_of_fused():
    actual, _ = released(gpt(), plan(), [data(3)])
    expected, _ = released(gpt(), plan(), [data(3)], "fused")
    assert all(torch.equal(actual[name], expected[name]) != outside(name) for name in actual)


def by_hand(rows, bound, buffers):
    """The published kernel, a token at a time."""
    total = torch.zeros(buffers, rows.shape[1], dtype=torch.float64)
    for number, row in enumerate(rows.double()):
        buffer = total[number % buffers]
        buffer.copy_(row + buffer.clamp(-bound, bound))
    return total.sum(0)


@pytest.mark.parametrize(("tokens", "width", "buffers"), [(700, 6, 256), (256, 6, 256), (300, 1025, 128), (1, 3, 256)])
def test_running_buffers_are_clipped_before_a_token_alone(tokens, width, buffers):
    """FLASH-2."""
    torch.manual_seed(tokens)
    rows = torch.randn(tokens, width)
    assert relative(flashdp.running(rows, 0.3).double(), by_hand(rows, 0.3, buffers)) < 1e-6
    if tokens <= buffers:
        assert torch.allclose(flashdp.running(rows, 1e-9), rows.sum(0), atol=1e-4)


def test_few_tokens_give_layernorm_its_plain_gradient():
    """FLASH-2 as it was seen in the published code: 24 tokens, each in a buffer of its own."""
    actual, _ = released(gpt(), plan(bound=1e-6), [data(3)])
    model = gpt()
    losses(model, data(3)).sum().backward()
    for name, parameter in model.named_parameters():
        if "ln_" in name:
            assert relative(actual[name].double(), parameter.grad.double()) < 1e-4


def test_it_fails_what_every_engine_is_held_to():
    """The checks of tests/contract, test_parity and test_sensitivity from which its kind is exempt: the faults are real."""
    bound = 0.5
    four, handle = released(gpt(), plan(bound=bound), [data(4)])
    three, _ = released(gpt(), plan(bound=bound), [{k: v[:3] for k, v in data(4).items()}])
    assert handle.unprotected != []  # contract: no tensor is unprotected
    moved = torch.cat([(four[n] - three[n]).flatten() for n in four]).norm()
    assert float(moved) > 10 * bound  # sensitivity: one example moves the sum by at most the bound
    silent, _ = released(gpt(), plan(2.0), [])
    assert any(float(value.std()) == 0 for value in silent.values())  # an empty batch releases noise in every tensor
    expected, _ = gradients("loop", gpt(), plan(bound=bound), [data(4)], loss=losses, dtype=torch.float64)
    ours = torch.cat([four[n].double().flatten() for n, _ in gpt().named_parameters()]) / 4.0
    assert relative(ours, expected) > 0.1  # parity with the oracle
    fused, _ = released(gpt(), plan(bound=bound), [data(4)], "fused")
    assert relative(torch.cat([fused[n].double().flatten() for n, _ in gpt().named_parameters()]) / 4.0, expected) < 1e-5


def test_the_deviations_it_keeps_name_the_rows_that_show_them():
    known = {d.id: d for d in deviations("flashdp")}
    assert set(plugins.get("published_engine", NAME).extra["deviations"]) <= set(known)
    shown = [d for d in known.values() if d.shown_by is not None]
    assert [d.id for d in shown] == ["FLASH-1", "FLASH-2", "FLASH-4"]
    for deviation in shown:
        spec = load_named(deviation.shown_by.table)
        for axis, values in deviation.shown_by.where.items():
            assert set(values) <= set((spec.rows | spec.columns)[axis])
