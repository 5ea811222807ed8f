"""What is pruned or dropped is a function of released weights alone: of what the optimizer left, noise and all."""

from __future__ import annotations

import pytest
import torch
from compress_runs import PRUNE, run, settings
from torch.optim.optimizer import register_optimizer_step_post_hook

from dpbench.compression import dropping, pruning
from dpbench.compression.pruning import Masks, prunable
from dpbench.compression.task import CompressedTask
from dpbench.methods.engines.base import Handle

LOUD = {"epsilon": 0.5, "optimizer": {"name": "sgd", "learning_rate": 0.5, "schedule": "constant"}}
"""So much noise that the smallest weights before it are not the smallest behind it."""


class Watch:
    """Of a run: the weights that the optimizer left in each step, and those that every mask was made behind."""

    def __init__(self, monkeypatch):
        self.released: dict[str, torch.Tensor] = {}
        self.masked: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []
        self.tasks: list[CompressedTask] = []
        init, prune = CompressedTask.__init__, Masks.prune_

        def remembered(task, *args):
            init(task, *args)
            self.tasks.append(task)

        def pruned(masks, sparsity):
            gone = {name: ~mask.clone() for name, mask in masks.masks.items()}
            prune(masks, sparsity)
            self.masked.append((self.expected(gone, sparsity), {name: mask.clone() for name, mask in masks.masks.items()}))

        monkeypatch.setattr(CompressedTask, "__init__", remembered)
        monkeypatch.setattr(Masks, "prune_", pruned)

    def stepped(self, *_):
        self.released = {name: w.detach().clone() for name, w in prunable(self.tasks[-1].encoder).items()}

    def expected(self, gone, sparsity):
        """The masks of `sparsity` of the released weights, those masked before among them."""
        sizes = torch.cat([w.abs().masked_fill(gone[name], -1.0).flatten() for name, w in self.released.items()])
        keep = torch.ones_like(sizes, dtype=torch.bool)
        keep[sizes.argsort(stable=True)[: round(sparsity * len(sizes))]] = False
        parts = keep.split([w.numel() for w in self.released.values()])
        return {name: part.view_as(w) for (name, w), part in zip(self.released.items(), parts, strict=True)}


def pruned_run(folder, monkeypatch):
    watch = Watch(monkeypatch)
    hook = register_optimizer_step_post_hook(watch.stepped)
    try:
        run(folder, settings(**PRUNE, **LOUD))
    finally:
        hook.remove()
    return watch.masked


def differing(masked):
    """Of each mask: the share of weights about which it and the one of released weights disagree."""
    return [
        float(torch.cat([(expected_weights[name] != actual_weights[name]).flatten() for name in expected_weights]).float().mean())
        for expected_weights, actual_weights in masked
    ]


def test_masks_are_made_of_released_weights(tmp_path, monkeypatch):
    differing_shares = differing(pruned_run(tmp_path, monkeypatch))
    assert len(differing_shares) == PRUNE["prune"]["steps"]
    assert max(differing_shares) < 1e-4  # of weights of equal size another may go


def test_planted_masks_of_weights_before_the_noise_are_seen(tmp_path, monkeypatch):
    """What the weights would be, had the step's sum been released without its noise."""
    sums: dict[int, torch.Tensor] = {}
    release, sizes = Handle._release, Masks._sizes

    def spied(handle):
        for parameter in handle.trainable.values():
            total = handle.exchange.summed(handle, parameter).clone() / handle.mechanism.sampling.expected_batch_size
            sums[id(parameter)] = parameter.detach().clone() - LOUD["optimizer"]["learning_rate"] * total
        release(handle)

    def noiseless(masks, name):
        weight = sums.get(id(masks.weights[name]), masks.weights[name].detach())
        return weight.abs().masked_fill(~masks.masks[name], -1.0).reshape(-1)

    monkeypatch.setattr(Handle, "_release", spied)
    monkeypatch.setattr(Masks, "_sizes", noiseless)
    assert sizes is not Masks._sizes
    assert max(differing(pruned_run(tmp_path, monkeypatch))) > 0.01


def test_layers_chosen_by_weights_are_the_smallest_released(tmp_path, monkeypatch):
    """The norms that are compared are those of the weights that the last step of the block left."""
    seen = []
    smallest = dropping.smallest_layers
    left: dict[str, torch.Tensor] = {}
    tasks = Watch(monkeypatch).tasks

    def stepped(*_):
        left.clear()
        left.update({name: p.detach().clone() for name, p in tasks[-1].encoder.named_parameters()})

    def spied(encoder, count):
        seen.append(all(torch.equal(p, left[name]) for name, p in encoder.named_parameters()))
        return smallest(encoder, count)

    monkeypatch.setattr(dropping, "smallest_layers", spied)
    hook = register_optimizer_step_post_hook(stepped)
    try:
        run(tmp_path, settings(drop={"layers": 1, "block_steps": 1, "choose": "weights"}, **LOUD))
    finally:
        hook.remove()
    assert seen == [True]


@pytest.mark.parametrize("rewind", ["none", "encoder", "all"])
def test_a_rewind_goes_back_to_public_weights(tmp_path, monkeypatch, rewind):
    """To those that training started from, which no private row has a part in."""
    starts = []
    kept = pruning.start_of

    def spied(module):
        kept_weights = kept(module)
        starts.append({name: value.clone() for name, value in kept_weights.items()})
        return kept_weights

    monkeypatch.setattr(pruning, "start_of", spied)
    steps = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(len(starts)))
    try:
        run(tmp_path, settings(prune=PRUNE["prune"] | {"rewind": rewind}, **LOUD))
    finally:
        hook.remove()
    assert len(starts) == 1
    assert set(steps) == {1}, "taken before the first step, and never again"
