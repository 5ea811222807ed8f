"""`fully_shard` over two processes."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.distributed as dist
from replicas_scenarios import STEPS, alone, flat, pick
from scenario import refused
from small_models import Language, data, losses, mechanism, plain
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dpbench import distributed as parallel
from dpbench.distributed import deal
from dpbench.distributed.group import Group
from dpbench.methods import engines
from dpbench.models.registry import language_model, language_model_losses
from dpbench.privacy.clipping.adaptive import Adaptive

ENGINES = [
    ("nonprivate", None),
    ("fused", "per_layer"),
    ("fused", "per_tensor"),
    ("bookkeeping", "per_layer"),
    ("bookkeeping", "flat"),
]


def shard(module):
    """Over all processes; on a machine with a GPU torch would take that."""
    fully_shard(module, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def full_tensors(tensors):
    return flat(t.full_tensor() if isinstance(t, DTensor) else t for t in tensors)


def train(rank, size, name, scope, physical=2, **options):
    """As `replicas_scenarios.train`, with equally many physical batches on every rank."""
    group = Group()
    model = Language()
    shard(model.block)
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    handle = parallel.attach(name, model, optimizer, plain() if scope is None else mechanism(scope, **options))
    gradients_by_step, tallies = [], []
    for indices in STEPS:
        mine = deal.share(np.asarray(indices, dtype=int), rank, size)
        for piece, real in deal.padded(mine, physical, group):
            handle.backward(losses, pick(piece), real)
        optimizer.step()
        gradients_by_step.append(full_tensors(p.grad for p in model.parameters()))
        tallies.append((handle.clipped_fraction, handle.non_finite_examples))
        optimizer.zero_grad()
    handle.detach()
    done = {"gradients": gradients_by_step, "weights": full_tensors(model.parameters()), "tallies": tallies}
    return done if handle.thresholds is None else done | {"trajectory": handle.thresholds.trajectory}


def equality(rank, size):
    return {(name, scope): (train(rank, size, name, scope), alone(name, scope)) for name, scope in ENGINES}


def adaptive(rank, size):
    options = {"adaptive": Adaptive(0.6, budget=0.1)}
    return {pair: (train(rank, size, *pair, **options), alone(*pair, **options)) for pair in ENGINES[1:]}


def language(rank, size):
    """GPT-2 and Llama, a shard a block: released gradients of a step of two physical batches, and those of one process."""
    results = {}
    for shape, name in itertools.product(("tiny", "llama_tiny"), ("nonprivate", "fused")):
        plan = plain(8.0) if name == "nonprivate" else mechanism("per_layer", bound=2.0, expected=8.0)
        ids = torch.randint(0, 512, (8, 6), generator=torch.Generator().manual_seed(0))
        sharded, lone = language_model(shape, seed=1).train(), language_model(shape, seed=1).train()
        for block in sharded.model.base_model.layers if shape == "llama_tiny" else sharded.model.base_model.h:
            shard(block)
        shard(sharded)
        both = []
        for model, attach, mine in ((sharded, parallel.attach, ids[rank::size]), (lone, engines.attach, ids)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            handle = attach(name, model, optimizer, plan)
            for piece in mine.split(2):
                handle.backward(language_model_losses, {"input_ids": piece})
            optimizer.step()
            both.append(full_tensors(p.grad for p in model.parameters()))
            handle.detach()
        results[shape, name] = both
    return results


def frugality(rank, size):
    """How many whole sums there are at once at most, and whether autograd was asked for a weight's gradient."""
    model = Language()
    shard(model.block)
    shard(model)
    handle = parallel.attach("fused", model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism("per_layer"))
    most, asked = [0], []
    kept_new, kept_grad = handle.exchange.new_sum, torch.autograd.grad

    def new_sum(*args):
        room = kept_new(*args)
        most[0] = max(most[0], len(handle.exchange._rooms))
        return room

    def grad(outputs, inputs, *args, **kwargs):
        asked.extend(x for x in inputs if isinstance(x, nn.Parameter))
        return kept_grad(outputs, inputs, *args, **kwargs)

    handle.exchange.new_sum, torch.autograd.grad = new_sum, grad
    try:
        handle.backward(losses, data(4))
    finally:
        torch.autograd.grad = kept_grad
    return {"most": most[0], "left": len(handle._sums), "weights asked for": len(asked)}


def noise(rank, size):
    """Released noise alone, the std it should have, and where the ranks' shards meet."""
    model = nn.Sequential(nn.Linear(100, 201), nn.Linear(201, 100, bias=False))
    shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = parallel.attach("fused", model, optimizer, mechanism("per_layer", noise_multiplier=2.0))
    optimizer.step()
    local_gradients = [p.grad.to_local().flatten()[:10_000] for p in model.parameters() if p.numel() > 10_000]
    return {
        "noise": full_tensors(p.grad for p in model.parameters()),
        "std": 2.0 * handle.sensitivity / 4.0,
        "own": local_gradients[0],
    }


def guards(rank, size):
    def attach(model, name="fused", scope="per_layer"):
        return parallel.attach(name, model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism(scope))

    def sharded(model):
        shard(model)
        return model

    def partly():
        model = Language()
        shard(model.block)
        attach(model)

    def bad():
        handle, batch = attach(sharded(Language())), data(2)
        batch["weight"] = torch.full((2,), float("nan"))
        handle.backward(losses, batch)
        handle.optimizer.step()

    return {
        "ghost": refused(lambda: attach(sharded(Language()), "ghost", "flat")),
        "partly": refused(partly),
        "fallback": refused(lambda: attach(sharded(nn.Sequential(nn.Bilinear(3, 3, 2))))),
        "tied": refused(lambda: attach(sharded(Language(tied=True)))),
        "non-finite": refused(bad),
    }


SCENARIOS = {
    "equality": equality,
    "adaptive": adaptive,
    "language": language,
    "noise": noise,
    "frugality": frugality,
    "guards": guards,
}
