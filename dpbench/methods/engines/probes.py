"""Checks that a model's code cannot answer: whether a forward pass writes into the model, and whether examples are independent.

Both compare values, so they serve every method, whatever it does with gradients.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from dpbench.errors import DpbenchError
from dpbench.methods.engines.batches import Batch, Losses
from dpbench.methods.engines.writes import StateWatch

_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
_TOLERANCE_OF_HALVES = 2.0**-6
_ELSEWHERE = 20221103  # a seed like any other
_SMALL = 1e-2  # smaller losses are compared as if they were this large: differences of logits have been rounded before
_ALONE = 8  # examples that are also compared with a batch that holds them alone
_OTHER_SHAPES = 8.0  # factor on the tolerance where a pass had other shapes: a batch cut to its longest example


def has_values(model: nn.Module) -> bool:
    """Return whether a model has values to examine: no fake tensors, no meta device, and no layer without its shape."""
    return not any(
        p.is_meta or isinstance(p, FakeTensor) or nn.parameter.is_lazy(p) for p in [*model.parameters(), *model.buffers()]
    )


def check_examples_apart_by_value(
    losses: Losses,
    model: nn.Module,
    batch: Batch,
    select: Callable[[Batch, Tensor], Batch],
    examples: int | None = None,
) -> bool:
    """Check that an example's loss does not change when other examples of its batch are replaced.

    This makes five forward passes without gradients, of the same shapes and with the same random numbers (masks of dropout): one
    of the unchanged batch; in the others one half of the examples, chosen at random, is replaced by copies of the example of the
    other half with the largest loss, or with the smallest, which also moves medians and the like.

    Args:
        losses: (model, batch) -> [B].
        select: (batch, index [B] on the CPU) -> the examples of that index.
        examples: B; by default the length of the losses.

    Returns:
        Whether the check was conclusive: False for fewer than two examples, without values, and where the losses of the
        replaced examples did not change either (all alike, or a head that starts at 0). Then repeat it with a later batch.

    Guarantee: random streams of torch, numpy and Python are unchanged, and the model is not written into.

    Raises:
        DpbenchError: Losses are not one an example, an example's loss depends on others, to the rounding of the dtype in use,
            or a forward pass writes into the model.
    """
    if (examples is not None and examples < 2) or not has_values(model):
        return False
    watch, streams = StateWatch(model), RandomStreams(model)
    try:
        with torch.no_grad():  # and inference mode, if it is that of the caller
            plain = _observed(losses, model, batch, watch, streams)
            seen = _apart_by_value(plain, lambda some: _observed(losses, model, some, watch, streams), batch, select, examples)
            _alone_as_together(losses, model, plain, batch, select, streams)
            return seen
    finally:
        streams.rewind()


def _alone_as_together(
    losses: Losses,
    model: nn.Module,
    plain: _Pass,
    batch: Batch,
    select: Callable[[Batch, Tensor], Batch],
    streams: RandomStreams,
) -> None:
    """Check that the loss of each of the first examples is the same in a batch that holds it alone.

    A branch on the full batch, and a mean over as many tokens as its longest example has, may not change among copies of
    neighbours. Where losses are random or no batch of one can be formed, there is nothing to compare.
    """
    streams.reseed()
    if not torch.equal(losses(model, batch).nan_to_num(), plain.losses.nan_to_num()):
        return
    for index in range(min(len(plain.losses), _ALONE)):
        try:
            alone = losses(model, select(batch, torch.tensor([index])))
        except Exception:  # whatever a model raises for a batch that it was not built for
            return
        if alone.shape != (1,):
            return
        together, rounding = plain.losses[index : index + 1], plain.tolerance(plain) * _OTHER_SHAPES
        if bool(_differ(together, alone.to(together.device), rounding).any()):
            _refuse(plain.losses, torch.cat([plain.losses[:index], alone]), index)


def _apart_by_value(
    plain: _Pass,
    observe: Callable[[Batch], _Pass],
    batch: Batch,
    select: Callable[[Batch, Tensor], Batch],
    examples: int | None,
) -> bool:
    losses = plain.losses
    count = len(losses) if examples is None and losses.dim() == 1 else examples
    if losses.dim() != 1 or len(losses) != count:
        raise DpbenchError(
            f"losses have shape {list(losses.shape)}, not [{'B' if count is None else count}]: one value an example, computed "
            "from that example alone",
            "reduce over tokens, never over the batch",
        )
    if count < 2:
        return False
    seen, kept = False, _halves(count)
    for half, largest in ((kept, True), (kept, False), (~kept, True), (~kept, False)):
        other = observe(select(batch, _replaced(half, losses, largest)))
        here = half.to(losses.device)
        if bool((differs := _differ(losses, other.losses, plain.tolerance(other)) & here).any()):
            _refuse(losses, other.losses, int(differs.nonzero()[0]))
        seen |= bool(_differ(losses, other.losses, 0.0)[~here].any())
    return seen


@dataclass
class _Pass:
    """The losses [B] of one forward pass, the dtypes it computed in, and the shapes that modules were called with."""

    losses: Tensor
    dtypes: set[torch.dtype]
    shapes: list[list[torch.Size]]

    def tolerance(self, other: _Pass) -> float:
        rounding = max(_TOLERANCES.get(dtype, _TOLERANCE_OF_HALVES) for dtype in self.dtypes)
        return rounding if self.shapes == other.shapes else rounding * _OTHER_SHAPES


def _observed(losses: Losses, model: nn.Module, batch: Batch, watch: StateWatch, streams: RandomStreams) -> _Pass:
    dtypes = {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()}
    shapes: list[list[torch.Size]] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        shapes.append([t.shape for t in tensors])
        for kind in {t.device.type for t in tensors}:
            if torch.is_autocast_enabled(kind):
                dtypes.add(torch.get_autocast_dtype(kind))

    streams.rewind()
    hook = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with watch:
            values = losses(model, batch)
    finally:
        hook.remove()
    if not isinstance(values, Tensor) or not values.is_floating_point():
        form = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise DpbenchError(f"losses are {form}, not a tensor [B] of floating-point numbers", "return one loss an example")
    return _Pass(values.detach(), dtypes | {values.dtype}, shapes)


def _halves(count: int) -> Tensor:
    """Return fixed booleans [B] of both values, in no regular order: no two examples at a fixed distance are always together."""
    kept = torch.from_numpy(np.random.default_rng(count).random(count) < 0.5)
    kept[0], kept[-1] = True, False
    return kept


def _replaced(kept: Tensor, losses: Tensor, largest: bool) -> Tensor:
    """Return numbers [B]: that of a kept example is unchanged; others get that of the kept one with the extreme loss."""
    sign = 1 if largest else -1
    order = torch.where(kept, (sign * losses.double().cpu()).nan_to_num(-math.inf, -math.inf, -math.inf), -math.inf)
    chosen = int(order.argmax()) if order.isfinite().any() else int(kept.nonzero()[0])
    return torch.where(kept, torch.arange(len(kept)), chosen)


def _differ(one: Tensor, other: Tensor, tolerance: float) -> Tensor:
    """Return where [B] losses differ by more than rounding; what is not finite must be so in both."""
    one, other = one.double(), other.double()
    size = torch.maximum(one.abs(), other.abs())
    scale = size[size.isfinite()].max().clamp(min=_SMALL) if size.isfinite().any() else size.new_tensor(1.0)
    finite = one.isfinite() & other.isfinite()
    return torch.where(finite, (one - other).abs() > tolerance * scale, one.isfinite() | other.isfinite())


def _refuse(plain: Tensor, values: Tensor, row: int) -> None:
    raise DpbenchError(
        f"the loss of an example depends on the other examples of its batch: that of example {row} is {float(plain[row]):.6g}, "
        f"and {float(values[row]):.6g} among others, so no bound on one example's part holds",
        "likely are batch norm by function, a mean, softmax or sort over the batch, in-batch negatives, or dropout after a "
        "selection over the batch; compute each loss from one example (GroupNorm or LayerNorm; negatives from public data)",
    )


class RandomStreams:
    """The states of all random streams that a forward pass may draw from.

    These are torch's on the CPU and the model's devices, generators that modules keep, numpy's and Python's. `rewind` restores
    them, any number of times.
    """

    def __init__(self, model: nn.Module) -> None:
        devices = {t.device for t in [*model.parameters(), *model.buffers()] if t.device.type not in ("cpu", "meta")}
        self._devices = [(module, d, module.get_rng_state(d)) for d in devices if (module := getattr(torch, d.type, None))]
        kept = (v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Generator))
        self._generators = [(generator, generator.get_state()) for generator in kept]
        self._torch = torch.get_rng_state().numpy().copy()  # not shared with the tensor, which is freed
        self._python, self._numpy = random.getstate(), np.random.get_state()

    def reseed(self) -> None:
        """Move all streams to another position, until `rewind`."""
        torch.manual_seed(_ELSEWHERE)
        random.seed(_ELSEWHERE)
        np.random.seed(_ELSEWHERE)
        for generator, _ in self._generators:
            generator.manual_seed(_ELSEWHERE)

    def rewind(self) -> None:
        torch.set_rng_state(torch.from_numpy(self._torch))
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for module, device, state in self._devices:
            module.set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)
