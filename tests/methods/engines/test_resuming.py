"""Stopping, saving and going on; and where a method stops for good."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from checks import pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Language, data, losses, mechanism, plain

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.noise import Noise
from dpbench.privacy.sampling import batches

ADAPTIVE = Adaptive(0.5, rate=0.3, budget=0.1)


def attach(plan, name="fused", model=None, make=torch.optim.Adam):
    model = model or Language()
    optimizer = make(model.parameters(), lr=0.05)
    return engines.attach(name, model, optimizer, plan)


def step(handle, batch=None):
    handle.backward(losses, data(4) if batch is None else batch)
    handle.optimizer.step()
    released = torch.cat([p.grad.double().flatten() for p in handle.trainable.values()])
    handle.optimizer.zero_grad()
    return released


def weights(handle):
    return torch.cat([p.detach().double().flatten() for p in handle.model.parameters()])


def saved(handle):
    """As a file would have it, read without pickle."""
    file = io.BytesIO()
    torch.save([handle.state_dict(), handle.model.state_dict(), handle.optimizer.state_dict()], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def going_on(parts, plan, name="fused"):
    state, model, optimizer = parts
    handle = attach(plan, name)
    handle.model.load_state_dict(model)
    handle.optimizer.load_state_dict(optimizer)
    handle.load_state_dict(state)
    return handle


RESUMED = [p for p in pairs() if p.values[0] != "fastdp"]


@pytest.mark.parametrize(("name", "scope"), RESUMED)
def test_resumed_training_is_uninterrupted_training_to_the_bit(name, scope):
    plan = mechanism(scope, noise_multiplier=1.0)
    if plugins.get("engine", name).extra.get("adaptive"):
        plan = replace(plan, clipping=replace(plan.clipping, adaptive=ADAPTIVE))
    through, until = attach(plan, name), attach(plan, name)
    for number in range(5):
        step(through, data(3, seed=number))
        if number < 2:
            step(until, data(3, seed=number))
    later = going_on(saved(until), plan, name)
    assert later.steps == 2
    for number in range(2, 5):
        step(later, data(3, seed=number))
    assert torch.equal(weights(later), weights(through))
    assert later.epsilon() == through.epsilon()
    assert later.bounds == through.bounds


def test_going_on_works_in_another_process(tmp_path):
    """With tensors of two dtypes, which share the streams: their order must not be a set's."""

    def train(first, last, load="", save="", apart=True):
        program = f"""
import sys, torch
sys.path[:0] = {sys.path!r}
from dpbench.methods import engines
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.privacy.sampling import batches
torch.manual_seed(0)
class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.wide = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2).double()
    def forward(self, x):
        return self.narrow(x).square().sum(1) + self.wide(x.double()).square().sum(1).float()
model = Mixed()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
plan = Mechanism(Sampling("poisson", 8, 4.0), 6, Clipping("abadi", "per_layer"), 1.0, seed=5)
handle = engines.attach("loop", model, optimizer, plan)
if {load!r}:
    state, weights = torch.load({load!r}, weights_only=True)
    model.load_state_dict(weights)
    handle.load_state_dict(state)
x = torch.randn(8, 3)
for number, drawn in enumerate(batches(plan, start={first}), {first}):
    if number == {last}:
        break
    if len(drawn):
        handle.backward(lambda model, batch: model(batch), x[drawn])
    optimizer.step()
    optimizer.zero_grad()
torch.save([handle.state_dict(), model.state_dict()], {save!r})
"""
        if apart:
            subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        else:
            exec(program, {})
        return torch.load(save, weights_only=True)

    _, through = train(0, 6, save=str(tmp_path / "through"), apart=False)
    train(0, 3, save=str(tmp_path / "half"))
    state, later = train(3, 6, load=str(tmp_path / "half"), save=str(tmp_path / "later"))
    assert state["steps"] == 6
    assert all(torch.equal(later[name], through[name]) for name in through)


def test_a_secret_state_holds_nothing_to_make_noise_of():
    plan = mechanism("per_layer", noise_multiplier=1.0, randomness="secret")
    handle = attach(plan, "fused")
    step(handle)
    assert handle.state_dict()["noise"] == {"rank": 0}
    parts = saved(handle)
    one, other = going_on(parts, plan), going_on(parts, plan)
    assert one.steps == 1
    assert not torch.isclose(step(one), step(other)).any()


def test_opacus_secret_state_holds_no_generator():
    handle = attach(mechanism(noise_multiplier=1.0, randomness="secret"), "opacus")
    step(handle)
    assert handle.state_dict()["noise"] == {"rank": 0}


def test_a_state_in_the_middle_of_a_step_is_refused():
    """Its sums are the examples' own, without noise."""
    for name in ("fused", "loop", "opacus", "nonprivate"):
        plan = plain() if name == "nonprivate" else mechanism("per_layer" if name == "fused" else "flat", noise_multiplier=1.0)
        handle = attach(plan, name)
        handle.backward(losses, data(3))
        with pytest.raises(DpbenchError, match="middle of a step"):
            handle.state_dict()
        handle.optimizer.step()
        assert handle.state_dict()["steps"] == 1


def test_a_state_has_nothing_of_a_batch():
    """Two runs that differ in their examples alone have one state: noise, steps and what the mechanism says."""

    def state(seed):
        handle = attach(mechanism("per_layer", noise_multiplier=1.0))
        step(handle, data(3, seed=seed))
        return json.dumps(handle.state_dict())

    assert state(1) == state(2)


BASE = {"scope": "per_layer", "noise_multiplier": 1.0}
OTHERS = {
    "steps": ({"steps": 11}, "steps"),
    "seed": ({"seed": 1}, "seed"),
    "noise": ({"noise_multiplier": 2.0}, "noise_multiplier"),
    "bound": ({"bound": 0.6}, "clipping.bound"),
    "function": ({"function": "auto_s"}, "clipping.function"),
    "scope": ({"scope": "per_tensor"}, "clipping.scope"),
    "batch": ({"expected": 5.0}, "sampling.expected_batch_size"),
    "randomness": ({"randomness": "secret"}, "randomness"),
    "relation": ({"relation": "replace_one"}, "relation"),
    "delta": ({"delta": 1e-6}, "delta"),
    "adaptive": ({"adaptive": ADAPTIVE}, "clipping.adaptive"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_state_of_another_mechanism_is_refused_by_the_field(other):
    change, field = OTHERS[other]
    handle = attach(mechanism(**BASE))
    step(handle)
    fresh = attach(mechanism(**(BASE | change)))
    with pytest.raises(DpbenchError, match=rf"the state's mechanism has {field} "):
        fresh.load_state_dict(handle.state_dict())
    assert fresh.steps == 0


def test_a_state_of_another_engine_model_or_rank_is_refused():
    handle = attach(mechanism(**BASE))
    step(handle)
    state = handle.state_dict()
    with pytest.raises(DpbenchError, match="is of 'fused', not 'bookkeeping'"):
        attach(mechanism(**BASE), "bookkeeping").load_state_dict(state)
    small = Language()
    small.block.down.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in small.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(DpbenchError, match=r"trains block\.down\.weight"):
        engines.attach("fused", small, optimizer, mechanism(**BASE)).load_state_dict(state)
    second = attach(mechanism(**BASE))
    second.draw_noise_as(rank=1)
    with pytest.raises(DpbenchError, match="of rank 0, not 1"):
        second.load_state_dict(state)


def test_a_state_is_loaded_before_the_first_step_alone():
    handle = attach(mechanism(**BASE))
    step(handle)
    with pytest.raises(DpbenchError, match="loaded after 1 steps"):
        handle.load_state_dict(handle.state_dict())


PLACES = [("format",), ("steps",), ("tensors",), ("noise",), ("mechanism",), ("thresholds",), ("method",)]
PLACES += [("noise", "positions"), ("noise", "generators"), ("noise", "releases"), ("noise", "rank")]
PLACES += [("thresholds", "trajectory"), ("thresholds", "fractions"), ("thresholds", "labels"), ("mechanism", "sampling")]
junk = st.one_of(st.none(), st.integers(-9, 99), st.floats(), st.text(max_size=3), st.lists(st.integers(), max_size=3))


@given(st.sampled_from(PLACES), junk, st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_damaged_state_is_one_error_and_loads_nothing(place, value, missing):
    good, fresh = damaged_pair()
    state = copy.deepcopy(good)
    holder = state
    for name in place[:-1]:
        holder = holder[name]
    same = not missing and json.dumps(holder[place[-1]]) == json.dumps(value)
    if missing:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    if same or (place == ("noise", "releases") and isinstance(value, int) and value >= 0):
        return  # a number like any other
    if place == ("noise", "generators") and not missing and value in ([], ""):
        return  # there was none
    with pytest.raises(DpbenchError):
        fresh.load_state_dict(state)
    assert fresh.steps == 0
    assert fresh.noise.state_dict()["positions"] == {}


def damaged_pair(cache=[]):  # noqa: B006 (made once, for all examples)
    if not cache:
        plan = mechanism("per_layer", noise_multiplier=1.0, adaptive=ADAPTIVE)
        handle = attach(plan)
        step(handle)
        cache += [handle.state_dict(), attach(plan)]
    return cache


# Noise is never used twice.


def noise_of(handle):
    """What an empty batch releases."""
    handle.optimizer.step()
    released = torch.cat([p.grad.flatten() for p in handle.trainable.values()])
    handle.optimizer.zero_grad()
    return released


def test_attaching_again_continues_the_noise():
    """Else the difference of two releases would be free of noise."""
    plan, model = mechanism("per_layer", noise_multiplier=1.0), Language()
    first = attach(plan, model=model)
    before = [noise_of(first) for _ in range(2)]
    first.detach()
    second = attach(plan, model=model)
    after = [noise_of(second) for _ in range(2)]
    through = attach(plan)
    uninterrupted = [noise_of(through) for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip([*before, *after], uninterrupted, strict=True))


@pytest.mark.parametrize("by", ["model", "optimizer", "tensors", "engine"])
def test_noise_goes_on_by_whatever_was_kept(by):
    """Of model, optimizer and trained tensors one is enough; and by another engine of the same seed."""
    plan, model = mechanism("per_layer", noise_multiplier=1.0), Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = engines.attach("fused", model, optimizer, plan)
    before = noise_of(first)
    first.detach()
    if by == "model":  # its tensors replaced
        for module in list(model.modules()):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(parameter.detach().clone()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    elif by == "optimizer":
        model = Language()
        optimizer.param_groups[0]["params"] = list(model.parameters())
    elif by == "tensors":
        inner, model = model, Language()
        model.embed, model.block, model.head = inner.embed, inner.block, inner.head
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    second = engines.attach("bookkeeping" if by == "engine" else "fused", model, optimizer, plan)
    assert not torch.isclose(noise_of(second), before).any()


def test_models_apart_share_the_noise_of_a_seed():
    """So that methods are compared in pairs; a copy is a model apart."""
    plan, model = mechanism("per_layer", noise_multiplier=1.0), Language()
    one, other = attach(plan, model=model), attach(plan, "bookkeeping", model=copy.deepcopy(model))
    assert torch.equal(noise_of(one), noise_of(other))


def test_another_seed_on_the_same_model_begins_its_own_noise():
    model = Language()
    attach(mechanism("per_layer", noise_multiplier=1.0), model=model).detach()
    other = attach(mechanism("per_layer", noise_multiplier=1.0, seed=9), model=model)
    assert torch.equal(noise_of(other), noise_of(attach(mechanism("per_layer", noise_multiplier=1.0, seed=9))))


def test_parts_with_noise_of_one_seed_apart_are_not_put_together():
    plan = mechanism("per_layer", noise_multiplier=1.0)
    parts = [Language(), Language()]
    for model in parts:
        noise_of(attach(plan, model=model))
    with pytest.raises(DpbenchError, match="noise of seed 0 in separate models"):
        Noise(plan, on=parts)


def test_secret_noise_is_fresh_with_every_handle():
    plan, model = mechanism("per_layer", noise_multiplier=1.0, randomness="secret"), Language()
    first = attach(plan, model=model)
    before = noise_of(first)
    first.detach()
    assert not torch.isclose(noise_of(attach(plan, model=model)), before).any()


# The end of a mechanism.


@pytest.mark.parametrize(("name", "scope"), list(pairs()))
def test_an_engine_releases_nothing_beyond_its_mechanisms_steps(name, scope):
    plan = mechanism(scope, noise_multiplier=1.0, steps=2)
    handle = attach(plan, name)
    for _ in range(2):
        step(handle)
    before, noise, epsilon = weights(handle), handle.noise.state_dict(), handle.epsilon()
    handle.backward(losses, data(3))
    with pytest.raises(DpbenchError, match="step 3 of a mechanism of 2 steps: its epsilon"):
        handle.optimizer.step()
    assert torch.equal(weights(handle), before)
    assert json.dumps(handle.noise.state_dict(), default=str) == json.dumps(noise, default=str)
    assert (handle.steps, handle.epsilon()) == (2, epsilon)
    assert all(p.grad is None for p in handle.trainable.values())
    handle.detach()


def test_plain_training_stops_at_its_steps_too():
    handle = attach(Mechanism(Sampling("poisson", 100, 4.0), 1), "nonprivate")
    step(handle)
    with pytest.raises(DpbenchError, match="step 2 of a mechanism of 1 steps"):
        handle.optimizer.step()


def test_a_resumed_run_stops_where_the_whole_one_does():
    plan = mechanism("per_layer", noise_multiplier=1.0, steps=2)
    handle = attach(plan)
    step(handle)
    later = going_on(saved(handle), plan)
    step(later)
    with pytest.raises(DpbenchError, match="step 3 of a mechanism of 2"):
        later.optimizer.step()


def test_the_handles_epsilon_is_of_the_steps_made():
    plan = Mechanism(Sampling("poisson", 100, 4.0), 3, Clipping("abadi", "per_layer"), 1.0)
    handle = attach(plan)
    assert handle.epsilon() == 0.0
    for step_count in (1, 2, 3):
        step(handle)
        assert handle.epsilon() == plan.epsilon(step_count)
        assert plan.epsilon(step_count) > plan.epsilon(step_count - 1)
    assert handle.epsilon() == plan.epsilon()


def test_batches_and_steps_of_a_resumed_run_fit_together():
    plan = mechanism("per_layer", noise_multiplier=1.0)
    all_batches = list(batches(plan))
    handle = attach(plan)
    for drawn in all_batches[:4]:
        step(handle, data(max(len(drawn), 1)))
    later_batches = list(batches(plan, start=going_on(saved(handle), plan).steps))
    assert [b.tolist() for b in later_batches] == [b.tolist() for b in all_batches[4:]]
