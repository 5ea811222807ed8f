"""A zeroth-order method that was stopped, saved and gone on with does what one does that was not stopped."""

import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.sampling import batches

EXAMPLES = {
    "x": torch.randn(40, 6, generator=torch.Generator().manual_seed(1)),
    "y": torch.arange(40) % 3,
}
METHODS = [
    ("mezo", None, "gaussian"),
    ("dpzero", 1.0, "gaussian"),
    ("dp_zo_laplace", 1.0, "laplace"),
    ("dpgd_0th", 5.0, "gaussian"),
]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def losses(model, batch):
    dtype = next(model.parameters()).dtype
    return cross_entropy(model(batch["x"].to(dtype)).float(), batch["y"], reduction="none")


def plan(bound, noise):
    clipping = None if bound is None else Clipping(bound=bound)
    return Mechanism(Sampling("poisson", 40, 6), 8, clipping, 0.0 if bound is None else 0.7, noise=noise, seed=5)


def train(optimizer, start, stop):
    for number, rows in enumerate(batches(optimizer.mechanism, start), start):
        if number == stop:
            return
        index = torch.as_tensor(rows)
        optimizer.step(losses, [{name: values[index] for name, values in EXAMPLES.items()}] if len(rows) else [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "bound", "noise"), METHODS)
def test_going_on_from_a_file_is_not_stopping_to_the_bit(name, bound, noise, dtype):
    mechanism = plan(bound, noise)
    uninterrupted, first = net(dtype), net(dtype)
    train(ZerothOrder(name, uninterrupted, mechanism, 0.1, 1e-2), 0, 8)
    stopped = ZerothOrder(name, first, mechanism, 0.1, 1e-2)
    train(stopped, 0, 3)
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "method": stopped.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = net(dtype)
    second.load_state_dict(saved["model"])
    going_on = ZerothOrder(name, second, mechanism, 0.1, 1e-2)
    going_on.load_state_dict(saved["method"])
    assert going_on.steps == 3
    train(going_on, 3, 8)
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_state_of_other_ways_is_refused():
    mechanism = plan(1.0, "gaussian")
    state = ZerothOrder("dpzero", net(), mechanism, 0.1, 1e-2).state_dict()
    for other, message in (
        (ZerothOrder("dpzero", net(), mechanism, 0.1, 1e-3), "perturbation 0.01, not 0.001"),
        (ZerothOrder("dpzero", net(), mechanism, 0.1, 1e-2, "sphere"), "directions 'gaussian', not 'sphere'"),
        (ZerothOrder("dpgd_0th", net(), mechanism, 0.1, 1e-2), "of 'dpzero', not 'dpgd_0th'"),
    ):
        with pytest.raises(DpbenchError, match=message):
            other.load_state_dict(state)
    with pytest.raises(DpbenchError, match="no state"):
        ZerothOrder("dpzero", net(), mechanism, 0.1, 1e-2).load_state_dict([])


def test_two_methods_on_one_model_share_no_noise():
    model, mechanism = net(), plan(1.0, "gaussian")
    slopes = [ZerothOrder("dpzero", model, mechanism, 0.0).step(losses, []).slope for _ in range(3)]
    assert len(set(slopes)) == 3
    assert ZerothOrder("dpzero", net(), mechanism, 0.0).step(losses, []).slope == slopes[0]


def test_in_the_middle_of_a_step_there_is_no_state():
    optimizer = ZerothOrder("dpzero", net(), plan(1.0, "gaussian"), 0.1)

    def asks(model, batch):
        optimizer.state_dict()
        return losses(model, batch)

    with pytest.raises(DpbenchError, match="middle of a step"):
        optimizer.step(asks, [EXAMPLES])
    optimizer.state_dict()
