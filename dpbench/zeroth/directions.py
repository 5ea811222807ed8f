"""Random directions over a model's trainable weights: made again from a seed whenever they are needed, never kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dpbench.engines.gaussian import PIECE, Gaussian, Scratch
from dpbench.engines.noise import STREAMS, in_memory_order, key_of, perturb_
from dpbench.errors import DpbenchError
from dpbench.kernels import launch

Kind = Literal["gaussian", "sphere"]

_DIRECTIONS = 4  # stream of the mechanism's seed; sampling uses 1 and 2, noise 3


class Directions:
    """u_t for t = 0, 1, ...: `gaussian` N(0, I_d); `sphere` uniform on the sphere of radius sqrt(d) (Zhang et al., ICML 2024).

    On the CPU the numbers come from an AES keystream and are added in place, piece by piece; on a CUDA device a Triton kernel
    makes and adds them in one pass (torch's generator where there is no Triton). kernels: `reference` makes each tensor's
    direction first and adds it by torch, from the same numbers.

    Guarantee: directions are public. Their streams are none of the noise's, whatever the seed.
    """

    def __init__(
        self, weights: Sequence[Tensor], seed: int, kind: Kind = "gaussian", kernels: Literal["auto", "reference"] = "auto"
    ) -> None:
        self.weights = [w.detach() for w in weights]
        self.kind, self.size = kind, sum(w.numel() for w in weights)
        self._seed, self._kernels = seed, kernels
        self._length: tuple[int, float] | None = None

    def add_(self, step: int, scale: float) -> None:
        """Every weight w becomes w + scale x u_step, in place; half-precision weights are rounded once."""
        if self.kind == "sphere":
            scale *= math.sqrt(self.size) / self._gaussian_length(step)
        if self._kernels == "reference":
            for weight, numbers in self._numbers(step):
                ordered = in_memory_order(weight)
                ordered.copy_(ordered.to(numbers.dtype) + scale * numbers.view(ordered.shape))
            return
        streams = _Streams(self._seed, step)
        for number, weight in enumerate(self.weights):
            streams.add_(weight, scale, number)

    def length(self, step: int) -> float:
        """|u_step|, at the cost of making it once."""
        return math.sqrt(self.size) if self.kind == "sphere" else self._gaussian_length(step)

    def next_number(self, step: int) -> float:
        """The number of N(0, 1) that the public seed of u_step gives next: for published code that takes it for its noise."""
        found = np.zeros(1)
        stream = Gaussian(key_of(self._seed, _DIRECTIONS, STREAMS + 1, step))
        stream.perturb_(found, 1.0, 1.0, Scratch.inside(np.empty(Scratch.room_for(1, found.dtype), np.uint8), found.dtype))
        return float(found[0])

    def _gaussian_length(self, step: int) -> float:
        """Of the Gaussian numbers of a step, in fp64. The last one is kept: a step asks for it several times."""
        if self._length is None or self._length[0] != step:
            self._length = step, math.sqrt(sum(float(g.double().square().sum()) for _, g in self._numbers(step)))
        return self._length[1]

    def _numbers(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(weight, its Gaussian numbers in memory order), one tensor's at a time."""
        streams = _Streams(self._seed, step)
        for number, weight in enumerate(self.weights):
            room = torch.zeros(weight.numel(), dtype=_wide(weight), device=weight.device)
            streams.add_(room, 1.0, number)
            yield weight, room


class _Streams:
    """One step's numbers, tensor after tensor, always in the same order."""

    def __init__(self, seed: int, step: int) -> None:
        self._seed, self._step = seed, step
        self._streams = [Gaussian(self._key(number)) for number in range(STREAMS)]

    def add_(self, tensor: Tensor, scale: float, number: int) -> None:
        """t = t + scale x N(0, 1) for the next tensor of the step, its `number`-th."""
        ordered = in_memory_order(tensor)
        flat = ordered.contiguous().view(-1)
        if tensor.device.type == "cpu":
            self._on_cpu(flat, scale)
        elif launch.unavailable(tensor.device) is None:
            self._on_chip(flat, scale, number)
        else:
            self._by_torch(flat, scale, number)
        if flat.data_ptr() != tensor.data_ptr():
            ordered.copy_(flat.view(ordered.shape))

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
        return key_of(self._seed, _DIRECTIONS, number, self._step)


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def check_perturbation(weights: Sequence[Tensor], perturbation: float) -> None:
    """Refuse a perturbation lambda that the weights' precision loses, or that is not a perturbation. Looks at the weights alone;
    those without storage have nothing to look at.

    Raises:
        DpbenchError: not a positive number; most weights stay what they are; or it is larger than the weights.
    """
    if not (perturbation > 0 and math.isfinite(perturbation)):
        raise DpbenchError(f"perturbation {perturbation} is not a positive number", "MeZO and DPZero use 1e-3")
    if any(weight.is_meta for weight in weights):
        return
    lost, every, squares = 0, 0, 0.0
    for weight in weights:
        size = weight.detach().abs()
        lost += int((size * (torch.finfo(weight.dtype).eps / 2) > perturbation).sum())
        squares += float(size.double().square().sum())
        every += size.numel()
    dtypes = " and ".join(sorted({str(w.dtype).removeprefix("torch.") for w in weights}))
    if lost > every / 2:
        raise DpbenchError(
            f"perturbation {perturbation:g} leaves {100 * lost / every:.0f} % of the weights unchanged in {dtypes}",
            "raise it, or keep the weights in a wider type",
        )
    typical = math.sqrt(squares / every)
    if typical > 0 and perturbation > 10 * typical:
        raise DpbenchError(
            f"perturbation {perturbation:g} is more than ten times a typical weight ({typical:.2g})", "MeZO and DPZero use 1e-3"
        )
