"""One random model under one method: right, refused, or wrong and why."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import oracle
import torch
import zeroth_trials
from grammar import Sample
from outcomes import EXPECTED, Outcome, quietly, refused
from torch import Tensor, nn

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

GAMMA = 0.01
EXACT = 1e-9
"""Relative distance allowed in fp64. In fp32 it is what the oracle itself loses there, times `SLACK`, or `SINGLE`."""
SINGLE, SLACK = 1e-5, 20.0
PEERS_ADD = 2e-5
"""Opacus adds 1e-6 to the norm that it divides by."""

Attach = Callable[[nn.Module, torch.optim.Optimizer, Mechanism], Any]


@dataclass(frozen=True)
class Method:
    """An engine under a scope and a function."""

    engine: str
    scope: str
    function: str

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer, mechanism: Mechanism) -> Any:
        return engines.attach(self.engine, model, optimizer, mechanism)


def is_peer(engine: str) -> bool:
    return "package" in plugins.get("engine", engine).extra


def does(engine: str, sample: Sample) -> bool:
    """Whether an engine is held to a sample: ours to all, peers to what they say they support, ordinary layers in training mode
    that are called once and share nothing."""
    if not is_peer(engine):
        return True
    ordinary = all(p.covered and p.kind in ("plain", "attention") for p in sample.parts)
    return ordinary and sample.covered and sample.training and sample.head != "tied head"


def methods() -> Iterator[tuple[str, str]]:
    """(engine, scope) of every private engine that can run here, found by discovery."""
    for name, plugin in plugins.discover("engine").items():
        if plugin.extra["private"] and plugin.missing is None:
            for scope in plugin.extra["scopes"]:
                yield name, scope


def functions_of(engine: str) -> list[str]:
    """Clipping functions that an engine does: Abadi's first."""
    able = plugins.get("engine", engine).load().Engine.functions or plugins.discover("function")
    return sorted(able)


def mechanism_of(sample: Sample, scope: str, function: str) -> Mechanism:
    """Without noise, at a bound that bites."""
    layers = len(oracle.by_layer(sample.build(torch.float64).model))
    devices = min(2, layers) if "devices" in plugins.get("scope", scope).extra.get("needs", ()) else None
    clipping = Clipping(function, scope, oracle.typical_norm(sample), GAMMA, devices=devices)
    return Mechanism(Sampling("poisson", 100, EXPECTED), 10, clipping, 0.0)


@dataclass
class Released:
    """The sums of two steps over the same examples, the second after the sample's event; and what they were bounded by."""

    steps: list[dict[str, Tensor]]
    losses: Tensor
    groups: list[list[str]]
    bounds: list[float]
    sensitivity: float
    changed: bool


class Wrong(Exception):
    """Not right and not refused."""


def release(
    sample: Sample, attach: Attach, plan: Mechanism, dtype: torch.dtype, pieces: Sequence[Sequence[int]], steps: int = 2
) -> Released:
    """Steps at learning rate 0 on a model made anew.

    Raises:
        DpbenchError: the method refuses.
        Wrong: the model is not left as it was.
    """
    built = sample.build(dtype)
    model, tensors = built.model, oracle.trained(built.model)
    before, traces = {name: value.clone() for name, value in model.state_dict().items()}, _traces(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    try:
        handle = attach(model, optimizer, plan)
    except DpbenchError:
        if _traces(model) != traces:
            raise Wrong("refused, and left hooks on the model") from None
        raise
    released, losses, changed = [], [], False
    for step in range(steps):
        if step:
            changed = sample.change(model)
            before = {name: value.clone() for name, value in model.state_dict().items()}
        losses = [handle.backward(built.losses, built.batch(piece)).detach().double() for piece in pieces]
        _must_be_as_it_was(model, before)
        optimizer.step()
        stray = [name for name, p in model.named_parameters() if p.grad is not None and id(p) not in map(id, tensors.values())]
        if stray:
            raise Wrong(f"steps on {stray[0]}, which was not trained when it was attached")
        if any(all(p is not q for q in model.parameters()) for p in tensors.values()):
            raise Wrong(f"goes on although {sample.event}: a tensor is stepped on that is no longer the model's")
        released.append({name: torch.zeros_like(p) if p.grad is None else p.grad * EXPECTED for name, p in tensors.items()})
        optimizer.zero_grad()
    groups = _groups(handle, tensors)
    result = Released(released, torch.cat([*losses, torch.zeros(0)]), groups, list(handle.bounds), handle.sensitivity, changed)
    handle.detach()
    if not changed and _traces(model) != traces:
        raise Wrong("left hooks on the model, or other flags, after detaching")
    return result


def _traces(model: nn.Module) -> list[tuple[Any, ...]]:
    """Hooks, modes and what is trained, module by module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    modules = [(*(len(getattr(m, kind)) for kind in hooks), m.training) for m in model.modules()]
    return [*modules, *((p.requires_grad, len(p._backward_hooks or ())) for p in model.parameters())]


def _must_be_as_it_was(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        if name in before and not torch.equal(value.nan_to_num(), before[name].nan_to_num()):
            raise Wrong(f"wrote {name} into the model before anything was released")
    if left := [name for name, p in model.named_parameters() if p.grad is not None]:
        raise Wrong(f"left a gradient on {left[0]} before the step")


def _groups(handle: Any, tensors: dict[str, nn.Parameter]) -> list[list[str]]:
    """Names of the trained tensors in each group of an engine."""
    if handle.layout is None:
        return [list(tensors)]
    first = {id(p): name for name, p in tensors.items()}
    names_by_group: list[set[str]] = [set() for _ in handle.bounds]
    for cluster in handle.layout.clusters:
        for layer in cluster.layers:
            names_by_group[cluster.group] |= {first[id(p)] for p in layer.parameters.values()}
    return [sorted(names) for names in names_by_group]


def check(sample: Sample, attach: Attach, plan: Mechanism, dtype: torch.dtype = torch.float64, peer: bool = False) -> Outcome:
    """Hold one step to the oracle."""
    assert plan.clipping is not None
    try:
        released = quietly(lambda: release(sample, attach, plan, dtype, sample.pieces))
    except DpbenchError as refusal:
        return refused(refusal)
    except Wrong as wrong:
        return Outcome("wrong", str(wrong))
    except Exception as error:
        return Outcome("wrong", f"raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    if why := _wrong_groups(sample, released, plan):
        return Outcome("wrong", why)
    order = [i for piece in sample.pieces for i in piece]
    for number, sums in enumerate(released.steps):
        changed = bool(number) and released.changed
        every = oracle.examples(sample, changed=changed)
        chosen = [every[i] for i in order]
        expected = oracle.bounded_sum(chosen, released.groups, released.bounds, plan.clipping.function, GAMMA)
        apart = oracle.distance(sums, expected)
        single = dtype == torch.float32
        allowed = PEERS_ADD if peer else _allowed_in_single(sample, released, plan, changed) if single else EXACT
        if not apart <= allowed:
            which = "" if not number else f", after a step and {sample.event}"
            return Outcome("wrong", f"sum is off by {apart:.1e}{which}")
    if not released.changed and not _same_losses(released.losses, [oracle.values(sample)[i] for i in order], dtype):
        return Outcome("wrong", "the losses that it returns are not the examples'")
    return Outcome("right")


def _same_losses(actual: Tensor, expected: list[float], dtype: torch.dtype) -> bool:
    """In any order: that is the losses' own."""
    close = 1e-9 if dtype == torch.float64 else 1e-3
    return torch.allclose(
        actual.double().sort()[0], torch.tensor(expected, dtype=torch.float64).sort()[0], close, close, equal_nan=True
    )


def _wrong_groups(sample: Sample, released: Released, plan: Mechanism) -> str:
    """What is wrong with an engine's groups, by rules of our own: each tensor in one, no module cut, bounds that add up."""
    model = sample.build(torch.float64).model
    names = sorted(oracle.trained(model))
    if sorted(name for group in released.groups for name in group) != names:
        return "groups are not a partition of the trained tensors"
    length = math.hypot(*released.bounds)
    assert plan.clipping is not None
    if not math.isclose(length, released.sensitivity, rel_tol=1e-9) or length > plan.clipping.bound * (1 + 1e-9):
        return f"bounds of length {length:.3g}, sensitivity {released.sensitivity:.3g}, clipping bound {plan.clipping.bound:.3g}"
    groups = [set(group) for group in released.groups]
    scope = plan.clipping.scope
    units = [{name} for name in names] if scope == "per_tensor" else oracle.by_layer(model)
    if not all(any(unit <= group for group in groups) for unit in units):
        return f"a layer is cut by {scope} groups"
    if scope == "flat" and len(groups) != 1:
        return f"flat clipping in {len(groups)} groups"
    return ""


def _allowed_in_single(sample: Sample, released: Released, plan: Mechanism, changed: bool) -> float:
    """What plain autograd loses in fp32 on this model, with room."""
    assert plan.clipping is not None
    lists = [oracle.examples(sample, dtype, changed) for dtype in (torch.float32, torch.float64)]
    sums = [oracle.bounded_sum(one, released.groups, released.bounds, plan.clipping.function, GAMMA) for one in lists]
    return max(SINGLE, SLACK * oracle.distance(*sums))


def moves_too_far(sample: Sample, attach: Attach, plan: Mechanism) -> str:
    """Whether one example more or less moves the sum by more than the sensitivity; empty where not, or where it is refused."""
    order = [i for piece in sample.pieces for i in piece]
    without = [i for i in order if i != order[-1]]
    try:
        every = quietly(lambda: release(sample, attach, plan, torch.float64, [order], 1))
        fewer = quietly(lambda: release(sample, attach, plan, torch.float64, [without] if without else [], 1))
    except DpbenchError:
        return ""
    except Exception as error:
        return f"remove one: raised {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    moved = math.sqrt(sum(float((every.steps[0][n] - fewer.steps[0][n]).square().sum()) for n in every.steps[0]))
    if not moved <= every.sensitivity * (1 + 1e-9):
        return f"one example moves the sum by {moved:.3g}, sensitivity {every.sensitivity:.3g}"
    return ""


# a whole sample


def trials(sample: Sample, all_of_them: bool = False) -> Iterator[tuple[str, Outcome]]:
    """(method in words, outcome). all_of_them: every scope and function of every engine, else some that the seed chooses."""
    for name, trial in _trials(sample, all_of_them):
        yield name, trial()


def names(sample: Sample) -> list[str]:
    """The methods of `trials`, untried."""
    return [name for name, _ in _trials(sample, False)]


def _trials(sample: Sample, all_of_them: bool) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    rng = random.Random(f"{sample.seed} methods")
    by_engine: dict[str, list[str]] = {}
    for engine, scope in methods():
        if does(engine, sample):
            by_engine.setdefault(engine, []).append(scope)
    removed = rng.choice([engine for engine in by_engine if not is_peer(engine)])
    for engine, scopes in by_engine.items():
        automatic = [f for f in functions_of(engine) if f != "abadi" and not (f == "auto_v" and has_lost_directions(sample))]
        for scope in scopes if all_of_them else dict.fromkeys([scopes[0], rng.choice(scopes)]):
            chosen = ["abadi", *rng.sample(automatic, min(1, len(automatic)))]
            for function in chosen if all_of_them else [rng.choice(chosen)]:
                dtype = torch.float32 if rng.random() < 0.2 else torch.float64
                removes = not is_peer(engine) and (all_of_them or engine == removed)
                trial = functools.partial(_first_order, sample, Method(engine, scope, function), dtype, removes)
                yield f"{engine} {scope} {function} {str(dtype)[6:]}", trial
    zeroth = [name for name, plugin in plugins.discover("zeroth").items() if all_of_them or plugin.extra["private"]]
    for name in zeroth if all_of_them else [rng.choice(zeroth)]:
        kind = rng.choice(["gaussian", "sphere"])
        yield f"{name} {kind}", functools.partial(zeroth_trials.check, sample, name, kind)


def _first_order(sample: Sample, method: Method, dtype: torch.dtype, removes: bool) -> Outcome:
    plan = mechanism_of(sample, method.scope, method.function)
    outcome = check(sample, method.attach, plan, dtype, is_peer(method.engine))
    why = moves_too_far(sample, method.attach, plan) if removes and outcome.verdict == "right" else ""
    return Outcome("wrong", why) if why else outcome


def shrunk(sample: Sample, engine: str) -> Sample:
    """The smallest sample on the way from `sample` on which an engine is still wrong."""
    reasons = _wrong(sample, engine)
    for smaller in _smaller(sample):
        if reasons & _wrong(smaller, engine):
            return shrunk(smaller, engine)
    return sample


def _wrong(sample: Sample, engine: str) -> set[str]:
    """The beginnings of what is wrong with one engine, or zeroth-order method."""
    if not oracle.trained(sample.build(torch.float64).model):
        return set()
    tried = [trial() for name, trial in _trials(sample, False) if name.split()[0] == engine]
    return {outcome.why[:20] for outcome in tried if outcome.verdict == "wrong"}


def _smaller(sample: Sample) -> Iterator[Sample]:
    for number in range(len(sample.parts)):
        yield dataclasses.replace(sample, parts=sample.parts[:number] + sample.parts[number + 1 :])
    plainest = {
        "event": "nothing",
        "odd": "finite",
        "loss": "plain",
        "container": "dict",
        "frozen": "nothing",
        "head": "regression",
    }
    everyone = tuple(range(sample.size))
    for name, value in {**plainest, "entry": "floats", "pieces": (everyone,)}.items():
        if getattr(sample, name) != value and not (name == "entry" and "tied" in sample.head):
            yield dataclasses.replace(sample, **{name: value})


def has_lost_directions(sample: Sample) -> bool:
    """Whether some layer's gradient is nothing but rounding: AUTO-V would bring that to the bound, in a direction of its own."""
    model = sample.build(torch.float64).model
    for gradient in oracle.examples(sample):
        length = oracle.norm(gradient, list(gradient))
        if any(oracle.norm(gradient, [name]) <= 1e-6 * length for name in oracle.trained(model)):
            return True
    return False
