"""Random directions over a model's trainable weights. They are drawn again from a seed whenever they are needed, never kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dpbench.errors import DpbenchError, unknown
from dpbench.kernels import launch
from dpbench.privacy.gaussian import PIECE, Gaussian, Scratch
from dpbench.privacy.noise import STREAMS, in_memory_order, perturb_
from dpbench.privacy.streams import Role, key_of

Kind = Literal["gaussian", "sphere"]

Narrow = Callable[[tuple[int, int], Tensor, Tensor], None]
"""A function of (numbers of the weight and of its piece, that piece [n] of a half-precision weight, u [n] there in float32)."""

WIDE = (torch.float32, torch.float64)
"""The dtypes to which a direction is added in place; narrower weights are passed on in pieces."""

_ROUNDING = 1 << 31  # number of the stream for random rounding, above those of all tensors
_ON_CHIP = 1 << 24  # elements of a half-precision weight whose numbers are held at once on a device other than the CPU
_PIECES = 20  # bits for a weight's number; the bits above are for the number of its piece


class Directions:
    """The directions u_t for t = 0, 1, ... of one seed.

    With kind `gaussian` they are N(0, I_d), with `sphere` uniform on the sphere of radius sqrt(d) (Zhang et al., ICML 2024).
    On the CPU the numbers come from an AES keystream and are added in place, piece by piece. On a CUDA device a Triton kernel
    draws and adds them in one pass (torch's generator where there is no Triton).

    Guarantee: directions are public. They share no stream with the noise, whatever the seed.

    Raises:
        DpbenchError: The kind is unknown.
    """

    def __init__(self, weights: Sequence[Tensor], seed: int, kind: Kind = "gaussian") -> None:
        if kind not in get_args(Kind):
            raise unknown("kind of direction", kind, get_args(Kind))
        self.weights = [w.detach() for w in weights]
        self.kind, self.size = kind, sum(w.numel() for w in weights)
        self._seed = seed
        self._length: tuple[int, float] | None = None

    def add_(self, step: int, scale: float, narrow: Narrow | None = None) -> None:
        """Add scale x u_step to the weights in place; half-precision weights are rounded once.

        Args:
            narrow: Receives the pieces of half-precision weights, in order, and changes them instead.
        """
        ratio = math.sqrt(self.size) / self._gaussian_length(step) if self.kind == "sphere" else 1.0
        scale *= ratio
        streams = _Streams(self._seed, step)
        for number, weight in enumerate(self.weights):
            if narrow is None or weight.dtype in WIDE:
                streams.add_(weight, scale, number)
                continue
            with _flat(weight) as flat:
                for place, (piece, numbers) in enumerate(streams.pieces(flat, number)):
                    narrow((number, place), piece, numbers if ratio == 1 else numbers.mul_(ratio))

    def roundings(self, step: int, device: torch.device) -> torch.Generator:
        """Return a generator for the random rounding of a step; it is public like the directions, and separate from them."""
        key = key_of(self._seed, Role.DIRECTIONS, _ROUNDING, step)
        return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") >> 1)

    def length(self, step: int) -> float:
        """Return |u_step|, at the cost of drawing the direction once."""
        return math.sqrt(self.size) if self.kind == "sphere" else self._gaussian_length(step)

    def next_number(self, step: int) -> float:
        """Return the N(0, 1) number that follows u_step from its public seed: published code uses it as its noise."""
        numbers = np.zeros(1)
        stream = Gaussian(key_of(self._seed, Role.DIRECTIONS, STREAMS + 1, step))
        stream.perturb_(numbers, 1.0, 1.0, Scratch.inside(np.empty(Scratch.room_for(1, numbers.dtype), np.uint8), numbers.dtype))
        return float(numbers[0])

    def _gaussian_length(self, step: int) -> float:
        """Return the length of the Gaussian numbers of a step, in fp64. It is kept, as a step needs it several times."""
        if self._length is None or self._length[0] != step:
            self._length = step, math.sqrt(sum(float(g.double().square().sum()) for _, g in self._numbers(step)))
        return self._length[1]

    def _numbers(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (weight, its Gaussian numbers in memory order), one tensor at a time."""
        streams = _Streams(self._seed, step)
        for number, weight in enumerate(self.weights):
            room = torch.zeros(weight.numel(), dtype=_wide(weight), device=weight.device)
            streams.add_(room, 1.0, number)
            yield weight, room


class _Streams:
    """The numbers of one step, tensor after tensor, always in the same order."""

    def __init__(self, seed: int, step: int) -> None:
        self._seed, self._step = seed, step
        self._streams = [Gaussian(self._key(number)) for number in range(STREAMS)]

    def add_(self, tensor: Tensor, scale: float, number: int) -> None:
        """Add scale x N(0, 1) to the next tensor of the step, its `number`-th."""
        with _flat(tensor) as flat:
            if tensor.device.type == "cpu":
                self._on_cpu(flat, scale)
            elif launch.unavailable(tensor.device) is None:
                self._on_chip(flat, scale, number)
            else:
                self._by_torch(flat, scale, number)

    def pieces(self, flat: Tensor, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (piece [n], its numbers [n] of N(0, 1) in float32) of the next tensor of the step, its `number`-th.

        On the CPU all numbers are those that `add_` adds; on other devices those of a tensor's first piece are.
        """
        device = flat.device
        generator = torch.Generator(device).manual_seed(self._integer(STREAMS + 1 + number) & (2**63 - 1))
        on_cpu = device.type == "cpu"
        for place, piece in enumerate(flat.split(PIECE * STREAMS if on_cpu else _ON_CHIP)):
            numbers = torch.zeros(len(piece), dtype=torch.float32, device=device)
            if on_cpu:
                perturb_([(numbers, 1.0)], 1.0, self._streams)
            elif launch.unavailable(device) is None:
                self._on_chip(numbers, 1.0, number + (place << _PIECES))
            else:
                numbers.normal_(generator=generator)
            yield piece, numbers

    def _on_cpu(self, flat: Tensor, scale: float) -> None:
        if flat.dtype in (torch.float32, torch.float64):
            perturb_([(flat, scale)], 1.0, self._streams)
            return
        for piece in flat.split(PIECE * STREAMS):
            wide = piece.float()
            perturb_([(wide, scale)], 1.0, self._streams)
            piece.copy_(wide)

    def _on_chip(self, flat: Tensor, scale: float, number: int) -> None:
        from dpbench.kernels.noise.triton import noise_add_

        noise_add_(flat, scale, 1.0, self._integer(STREAMS), number, self._step)

    def _by_torch(self, flat: Tensor, scale: float, number: int) -> None:
        generator = torch.Generator(flat.device).manual_seed(self._integer(STREAMS + 1 + number) & (2**63 - 1))
        flat.add_(torch.empty_like(flat, dtype=_wide(flat)).normal_(generator=generator), alpha=scale)

    def _integer(self, number: int) -> int:
        return int.from_bytes(self._key(number)[:8], "little", signed=True)

    def _key(self, number: int) -> bytes:
        return key_of(self._seed, Role.DIRECTIONS, number, self._step)


@contextmanager
def _flat(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the elements [n] of a tensor in the order of memory, to be changed in place."""
    ordered = in_memory_order(tensor)
    flat = ordered.contiguous().view(-1)
    yield flat
    if flat.data_ptr() != tensor.data_ptr():  # its elements have gaps in memory, so `flat` is a copy
        ordered.copy_(flat.view(ordered.shape))


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def check_perturbation(weights: Sequence[Tensor], perturbation: float) -> None:
    """Refuse a perturbation lambda that is lost in the weights' precision, or that is not a perturbation.

    Only the weights are examined, and not those without storage.

    Raises:
        DpbenchError: It is not a positive number, it leaves most weights unchanged, it is above ten times a typical weight, or
            a weight is not finite, so that no loss would be.
    """
    if not (isinstance(perturbation, Real) and perturbation > 0 and math.isfinite(perturbation)):
        raise DpbenchError(f"perturbation {perturbation!r} is not a positive number", "MeZO and DPZero use 1e-3")
    if any(weight.is_meta for weight in weights):
        return
    lost, every, squares = 0, 0, 0.0
    for weight in weights:
        size = weight.detach().abs()
        lost += int((size * (torch.finfo(weight.dtype).eps / 2) > perturbation).sum())
        squares += float(size.double().square().sum())
        every += size.numel()
    if not math.isfinite(squares) and not all(bool(weight.isfinite().all()) for weight in weights):
        raise DpbenchError("a trained weight is not a finite number, so no loss would be", "start from finite weights")
    dtypes = " and ".join(sorted({str(w.dtype).removeprefix("torch.") for w in weights}))
    if lost > every / 2:
        raise DpbenchError(
            f"perturbation {perturbation:g} leaves {100 * lost / every:.0f} % of the weights unchanged in {dtypes}",
            "raise it, or keep the weights in a wider type",
        )
    typical = math.sqrt(squares / every) if every else 0.0
    if typical > 0 and perturbation > 10 * typical:
        raise DpbenchError(
            f"perturbation {perturbation:g} is more than ten times a typical weight ({typical:.2g})", "MeZO and DPZero use 1e-3"
        )
