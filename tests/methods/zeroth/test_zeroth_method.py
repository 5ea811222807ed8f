"""A zeroth-order method behind the protocol of all methods: what it warns of, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from zeroth_checks import data, losses, net, plan

from dpbench import methods
from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.trainer import SILENT


def attached(optimizer=None):
    model = net()
    return methods.attach("dpzero", model, optimizer or torch.optim.SGD(model.parameters(), lr=0.1), plan("dpzero"))


@pytest.mark.parametrize(
    ("ignored", "silence", "message"),
    [
        (0, SILENT - 1, []),
        (3, 0, ["3 examples had losses that are not finite and contributed 0"]),
        (0, SILENT, [f"no example's loss moved in {SILENT} steps one after another"]),
    ],
)
def test_warnings_name_lost_examples_and_losses_that_never_moved(ignored, silence, message):
    """Where a private run must not stop."""
    method = attached()
    method.order.non_finite_examples, method.order.longest_silence = ignored, silence
    warnings = method.warnings()
    assert len(warnings) == len(message)
    assert all(warning.startswith(start) for warning, start in zip(warnings, message, strict=True))


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}])
def test_an_optimizer_that_is_not_plain_sgd_is_refused(options):
    with pytest.raises(DpbenchError, match="moves all weights along one direction"):
        attached(torch.optim.SGD(net().parameters(), lr=0.1, **options))
    with pytest.raises(DpbenchError, match="which AdamW as it is set up does not"):
        attached(torch.optim.AdamW(net().parameters(), lr=0.1))


def test_physical_batches_of_a_step_have_one_loss():
    method = attached()
    method.backward(losses, data())
    with pytest.raises(DpbenchError, match="have different losses"):
        method.backward(lambda model, batch: 2 * losses(model, batch), data())


def test_a_saved_method_continues_to_the_bit():
    def train(method, steps):
        for _ in range(steps):
            method.backward(losses, data())
            method.step()

    uninterrupted, model = net(), net()
    one = methods.attach("dpzero", uninterrupted, torch.optim.SGD(uninterrupted.parameters(), lr=0.1), plan("dpzero"))
    train(one, 3)
    first = methods.attach("dpzero", model, torch.optim.SGD(model.parameters(), lr=0.1), plan("dpzero"))
    train(first, 2)
    state = first.state_dict()
    first.backward(losses, data())
    with pytest.raises(DpbenchError, match="in the middle of a step"):
        first.state_dict()
    first.detach()
    second = methods.attach("dpzero", model, torch.optim.SGD(model.parameters(), lr=0.1), plan("dpzero"))
    second.load_state_dict(state)
    train(second, 1)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), model.parameters(), strict=True))
