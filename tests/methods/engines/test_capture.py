"""What hooks miss is formed exactly or refused by name: each kind of model against one plain backward pass an example in fp64."""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import BatchEncoding

from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.engines import rescue
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

CAPTURED = [
    ("ghost", "flat"),
    ("bookkeeping", "flat"),
    ("bookkeeping", "per_layer"),
    ("fused", "per_layer"),
    ("fused", "per_tensor"),
]
EVERY = [("loop", "flat"), ("vmap", "flat"), *CAPTURED]
BOUND, WIDTH, CLASSES = 0.3, 6, 4


def attach(name, scope, model, function="abadi", noise_multiplier=0.0, steps=10):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plan = Mechanism(Sampling("poisson", 1000, 4.0), steps, Clipping(function, scope, BOUND), noise_multiplier)
    return engines.attach(name, model, optimizer, plan), optimizer


def released(name, scope, model, losses, pieces, function="abadi"):
    """name -> the noiseless sum that a step on a copy of the model releases."""
    model = copy.deepcopy(model)
    handle, optimizer = attach(name, scope, model, function)
    for piece in pieces:
        handle.backward(losses, piece)
    optimizer.step()
    handle.detach()
    return {n: p.grad.double() * 4.0 for n, p in model.named_parameters() if p.requires_grad}


def released_or_refused(name, scope, model, losses, batch):
    """(what a step releases, None), or (None, the error that refuses the model)."""
    try:
        return released(name, scope, model, losses, [batch]), None
    except DpbenchError as refusal:
        return None, refusal


def groups_of(model, scope):
    """Tensors that share a norm, by a rule of this file."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if scope == "flat":
        return [trained]
    if scope == "per_tensor":
        return [[p] for p in trained]
    taken: set[int] = set()
    groups = []
    for module in model.modules():
        group = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in taken]
        taken |= {id(p) for p in group}
        groups += [group] if group else []
    return groups


def clipped_by_hand(scope, model, losses, examples):
    """name -> sum of the clipped gradients of `examples`, each a batch of one, by plain autograd in fp64."""
    model = copy.deepcopy(model).double()
    groups = groups_of(model, scope)
    sums = {id(p): torch.zeros_like(p) for p in model.parameters()}
    for example in examples:
        model.zero_grad()
        losses(model, example).sum().backward()
        for group in groups:
            gradients = {id(p): p.grad for p in group if p.grad is not None}
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
            for key, gradient in gradients.items():
                sums[key] += gradient * min(1.0, BOUND / math.sqrt(len(groups)) / norm if norm else 1.0)
    return {n: sums[id(p)] for n, p in model.named_parameters() if p.requires_grad}


def distance(sums, expected):
    apart = sum(float((sums[n] - v).square().sum()) for n, v in expected.items())
    return math.sqrt(apart / sum(float(v.square().sum()) for v in expected.values()))


def rows(batch):
    return [{k: v[i : i + 1].double() if v.is_floating_point() else v[i : i + 1] for k, v in batch.items()} for i in range(5)]


def batch_of(tokens=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": 2 * torch.randn(5, tokens, WIDTH, generator=generator),
        "y": torch.randint(0, CLASSES, (5,), generator=generator),
    }


def class_losses(model, batch):
    return F.cross_entropy(model(batch["x"]).mean(1), batch["y"], reduction="none")


class Net(nn.Module):
    """A layer before, a layer behind, and between them what a test puts there."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.build()

    def build(self):
        """Modules and parameters of its own."""

    def middle(self, x):
        return x

    def forward(self, x):
        return self.head(self.middle(torch.tanh(self.first(x))))


class WeightByOperator(Net):
    def build(self):
        self.table = nn.Linear(WIDTH, WIDTH, bias=False)

    def middle(self, x):
        return x @ self.table.weight.T + self.table(x)


class ParameterOfTheModel(Net):
    def build(self):
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def middle(self, x):
        return x * self.scale


class ListOfParameters(Net):
    def build(self):
        self.prompts = nn.ParameterList([nn.Parameter(torch.randn(2, WIDTH)) for _ in range(2)])

    def middle(self, x):
        return torch.cat([p.expand(len(x), -1, -1) for p in self.prompts] + [x], 1)


class DictOnABranch(Net):
    def build(self):
        self.scales, self.side = nn.ParameterDict({"a": nn.Parameter(torch.rand(WIDTH))}), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)) + self.side(x * self.scales["a"]))


class InPlace(Net):
    def build(self):
        self.up = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h = self.first(x)
        F.relu_(h)
        h = self.up(h)
        h += x  # the output of a layer over tokens is a view
        h[:, 0] = 0.0
        return self.head(h.masked_fill_(x > 2, 0.0))


class OldWeightNorm(Net):
    def build(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.normed = nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))

    def middle(self, x):
        return self.normed(x)

    def __deepcopy__(self, memo):
        other = type(self)()
        other.load_state_dict(self.state_dict())
        return other


class NewWeightNorm(OldWeightNorm):
    def build(self):
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))


class ForwardOfAnInstance(Net):
    def build(self):
        self.odd = nn.Linear(WIDTH, WIDTH)
        self.odd.forward = lambda x, layer=self.odd: torch.sin(x) @ layer.weight.T + layer.bias

    def middle(self, x):
        return self.odd(x)

    def __deepcopy__(self, memo):
        return OldWeightNorm.__deepcopy__(self, memo)


class OutProjection(Net):
    """torch's attention never calls its last layer."""

    def build(self):
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        for name, parameter in self.attention.named_parameters():
            parameter.requires_grad_(name.startswith("out_proj"))

    def middle(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Table(nn.Module):
    """A leaf with arguments of both kinds: a condition [B, D] and a table [T, D] that all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x, condition, table):
        return x * self.scale * condition[:, None] + torch.tanh(self.scale * table)


class TwoArguments(Net):
    def build(self):
        self.conditioned = Table()
        self.register_buffer("table", torch.randn(5, WIDTH))

    def middle(self, x):
        return self.conditioned(x, x.mean(1), self.table[: x.shape[1]])


class Checkpointed(Net):
    reentrant = False

    def build(self):
        self.up = nn.Linear(WIDTH, WIDTH)

    def middle(self, x):
        return checkpoint(lambda h: torch.tanh(self.up(h)), x, use_reentrant=self.reentrant)


class PartsByHand(Net):
    """The losses do not call the model."""


def losses_by_hand(model, batch):
    hidden = torch.tanh(model.first(batch["x"]))
    return F.cross_entropy(model.head(hidden).mean(1), batch["y"], reduction="none") + 0.1 * model.first.bias.square().sum()


EXACT = [
    WeightByOperator,
    ParameterOfTheModel,
    ListOfParameters,
    DictOnABranch,
    InPlace,
    OldWeightNorm,
    NewWeightNorm,
    ForwardOfAnInstance,
    TwoArguments,
    Checkpointed,
]
OR_REFUSED = [OutProjection]


@pytest.mark.filterwarnings("ignore:engine .* has no rule for")
@pytest.mark.parametrize(("name", "scope"), EVERY)
@pytest.mark.parametrize("kind", EXACT + OR_REFUSED, ids=lambda kind: kind.__name__)
def test_what_hooks_miss_is_exact_or_refused(kind, name, scope):
    model, batch = kind(), batch_of(5)  # T = B
    sums, refusal = released_or_refused(name, scope, model, class_losses, batch)
    if refusal is not None:
        assert refusal.hint
        assert kind in OR_REFUSED or (name == "vmap" and "cannot trace" in refusal.what)
        return
    assert distance(sums, clipped_by_hand(scope, model, class_losses, rows(batch))) < 2e-6


@pytest.mark.filterwarnings("ignore:engine .* has no rule for")
@pytest.mark.parametrize(("name", "scope"), EVERY)
def test_losses_may_call_parts_of_the_model_or_are_refused(name, scope):
    model, batch = PartsByHand(), batch_of()
    sums, refusal = released_or_refused(name, scope, model, losses_by_hand, batch)
    if refusal is not None:
        assert (name, scope) in CAPTURED  # a tensor that the losses themselves use is inside no module's call
        assert "first.bias is used outside the call of first" in refusal.what
        return
    assert distance(sums, clipped_by_hand(scope, model, losses_by_hand, rows(batch))) < 2e-6


def mixed(kind):
    def losses(model, batch):
        h = torch.tanh(model.first(batch["x"][:, 0]))
        if kind == "batch norm":
            h = F.batch_norm(h, None, None, training=True)
        if kind == "centred":
            h = h - h.mean(0)
        if kind == "attention over the batch":
            h = torch.softmax(h @ h.T, -1) @ h
        out = model.head(h)
        if kind == "negatives":
            return F.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none")
        if kind == "centred losses":
            values = F.cross_entropy(out, batch["y"], reduction="none")
            return values - values.mean()
        return F.cross_entropy(out, batch["y"], reduction="none")

    return losses


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
@pytest.mark.parametrize("kind", ["batch norm", "centred", "attention over the batch", "negatives", "centred losses"])
def test_examples_that_mix_are_refused(kind, name, scope):
    with pytest.raises(DpbenchError, match=r"other (rows|examples)"):
        released(name, scope, Net(), mixed(kind), [batch_of()])


def test_centred_inputs_of_the_first_layer_are_refused():
    def losses(model, batch):
        x = batch["x"] - batch["x"].mean(0)
        return F.cross_entropy(model(x).mean(1), batch["y"], reduction="none")

    with pytest.raises(DpbenchError, match="other examples"):
        released("fused", "per_layer", Net(), losses, [batch_of()])


class Positions(Net):
    def build(self):
        self.where = nn.Embedding(9, WIDTH)

    def middle(self, x):
        return x + self.where(torch.arange(x.shape[1]))


class SequenceFirst(Net):
    def build(self):
        self.up = nn.Linear(WIDTH, WIDTH)

    def middle(self, x):
        return self.up(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("tokens", [3, 4, 5])
@pytest.mark.parametrize(("name", "scope"), CAPTURED)
@pytest.mark.parametrize("kind", [Positions, SequenceFirst])
def test_another_dimension_first_is_refused_whatever_its_length(kind, name, scope, tokens):
    with pytest.raises(DpbenchError, match=r"where|up"):
        released(name, scope, kind(), class_losses, [batch_of(tokens)])


def test_a_model_is_looked_at_again_when_its_modes_change():
    class Changing(Net):
        def middle(self, x):
            return x - x.mean(0) if self.training else x

    model = Changing().eval()
    handle, _ = attach("fused", "per_layer", model)
    handle.backward(class_losses, batch_of())
    model.train()
    with pytest.raises(DpbenchError, match=r"other (rows|examples)"):
        handle.backward(class_losses, batch_of())


@pytest.mark.parametrize(("name", "scope"), EVERY)
def test_the_trained_set_is_watched(name, scope):
    model = Net()
    model.head.requires_grad_(False)
    handle, optimizer = attach(name, scope, model)
    handle.backward(class_losses, batch_of())
    model.head.requires_grad_(True)
    with pytest.raises(DpbenchError, match=r"head\.weight is trained now"):
        handle.backward(class_losses, batch_of())
    with pytest.raises(DpbenchError, match=r"head\.weight is trained now"):
        optimizer.step()
    model.head.requires_grad_(False)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(DpbenchError, match="was added to the optimizer"):
        optimizer.step()


def test_a_tensor_replaced_after_attaching_is_refused():
    model = Net()
    handle, _ = attach("ghost", "flat", model)
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(DpbenchError, match=r"head\.weight"):
        handle.backward(class_losses, batch_of())


@pytest.mark.parametrize(("name", "scope"), EVERY)
@pytest.mark.parametrize("kind", ["unused", "behind a detach"])
def test_a_tensor_that_no_loss_reaches_is_named(kind, name, scope):
    class Extra(Net):
        def build(self):
            self.extra = nn.Linear(WIDTH, WIDTH)

        def middle(self, x):
            return x + self.extra(x).detach() if kind == "behind a detach" else x

    handle, optimizer = attach(name, scope, Extra(), noise_multiplier=1.0)
    handle.backward(class_losses, batch_of())
    with pytest.raises(DpbenchError, match=r"no loss depends on extra\.weight"):
        optimizer.step()


def test_reentrant_checkpoints_are_refused_with_the_way_out():
    class Reentrant(Checkpointed):
        reentrant = True

    with pytest.raises(DpbenchError) as refusal:
        released("bookkeeping", "flat", Reentrant(), class_losses, [batch_of()])
    assert "use_reentrant=False" in refusal.value.hint


Row = namedtuple("Row", ["x", "y"])


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    temperature: torch.Tensor = dataclasses.field(default_factory=lambda: torch.tensor(1.0))


CONTAINERS = {
    "tuple": lambda b: (b["x"], b["y"]),
    "named tuple": lambda b: Row(b["x"], b["y"]),
    "dataclass": lambda b: Batch(b["x"], b["y"]),
    "BatchEncoding": lambda b: BatchEncoding(b),
    "with a 0-d tensor first": lambda b: {"t": torch.tensor(1.0), **b},
    "nested": lambda b: {"inputs": [b["x"]], "y": b["y"]},
    "with words": lambda b: {**b, "words": list("abcde")},
}


def container_losses(model, batch):
    if isinstance(batch, tuple):
        x, y = batch
    elif isinstance(batch, Batch):
        x, y = batch.x, batch.y
    else:
        x, y = batch["inputs"][0] if "inputs" in batch else batch["x"], batch["y"]
        assert len(batch.get("words", y)) in (len(y), 5)
    return F.cross_entropy(model(x).mean(1), y, reduction="none")


@pytest.mark.parametrize(("name", "scope"), EVERY)
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_with_a_bad_example_and_an_empty_piece(container, name, scope):
    if container == "with words" and name == "vmap":
        pytest.skip("words cannot be picked inside torch.func")
    wrap, batch, model = CONTAINERS[container], batch_of(), Net()
    batch["x"][2] = math.nan
    empty = {k: v[:0] for k, v in batch.items()}
    expected = clipped_by_hand(scope, model, class_losses, [r for i, r in enumerate(rows(batch)) if i != 2])
    pieces = [wrap(batch)] if container == "with words" else [wrap(empty), wrap(batch), wrap(empty)]
    assert distance(released(name, scope, model, container_losses, pieces), expected) < 2e-6


@pytest.mark.parametrize(("name", "scope"), EVERY)
@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-25])
def test_a_finite_gradient_is_clipped_whatever_its_size(scale, name, scope):
    """Squares of these gradients are beyond float32."""
    factor = torch.tensor([1.0, scale, 1.0, scale, 1.0])

    def losses(model, batch):
        return class_losses(model, batch) * batch["w"]

    model, batch = Net(), {**batch_of(), "w": factor}
    sums = released(name, scope, model, losses, [batch])
    assert distance(sums, clipped_by_hand(scope, model, losses, rows(batch))) < 1e-5


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
@pytest.mark.parametrize("changed", [False, True])
def test_norms_in_flight_from_a_device_arrive_with_the_step(changed, name, scope, monkeypatch):
    """As on a device: two physical batches later, or in the step; a batch that was overwritten since leaves its example out."""
    monkeypatch.setattr(rescue._Doubt, "on_its_way", property(lambda _: True, lambda *_: None), raising=False)

    def losses(model, batch):
        return class_losses(model, batch) * batch["w"]

    model = Net()
    handle, optimizer = attach(name, scope, model)
    batch = {**batch_of(), "w": torch.tensor([1e20, 1.0, 1.0, 1.0, 1e20])}
    expected = clipped_by_hand(scope, model, losses, rows(batch)[: 4 if changed else 5])
    pieces = [{k: v[i : i + 1].clone() for k, v in batch.items()} for i in range(5)]
    for piece in pieces:
        handle.backward(losses, piece)
    if changed:
        pieces[-1]["w"].fill_(2.0)
    optimizer.step()
    gradients_by_name = {name: p.grad.double() * 4 for name, p in model.named_parameters() if p.grad is not None}
    assert distance(gradients_by_name, expected) < 1e-5
    assert handle.non_finite_examples == changed


class Sorted(Net):
    """Examples go through a layer in the order of their means, and back to their places behind it."""

    def build(self):
        self.between = nn.Linear(WIDTH, WIDTH)

    def order(self, x):
        return x.detach().mean((1, 2)).argsort()

    def middle(self, x):
        order = self.order(x)
        return self.between(x[order])[order.argsort()]


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
def test_rows_that_change_places_are_seen_in_whichever_batch(name, scope):
    model, batch = Sorted(), batch_of()
    order = model.order(torch.tanh(model.first(batch["x"])))
    in_order = {key: value[order] for key, value in batch.items()}
    handle, _ = attach(name, scope, model)
    handle.backward(class_losses, in_order)
    last_two = {key: value[[0, 1, 2, 4, 3]] for key, value in in_order.items()}
    with pytest.raises(DpbenchError, match=r"a row of the output of between belongs to another example"):
        handle.backward(class_losses, last_two)


def test_rows_that_keep_their_places_are_no_fault():
    """As where a model is made of slices of the batch, or picks a token of each example."""

    class Slices(Net):
        def middle(self, x):
            x = torch.cat([x[:2], x[2:]])
            return x[torch.arange(len(x)), x.detach().sum(2).argmax(1)][:, None]

    model, batch = Slices(), batch_of()
    expected = clipped_by_hand("flat", model, class_losses, rows(batch))
    assert distance(released("bookkeeping", "flat", model, class_losses, [batch]), expected) < 1e-5


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
def test_a_first_example_that_is_not_finite_hides_nothing(name, scope):
    """Its gradients say nothing of what is captured; those of the others do."""

    class UsedElsewhere(Net):
        def build(self):
            self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
            self.other.weight = self.one.weight

        def middle(self, x):
            return torch.tanh(self.one(x)) * self.other.bias

    model, batch = UsedElsewhere(), batch_of()
    batch["x"][0] = math.inf
    sums, refusal = released_or_refused(name, scope, model, class_losses, batch)
    expected = clipped_by_hand(scope, model, class_losses, rows(batch)[1:])
    assert refusal is not None or distance(sums, expected) < 1e-5


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
def test_mixed_examples_are_found_beside_a_non_finite_one(name, scope):
    class Centred(Net):
        def middle(self, x):
            return x - x.mean(0)

    batch = {key: value[:2] for key, value in batch_of().items()} | {"w": torch.tensor([math.nan, 1.0])}
    handle, _ = attach(name, scope, Centred())
    with pytest.raises(DpbenchError, match="of an example depends on"):
        handle.backward(lambda model, b: class_losses(model, b) * b["w"], batch)


@pytest.mark.parametrize(("name", "scope"), CAPTURED)
def test_losses_of_no_trained_layer_are_refused(name, scope):
    handle, _ = attach(name, scope, Net())
    with pytest.raises(DpbenchError, match="do not depend on any trained layer"):
        handle.backward(lambda model, batch: batch["x"].mean((1, 2)), batch_of())


def test_a_closure_that_calls_backward_is_in_its_step():
    model = Net()
    handle, optimizer = attach("fused", "per_layer", model)
    expected = released("fused", "per_layer", model, class_losses, [batch_of()])
    optimizer.step(lambda: handle.backward(class_losses, batch_of()).mean())
    assert torch.equal(model.head.weight.grad.double() * 4, expected["head.weight"])


def test_a_grad_scaler_is_refused():
    handle, optimizer = attach("fused", "per_layer", Net())
    scaler = torch.amp.GradScaler("cpu")
    handle.backward(lambda m, b: scaler.scale(class_losses(m, b)), batch_of())
    with pytest.raises(DpbenchError, match="GradScaler"):
        scaler.step(optimizer)


def test_gradients_of_zero_are_no_gradients_from_outside():
    handle, optimizer = attach("fused", "per_layer", Net())
    for _ in range(3):
        handle.backward(class_losses, batch_of())
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    assert handle.steps == 3


def test_a_second_handle_on_one_optimizer_is_refused():
    model = Net()
    handle, optimizer = attach("fused", "per_layer", model)
    with pytest.raises(DpbenchError, match="attached to this optimizer already"):
        engines.attach("ghost", model, optimizer, Mechanism(Sampling("poisson", 1000, 4.0), 10, Clipping(bound=BOUND), 0.0))
    handle.detach()


def test_layers_without_hooks_or_shapes_are_refused():
    scripted = nn.Sequential(torch.jit.script(nn.Linear(WIDTH, WIDTH)), nn.Linear(WIDTH, CLASSES))
    with pytest.raises(DpbenchError, match="TorchScript"):
        attach("fused", "per_layer", scripted)
    with pytest.raises(DpbenchError, match=r"0\.weight has no shape yet"):
        attach("loop", "flat", nn.Sequential(nn.LazyLinear(3)))


def test_looking_leaves_random_streams_as_they_were():
    model = Net()
    model.first = nn.Sequential(model.first, nn.Dropout(0.5))
    seen = []
    for examined in (False, True):
        torch.manual_seed(1)
        handle, _ = attach("fused", "per_layer", copy.deepcopy(model).train())
        if not examined:
            handle._has_values = False
        seen.append(handle.backward(class_losses, batch_of()))
    assert torch.equal(*seen)


@pytest.mark.parametrize(("name", "scope"), EVERY)
def test_a_private_step_without_finite_examples_is_noise(name, scope):
    """An abort would tell of private data: the same bits are released as for an empty batch."""
    steps = []
    for bad in (True, False):
        model = Net()
        handle, optimizer = attach(name, scope, model, noise_multiplier=1.0)
        if bad:
            handle.backward(class_losses, batch_of() | {"x": torch.full((5, 3, WIDTH), math.nan)})
        optimizer.step()
        steps.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*steps)
