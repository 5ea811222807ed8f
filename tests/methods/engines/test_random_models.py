"""Random small models under every method: the sum that one example at a time gives, or a refusal; never anything else.

`make test` tries each production of the grammar once, in a model with others. More, and counts by method and production:

    python tests/methods/engines/test_random_models.py --models 2000 --workers 4
    DPBENCH_RANDOM_MODELS=2000 python -m pytest tests/methods/engines/test_random_models.py -n 4
    python tests/methods/engines/test_random_models.py --models 1 --seed 17 --verbose  # one again, with what refused it and why
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import trials
import zeroth_trials
from grammar import PARTS, Sample, draw

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines

MODELS = int(os.environ.get("DPBENCH_RANDOM_MODELS", len(PARTS)))
ORDINARY, PER_TEST = 24, 6


def sample_of(number: int) -> Sample:
    """Sample by number: the parts take turns, so that none waits for its luck."""
    return draw(number, must=list(PARTS)[number % len(PARTS)])


def wrong_ones(sample: Sample, all_of_them: bool = False) -> list[str]:
    return [f"{method}: {outcome.why}" for method, outcome in trials.trials(sample, all_of_them) if outcome.verdict == "wrong"]


def told(wrong: dict[Sample, list[str]]) -> str:
    return "\n".join(f"{sample}\n    " + "\n    ".join(lines) for sample, lines in wrong.items())


@pytest.mark.parametrize("first", range(0, MODELS, PER_TEST))
def test_every_method_is_right_or_refuses(first):
    samples = [sample_of(number) for number in range(first, min(first + PER_TEST, MODELS))]
    wrong = {sample: lines for sample in samples if (lines := wrong_ones(sample))}
    assert not wrong, told(wrong)


@pytest.mark.parametrize("first", range(0, ORDINARY, PER_TEST))
def test_ordinary_models_are_refused_by_none_of_ours(first):
    for number in range(first, first + PER_TEST):
        sample = draw(number, mild=True)
        assert sample.covered
        for method, outcome in trials.trials(sample):
            assert outcome.verdict == "right", f"{sample}\n    {method}: {outcome.verdict}: {outcome.why}"


def test_models_that_write_private_values_are_refused_by_all():
    names = [name for name, part in PARTS.items() if part.writes]
    for number, name in enumerate(names):
        sample = dataclasses.replace(draw(number, must=name), pieces=((0,),), event="nothing")
        for method, outcome in trials.trials(sample):
            assert outcome.verdict == "refused", f"{sample}\n    {method}: {outcome}"


# the check itself


def _after_the_release(change: Callable[[list[torch.nn.Parameter]], None]) -> trials.Attach:
    """The loop, whose released gradients a hook then changes."""

    def attach(model, optimizer, plan):
        handle = engines.attach("loop", model, optimizer, plan)
        optimizer.register_step_pre_hook(lambda *_: change([p for group in optimizer.param_groups for p in group["params"]]))
        return handle

    return attach


class _Lying:
    """A handle that clips at a million times the bound that it names."""

    def __init__(self, model, optimizer, plan) -> None:
        loose = dataclasses.replace(plan, clipping=dataclasses.replace(plan.clipping, bound=plan.clipping.bound * 1e6))
        self._handle = engines.attach("loop", model, optimizer, loose)
        self.bounds, self.sensitivity = [b / 1e6 for b in self._handle.bounds], self._handle.sensitivity / 1e6

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


def _flip(parameters):
    for p in parameters:
        p.grad.neg_()


def _leave_one_out(parameters):
    parameters[-1].grad.zero_()


def _flip_from_the_second_step() -> trials.Attach:
    steps = []

    def change(parameters):
        steps.append(1)
        if len(steps) > 1:
            _flip(parameters)

    return _after_the_release(change)


def _scale_one(parameters):
    parameters[0].grad.mul_(1 + 1e-6)


def _fail(model, optimizer, plan):
    raise ValueError("not an error of ours")


def _leave_a_hook(model, optimizer, plan):
    next(model.children()).register_forward_hook(lambda *_: None)
    return engines.attach("loop", model, optimizer, plan)


def _mumble(model, optimizer, plan):
    raise DpbenchError("does not work")


def _keep_a_mean(model, optimizer, plan):
    handle = engines.attach("loop", model, optimizer, plan)
    backward = handle.backward

    def writing(losses, batch):
        values = backward(losses, batch)
        next(model.parameters()).data.add_(values.mean())
        return values

    handle.backward = writing
    return handle


PLANTED = {
    "sign flipped": (_after_the_release(_flip), "sum is off"),
    "sign flipped from the second step on": (_flip_from_the_second_step(), "after a step"),
    "hooks left behind": (_leave_a_hook, "left hooks"),
    "one tensor left out": (_after_the_release(_leave_one_out), "sum is off"),
    "one tensor scaled a little": (_after_the_release(_scale_one), "sum is off"),
    "not clipped": (_Lying, "sum is off"),
    "another error": (_fail, "raised ValueError"),
    "a refusal without a hint": (_mumble, "does not help"),
    "writes into the model": (_keep_a_mean, "wrote"),
}


def ordinary_sample() -> Sample:
    """One of several examples, some of which are clipped, and of all whose tensors are reached."""
    for number in range(100):
        sample = draw(number, mild=True)
        if sample.size >= 4 and sample.frozen == "nothing" and not trials.has_lost_directions(sample):
            return sample
    raise AssertionError("none was drawn")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name):
    attach, why = PLANTED[name]
    sample = ordinary_sample()
    plan = trials.mechanism_of(sample, "flat", "abadi")
    right = trials.check(sample, trials.Method("loop", "flat", "abadi").attach, plan)
    assert right.verdict == "right"
    outcome = trials.check(sample, attach, plan)
    assert outcome.verdict == "wrong"
    assert why in outcome.why


def test_removing_an_example_finds_a_method_that_does_not_clip():
    sample = ordinary_sample()
    plan = trials.mechanism_of(sample, "flat", "abadi")
    tight = dataclasses.replace(plan, clipping=dataclasses.replace(plan.clipping, bound=plan.clipping.bound / 100))
    assert trials.moves_too_far(sample, trials.Method("loop", "flat", "abadi").attach, tight) == ""
    assert "moves the sum" in trials.moves_too_far(sample, _Lying, tight)


def test_the_oracle_is_a_difference_quotient():
    """Its gradients, and no more of autograd than that: checked along one direction by finite differences."""
    for number in range(4):
        sample = draw(number, mild=True)
        names = list(oracle.trained(sample.build(torch.float64).model))
        generator = torch.Generator().manual_seed(number)
        gradient = oracle.examples(sample)[0]
        u = {name: torch.randn(gradient[name].shape, generator=generator, dtype=torch.float64) for name in names}
        above, below = (zeroth_trials.loss_at(sample, 0, u, sign * 1e-5) for sign in (1, -1))
        slope = sum(float((gradient[name] * u[name]).sum()) for name in names)
        assert math.isclose((above - below) / 2e-5, slope, rel_tol=1e-5, abs_tol=1e-7)


def test_a_sample_is_made_again_with_the_same_numbers():
    for number in range(0, len(PARTS), 10):
        one, again, single = (sample_of(number).build(dtype) for dtype in (torch.float64, torch.float64, torch.float32))
        for name, value in one.model.state_dict().items():
            assert torch.equal(value, again.model.state_dict()[name])
            assert torch.equal(value.to(single.model.state_dict()[name].dtype), single.model.state_dict()[name])


def test_every_private_engine_and_method_is_tried():
    tried = {method.split()[0] for number in range(40) for method in trials.names(draw(number, mild=True))}
    plugged = {name: p for kind in ("engine", "zeroth") for name, p in plugins.discover(kind).items()}
    assert tried == {name for name, p in plugged.items() if p.extra["private"] and not p.missing}


# by hand


def _tried(job: tuple[int, bool]) -> tuple[int, list[tuple[str, str, str]]]:
    torch.set_num_threads(1)
    number, all_of_them = job
    try:
        return number, [(m, o.verdict, o.why) for m, o in trials.trials(sample_of(number), all_of_them)]
    except Exception as error:  # a sample that plain autograd does not do is a fault of the grammar
        return number, [("grammar", "wrong", f"{type(error).__name__}: {error}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=len(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="every scope and function, not some that the seed chooses")
    parser.add_argument("--shrink", action="store_true", help="the smallest model on which a method is still wrong, for each")
    parser.add_argument("--verbose", action="store_true", help="every outcome, not only wrong ones")
    chosen = parser.parse_args()
    by_method: dict[str, Counter[str]] = defaultdict(Counter)
    by_production: dict[str, Counter[str]] = defaultdict(Counter)
    jobs = [(number, chosen.all) for number in range(chosen.seed, chosen.seed + chosen.models)]
    wrong_models = 0
    with multiprocessing.get_context("spawn").Pool(chosen.workers) as pool:
        for number, outcomes in pool.imap(_tried, jobs):
            sample = sample_of(number)
            shown = [line for line in outcomes if chosen.verbose or line[1] == "wrong"]
            wrong_models += any(verdict == "wrong" for _, verdict, _ in outcomes)
            if shown:
                print(sample, *(f"    {m}: {verdict}: {why}" for m, verdict, why in shown), sep="\n", flush=True)
            for engine in dict.fromkeys(m.split()[0] for m, verdict, _ in outcomes if chosen.shrink and verdict == "wrong"):
                print(f"    {engine} still on {trials.shrunk(sample, engine)}", flush=True)
            for method, verdict, _ in outcomes:
                by_method[method.split()[0]][verdict] += 1
                for production in sample.productions:
                    by_production[production][verdict] += 1
    for title, counts in (("method", by_method), ("production", by_production)):
        print(f"\n{title:44}   right refused   wrong")
        for name, count in sorted(counts.items()):
            print(f"{name:44}{count['right']:8}{count['refused']:8}{count['wrong']:8}")
    print(f"\n{chosen.models} models, {wrong_models} of them wrong under some method")
    return 1 if wrong_models else 0


if __name__ == "__main__":
    sys.exit(main())
