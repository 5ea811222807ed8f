"""Losses that mix the examples of a batch are found, whatever mixes them."""

import random

import numpy as np
import pytest
import torch
from probed import Net, data, losses
from torch import nn
from torch.nn import functional as F

from dpbench.errors import DpbenchError
from dpbench.methods.engines.batches import select
from dpbench.methods.engines.probes import check_examples_apart_by_value


def keeps_by_data(self, h):
    self.mean.data.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    return h


def mixing():
    def attention(self, h):
        return torch.softmax(h @ h.T, -1) @ h

    return {
        "centred": lambda self, h: h - h.mean(0),
        "batch norm by function": lambda self, h: F.batch_norm(h, None, None, training=True),
        "attention over the batch": attention,
        "a neighbour": lambda self, h: h + 0.1 * h.roll(1, 0),
        "two away": lambda self, h: h + 0.1 * h.roll(2, 0),
        "half a batch away": lambda self, h: h + 0.1 * h.roll(len(h) // 2, 0),
        "mixed in reverse": lambda self, h: 0.9 * h + 0.1 * h.flip(0),
        "sums so far": lambda self, h: h.cumsum(0),
        "a mask by the batch": lambda self, h: h * (h > h.median()),
        "scaled by the largest": lambda self, h: h / h.abs().max(),
        "sorted": lambda self, h: h.sort(0).values,
        "slightly": lambda self, h: h + 1e-3 * h.mean(),
    }


@pytest.mark.parametrize("rows", [3, 8, 33])
@pytest.mark.parametrize("name", mixing())
def test_losses_that_mix_examples_are_refused(name, rows):
    with pytest.raises(DpbenchError, match="depends on the other examples of its batch"):
        check_examples_apart_by_value(losses, Net(mixing()[name]).double(), data(rows, torch.float64), select, rows)


@pytest.mark.parametrize("name", ["centred", "batch norm by function", "attention over the batch", "a neighbour", "sums so far"])
def test_two_examples_are_enough(name):
    with pytest.raises(DpbenchError, match="depends on the other examples of its batch"):
        check_examples_apart_by_value(losses, Net(mixing()[name]), data(2), select)


def test_mixing_in_the_loss_is_refused():
    def in_batch_negatives(model, batch):
        out = model(batch["x"])
        return F.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none")

    def relative(model, batch):
        values = losses(model, batch)
        return values / values.detach().mean()

    def two_views(model, batch):
        out = F.normalize(model(batch["x"]), dim=1)
        return 1 - (out * out.roll(len(out) // 2, 0)).sum(1)

    def hard_ones(model, batch):
        values = losses(model, batch)
        return values * (values >= values.median())

    def the_largest_half(model, batch):
        out = model(batch["x"])
        sizes = out.norm(dim=1)
        return losses(model, batch) * (sizes >= sizes.topk(4).values[-1])

    for wrong in (in_batch_negatives, relative, two_views, hard_ones, the_largest_half):
        with pytest.raises(DpbenchError, match="depends on the other examples"):
            check_examples_apart_by_value(wrong, Net(), data(), select)


def test_a_bad_example_is_refused_only_if_it_spoils_others():
    bad = data()
    bad["x"][3] = float("nan")
    assert check_examples_apart_by_value(losses, Net(), bad, select)
    with pytest.raises(DpbenchError, match="depends on the other examples"):
        check_examples_apart_by_value(losses, Net(lambda self, h: h + 0 * h.sum(0)), bad, select)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ordinary_models_pass_and_random_streams_go_on(dtype):
    model = Net(lambda self, h: F.dropout(h, 0.5) * random.random() * float(np.random.rand())).to(dtype)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert check_examples_apart_by_value(losses, model, data(8, dtype), select, 8)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_autocast_is_as_coarse_as_its_dtype():
    def rounded(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return losses(model, batch)

    assert check_examples_apart_by_value(rounded, Net(), data(), select)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_cut_to_its_longest_example_passes(dtype):
    """Its products then have other shapes, and are rounded in another order."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).to(dtype).eval()
    x, lengths = torch.randn(8, 40, 32).to(dtype), torch.tensor([5, 40, 6, 7, 9, 30, 3, 8])

    def cut(model, batch):
        longest = int(batch["length"].max())
        padding = torch.arange(longest) >= batch["length"][:, None]
        out = model(batch["x"][:, :longest], src_key_padding_mask=padding)
        return out[:, 0].float().square().sum(1)

    assert check_examples_apart_by_value(cut, model, {"x": x, "length": lengths}, select)


def test_where_there_is_nothing_to_see_it_says_so():
    same = {name: value[:1].expand(6, *value.shape[1:]).clone() for name, value in data().items()}
    assert not check_examples_apart_by_value(losses, Net(), data(1), select)
    assert not check_examples_apart_by_value(losses, Net(), data(0), select, 0)
    assert not check_examples_apart_by_value(losses, Net(), same, select)
    silent = Net(lambda self, h: h - h.mean(0))
    nn.init.zeros_(silent.last.weight)
    batch = data() | {"y": torch.zeros(8, dtype=torch.int64)}
    assert not check_examples_apart_by_value(losses, silent, batch, select)


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        (lambda m, b: losses(m, b).mean(), r"\[\]"),
        (lambda m, b: losses(m, b)[:, None], r"\[8, 1\]"),
        (lambda m, b: m(b["x"]).flatten(), r"\[24\]"),
    ],
)
def test_losses_of_another_shape_are_refused(wrong, shape):
    with pytest.raises(DpbenchError, match=rf"losses have shape {shape}, not \[8\]"):
        check_examples_apart_by_value(wrong, Net(), data(), select, 8)


def test_a_model_that_the_probe_would_write_into_is_refused():
    with pytest.raises(DpbenchError, match=r"^mean was written"):
        check_examples_apart_by_value(losses, Net(keeps_by_data), data(), select)
