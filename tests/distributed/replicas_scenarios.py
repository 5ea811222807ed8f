"""Data parallel in two processes."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scenario import refused
from small_models import Language, data, losses, mechanism, plain
from torch import nn

from dpbench import distributed as parallel
from dpbench.distributed import deal, replicas
from dpbench.distributed.group import Group
from dpbench.measure.parallel import Settings
from dpbench.measure.ranks import Attached, Bench
from dpbench.methods import engines
from dpbench.privacy.clipping.adaptive import Adaptive

ENGINES = [("nonprivate", None), ("fused", "per_layer"), ("ghost", "flat"), ("bookkeeping", "flat"), ("bookkeeping", "per_layer")]
STEPS = [list(range(7)), [], [3], [0, 5, 6]]  # logical batches: unequal shares, none at all, a share that is empty
WHOLE = data(7) | {"weight": data(7)["weight"].flip(0)}  # row 0, which padding repeats, has the largest gradient


def plan(scope, **options):
    return plain() if scope is None else mechanism(scope, **options)


def pick(indices):
    return {key: value[list(indices)] for key, value in WHOLE.items()}


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


def train(name, mechanism, deal_to, attach, model=None):
    """Released gradients and final weights over STEPS, with momentum, in physical batches of two."""
    model = model or Language()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = attach(name, model, optimizer, mechanism)
    gradients_by_step, tallies = [], []
    for indices in STEPS:
        mine = deal_to(np.asarray(indices, dtype=int))
        for start in range(0, len(mine), 2):
            handle.backward(losses, pick(mine[start : start + 2]))
        optimizer.step()
        gradients_by_step.append(flat(p.grad for p in model.parameters()))
        tallies.append((handle.clipped_fraction, handle.non_finite_examples))
        optimizer.zero_grad()
    handle.detach()
    done = {
        "gradients": gradients_by_step,
        "weights": flat(model.parameters()),
        "tallies": tallies,
        "sensitivity": handle.sensitivity,
    }
    moved = handle.thresholds
    return done if moved is None else done | {"trajectory": moved.trajectory, "fractions": moved.fractions}


def alone(name, scope, **options):
    return train(name, plan(scope, **options), lambda i: i, engines.attach)


def together(rank, size, name, scope, model=None, **options):
    return train(name, plan(scope, **options), lambda i: deal.share(i, rank, size), parallel.attach, model)


def equality(rank, size):
    return {(name, scope): (together(rank, size, name, scope), alone(name, scope)) for name, scope in ENGINES}


def other_weights_at_first(rank, size):
    model = Language()
    with torch.no_grad():
        model.head.weight.add_(rank)
    return together(rank, size, "fused", "per_layer", model)["weights"]


def large_sums(rank, size):
    """The same with every sum sent from where it lies."""
    kept, replicas.LARGE = replicas.LARGE, 1
    try:
        return together(rank, size, "fused", "per_layer")["gradients"]
    finally:
        replicas.LARGE = kept


class Everyone(replicas.Replicas):
    """A planted fault: every rank adds the whole noise."""

    def _noise_local_part(self, handle, bucket, divisor):
        handle.noise.release_(bucket, divisor)


class SameHalf(replicas.Replicas):
    """A planted fault: both ranks take the same half of the elements."""

    def _noise_local_part(self, handle, bucket, divisor):
        for values, std in bucket:
            half = len(values) // 2
            handle.noise.release_([(values[:half], std), (values[half:], 0.0)], divisor)


def noise(rank, size, exchange=None, randomness="seeded", steps=4):
    """Released noise alone, of a model of 40 thousand elements, and the std it should have."""
    model = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = parallel.attach("fused", model, optimizer, mechanism("per_layer", noise_multiplier=2.0, randomness=randomness))
    if exchange is not None:
        handle.exchange = exchange(handle.exchange.group)
    noises = []
    for _ in range(steps):
        optimizer.step()
        noises.append(flat(p.grad for p in model.parameters()))
        optimizer.zero_grad()
    handle.detach()
    return {"noise": noises, "std": 2.0 * handle.sensitivity / 4.0, "weights": flat(model.parameters())}


def noises(rank, size):
    return {
        "right": noise(rank, size),
        "secret": noise(rank, size, randomness="secret"),
        "everyone": noise(rank, size, Everyone),
        "same_half": noise(rank, size, SameHalf),
    }


def adaptive(rank, size):
    """Training with thresholds that adapt, in the group and in one process, without noise and with."""
    results = {}
    for (name, scope), noise_multiplier in itertools.product(ENGINES[1:], (0.0, 1.0)):
        options = {"adaptive": Adaptive(0.6, budget=0.1), "noise_multiplier": noise_multiplier}
        results[name, scope, noise_multiplier] = (together(rank, size, name, scope, **options), alone(name, scope, **options))
    return results


class EveryoneCounts(replicas.Replicas):
    """A planted fault: every rank adds the whole noise to its counts."""

    def release_counts(self, handle, counts, std):
        return self.group.added(handle.noise.on_counts(counts, std))


def count_noise(rank, size, exchange=None, randomness="seeded", steps=150):
    """[steps, K] noise of the counts over its std, of empty batches."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = mechanism("per_layer", noise_multiplier=2.0, randomness=randomness, adaptive=Adaptive(0.5, rate=1e-3), steps=steps)
    handle = parallel.attach("fused", model, optimizer, plan)
    if exchange is not None:
        handle.exchange = exchange(handle.exchange.group)
    for _ in range(steps):
        optimizer.step()
        optimizer.zero_grad()
    handle.detach()
    return (torch.tensor(handle.thresholds.fractions, dtype=torch.float64) - 0.5) * 4.0 / handle.thresholds.std


def count_noises(rank, size):
    return {
        "right": count_noise(rank, size),
        "secret": count_noise(rank, size, randomness="secret"),
        "everyone": count_noise(rank, size, EveryoneCounts),
    }


def guards(rank, size):
    def attach(name="fused", model=None, lr=0.1, **options):
        model = model or Language()
        return parallel.attach(name, model, torch.optim.SGD(model.parameters(), lr=lr), mechanism("per_layer", **options))

    def other_parameters():
        model = Language()
        if rank == 1:
            model.head = nn.Linear(8, 18, bias=False)
        attach(model=model)

    def bad_everywhere():
        handle, batch = attach(), pick(range(2))
        batch["weight"] = torch.full((2,), float("nan"))
        handle.backward(losses, batch)
        handle.optimizer.step()

    def bad_on_one():
        handle, batch = attach(), pick([rank])
        batch["weight"] = torch.tensor([float("nan") if rank == 0 else 1.0])
        handle.backward(losses, batch)
        handle.optimizer.step()
        return handle.non_finite_examples

    def from_outside():
        handle = attach()
        if rank == 0:
            losses(handle.model, pick([1])).sum().backward()
        handle.optimizer.step()

    def other_step():
        handle = attach()
        handle.steps = rank
        handle.optimizer.step()

    return {
        "mechanism": refused(lambda: attach(bound=0.5 + rank)),
        "optimizer": refused(lambda: attach(lr=0.1 + rank)),
        "parameters": refused(other_parameters),
        "engine": refused(lambda: attach("fused" if rank else "bookkeeping")),
        "loop": refused(lambda: attach("loop")),
        "non-finite": refused(bad_everywhere),
        "one non-finite": bad_on_one(),
        "outside": refused(from_outside),
        "step": refused(other_step),
    }


def baseline(rank, size):
    """Gradients that the tables' `nonprivate` (torch's own replicas) and ours hand to the optimizer, in two micro-batches."""
    settings = Settings(
        mode="ddp",
        processes=size,
        size="tiny",
        tokens=8,
        batch_size=8,
        micro_batch=2,
        methods=["nonprivate"],
        noise_multiplier=0.0,
    )
    ids = torch.randint(0, 512, (8, 8)).tolist()
    bench = Bench(settings, {"ids": ids, "seed": 0}, rank)
    bench.optimizer = torch.optim.SGD(bench.model.parameters(), lr=0.0)
    plan = settings.mechanism("nonprivate")
    results = {}
    for name, attach in (
        ("ours", lambda: Attached(bench, parallel.attach("nonprivate", bench.model, bench.optimizer, plan))),
        ("torch", lambda: bench.attach("nonprivate")),
    ):
        attached = attach()
        seen = []
        hook = bench.optimizer.register_step_pre_hook(
            lambda *_, seen=seen: seen.append(flat(p.grad for p in bench.model.parameters()))
        )
        attached.step()
        hook.remove()
        attached.detach()
        results[name] = seen[0]
    return results | {"kind": type(attached).__name__}


def dealing(rank, size):
    group = Group()
    results = {}
    for randomness in ("seeded", "secret"):
        drawn = deal.batches(mechanism("per_layer", randomness=randomness, expected=30.0), group)
        results[randomness] = [indices.tolist() for indices in itertools.islice(drawn, 10)]
    return results


SCENARIOS = {
    "equality": equality,
    "other_weights_at_first": other_weights_at_first,
    "large_sums": large_sums,
    "noises": noises,
    "adaptive": adaptive,
    "count_noises": count_noises,
    "guards": guards,
    "baseline": baseline,
    "dealing": dealing,
}
