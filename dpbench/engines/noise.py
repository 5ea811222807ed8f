"""Gaussian noise of a mechanism: its own streams, filled in parallel on the CPU, the same for any number of threads."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dpbench.engines.gaussian import KEY_BYTES, PIECE, Array, Gaussian, Scratch
from dpbench.kernels import launch
from dpbench.mechanism import Mechanism

_NOISE = 3  # stream of the mechanism's seed; sampling uses 1 and 2
STREAMS = 4  # on the CPU; each perturbs its share of the pieces
_COUNTS = STREAMS + 2  # number of the stream of adaptive thresholds; the two between are torch's and Triton's

Piece = tuple[Array, float]
"""Elements [n] of a sum, and their noise's standard deviation."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")


class Noise:
    """Independent of sampling, initialisation and directions; drawn on from step to step.

    rank: of this process in its group; each has streams of its own, rank 0 those of a process alone. kernels: as in
    `engines.attach`. On a CUDA device `auto` draws with a Triton kernel where there is Triton, else by torch.
    """

    def __init__(self, mechanism: Mechanism, rank: int = 0, kernels: str = "auto") -> None:
        self._mechanism, self._rank, self._kernels = mechanism, rank, kernels
        self._generators: dict[torch.device, torch.Generator] = {}
        self._streams: list[Gaussian] = []
        self._of_counts: Gaussian | None = None
        self._steps = 0

    def release_(self, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Each (sum, std) becomes (sum + N(0, std^2)) / divisor, in place, with independent noise in every element.

        On the CPU threads share the pieces, the same pieces for any number of threads. On a GPU the generator is Philox, by
        Triton or by torch: no cipher, so under `randomness: secret` the Triton kernel gets a fresh key from the operating
        system at every step.

        Guarantee: no number is drawn twice, whatever the tensors and steps.

        Args:
            sums: float32 or float64 tensors of any layout.
        """
        on_cpu: list[tuple[Tensor, float]] = []
        on_chip: list[tuple[int, Tensor, float]] = []
        for number, (total, std) in enumerate(sums):
            if std <= 0:
                total.mul_(1 / divisor)
            elif self._by_triton(total):
                on_chip.append((number, in_memory_order(total).reshape(-1), std))
            elif total.device.type == "cpu":
                on_cpu.append((total, std / divisor))
            else:
                noise = torch.empty_like(total).normal_(0.0, std / divisor, generator=self.generator(total.device))
                torch.add(noise, total, alpha=1 / divisor, out=total)
        for dtype in {total.dtype for total, _ in on_cpu}:
            if not self._streams:
                self._streams = [Gaussian(self._key(number)) for number in range(STREAMS)]
            perturb_([(total, std) for total, std in on_cpu if total.dtype == dtype], 1 / divisor, self._streams)
        if on_chip:
            from dpbench.kernels.noise.triton import noise_add_

            key = int.from_bytes(self._key(STREAMS + 1)[:8], "little", signed=True)
            for number, values, std in on_chip:
                noise_add_(values, std, 1 / divisor, key, number, self._steps)
        self._steps += 1

    def on_counts(self, counts: Sequence[float], std: float) -> list[float]:
        """counts + N(0, std^2), in fp64 on the host, from a stream of their own: the sums' noise is the same with and without."""
        found = np.array(counts, dtype="f8")
        if std > 0 and len(found):
            self._of_counts = self._of_counts or Gaussian(self._key(_COUNTS))
            room = np.empty(Scratch.room_for(len(found), found.dtype), np.uint8)
            self._of_counts.perturb_(found, 1.0, std, Scratch.inside(room, found.dtype))
        return [float(value) for value in found]

    def _by_triton(self, total: Tensor) -> bool:
        """Whether a sum gets its noise from the Triton kernel: its elements must lie together."""
        wanted = self._kernels == "triton" or (self._kernels == "auto" and total.device.type in launch.DEVICES)
        return wanted and launch.unavailable(total.device) is None and in_memory_order(total).is_contiguous()

    def generator(self, device: torch.device) -> torch.Generator:
        """This mechanism's torch generator, for noise that is not made here: on other devices, or by a peer."""
        if device not in self._generators:
            self._generators[device] = made = torch.Generator("cpu" if device.type == "meta" else device)
            made.manual_seed(int.from_bytes(self._key(STREAMS)[:8], "little") >> 1)
        return self._generators[device]

    def _key(self, number: int) -> bytes:
        if self._mechanism.randomness == "secret":
            return secrets.token_bytes(KEY_BYTES)
        return key_of(self._mechanism.seed, _NOISE, number, *([self._rank] if self._rank else []))


def perturb_(sums: list[tuple[Tensor, float]], scale: float, streams: Sequence[Gaussian]) -> None:
    """sum = scale x sum + N(0, std^2) for CPU tensors of one dtype, float32 or float64.

    Streams share the pieces, and threads the streams: the numbers are the same for any number of threads.
    """
    flat = [(in_memory_order(total).contiguous().view(-1), std) for total, std in sums]
    split = [(piece, std) for values, std in flat for piece in values.split(PIECE)]
    workers = min(torch.get_num_threads(), len(streams))
    dtype = {torch.float32: np.dtype("f4"), torch.float64: np.dtype("f8")}[split[0][0].dtype]
    rooms = torch.empty(workers, Scratch.room_for(max(len(piece) for piece, _ in split), dtype), dtype=torch.uint8)
    if isinstance(rooms, FakeTensor):  # a simulated step: no values, and what counts is counted
        return
    pieces = [(piece.numpy(), std) for piece, std in split]
    shares = [(stream, pieces[number :: len(streams)]) for number, stream in enumerate(streams)]
    scratches = [Scratch.inside(room.numpy(), dtype) for room in rooms]
    jobs = [_pool(workers).submit(_work, shares[k::workers], scale, scratches[k]) for k in range(workers)]
    for job in jobs:
        job.result()
    for (values, _), (total, _) in zip(flat, sums, strict=True):
        if values.data_ptr() != total.data_ptr():  # its elements do not lie together: `values` is a copy
            ordered = in_memory_order(total)
            ordered.copy_(values.view(ordered.shape))


def key_of(*entropy: int) -> bytes:
    """A cipher key made of a seed and the numbers of a stream."""
    return np.random.SeedSequence(entropy).generate_state(KEY_BYTES // 4, np.uint32).astype("<u4").tobytes()


def in_memory_order(total: Tensor) -> Tensor:
    """A view of a dense tensor whose last dimension is the one that lies together."""
    return total.detach().permute(sorted(range(total.dim()), key=total.stride, reverse=True))


def _work(shares: list[tuple[Gaussian, list[Piece]]], scale: float, scratch: Scratch) -> None:
    """Runs in a thread, with numpy alone: a torch operation there may enter an OpenMP region, which gives the thread a team of
    its own, and from then on every parallel operation of the process waits for sleeping workers."""
    for stream, pieces in shares:
        for values, std in pieces:
            stream.perturb_(values, scale, std, scratch)
