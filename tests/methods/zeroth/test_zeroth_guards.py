"""What zeroth-order methods refuse: models that mix or keep examples, another trained set, numbers that are none."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dpbench.errors import DpbenchError
from dpbench.methods.zeroth.directions import Directions
from dpbench.methods.zeroth.trainer import ZerothOrder
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

BOUND = 0.5


class Net(nn.Module):
    """`middle`(module, hidden [B, 6]) -> hidden, between two layers."""

    def __init__(self, middle=lambda self, h: h, layer=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.middle, self.layer = middle, layer
        self.register_buffer("kept", torch.zeros(6))

    def forward(self, x):
        return self.last(self.middle(self, torch.tanh(self.first(x))))


def losses(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def data(rows=8):
    generator = torch.Generator().manual_seed(1)
    return {"x": torch.randn(rows, 5, generator=generator), "y": torch.randint(0, 3, (rows,), generator=generator)}


def plan(private=True, noise=0.0, steps=50):
    return Mechanism(Sampling("poisson", 100, 8), steps, Clipping(bound=BOUND) if private else None, noise if private else 0.0)


def method(model, name="dpzero", rate=0.1, **options):
    return ZerothOrder(name, model, plan(name != "mezo"), rate, **options)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def keeps(self, h):
    self.kept.data.copy_(0.9 * self.kept + 0.1 * h.mean(0))
    return h


def codebook(self, h):
    self.kept = 0.9 * self.kept + 0.1 * h.mean(0)
    return h


def starts_by_data(self, h):
    if not self.training_began:
        self.first.weight.data.div_(h.std())
        self.training_began = True
    return h


def remembers(self, h):
    self.memory = h
    return h


Net.training_began = False


@pytest.mark.parametrize("name", ["dpzero", "dpgd_0th"])
@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (keeps, r"^kept was written"),
        (codebook, r"^kept was written"),
        (starts_by_data, r"^first\.weight was written"),
        (remembers, r"^memory was put into the model"),
    ],
)
def test_a_writing_forward_pass_is_refused_and_weights_restored(middle, message, name):
    model = Net(middle)
    optimizer = method(model, name)
    before = flat(model)
    with pytest.raises(DpbenchError, match=message):
        optimizer.step(losses, [data(1)])
    if middle is not starts_by_data:
        assert torch.allclose(flat(model), before, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.BatchNorm1d(6), "mixes the examples"),
        (lambda: nn.BatchNorm1d(6, affine=False, track_running_stats=False), "mixes the examples"),
        (lambda: nn.InstanceNorm1d(6, track_running_stats=True), "keeps statistics"),
        (lambda: nn.Embedding(4, 6, max_norm=1.0), "renormalises"),
        (lambda: nn.Embedding(4, 6, max_norm=1.0).requires_grad_(False), "renormalises"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6)), "power iteration"),
    ],
)
def test_layers_that_mix_or_write_are_refused_before_any_data(layer, message):
    with pytest.raises(DpbenchError, match=message) as error:
        method(Net(layer=layer()))
    assert str(error.value).startswith("layer")
    method(Net(layer=layer()), "mezo")


def test_a_layer_put_into_training_mode_later_is_refused():
    model = Net(layer=nn.InstanceNorm1d(6, track_running_stats=True)).eval()
    optimizer = method(model)
    optimizer.step(losses, [data()])
    model.train()
    with pytest.raises(DpbenchError, match=r"^layer .* keeps statistics"):
        optimizer.step(losses, [data()])


def zero_gated(self, h):
    return h + self.layer.weight[0] * h.roll(1, 0)


@pytest.mark.parametrize(
    "middle",
    [
        lambda self, h: h - h.mean(0),
        lambda self, h: F.batch_norm(h, None, None, training=True),
        lambda self, h: torch.softmax(h @ h.T, -1) @ h,
        lambda self, h: h + 0.1 * h.roll(1, 0),
        zero_gated,
    ],
)
def test_mixed_examples_are_refused_at_the_first_such_batch(middle):
    model = Net(middle, layer=nn.Linear(1, 6, bias=False))
    nn.init.zeros_(model.layer.weight)
    optimizer = method(model)
    before = flat(model)
    optimizer.step(losses, [])
    with pytest.raises(DpbenchError, match="depends on the other examples of its batch"):
        optimizer.step(losses, [data()])
    assert torch.allclose(flat(model), before, rtol=0, atol=1e-7)


def test_after_a_batch_of_one_example_the_next_is_probed():
    optimizer = method(Net(lambda self, h: h - h.mean(0)))
    optimizer.step(losses, [data(1)])
    with pytest.raises(DpbenchError, match="depends on the other examples of its batch"):
        optimizer.step(losses, [data(1), data(3)])


def test_without_privacy_examples_may_mix():
    method(Net(lambda self, h: h - h.mean(0)), "mezo").step(losses, [data()])


@pytest.mark.parametrize("name", ["mezo", "dpzero"])
def test_both_passes_have_one_dropout_mask(name):
    """With two, the difference of two masks, over 2 lambda, would bury the derivative."""

    masks = []

    def masked(self, h):
        masks.append(F.dropout(torch.ones_like(h), 0.5))
        return h * masks[-1]

    torch.manual_seed(3)
    optimizer = method(Net(masked), name, 0.0)
    optimizer._looks = 2  # the look at mixing has masks of its own
    optimizer.step(losses, [data(), data(3)])
    optimizer.step(losses, [data()])
    first, second, third, fourth, fifth, sixth = masks
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert torch.equal(fifth, sixth)
    assert not torch.equal(first, fifth)


def test_slopes_under_dropout_are_those_of_the_masked_network():
    model = Net(lambda self, h: F.dropout(h, 0.5)).double()
    batch = data(8)
    batch["x"] = batch["x"].double()
    optimizer = ZerothOrder("mezo", model, plan(False), 0.0, 1e-5)
    numbers = [torch.zeros_like(p) for p in model.parameters()]
    Directions(numbers, 0).add_(0, 1.0)
    torch.manual_seed(5)
    gradients = torch.autograd.grad(losses(model, batch).sum(), list(model.parameters()))
    exact = sum(float((g * u).sum()) for g, u in zip(gradients, numbers, strict=True)) / 8
    torch.manual_seed(5)
    assert optimizer.step(losses, [batch]).slope == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1, "0.1", None])
def test_a_rate_that_is_none_is_refused_at_once_and_later(rate):
    with pytest.raises(DpbenchError, match=r"^learning rate .* is not a finite number >= 0"):
        method(Net(), rate=rate)
    optimizer = method(Net())
    with pytest.raises(DpbenchError, match=r"^learning rate"):
        optimizer.rate = rate
    assert optimizer.rate == 0.1


@pytest.mark.parametrize("size", [math.nan, math.inf, -1e-3, 0, "1e-3", None])
def test_a_perturbation_that_is_none_is_refused(size):
    with pytest.raises(DpbenchError, match=r"^perturbation .* is not a positive number"):
        method(Net(), perturbation=size)


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(DpbenchError, match="unknown kind of direction 'Sphere'"):
        method(Net(), directions="Sphere")


def test_weights_that_are_no_numbers_are_refused():
    model = Net()
    model.first.weight.data[0, 0] = math.nan
    with pytest.raises(DpbenchError, match="not a finite number"):
        method(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m, b: losses(m, b).mean(), r"^losses (of|have) shape \[\]"),
        (lambda m, b: losses(m, b)[:, None], r"^losses (of|have) shape \[8, 1\]"),
        (lambda m, b: m(b["x"]).flatten(), r"losses"),
        (lambda m, b: losses(m, b).tolist(), r"^losses (of|are) "),
    ],
)
@pytest.mark.parametrize("rows", [[8], [1] * 8])
def test_losses_of_wrong_shape_are_refused_and_weights_restored(wrong, message, rows):
    model = Net()
    before = flat(model)
    with pytest.raises(DpbenchError, match=message if rows == [8] else "loss"):
        method(model).step(wrong, [data(n) for n in rows])
    assert torch.allclose(flat(model), before, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_error_of_the_losses_leaves_the_weights(dtype):
    model = Net().to(dtype)
    before = flat(model)
    optimizer = method(model, "mezo")

    def breaks(model, batch):
        breaks.calls += 1
        if breaks.calls == 2:
            raise KeyError("x")
        return losses(lambda x: model(x.to(dtype)).float(), batch)

    breaks.calls = 0
    with pytest.raises(KeyError):
        optimizer.step(breaks, [data()])
    assert torch.allclose(flat(model).float(), before.float(), rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-7)


def unfreeze(model):
    model.last.requires_grad_(True)


def freeze(model):
    model.first.bias.requires_grad_(False)


def replace(model):
    model.first.weight = nn.Parameter(torch.randn(6, 5))


def move(model):
    model.first.weight.data = torch.randn(6, 5)


def convert(model):
    model.double()


def load(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def add(model):
    model.more = nn.Linear(2, 2)


def take_out(model):
    model.first.bias = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unfreeze, r"^last\.weight is trainable, and was not"),
        (freeze, r"^first\.bias was trainable"),
        (replace, r"^first\.weight is another tensor"),
        (move, r"^first\.weight is another tensor"),
        (convert, r"^first\.weight is another tensor"),
        (load, r"^first\.weight is another tensor"),
        (add, r"^more\.weight is trainable, and was not"),
        (take_out, r"^first\.bias was trainable"),
    ],
)
@pytest.mark.parametrize("name", ["mezo", "dpzero"])
def test_another_trained_set_is_refused_by_name(change, message, name):
    model = Net()
    model.last.requires_grad_(False)
    optimizer = method(model, name)
    optimizer.step(losses, [data()])
    change(model)
    with pytest.raises(DpbenchError, match=message):
        optimizer.step(losses, [data()])


def test_weights_set_in_place_go_on():
    model = Net()
    optimizer = method(model)
    optimizer.step(losses, [data()])
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    with torch.no_grad():
        model.first.weight.mul_(0.5)
    optimizer.step(losses, [data()])


def test_steps_end_with_the_mechanism():
    optimizer = ZerothOrder("dpzero", Net(), plan(noise=1.0, steps=2), 0.1)
    optimizer.step(losses, [data()])
    optimizer.step(losses, [])
    with pytest.raises(DpbenchError, match="step 3 of a mechanism of 2 steps"):
        optimizer.step(losses, [data()])


def test_weights_that_cannot_be_moved_are_refused():
    model = Net(layer=nn.LazyLinear(3))
    with pytest.raises(DpbenchError, match=r"^layer\.weight has no shape yet"):
        method(model)
    model = Net(layer=nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(DpbenchError, match=r"^layer\.weight \(complex64\) cannot be moved"):
        method(model)


@pytest.mark.parametrize("physical", [[8], [1] * 8, [3, 5]])
def test_removing_an_example_moves_the_slope_within_the_bound(physical):
    """Of what is accepted; physical batches of one example cannot mix, whatever the model does with them."""
    batch = data(8)
    sums = []
    for rows in (list(range(8)), list(range(7))):
        parts = torch.tensor(rows).split(physical if sum(physical) == len(rows) else [1] * len(rows))
        step = method(Net().double(), rate=0.0).step(
            losses, [{"x": batch["x"][part].double(), "y": batch["y"][part]} for part in parts]
        )
        sums.append(step.slope * 8)
    assert abs(sums[0] - sums[1]) <= BOUND * (1 + 1e-9)
