"""A pipeline of two stages in two processes."""

from __future__ import annotations

import itertools

import torch
from scenario import refused
from small_models import relative
from torch import distributed as dist
from torch import nn

from dpbench import distributed as parallel
from dpbench.distributed.traffic import Traffic
from dpbench.distributed.virtual import by_stage
from dpbench.methods import engines
from dpbench.models.registry import language_model, language_model_losses
from dpbench.models.stages import stage_of
from dpbench.models.tuning import lora
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

SIZES = ("tiny", "llama_tiny")
ENGINES = ("nonprivate", "fused", "bookkeeping")
GROUPED = [
    ("tiny", "fused", "per_layer"),
    ("tiny", "fused", "per_tensor"),
    ("tiny", "bookkeeping", "per_block"),
    ("tiny", "bookkeeping", "per_device"),
    ("llama_tiny", "bookkeeping", "per_device"),
]
ADAPTIVE = Adaptive(0.6, budget=0.1)
ADAPTED = [("tiny", "gpipe"), ("tiny", "1f1b"), ("llama_tiny", "gpipe")]
BATCHES = [(8, 8), (8, 5)]  # examples, of which real


def plan(
    name="fused", bound=2.0, scope="per_layer", allocation="global", adaptive=None, devices=None, thresholds=None, **options
):
    if name == "nonprivate":
        return Mechanism(Sampling("poisson", 100, 8.0), 10, **options)
    clipping = Clipping(
        scope=scope, bound=bound, allocation=allocation, adaptive=adaptive, devices=devices, thresholds=thresholds
    )
    return Mechanism(Sampling("poisson", 100, 8.0), 10, clipping, **options)


def weighted(model, batch):
    return language_model_losses(model, batch) * batch["weight"]


def physical(seed, size, tokens=6):
    """Weights put gradients on both sides of the bounds, the first one exactly at zero."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(0, 512, (size, tokens), generator=generator), "weight": torch.linspace(0.0, 3.0, size)}


def released(model):
    """Name in the whole model -> gradient."""
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def alone(size, name, mechanism):
    model = language_model(size, seed=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = engines.attach(name, model, optimizer, mechanism)
    values = [handle.backward(weighted, physical(k, n), real) for k, (n, real) in enumerate(BATCHES)]
    optimizer.step()
    names = {id(p): p.grad.clone() for p in model.parameters()}
    return names, model, handle, torch.cat(values)


def together(rank, stages, model, name, mechanism, schedule="gpipe", micro_batches=4):
    stage = stage_of(model, rank, stages).train()
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    pipeline = parallel.attach_stage(name, stage, optimizer, mechanism, micro_batches, schedule)
    values = [pipeline.backward(weighted, physical(k, n), real) for k, (n, real) in enumerate(BATCHES)]
    optimizer.step()
    pipeline.detach()
    return stage, pipeline.handle, torch.cat(values)


def equality(rank, stages):
    """Relative difference of each stage's released gradients from those of one process."""
    results = {}
    for size, name, schedule in itertools.product(SIZES, ENGINES, ("gpipe", "1f1b")):
        model = language_model(size, seed=1).train()
        stage, handle, values = together(rank, stages, model, name, plan(name), schedule)
        _, whole_model, lone, losses = alone(size, name, plan(name))
        theirs = {n: p.grad for n, p in stage_of(whole_model, rank, stages).named_parameters()}
        stage_gradients = released(stage)
        results[size, name, schedule] = {
            "difference": max(relative(stage_gradients[n].double(), theirs[n].double()) for n in theirs),
            "tensors": (len(stage_gradients), len(theirs)),
            "all": sum(1 for _ in whole_model.parameters()),
            "clipped": (handle.clipped_fraction, lone.clipped_fraction),
            "sensitivity": (handle.sensitivity, lone.sensitivity),
            "groups": len(handle.bounds),
            "losses": float((values - losses).abs().max()) if len(values) else None,
        }
    return results


def scopes(rank, stages):
    """Two steps with thresholds that adapt, against one process: differences of released gradients, trajectories, groups."""
    results = {}
    for (size, name, scope), noise_multiplier in itertools.product(GROUPED, (0.0, 1.0)):
        options = {"scope": scope, "adaptive": ADAPTIVE, "allocation": "equal", "noise_multiplier": noise_multiplier}
        devices = {"devices": stages} if scope == "per_device" else {}
        model, whole_model = language_model(size, seed=1).train(), language_model(size, seed=1).train()
        stage = stage_of(model, rank, stages).train()
        stage_optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (stage, whole_model))
        pipeline = parallel.attach_stage(name, stage, stage_optimizer, plan(**options), 4)
        lone = engines.attach(name, whole_model, other, plan(**options, **devices))
        pairs = list(zip(stage.parameters(), stage_of(whole_model, rank, stages).parameters(), strict=True))
        differences, stds = [], []
        for _ in range(2):
            for k, (count, real) in enumerate(BATCHES):
                pipeline.backward(weighted, physical(k, count), real)
                lone.backward(weighted, physical(k, count), real)
            stds.append(max(abs(pipeline.handle.noise_stds[id(a)] - lone.noise_stds[id(b)]) for a, b in pairs))
            stage_optimizer.step(), other.step()
            differences.append(max(relative(a.grad.double(), b.grad.double()) for a, b in pairs))
            stage_optimizer.zero_grad(), other.zero_grad()
        results[size, name, scope, noise_multiplier] = {
            "differences": differences,
            "stds": stds,
            "trajectories": (pipeline.handle.thresholds.trajectory, lone.thresholds.trajectory),
            "sizes": (pipeline.handle.layout.sizes, lone.layout.sizes),
            "own": {cluster.group for cluster in pipeline.handle.layout.clusters},
        }
        pipeline.detach(), lone.detach()
    return results


def micro_batches(rank, stages):
    """Released gradients with the batch cut in 2, 4 and 8."""
    results = []
    for count in (2, 4, 8):
        model = language_model("tiny", seed=1).train()
        stage, _, _ = together(rank, stages, model, "fused", plan(), micro_batches=count)
        results.append(torch.cat([g.double().flatten() for g in released(stage).values()]))
    return results


def noise(rank, stages):
    """Allocation -> (std of the released noise over what it must be, for each large tensor; the stage's noise)."""
    results = {}
    for allocation in ("global", "equal", "weighted"):
        model = language_model("tiny", seed=1).train()
        whole_model = language_model("tiny", seed=1).train()
        lone = engines.attach(
            "fused", whole_model, torch.optim.SGD(whole_model.parameters()), plan(allocation=allocation, noise_multiplier=2.0)
        )
        std = {n: lone.noise_stds[id(p)] for n, p in stage_of(whole_model, rank, stages).named_parameters()}
        stage = stage_of(model, rank, stages).train()
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
        pipeline = parallel.attach_stage("fused", stage, optimizer, plan(allocation=allocation, noise_multiplier=2.0), 2)
        optimizer.step()
        stage_noise = {n: p.grad for n, p in stage.named_parameters() if p.numel() >= 3000}
        ratios = {n: float(g.std()) * 8 / std[n] for n, g in stage_noise.items()}
        results[allocation] = {"ratios": ratios, "blocks": stage_noise[f"blocks.{rank}.mlp.c_fc.weight"].clone()}
        pipeline.detach()
        lone.detach()
    return results


def fractions(rank, stages):
    """Clipped fractions of three steps, the first without a gradient, the second without an example; the same in one process."""
    steps = ([(physical(0, 4) | {"weight": torch.zeros(4)}, None)], [], [(physical(1, 4), 3), (physical(2, 4), None)])
    model, whole_model = language_model("tiny", seed=1).train(), language_model("tiny", seed=1).train()
    stage = stage_of(model, rank, stages)
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (stage, whole_model))
    pipeline, lone = (
        parallel.attach_stage("fused", stage, optimizer, plan(), 2),
        engines.attach("fused", whole_model, other, plan()),
    )
    results = []
    for step in steps:
        for batch, real in step:
            pipeline.backward(weighted, batch, real)
            lone.backward(weighted, batch, real)
        optimizer.step(), other.step()
        results.append((pipeline.handle.clipped_fraction, lone.clipped_fraction))
        optimizer.zero_grad(), other.zero_grad()
    return results


def non_finite(rank, stages):
    """One example of each micro-batch; then all of them."""

    def bad(which):
        def losses(model, batch):
            return weighted(model, batch) * torch.where(which, float("nan"), 1.0)

        return losses

    model = language_model("tiny", seed=1).train()
    stage = stage_of(model, rank, stages)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    pipeline = parallel.attach_stage("fused", stage, optimizer, plan(), 2)
    pipeline.backward(bad(torch.tensor([False, True])), physical(0, 4))
    optimizer.step()
    optimizer.zero_grad()
    counted = pipeline.handle.non_finite_examples
    pipeline.backward(bad(torch.tensor([True, True])), physical(0, 4))
    return counted, refused(optimizer.step)


def adapted(size):
    """A language model with adapters whose second factor is not 0, so that both have a gradient from the first step on."""
    model = lora(language_model(size, seed=1), 2, 4.0, 5, False).train()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0.0, 0.05, generator=generator)
    return model, [p for p in model.parameters() if p.requires_grad]


def exact(model, batch):
    """As `weighted`, in fp64."""
    ids = batch["input_ids"]
    logits = model(ids).double()[:, :-1]
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(1) * batch["weight"]


def adapters(rank, stages):
    """Two steps on adapters, against the fp64 oracle on one process; bytes handed to the other stage in the second."""
    results = {}
    for (size, schedule), scope in itertools.product(ADAPTED, ("flat", "per_device")):
        model, _ = adapted(size)
        stage = stage_of(model, rank, stages)
        whole_model, trained = adapted(size)
        options = {"scope": scope, "allocation": "equal", "bound": 0.02, "noise_multiplier": 0.0}
        stage_optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.5)
        other = torch.optim.SGD([p for p in whole_model.double().parameters() if p.requires_grad], lr=0.5)
        pipeline = parallel.attach_stage("bookkeeping", stage, stage_optimizer, plan(**options), 4, schedule)
        lone = engines.attach(
            "loop",
            whole_model,
            other,
            plan(**options),
            globalize_layout=by_stage(whole_model, stages) if scope == "per_device" else None,
        )
        pairs = list(zip(stage.parameters(), stage_of(whole_model, rank, stages).parameters(), strict=True))
        differences = []
        for _ in range(2):
            traffic = Traffic("backward")
            for k, (count, real) in enumerate(BATCHES):
                with traffic:
                    pipeline.backward(exact, physical(k, count), real)
                lone.backward(exact, physical(k, count), real)
            stage_optimizer.step(), other.step()
            differences += [max(relative(x.double(), y.double()) for x, y in _released(pairs))]
            differences += [max(relative(a.detach().double(), b.detach()) for a, b in pairs)]
            stage_optimizer.zero_grad(), other.zero_grad()
        results[size, scope, schedule] = {
            "differences": differences,
            "clipped": (pipeline.handle.clipped_fraction, lone.clipped_fraction),
            "sizes": (pipeline.handle.layout.sizes, lone.layout.sizes if lone.layout else [sum(p.numel() for p in trained)]),
            "sensitivity": pipeline.handle.sensitivity,
            "bytes": (traffic.collectives["backward"], traffic.messages["backward"]),
        }
        pipeline.detach(), lone.detach()
    return results


def _released(pairs):
    return [(a.grad, b.grad) for a, b in pairs if a.requires_grad]


def worst(rank, stages):
    """Scope -> (norm of what one example far beyond the bound adds here, std of the noise of each tensor)."""
    results = {}
    for scope in ("flat", "per_device"):
        stage = stage_of(adapted("tiny")[0], rank, stages)
        mechanism = plan(scope=scope, bound=0.3, allocation="equal", noise_multiplier=0.0)
        optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.0)
        pipeline = parallel.attach_stage("bookkeeping", stage, optimizer, mechanism, 2)
        batch = physical(0, 4) | {"weight": torch.full((4,), 1e4)}
        pipeline.backward(exact, batch, 1)
        optimizer.step()
        gradients = torch.cat([p.grad.flatten() for p in stage.parameters() if p.requires_grad])
        pipeline.detach()
        noisy = plan(scope=scope, bound=0.3, allocation="equal", noise_multiplier=2.0)
        pipeline = parallel.attach_stage("bookkeeping", stage, optimizer, noisy, 2)
        results[scope] = float(gradients.norm()) * 8, sorted(set(pipeline.handle.noise_stds.values()))
        pipeline.detach()
    return results


def leaks(rank, stages):
    """Bytes handed to collectives by clipping per device, as it is and with an exchange of norms planted in it."""
    results = []
    for planted in (False, True):
        stage = stage_of(adapted("tiny")[0], rank, stages)
        optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.1)
        pipeline = parallel.attach_stage("bookkeeping", stage, optimizer, plan(scope="per_device"), 2)
        count, sent = pipeline.handle.count, []

        def leaky(norms, bounds, groups=None, count=count, sent=sent):
            sent.append(dist.all_reduce(norms.clone(), async_op=True))  # to wait here would stop the pipeline
            count(norms, bounds, groups)

        if planted:
            pipeline.handle.count = leaky
        pipeline.backward(exact, physical(0, 4))
        with (traffic := Traffic("backward")):
            pipeline.backward(exact, physical(0, 4))
        results.append(traffic.collectives["backward"])
        for work in sent:
            work.wait()
        optimizer.step()
        pipeline.detach()
    return results


def guards(rank, stages):
    def attach(name="fused", stage=None, mechanism=None, micro=2, schedule="gpipe"):
        stage = stage or stage_of(language_model("tiny"), rank, stages).train()
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
        return parallel.attach_stage(name, stage, optimizer, mechanism or plan(), micro, schedule)

    def shapes():
        pipeline = attach()
        pipeline.backward(weighted, physical(0, 4))
        pipeline.backward(weighted, physical(0, 6))

    return {
        "flat": refused(lambda: attach("bookkeeping", mechanism=plan(scope="flat", adaptive=ADAPTIVE))),
        "ghost": refused(lambda: attach("ghost", mechanism=plan(scope="flat"))),
        "devices": refused(lambda: attach("bookkeeping", mechanism=plan(scope="per_device", devices=3))),
        "thresholds": refused(lambda: attach(mechanism=plan(thresholds=[1.0] * 3))),
        "twice": refused(lambda: attach(stage=nn.Sequential(nn.Linear(3, 3)))),
        "mechanism": refused(lambda: attach(mechanism=plan(bound=1.0 + rank))),
        "micro-batches": refused(lambda: attach(micro=1, schedule="1f1b")),
        "uneven": refused(lambda: attach().backward(weighted, physical(0, 5))),
        "shapes": refused(shapes),
        "tied": refused(lambda: stage_of(language_model("tiny", tied=True), rank, stages)),
        "deep": refused(lambda: stage_of(language_model("tiny"), rank, 3)),
    }


SCENARIOS = {
    "equality": equality,
    "scopes": scopes,
    "adapters": adapters,
    "worst": worst,
    "leaks": leaks,
    "micro_batches": micro_batches,
    "noise": noise,
    "fractions": fractions,
    "non_finite": non_finite,
    "guards": guards,
}
