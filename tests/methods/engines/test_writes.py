"""What a forward pass writes into a model is found and named."""

from collections import deque
from types import SimpleNamespace

import pytest
import torch
from probed import Net, data, losses
from torch import nn
from torch.nn import functional as F

from dpbench.errors import DpbenchError
from dpbench.methods.engines.writes import StateWatch, check_no_known_writer


def used(model, times=1):
    watch = StateWatch(model)
    for _ in range(times):
        with watch:
            losses(model, data())
    return watch


def keeps_by_data(self, h):
    self.mean.data.mul_(0.9).add_(h.detach().mean(0), alpha=0.1)
    return h


def keeps_in_place(self, h):
    with torch.no_grad():
        self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
    return h


def replaces(self, h):
    self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
    return h


def swaps_storage(self, h):
    self.mean.data = h.detach().mean(0)
    return h


def scales_a_weight(self, h):
    self.last.weight.data[0, 0] += h.detach().mean()
    return h


def registers(self, h):
    self.register_buffer("seen", h.detach().mean(0))
    return h


def in_attribute(self, h):
    self.plain += h.detach().mean(0)
    return h


def in_list(self, h):
    self.plain.append(h.detach())
    return h


def in_namespace(self, h):
    self.plain.inside = h.detach().mean(0)
    return h


def counts(self, h):
    self.plain += 1
    return h


@pytest.mark.parametrize(
    ("middle", "state", "name"),
    [
        (keeps_by_data, {}, "mean"),
        (keeps_in_place, {}, "mean"),
        (replaces, {}, "mean"),
        (swaps_storage, {}, "mean"),
        (scales_a_weight, {}, r"last\.weight"),
        (registers, {}, "seen"),
        (in_attribute, {"plain": torch.zeros(6)}, "plain"),
        (in_attribute, {"plain": torch.zeros(6, dtype=torch.bfloat16).expand(6).clone()}, "plain"),
        (in_list, {"plain": []}, r"plain\.0"),
        (in_list, {"plain": deque(maxlen=3)}, r"plain\.0"),
        (in_namespace, {"plain": SimpleNamespace(inside=torch.zeros(6))}, r"plain\.inside"),
        (counts, {"plain": torch.zeros((), dtype=torch.int64)}, "plain"),
    ],
)
def test_a_tensor_that_the_forward_pass_writes_is_named(middle, state, name):
    with pytest.raises(DpbenchError, match=f"^{name} "):
        used(Net(middle, **state))


@pytest.mark.parametrize("middle", [keeps_in_place, replaces, swaps_storage, scales_a_weight, registers])
def test_what_is_written_in_a_later_pass_is_found(middle):
    def later(self, h):
        self.calls += 1
        return middle(self, h) if self.calls == 8 else h

    model = Net(later, calls=0)
    used(model, 0)
    watch = used(model, 7)
    with pytest.raises(DpbenchError, match="forward pass"), watch:
        losses(model, data())


@pytest.mark.parametrize("middle", [keeps_in_place, replaces, swaps_storage, registers])
def test_passes_between_looks_at_values_notice_most_writes(middle):
    def later(self, h):
        self.calls += 1
        return middle(self, h) if self.calls == 3 else h

    model = Net(later, calls=0)
    watch = used(model, 2)
    with pytest.raises(DpbenchError, match="forward pass"), watch:
        losses(model, data())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("middle", [keeps_by_data, keeps_in_place, replaces])
def test_writes_without_autograd_are_found(mode, middle):
    with pytest.raises(DpbenchError, match=r"^mean was written"), mode():
        used(Net(middle))


def writers():
    def with_spectral_norm():
        return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)))

    def with_old_spectral_norm():
        return nn.Sequential(nn.utils.spectral_norm(nn.Linear(5, 3)))

    return {
        "batch norm": lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)),
        "instance norm": lambda: nn.Sequential(
            nn.Unflatten(1, (5, 1)), nn.ConvTranspose1d(5, 5, 3), nn.InstanceNorm1d(5, track_running_stats=True), nn.Flatten()
        ),
        "spectral norm": with_spectral_norm,
        "old spectral norm": with_old_spectral_norm,
    }


@pytest.mark.parametrize("name", writers())
def test_torchs_writers_are_refused_in_training_mode_alone(name):
    model = writers()[name]()
    with pytest.raises(DpbenchError, match=r"\) (keeps|moves) "):
        check_no_known_writer(model)
    with torch.no_grad():  # or the vectors of spectral norm are where they go
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    watch = StateWatch(model)
    with pytest.raises(DpbenchError, match="was written by the forward pass"), watch:
        model(data()["x"])
    model.eval()
    check_no_known_writer(model)
    for _ in range(3):
        with watch:
            model(data()["x"])


@pytest.mark.parametrize("frozen", [True, False])
def test_an_embedding_with_max_norm_is_refused_trained_or_frozen(frozen):
    model = nn.Sequential(nn.Embedding(7, 3, max_norm=0.5)).requires_grad_(not frozen)
    with pytest.raises(DpbenchError, match=r"^0 \(Embedding\) renormalises its weight"):
        check_no_known_writer(model)
    with pytest.raises(DpbenchError, match=r"^0\.weight was written"), StateWatch(model):
        model(torch.tensor([1, 2]))


def test_what_changes_between_passes_is_no_write():
    model = Net()
    watch = StateWatch(model)
    for step in range(9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * step)
        model.mean = torch.ones(6) * step
        with watch:
            losses(model, data())


def rewrites_the_same(self, h):
    self.mean.zero_()
    return h


def moves_the_same(self, h):
    self.mean = self.mean.clone()
    return h


def draws(self, h):
    self.calls = getattr(self, "calls", 0) + 1
    return F.dropout(h, 0.5)


@pytest.mark.parametrize("middle", [rewrites_the_same, moves_the_same, draws])
def test_equal_values_counters_and_random_states_are_no_write(middle):
    used(Net(middle), 10)


def test_hooks_that_make_a_weight_of_parameters_are_no_write():
    with pytest.warns(FutureWarning):
        model = Net(named=nn.utils.weight_norm(nn.Linear(6, 6)), middle=lambda self, h: self.named(h))
    nn.utils.prune.l1_unstructured(model.last, "weight", 0.5)
    watch = used(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    with watch:
        losses(model, data())


def test_an_error_of_the_pass_is_left_alone():
    model = Net(lambda self, h: keeps_in_place(self, h) / 0 @ h)
    with pytest.raises(RuntimeError, match="mat1"), StateWatch(model):
        losses(model, data())
    assert bool(model.mean.any())


def test_tensors_without_values_and_of_odd_kinds_are_taken():
    model = Net(
        sparse=torch.eye(3).to_sparse(),
        small=torch.ones(11, dtype=torch.int8)[1:4],
        turned=torch.ones(3, 4).T,
        none=torch.empty(0, 3),
        complex=torch.ones(3, dtype=torch.complex64).conj(),
        eighth=torch.ones(5).to(torch.float8_e4m3fn),
        nowhere=torch.empty(5, device="meta"),
    )
    used(model, 2)
    with torch.inference_mode():
        model.kept = torch.ones(3)
    used(model, 2)
    model.middle = lambda self, h: (self.small.data.add_(1), h)[1]
    with pytest.raises(DpbenchError, match=r"^small was written"):
        used(model)


def test_fake_and_meta_models_are_watched_without_values():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = Net()
        used(model, 2)
        with pytest.raises(DpbenchError, match=r"^mean was written"):
            used(Net(keeps_in_place))
    model = Net().to("meta")
    with StateWatch(model):
        model(torch.empty(4, 5, device="meta"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.uint8, torch.bool])
@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_single_changed_bit_is_seen_wherever_it_is(dtype, at):
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(200_001, dtype=dtype))
    bytes_of = model.kept.data.view(torch.uint8)
    with pytest.raises(DpbenchError, match=r"^kept was written"), StateWatch(model):
        bytes_of[at] = 1


def test_values_that_change_places_are_seen():
    model = nn.Module()
    model.register_buffer("kept", torch.arange(100_000.0))
    with pytest.raises(DpbenchError, match=r"^kept was written"), StateWatch(model):
        model.kept.data.copy_(model.kept.flip(0))
