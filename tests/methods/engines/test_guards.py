"""What stops a run, and planted faults that must be caught."""

from __future__ import annotations

import pytest
import torch
from small_models import Language, data, gradients, losses, mechanism, plain, relative
from torch import nn

from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.engines.base import Handle


def attach(model, plan=None, name="fused", parameters=None, lr=0.1):
    optimizer = torch.optim.SGD(parameters or model.parameters(), lr=lr)
    return engines.attach(name, model, optimizer, plan or mechanism("per_layer")), optimizer


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(DpbenchError, match="did you mean 'bookkeeping'"):
        attach(Language(), name="bookeeping")


def test_a_tensor_that_does_not_move_stops():
    model = Language().to(torch.bfloat16)
    handle, optimizer = attach(model, mechanism("per_layer", noise_multiplier=1e-3), lr=1e-9)
    handle.backward(losses, data(3))
    with pytest.raises(DpbenchError, match="has not moved"):
        optimizer.step()


def test_learning_rate_zero_is_not_a_fault():
    handle, optimizer = attach(Language(), mechanism("per_layer", noise_multiplier=1.0), lr=0.0)
    handle.backward(losses, data(3))
    optimizer.step()
    assert handle.steps == 1


def test_a_gradient_from_outside_is_unprotected_and_stops():
    model = Language()
    _, optimizer = attach(model)
    losses(model, data(3)).sum().backward()
    with pytest.raises(DpbenchError, match="from outside the engine"):
        optimizer.step()


def test_a_trainable_tensor_missing_from_the_optimizer_stops():
    model = Language()
    with pytest.raises(DpbenchError, match=r"head\.weight is trainable but not in the optimizer"):
        attach(model, parameters=[p for n, p in model.named_parameters() if n != "head.weight"])


def test_an_optimizer_with_somebody_elses_tensors_stops():
    with pytest.raises(DpbenchError, match="not the model's"):
        attach(Language(), parameters=[*Language().parameters()])


class Loose(nn.Module):
    """A parameter that belongs to a module with modules inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.inner = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x) * self.scale


def summed(model, batch):
    return model(batch).square().sum(1)


@pytest.mark.parametrize(("name", "scope"), [("fused", "per_layer"), ("bookkeeping", "flat"), ("ghost", "flat")])
def test_a_parameter_beside_modules_is_clipped_as_by_the_loop(name, scope):
    batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected, _ = gradients("loop", Loose(), mechanism(scope, bound=0.1), [batch], loss=summed, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"no rule for the parameters of \(model\).*one example at a time"):
        released_sum, handle = gradients(name, Loose(), mechanism(scope, bound=0.1), [batch], loss=summed)
    assert handle.unprotected == []
    assert relative(released_sum, expected) < 1e-5


def test_the_loop_protects_what_has_no_leaf():
    actual, handle = gradients(
        "loop", Loose(), mechanism("flat", bound=0.1), [torch.randn(4, 3)], loss=lambda m, x: m(x).square().sum(1)
    )
    assert handle.unprotected == []
    assert float(actual.norm()) <= 0.1 + 1e-6


def test_batch_norm_is_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(DpbenchError, match=r"1 \(BatchNorm1d\) mixes the examples"):
        attach(model)


def test_a_loss_averaged_over_the_batch_is_refused():
    handle, _ = attach(Language())
    with pytest.raises(DpbenchError, match="one value an example"):
        handle.backward(lambda m, b: losses(m, b).mean(), data(3))


def test_an_input_without_the_batch_first_is_refused():
    class Broadcast(Language):
        def forward(self, ids):
            return super().forward(ids) + self.head(self.embed(torch.arange(ids.shape[1])[None]))

    handle, _ = attach(Broadcast())
    with pytest.raises(DpbenchError, match=r"head: its input is \[1, 5, 8\], the batch has 3 examples"):
        handle.backward(losses, data(3))


def test_an_input_changed_in_place_is_refused():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            y = self.first(x)
            z = self.second(y.detach().clone().requires_grad_())
            x.add_(1.0)
            return y + z

    handle, _ = attach(InPlace())
    with pytest.raises(DpbenchError, match="changed in place"):
        handle.backward(lambda m, b: m(b).square().sum(1), torch.randn(4, 3))


def test_scopes_and_functions_an_engine_lacks_are_errors():
    with pytest.raises(DpbenchError, match="does not do flat"):
        attach(Language(), mechanism("flat"), "fused")
    with pytest.raises(DpbenchError, match="does not do auto_s"):
        attach(Language(), mechanism("flat", "auto_s"), "opacus")
    with pytest.raises(DpbenchError, match="does not clip"):
        attach(Language(), mechanism("flat"), "nonprivate")


# Planted faults: an engine with one thing wrong must fail the check that stands for it.


def released(engine_class, plan, batches):
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engine_class(model, optimizer, plan)
    for batch in batches:
        handle.backward(losses, batch)
    optimizer.step()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()]), handle


def fused():
    from dpbench.methods.engines.fused import Engine

    return Engine


def test_planted_clip_after_averaging_breaks_parity():
    class Averaged(fused()):
        def backward(self, losses, batch):
            size = len(batch["ids"])
            return super().backward(lambda m, b: losses(m, b) / size, batch)

    plan = mechanism("per_layer", bound=0.3)
    expected, _ = gradients("loop", Language(), plan, [data(6)], dtype=torch.float64)
    actual, _ = released(Averaged, plan, [data(6)])
    assert relative(actual, expected) > 1e-2


def test_planted_missing_noise_is_seen():
    class Silent(fused()):
        def _release(self):
            self.noise_stds = {}
            super()._release()

    plan = mechanism("per_layer", noise_multiplier=1.0)
    released(fused(), plan, [])
    with pytest.raises(DpbenchError, match="has not moved"):
        released(Silent, plan, [])


def test_planted_wrong_noise_scale_is_seen():
    """FLASH-1: each group's noise scaled by its own bound, not by the sensitivity of all of them."""

    class Own(fused()):
        def _set_noise(self):
            super()._set_noise()
            self.noise_stds = {k: self.mechanism.noise_multiplier * self.bounds[0] for k in self.noise_stds}

    plan = mechanism("per_layer", noise_multiplier=1.0)
    released_noise, handle = released(Own, plan, [])
    expected_std = handle.sensitivity / plan.sampling.expected_batch_size
    assert float(released_noise.std()) < 0.7 * expected_std
    assert float(released(fused(), plan, [])[0].std()) == pytest.approx(expected_std, rel=0.15)


def test_planted_unprotected_tensor_is_seen():
    class Leaky(fused()):
        def _set_noise(self):
            super()._set_noise()
            del self.noise_stds[id(self.model.head.weight)]

    model = Language()
    leaky = Leaky(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism("per_layer"))
    assert leaky.unprotected == ["head.weight"]
    leaky.detach()


def test_the_base_class_does_not_accumulate():
    model = Language()
    handle = Handle(model, torch.optim.SGD(model.parameters(), lr=0.1), plain())
    with pytest.raises(NotImplementedError):
        handle.backward(losses, data(2))
