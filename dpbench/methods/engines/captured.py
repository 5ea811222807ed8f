"""The base of engines that get every layer's input and output gradient from hooks; see `capture`."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dpbench.errors import DpbenchError
from dpbench.kernels.fallback.cpu import FallbackLeaf
from dpbench.methods.engines.base import Handle
from dpbench.methods.engines.batches import Batch, Losses, batch_size, check_losses, select, versions_of
from dpbench.methods.engines.capture import Capture, OutsideUse, Pass
from dpbench.methods.engines.completeness import check_complete, check_rows_apart, check_rows_in_place, look_at_arguments
from dpbench.methods.engines.layers import Layout, caller_of, lay_out
from dpbench.methods.engines.probes import RandomStreams, check_examples_apart_by_value

_LOOKED_AT = 3
"""The number of examples that a model is examined on: the fewest that include one between two others."""

_COMPARED = 16
"""The number of examples whose losses are compared with and without others, larger as passes without gradients cost less."""

_LOOKS = 8
"""The most physical batches of several examples that are examined until one is conclusive: finite gradients, differing losses."""


class Captured(Handle):
    """An engine with hooks on all its layers. An engine of one backward pass defines `backward_of`.

    Before the first batch, and again whenever the model's structure or modes change, the model is examined on a few examples:
    whether they are independent (by their losses, and by the gradients of each layer's output), and whether the captured
    gradients are complete (against plain autograd). Every batch is checked against its graph; see `capture`.
    """

    _looks_left = 0
    _complete = False
    _rows_apart = False
    captures = True
    rescues = True
    tracks_reach = True

    def _prepare_clipping(self) -> None:
        self._enclosing: dict[str, str] = {}
        super()._prepare_clipping()
        assert self.layout is not None
        self._capture = Capture(self.layout)
        for layer in self.layout.layers:
            if isinstance(layer.leaf, FallbackLeaf) and next(layer.module.children(), None) is not None:
                self._warn_of_fallback(layer.name, layer.module)

    def _lay_out(self) -> Layout:
        return lay_out(
            self.model, self.clipping, self.kernels, stage=self._globalize_layout is not None, enclosing=self._enclosing
        )

    def _accumulate(self, losses: Losses, batch: Batch) -> Tensor:
        open_pass, values = self._forward(losses, batch)
        self.backward_of(open_pass, values.sum())
        return values.detach()

    def _forward(self, losses: Losses, batch: Batch) -> tuple[Pass, Tensor]:
        """Return the open pass and the losses [B].

        A layer whose tensors are used outside its calls is from then on captured at a module around it.

        Raises:
            DpbenchError: No module of the model encloses a use, or the losses are not one an example. The message names it.
        """
        while True:
            try:
                open_pass, values = self._capture.losses(losses, self.model, batch)
            except OutsideUse as use:
                self._enclose(use)
                continue
            if len(values) != batch_size(batch):
                raise DpbenchError(
                    f"{len(values)} losses of a batch of {batch_size(batch)} examples", "return one loss for each example"
                )
            self._reached |= open_pass.reached
            if open_pass.moves_rows and self._looks:
                self._check_rows(open_pass, values)
            return open_pass, values

    def _check_rows(self, open_pass: Pass, values: Tensor) -> None:
        try:
            check_rows_in_place(open_pass, values)
        except DpbenchError:
            open_pass.close()
            raise

    def _enclose(self, use: OutsideUse) -> None:
        """Capture the layers of a tensor at the next module around them that is called, one example at a time."""
        if self._globalize_layout is not None or self.exchange.keeps_padding or self.kernels in ("native", "triton"):
            raise use
        modules = dict(self.model.named_modules())
        for name in use.layers:
            inner = self._enclosing.get(name, "" if name == "(model)" else name)
            try:
                self._enclosing[name] = caller_of(modules, inner, name)
            except DpbenchError:
                raise use from None
        batched = self._capture.batched
        self._capture.remove()
        self.layout = self._lay_out()
        self._capture = Capture(self.layout)
        self._capture.batched = batched
        for name in use.layers:
            self._warn_of_fallback(name, modules[self._enclosing[name]])

    def _warn_of_fallback(self, name: str, module: nn.Module) -> None:
        warnings.warn(
            f"engine {self.name!r} has no rule for the parameters of {name}: their gradients are formed one example at a time "
            f"around {type(module).__name__}, which is exact and slow",
            stacklevel=2,
        )

    def _look(self, losses: Losses, batch: Batch, changed: bool) -> None:
        if changed:
            self._looks_left, self._complete, self._rows_apart = _LOOKS, False, False
        several = batch_size(batch) > 1
        if not self._looks_left or (self._complete and not several):
            return
        self._looks_left -= 1
        streams, versions = RandomStreams(self.model), versions_of(batch)
        try:
            examples = self._few(losses, batch, _COMPARED)
            if not (self._complete and self._rows_apart):
                self._rows_apart = several
                few = self._few(losses, examples, _LOOKED_AT)
                self._complete = self._examine(losses, few)
                # A single example is enough if the gradient of another is not finite.
                alone = range(batch_size(few)) if several else ()
                self._complete = self._complete or any(self._examine(losses, select(few, slice(i, i + 1))) for i in alone)
            if versions_of(batch) != versions:
                return  # `backward` raises the error; another pass would see other data
            if check_examples_apart_by_value(losses, self.model, examples, select) and self._complete:
                self._looks_left = 0
        finally:
            streams.rewind()

    def _examine(self, losses: Losses, few: Batch) -> bool:
        """Return whether the captured gradients of some examples were compared, and are independent and complete."""
        versions = versions_of(few)
        open_pass, values = self._forward(losses, few)
        try:
            if versions_of(few) != versions:
                return False
            look_at_arguments(self._capture, losses, self.model, few, open_pass)
            check_rows_apart(open_pass, values)
            return check_complete(open_pass, values, self.trainable)
        finally:
            open_pass.close()

    def _few(self, losses: Losses, batch: Batch, most: int) -> Batch:
        """Return the first examples of a batch with a finite loss, filled up to two with others; all if it cannot be cut."""
        try:
            with torch.no_grad():
                values = check_losses(losses(self.model, batch))
                finite = values.isfinite()
                chosen = finite.nonzero()[:most, 0]
                if len(chosen) < 2:
                    chosen = torch.cat([chosen, (~finite).nonzero()[:, 0]])[:most]
                if len(chosen) == len(values) or len(values) != batch_size(batch):
                    return batch
                few = select(batch, chosen)
                return few if len(check_losses(losses(self.model, few))) == len(chosen) else batch
        except Exception:  # whatever a model raises for a batch that it was not built for
            return batch

    def forward_of(self, call: Callable[[], Tensor]) -> tuple[Pass, Tensor]:
        return self._capture.forward(call)

    def detach(self) -> None:
        self._capture.remove()
        super().detach()
