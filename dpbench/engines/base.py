"""The contract every engine keeps, ours and peers'.

handle = attach("fused", model, optimizer, mechanism)
for physical in physical_batches:             # may be none
    handle.backward(losses, physical)         # losses(model, batch) -> [B], each a function of that example alone
optimizer.step()                              # (bounded sum + noise) / expected_batch_size
optimizer.zero_grad()
handle.detach()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dpbench import plugins
from dpbench.engines.exchange import Exchange, Tally
from dpbench.engines.layers import Layer, Layout, check_examples_apart, lay_out
from dpbench.engines.noise import Noise
from dpbench.engines.resuming import Resumable
from dpbench.engines.thresholds import Thresholds
from dpbench.errors import DpbenchError
from dpbench.kernels.leaf import Factor, Sums
from dpbench.mechanism import Mechanism, noise_stds, sensitivity

Losses = Callable[[nn.Module, Any], Tensor]
"""losses(model, batch) -> [B]."""

_WITNESS = 64  # elements of each tensor kept to see that it moved


class NonFiniteStep(DpbenchError):
    """Every example of a step had a non-finite gradient."""


class Handle(Resumable):
    """An attached engine. Subclasses implement `_accumulate`.

    groups: names of the layers in each group; bounds: C_k; sensitivity: of the sum over a batch, adding or removing
    one example; thresholds: how adaptive bounds move, None for fixed ones; unprotected: trainable tensors outside every group
    (always empty: attaching refuses them); real: how many examples of the physical batch at hand count, None for all.
    """

    name = ""
    scopes: tuple[str, ...] = ("flat", "per_layer")
    functions: tuple[str, ...] | None = None
    adapts = False  # does not do adaptive thresholds, unless the engine says so
    needs_layers = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mechanism: Mechanism,
        kernels: str = "auto",
        whole: Callable[[Layout], Layout] | None = None,
    ) -> None:
        self.model, self.optimizer, self.mechanism, self.kernels = model, optimizer, mechanism, kernels
        self._whole = whole
        self.steps = 0
        self.trainable = _trainable(model, optimizer)
        self._sums: dict[int, Tensor] = {}
        self.exchange = Exchange()
        self._tally = Tally()
        self._counts: list[Tensor] = []  # clipped, finite and non-finite examples, left on the device until the step ends
        self._bounds: dict[tuple[Any, ...], Tensor] = {}
        self.real: int | None = None
        self.clipped_fraction: float | None = None
        self.non_finite_examples = 0
        self.layout: Layout | None = None
        self.bounds: list[float] = []
        self.sensitivity = float("inf")
        self.noise_stds: dict[int, float] = {}
        if mechanism.clipping is not None:
            self._prepare_clipping()
        self.draw_noise_as(rank=0)
        self._witness: dict[str, Tensor] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def _prepare_clipping(self) -> None:
        clipping = self.mechanism.clipping
        assert clipping is not None
        if clipping.scope not in self.scopes:
            raise DpbenchError(f"engine {self.name!r} does not do {clipping.scope} clipping", f"it does {', '.join(self.scopes)}")
        if self.functions is not None and clipping.function not in self.functions:
            raise DpbenchError(f"engine {self.name!r} does not do {clipping.function}", f"it does {', '.join(self.functions)}")
        if clipping.adaptive is not None and not self.adapts:
            able = ", ".join(n for n, plugin in plugins.discover("engine").items() if plugin.extra.get("adaptive"))
            raise DpbenchError(f"engine {self.name!r} does not do adaptive thresholds", f"these do: {able}")
        self._function = plugins.get("function", clipping.function).load()
        if not self.needs_layers and clipping.scope == "flat":  # needs no layout, so any parameter is protected
            check_examples_apart(self.model)
            self._set_bounds(["all"], [0])
            return
        own = lay_out(self.model, clipping, self.kernels, stage=self._whole is not None)
        self.layout = layout = own if self._whole is None else self._whole(own)
        self._set_bounds(layout.labels, sorted({cluster.group for cluster in layout.clusters}))

    def _set_bounds(self, labels: list[str], own: list[int]) -> None:
        """Bounds, sensitivity and noise of all groups, of which this process may hold a part."""
        clipping = self.mechanism.clipping
        assert clipping is not None
        self.bounds = clipping.bounds(len(labels), labels)
        if clipping.adaptive is not None:
            self.thresholds = Thresholds(self.mechanism, labels, own, self.bounds)
        self._set_noise()

    def _set_noise(self) -> None:
        """Sensitivity and the noise std of every tensor; groups that share a tensor count as one with the sum of their bounds."""
        layout, clipping = self.layout, self.mechanism.clipping
        assert clipping is not None
        noise_multiplier = self.mechanism.gradient_noise_multiplier
        if layout is None:
            self.sensitivity = self.bounds[0]
            self.noise_stds = {id(p): noise_multiplier * self.bounds[0] for p in self.trainable.values()}
            return
        merged = {k: group for group in layout.shared for k in group}
        sets = [[k] for k in range(len(self.bounds)) if k not in merged] + layout.shared
        bounds = [sum(self.bounds[k] for k in group) for group in sets]
        sizes = [max(layout.sizes[k] for k in group) for group in sets]
        self.sensitivity = sensitivity(bounds)
        stds = noise_stds(bounds, noise_multiplier, clipping.allocation, sizes)
        group_std = {k: std for group, std in zip(sets, stds, strict=True) for k in group}
        for cluster in layout.clusters:
            for layer in cluster.layers:
                for parameter in layer.parameters.values():
                    self.noise_stds[id(parameter)] = group_std[cluster.group]
        if missing := [name for name, p in self.trainable.items() if id(p) not in self.noise_stds]:
            raise DpbenchError(
                f"parameter {missing[0]} belongs to no group: it would be unprotected", "freeze it, or put it in a leaf module"
            )

    def draw_noise_as(self, rank: int) -> None:
        """Take the noise of a rank of a group; 0 is a process alone."""
        self.noise = Noise(self.mechanism, rank, self.kernels, on=[self.model, self.optimizer, *self.trainable.values()])

    # the contract

    @property
    def unprotected(self) -> list[str]:
        """Names of trainable tensors that no group protects."""
        if self.mechanism.clipping is None:
            return []
        return [name for name, p in self.trainable.items() if id(p) not in self.noise_stds]

    def backward(self, losses: Losses, batch: Any, real: int | None = None) -> Tensor:
        """Add the bounded gradients of one physical batch to the step's sum; returns the detached losses [B].

        Args:
            real: only the first `real` examples count; the others are padding, for processes that must all run alike.

        Guarantee: each example adds at most C_k in L2 to group k, and a non-finite one or padding adds 0.

        Raises:
            DpbenchError: the loss is not one value an example, or a module's input does not have the batch first.
        """
        if real is not None and not self.exchange.keeps_padding:
            batch, real = select(batch, slice(real)), None
            if not batch_size(batch):
                return torch.zeros(0)
        self.real = real
        values = self._accumulate(losses if real is None else without_padding(losses, real), batch)[:real]
        self.noted(len(values))
        return values

    def _accumulate(self, losses: Losses, batch: Any) -> Tensor:
        raise NotImplementedError

    def noted(self, examples: int) -> None:
        """Count the examples of a physical batch."""
        self._tally.examples += examples

    def epsilon(self) -> float | None:
        """Spent so far (PLD); None for a non-private run."""
        return self.mechanism.epsilon(self.steps)

    def detach(self) -> None:
        """Remove every trace from model and optimizer."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._sums = {}

    # the two halves of `_accumulate`, for a pipeline; engines that say they run as stages have them

    def forward_of(self, call: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """`call()`, with what its backward pass will need: (an open pass, the output [B, ...])."""
        raise NotImplementedError

    def backward_of(
        self, one: Any, outputs: Tensor, gradients: Tensor | None = None, inputs: Sequence[Tensor] = ()
    ) -> list[Tensor | None]:
        """Add the bounded gradients of an open pass to the step's sum; returns those of `inputs`.

        Args:
            outputs: the sum of the losses, or a stage's output, with its `gradients` from the next stage.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Clip what waits for the other processes' norms: all go through their last pass of a physical batch, then call this."""

    # for engines

    def factor(self, group: int) -> Factor:
        """Norms -> factors of one group, with the mechanism's function, bound and gamma."""
        clipping = self.mechanism.clipping
        assert clipping is not None
        return Factor(clipping.function, self.bounds[group], clipping.gamma, self._function.factor)

    def bounds_of(self, groups: list[int], device: torch.device) -> Tensor:
        """[K] bounds of some groups, sent to the device once: a copy from pageable memory waits for it."""
        key = (device, *(self.bounds[k] for k in groups))
        if key not in self._bounds:
            self._bounds = {key: torch.tensor(key[1:], device=device)}
        return self._bounds[key]

    def sum_of(self, parameter: Tensor) -> Tensor:
        """The running sum of a parameter's bounded gradients; zeroed here, where it is allocated."""
        if id(parameter) not in self._sums:
            self._sums[id(parameter)] = self.exchange.new_sum(parameter).zero_()
        return self._sums[id(parameter)]

    def sums_of(self, layer: Layer) -> Sums:
        """The running sums of a layer's parameters; those allocated just now are fresh: not yet written."""
        fresh = [name for name, p in layer.parameters.items() if id(p) not in self._sums]
        for name in fresh:
            parameter = layer.parameters[name]
            self._sums[id(parameter)] = self.exchange.new_sum(parameter)
        return Sums({name: self._sums[id(p)] for name, p in layer.parameters.items()}, fresh)

    def let_go(self, parameter: Tensor) -> Tensor | None:
        """The running sum of a parameter, which is forgotten here; None if there is none."""
        return self._sums.pop(id(parameter), None)

    def count(self, norms: Tensor, bounds: Tensor | float, groups: Sequence[int] | None = None) -> None:
        """Note norms [B] or [B, K] of `groups` (None: all that this process holds) for `clipped_fraction`, the non-finite guard
        and adaptive thresholds. Does not wait for the device."""
        norms = (norms[:, None] if norms.dim() == 1 else norms)[: self.real]
        finite = torch.isfinite(norms)
        over, whole = ((norms > bounds) & finite).any(1), finite.all(1)
        self.exchange.noted(over, whole)
        self._counts.append(torch.stack([over.sum(), whole.sum(), (~whole).sum()]))
        if self.thresholds is not None:
            self.thresholds.note(norms <= bounds, groups)

    def counted(self) -> Tally:
        """This process' examples of the step so far; waits for the device."""
        if self._counts:
            counts = torch.stack([count.to(self._counts[0].device) for count in self._counts]).sum(0)
            self._counts = []
            clipped, finite, non_finite = (int(n) for n in counts.tolist())
            own = self._tally
            self._tally = Tally(own.examples, own.clipped + clipped, own.non_finite + non_finite, own.finite + finite)
        return self._tally

    def _before_step(self) -> None:
        fault = self.beyond_the_end() or self._gradient_from_outside()
        self._tally = tally = self.exchange.total(self.counted(), self.steps, fault)
        if tally.non_finite and not tally.finite:
            raise NonFiniteStep(
                f"step {self.steps + 1}: all {tally.non_finite} examples have non-finite gradients",
                "lower the learning rate, or use a wider dtype",
            )
        if self.mechanism.noise_multiplier > 0 and self.steps == 0:
            self._witness = {name: _some_of(p).clone() for name, p in self.trainable.items()}
        self._release()
        self._sums = {}

    def _gradient_from_outside(self) -> DpbenchError | None:
        for name, parameter in self.trainable.items():
            if parameter.grad is not None:
                return DpbenchError(
                    f"{name} has a gradient from outside the engine: it would be released without noise",
                    "call handle.backward instead of loss.backward, and optimizer.zero_grad after each step",
                )
        return None

    def _release(self) -> None:
        """Every parameter's grad = (sum + noise) / expected_batch_size.

        Guarantee: noise of std noise_multiplier x sensitivity (as allocated) is added once a step, also to an empty sum.
        """
        sums = [(self.exchange.summed(self, p), self.noise_stds.get(id(p), 0.0)) for p in self.trainable.values()]
        with torch.no_grad():
            self.exchange.release_(self, sums, self.mechanism.sampling.expected_batch_size)
        for parameter, (total, _) in zip(self.trainable.values(), sums, strict=True):
            parameter.grad = self.exchange.gradient(parameter, total)

    def _after_step(self) -> None:
        self.steps += 1
        tally, self._tally = self._tally, Tally()
        self.clipped_fraction = tally.clipped / tally.examples if tally.examples else None
        self.non_finite_examples += tally.non_finite
        if self.thresholds is not None:
            self.bounds = self.thresholds.move(lambda counts, std: self.exchange.release_counts(self, counts, std))
            self._set_noise()
        if self._witness is not None:
            self._check_moved()
            self._witness = None

    # for Resumable

    def _in_a_step(self) -> bool:
        return bool(self._sums or self._counts or self._tally != Tally())

    def _go_on_from(self, bounds: list[float]) -> None:
        self.bounds = bounds
        self._set_noise()

    def _check_moved(self) -> None:
        """Under noise every trained tensor moves in the first step; one that does not is not trained at all."""
        assert self._witness is not None
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        for name, parameter in self.trainable.items():
            before = self._witness[name]
            if rates[id(parameter)] > 0 and len(before) and torch.equal(before, _some_of(parameter)):
                raise DpbenchError(
                    f"{name} has not moved in the first step although it is trained under noise",
                    "see that the optimizer steps on the model's own tensors and that the dtype resolves the learning rate",
                )


def _some_of(parameter: Tensor) -> Tensor:
    """Its first elements on this process: none, where its shard is empty."""
    local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
    return local.detach().reshape(-1)[:_WITNESS]


def _trainable(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that will be trained.

    Raises:
        DpbenchError: the optimizer and the model do not have the same trainable tensors.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    in_model = {id(p) for p in named.values()}
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    if stray := stepped - in_model:
        raise DpbenchError(
            f"the optimizer steps on {len(stray)} tensors that are not the model's", "build it from model.parameters()"
        )
    if idle := [name for name, p in named.items() if id(p) not in stepped]:
        raise DpbenchError(f"{idle[0]} is trainable but not in the optimizer", "add it, or freeze it")
    if not named:
        raise DpbenchError("the model has no trainable parameter", "call requires_grad_(True) on what is to be trained")
    return named


def without_padding(losses: Losses, real: int) -> Losses:
    """The losses with those from number `real` on at 0, so that padding has no gradient."""

    def counted(model: nn.Module, batch: Any) -> Tensor:
        values = check_losses(losses(model, batch))
        padding = torch.arange(len(values), device=values.device) >= real
        return values.masked_fill(padding, 0.0)

    return counted


def check_losses(values: Tensor) -> Tensor:
    """The losses [B], or an error that says what they must be."""
    if values.dim() != 1:
        raise DpbenchError(
            f"losses have shape {list(values.shape)}, wanted [B]: one value an example, made from that example alone",
            "reduce over tokens, never over the batch",
        )
    return values


def batch_size(batch: Any) -> int:
    """B of a batch: the first dimension of its first tensor."""
    if isinstance(batch, Tensor):
        return batch.shape[0]
    for value in batch.values() if isinstance(batch, dict) else batch:
        if isinstance(value, Tensor):
            return value.shape[0]
    raise DpbenchError("the batch holds no tensor", "pass a tensor, or a dict or tuple of tensors")


def select(batch: Any, index: Tensor | slice) -> Any:
    """The examples `index` of a batch."""
    if isinstance(batch, dict):
        return {name: select(value, index) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(select(value, index) for value in batch)
    return batch[index] if isinstance(batch, Tensor) else batch
