"""The displacement of trained weights along a step's direction and back. Narrow weights return to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dpbench.methods.zeroth.directions import WIDE, Directions

Noise = Callable[[Tensor], None]
"""A function that adds noise to a flat float32 tensor, in place."""


class Displacement:
    """The position of the weights of `directions`: at x, or at x + at x u of one step.

    float32 and float64 weights move by additions, as in the published code; three roundings leave an error of 1e-7 of a step.
    In half precision such errors add up (to 5 % of bfloat16 weights of std 0.02 in 100 steps of lambda 1e-3), so those weights
    return exactly: x is computed back from round(x + lambda u) and u, and where rounding lost it, x itself is kept. That happens
    for 4.6 % of normal weights of std 0.02 at lambda 1e-3, and for 12 % at std 0.005. Each takes 6 bytes, or 0.3 and 0.7 bytes a
    weight, in the host's memory wherever the weights are.

    The step itself is rounded to one of the two nearest values at random, so that its mean is exact: most updates are below
    half a unit in the last place, and would be lost. A weight without an update does not change.

    Weights without values (meta and fake tensors) move like wide ones, and nothing is kept.
    """

    def __init__(self, directions: Directions) -> None:
        self._directions, self.at = directions, 0.0
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._exact = any(w.dtype not in WIDE for w in directions.weights) and not any(
            w.is_meta or isinstance(w, FakeTensor) for w in directions.weights
        )

    def move_(self, step: int, to: float) -> None:
        """Move the weights to x + to x u_step; `to` 0 brings them back."""

        def move(place: tuple[int, int], piece: Tensor, numbers: Tensor) -> None:
            start = self._back(place, piece, numbers)
            if to:
                moved = _rounded_sum(start, numbers, to)
                lost = (_bits(_rounded_sum(moved, numbers, -to)) != _bits(start)).nonzero()[:, 0]
                self._kept[place] = lost.int().cpu(), start[lost].cpu()
                start = moved
            piece.copy_(start)

        self._directions.add_(step, to - self.at, move if self._exact else None)
        self.at = to

    def settle_(self, step: int, change: float, noise: Noise | None = None) -> None:
        """Move the weights to x + change x u_step, which is x from now on.

        Args:
            noise: Added to weights in half precision before they are rounded; the caller adds that of other weights afterwards.
        """
        generators: dict[torch.device, torch.Generator] = {}

        def settle(place: tuple[int, int], piece: Tensor, numbers: Tensor) -> None:
            start, device = self._back(place, piece, numbers), piece.device
            if change or noise is not None:
                if device not in generators:
                    generators[device] = self._directions.roundings(step, device)
                wide = start.float().add_(numbers, alpha=change)
                if noise is not None:
                    noise(wide)
                start = rounded_at_random(wide, piece.dtype, generators[device])
            piece.copy_(start)

        self._directions.add_(step, change - self.at, settle if self._exact else None)
        self.at = 0.0

    def _back(self, place: tuple[int, int], piece: Tensor, numbers: Tensor) -> Tensor:
        """Return the values of x in a piece."""
        if not self.at:
            return piece
        start = _rounded_sum(piece, numbers, -self.at)
        lost, values = self._kept.pop(place)
        start[lost.to(piece.device, torch.long)] = values.to(piece.device)
        return start


def _rounded_sum(piece: Tensor, numbers: Tensor, scale: float) -> Tensor:
    return piece.float().add_(numbers, alpha=scale).to(piece.dtype)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int16)


def rounded_at_random(values: Tensor, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Round float32 values [n] to a neighbour in float16 or bfloat16, at random, so that the mean over draws is the value."""
    nearest = values.to(dtype)
    remainder = values - nearest.float()
    bits = _bits(nearest)
    outwards = (remainder > 0) == (nearest > 0)
    other = torch.where(outwards, bits + 1, bits - 1)
    smallest = torch.where(remainder > 0, 1, 1 - 2**15).to(torch.int16)
    other = torch.where(nearest == 0, smallest, other).view(dtype)
    gap = (other.float() - nearest.float()).abs()
    draw = torch.rand(len(values), generator=generator, device=values.device)
    return torch.where(draw * gap < remainder.abs(), other, nearest)
