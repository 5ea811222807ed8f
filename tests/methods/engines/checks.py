"""What every discovered engine is held to, as plain functions: `check(engine, scope, ...)` returns, or an assertion fails.

`test_parity.py` runs them over discovery; `test_planted_plugins.py` feeds them engines that are wrong, and each must fail. An
engine is exempt from nothing that it does not declare. What may be declared:

- `limits`, of a peer (it has a `package`): what its own code does otherwise, each with a reason. `functions`: it does Abadi
  clipping alone; `tied`: a tensor that is used twice is refused; `half`: its arithmetic in half precision; `bad_example`: a
  non-finite example. Functions and uses that are beyond a limit must be refused, not done otherwise.
- `functional`: the losses are called under `torch.func`, where a tensor's hooks do not fire.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from small_models import MODELS, TOKENS, VOCABULARY, Language, data, gradients, losses, mechanism, relative

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.engines.base import NonFiniteStep

LIMITS = ("functions", "tied", "half", "bad_example")
TIED = ("tied", "twice", "alias")  # models in which a tensor is used more than once
EXPECTED = 4.0  # the expected batch size of `mechanism`
HALF = 1 + 2**-10  # times the sensitivity: a quarter of bfloat16's rounding


def private(kind: str = "engine") -> dict[str, plugins.Plugin]:
    """Discovered engines that clip."""
    return {name: plugin for name, plugin in plugins.discover(kind).items() if plugin.extra["scopes"]}


def pairs():
    """(engine, scope) of every engine that clips; a peer that is not installed is skipped, and says so."""
    for name, plugin in private().items():
        skip = pytest.mark.skipif(plugin.missing is not None, reason=str(plugin.missing))
        for scope in plugin.extra["scopes"]:
            yield pytest.param(name, scope, id=f"{name}-{scope}", marks=skip)


def limits(name: str) -> dict[str, str]:
    """What a peer's own code does otherwise -> why. Engines without a package have none, whatever they declare."""
    extra = plugins.get("engine", name).extra
    return extra.get("limits", {}) if "package" in extra else {}


def functions(name: str) -> list[str]:
    """Clipping functions that an engine must do: all there are, unless it is a peer with one alone."""
    return ["abadi"] if "functions" in limits(name) else list(plugins.discover("function"))


def refused(name: str, function: str, tied: bool) -> bool:
    """Whether a case is beyond an engine's declared limits."""
    return function not in functions(name) or (tied and "tied" in limits(name))


def only(batch, index):
    return {key: value[index] for key, value in batch.items()}


def released(name, model, plan, *batches, **options):
    """Bounded sums of one step without noise, flattened to fp64; and the handle."""
    actual, handle = gradients(name, model, plan, batches, **options)
    return actual * EXPECTED, handle


@functools.cache
def oracle_of(scope, function, model, module):
    """Gradient and handle of the fp64 loop for the case of `parity`, which all engines share. module: that of the function."""
    return gradients("loop", MODELS[model](), mechanism(scope, function), parity_batches(), dtype=torch.float64)


def parity_batches():
    return [data(4), data(3, seed=1)]


def parity(name, scope, function, model):
    """Released gradients of a step of two physical batches are the fp64 loop's, and so is what is said about clipping."""
    plan = mechanism(scope, function)
    batches = parity_batches()
    if refused(name, function, model in TIED):
        with pytest.raises((DpbenchError, NotImplementedError)):
            gradients(name, MODELS[model](), plan, batches)
        return
    expected, oracle = oracle_of(scope, function, model, plugins.get("function", function).load())
    gradient, handle = gradients(name, MODELS[model](), plan, batches)
    if plugins.get("function", function).extra.get("threshold"):
        assert 0 < oracle.clipped_fraction < 1, "the data do not make clipping bite"
    # A peer may add a constant to the norm it divides by: Opacus' is 1e-6.
    assert relative(gradient, expected) < (2e-5 if limits(name) else 1e-5)
    assert handle.clipped_fraction == oracle.clipped_fraction
    assert handle.sensitivity == pytest.approx(oracle.sensitivity)
    assert handle.unprotected == []


def accumulation(name, scope):
    """Physical batches change nothing."""
    batch = data(6)
    parts = [only(batch, index) for index in (slice(0, 1), slice(1, 4), slice(4, 6))]
    at_once, _ = gradients(name, Language(), mechanism(scope), [batch])
    in_parts, _ = gradients(name, Language(), mechanism(scope), parts)
    assert relative(in_parts, at_once) < 1e-5


def empty_step(name, scope):
    """A step without an example releases noise alone, of the std that goes with the sensitivity."""
    quiet, _ = gradients(name, Language(), mechanism(scope), [])
    assert torch.equal(quiet, torch.zeros_like(quiet))
    noisy, handle = gradients(name, Language(), mechanism(scope, noise_multiplier=2.0), [])
    assert float(noisy.std()) == pytest.approx(2.0 * handle.sensitivity / EXPECTED, rel=0.15)


def noise(name, scope):
    """Every tensor of a step with examples gets noise of its std, once, and another in each step and for each seed."""
    model, batch = Language(), data(4)
    clean, _ = gradients(name, model, mechanism(scope), [batch])
    draws = []
    for seed in (0, 1):
        noisy, handle = gradients(name, model, mechanism(scope, noise_multiplier=2.0, seed=seed), [batch])
        draws.append(noisy - clean)
        stds = torch.cat([torch.full((p.numel(),), handle.noise_stds[id(p)]) for p in handle.trainable.values()]) / EXPECTED
        assert float((draws[-1] / stds).std()) == pytest.approx(1.0, rel=0.15)
        start = 0
        for parameter in handle.trainable.values():
            part = (draws[-1] / stds)[start : start + parameter.numel()]
            start += parameter.numel()
            assert 0.2 < float(part.square().mean().sqrt()) < 3, "a tensor has no noise of its own"
    assert abs(float(torch.corrcoef(torch.stack(draws))[0, 1])) < 0.25
    first, second = two_steps(name, scope)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.25


def two_steps(name, scope):
    """Noise of two steps of one handle, flattened."""
    model = Language().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = engines.attach(name, model, optimizer, mechanism(scope, noise_multiplier=2.0))
    steps = []
    for _ in range(2):
        optimizer.step()
        steps.append(torch.cat([p.grad.double().flatten() for p in model.parameters()]))
        optimizer.zero_grad()
    handle.detach()
    return steps


def under_autocast(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = losses(model, batch)
    return values.float()


def bf16(name, scope):
    """Half-precision products; norms and sums in fp32: within 2e-2 of the oracle on the same model under autocast."""
    function = functions(name)[-1]
    plan = mechanism(scope, function)
    expected, _ = gradients("loop", Language(), plan, [data(6)], loss=under_autocast)
    gradient, _ = gradients(name, Language(), plan, [data(6)], loss=under_autocast)
    assert relative(gradient, expected) < 2e-2


def bad_example(name, scope):
    """An example that is not finite adds nothing and is counted."""
    batch = data(5)
    expected, _ = gradients("loop", Language(), mechanism(scope), [only(batch, [0, 1, 3, 4])], dtype=torch.float64)
    for value in (float("nan"), float("inf")):
        bad = batch | {"weight": batch["weight"].clone()}
        bad["weight"][2] = value
        gradient, handle = gradients(name, Language(), mechanism(scope), [bad])
        assert relative(gradient, expected) < 1e-5
        assert handle.non_finite_examples == 1


def all_bad(name, scope):
    """A step in which every example is not finite stops."""
    model = Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, mechanism(scope))
    handle.backward(losses, data(3) | {"weight": torch.full((3,), float("nan"))})
    with pytest.raises(NonFiniteStep, match="all 3 examples"):
        optimizer.step()


def input_gradient(name, scope):
    """Clipping touches parameters only: what flows back to the layer below is what autograd gives (FLASH-7)."""
    model, batch = Language().train(), data(4)
    if plugins.get("engine", name).extra.get("functional"):  # seen by the layer below, as no hook fires
        plan = mechanism(scope, functions(name)[-1], bound=1e6)
        expected, _ = gradients("loop", model, plan, [batch], dtype=torch.float64)
        gradient, _ = gradients(name, model, plan, [batch])
        assert relative(gradient, expected) < 1e-5
        return
    seen = []

    def watched(net, examples):
        x = net.embed(examples["ids"]).detach().requires_grad_()
        x.register_hook(lambda g: seen.append(g.clone()))
        logits = net.head(net.block(x))
        return torch.nn.functional.cross_entropy(logits.mT, examples["targets"], reduction="none").mean(1)

    model.embed.weight.requires_grad_(False)
    watched(model, batch).sum().backward()
    expected = seen.pop()
    model.zero_grad()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    handle = engines.attach(name, model, optimizer, mechanism(scope))
    handle.backward(watched, batch)  # before the first batch an engine may look at the model
    seen.clear()
    handle.backward(watched, batch)
    handle.detach()
    if not seen:
        pytest.skip("this engine's pass ends at the first trained layer: nothing flows to the input")
    torch.testing.assert_close(torch.cat(seen)[:4], expected)


def detach(name, scope):
    """Nothing is left behind in model and optimizer."""
    model = Language()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = engines.attach(name, model, optimizer, mechanism(scope))
    handle.backward(losses, data(3))
    optimizer.step()
    optimizer.zero_grad()
    handle.detach()
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(not hasattr(p, "grad_sample") for p in model.parameters())
    losses(model, data(3)).sum().backward()
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    engines.attach(name, model, optimizer, mechanism(scope)).detach()


def sensitivity(name, scope, function, tied):
    """At worst case removing an example moves the sum by the sensitivity, and by no more."""
    plan = mechanism(scope, function, bound=0.7)
    batch = data(4) | {"weight": torch.full((4,), 500.0)}  # every group of every example is far over its bound
    if refused(name, function, tied):
        with pytest.raises((DpbenchError, NotImplementedError)):
            gradients(name, Language(tied), plan, [batch])
        return
    with_it, handle = released(name, Language(tied), plan, batch)
    without, _ = released(name, Language(tied), plan, only(batch, slice(3)))
    moved = float((with_it - without).norm())
    assert moved <= handle.sensitivity * (1 + 1e-5)
    factor = plugins.get("function", function).load().factor
    reach = 5 * float(factor(torch.tensor([5 * 0.7]), 0.7, 0.01))  # of a norm five times the bound: all are longer here
    assert moved >= handle.sensitivity * 0.98 * reach  # the worst case that the function allows is reached


def moved(name, scope, case):
    """How far one example moves the released sum, in units of the stated sensitivity."""
    plan = mechanism(scope, case["function"], bound=case["bound"])
    batch = case["batch"]
    kept = [k for k in range(len(batch["ids"])) if k != case["index"]]
    with_it, handle = released(name, Language(case["tied"]), plan, batch)
    without, _ = released(name, Language(case["tied"]), plan, *([only(batch, kept)] if kept else []))
    assert torch.isfinite(with_it).all()
    return float((with_it - without).norm()) / handle.sensitivity, float(with_it.norm()) / handle.sensitivity


def random_case(name, generator):
    """A batch of 1 to 9 examples whose gradients range over many powers of ten, and which of them is removed."""

    def number(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    size, options = number(1, 10), functions(name)
    batch = data(size, seed=number(0, 1000))
    batch["ids"] %= number(1, VOCABULARY + 1)  # few ids: rows of the embedding that many tokens share
    batch["weight"] = 10 ** (torch.rand(size, generator=generator) * 8 - 4)
    return {
        "function": options[number(0, len(options))],
        "bound": 10 ** (float(torch.rand((), generator=generator)) * 6 - 3),
        "tied": "tied" not in limits(name) and bool(number(0, 2)),
        "batch": batch,
        "index": number(0, size),
    }


def nearby(case, generator):
    """The same with another scale, or tokens repeated."""
    other = copy.deepcopy(case)
    rows = len(other["batch"]["ids"])
    other["batch"]["weight"] *= 10 ** (torch.rand(rows, generator=generator) * 2 - 0.5)
    at = int(torch.randint(0, TOKENS, (), generator=generator))
    other["batch"]["ids"][case["index"], at:] = other["batch"]["ids"][case["index"], at]
    return other


def sensitivity_by_search(name, scope, cases=10, climbs=4, seed=0):
    """The worst example that a search over gradients, scales, bounds, functions, tied weights and batch sizes finds."""
    generator = torch.Generator().manual_seed(seed)
    worst, worst_case = 0.0, None
    for number in range(cases + climbs):
        case = random_case(name, generator) if number < cases or worst_case is None else nearby(worst_case, generator)
        distance, length = moved(name, scope, case)
        assert distance <= 1 + 1e-5 + 1e-6 * length, f"an example moves the sum by {distance:.6g} sensitivities: {case}"
        if distance >= worst:
            worst, worst_case = distance, case
    assert worst > 0.5, "no example of the search moves the sum: it looks at nothing"


def half_case(size, seed, same):
    """Examples far over every bound. same: one of them many times, whose sum has few digits left for one more."""
    batch = data(size, seed)
    if same:
        batch = {key: value.expand(size, *value.shape[1:]).clone() for key, value in data(1, seed).items()}
    return batch | {"weight": torch.full((size,), 20.0 + 7 * seed)}


def half_sums(name, model, plan, batch, mode):
    """What is summed in half precision before noise and release, [elements] in fp64; and the handle."""
    if mode == "autocast":
        return released(name, model, plan, batch, loss=under_autocast)
    model = copy.deepcopy(model).to({"bfloat16": torch.bfloat16, "float16": torch.float16}[mode]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = engines.attach(name, model, optimizer, plan)
    handle.backward(losses, batch)
    sums = torch.cat([handle.sum_of(p).double().flatten() for p in handle.trainable.values()])
    optimizer.step()
    gradient = torch.cat([p.grad.double().flatten() for p in handle.trainable.values()])
    handle.detach()
    assert relative(sums / EXPECTED, gradient) < 1e-2, "what is released is another sum"
    return sums, handle


def half_precision(name, scope, mode):
    """In half precision an example moves the sum by no more than the sensitivity, however many examples it has."""
    options, worst = functions(name), 0.0
    for seed, size in enumerate((2, 5, 9, 17, 33, 65)):
        plan = mechanism(scope, options[seed % len(options)], bound=0.3 + 0.17 * seed)
        batch = half_case(size, seed, same=seed != 2)
        with_it, handle = half_sums(name, Language(), plan, batch, mode)
        without, _ = half_sums(name, Language(), plan, only(batch, slice(1, None)), mode)
        distance = float((with_it - without).norm()) / handle.sensitivity
        assert distance <= HALF, f"{distance - 1:+.4%} of the sensitivity, with {size} examples in {mode}"
        worst = max(worst, distance)
    assert worst > 0.95, "no example reaches its bound: nothing is looked at"
