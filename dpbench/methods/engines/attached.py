"""The protocol of an attached engine, as far as the engine's helpers need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from dpbench.kernels.leaf import Factor
from dpbench.privacy.noise import Noise

if TYPE_CHECKING:
    from dpbench.methods.engines.guard import Guard
    from dpbench.methods.engines.layers import Layout


class Attached(Protocol):
    """An attached engine, see `dpbench.methods.engines.base.Handle`."""

    name: str
    model: nn.Module
    trainable: dict[str, nn.Parameter]
    layout: Layout | None
    noise: Noise

    @property
    def guard(self) -> Guard: ...
    def factor(self, group: int) -> Factor: ...
    def sum_of(self, parameter: Tensor) -> Tensor: ...
    def pop_sum(self, parameter: Tensor) -> Tensor | None: ...
