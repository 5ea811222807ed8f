"""Gaussian noise of a mechanism: its own streams, filled in parallel on the CPU, the same for any number of threads."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dpbench.mechanism import Mechanism

_NOISE = 3  # stream of the mechanism's seed; sampling uses 1 and 2
_STREAMS = 4
_PIECE = 1 << 15  # elements up to which torch does not divide an operation between threads; they stay in a core's cache, too


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")


class Noise:
    """Independent of sampling, initialisation and directions: generators of its own, drawn on from step to step."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def release_(self, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Each (sum, std) becomes (sum + N(0, std^2)) / divisor, in place, with independent noise in every element.

        On the CPU threads share the pieces, the same pieces for any number of threads.
        """
        pieces: dict[torch.device, list[tuple[Tensor, float]]] = {}
        for total, std in sums:
            flat = total.view(-1) if total.is_contiguous() else total  # a sum made by autograd has its parameter's layout
            chunks = flat.split(_PIECE) if total.device.type == "cpu" else (total,)
            pieces.setdefault(total.device, []).extend((chunk, std) for chunk in chunks)
        for device, own in pieces.items():
            generators = self.generators(device)
            shares = [own[number :: len(generators)] for number in range(len(generators))]
            if device.type != "cpu":
                _release(shares[0], divisor, generators[0])
                continue
            pool = _pool(min(torch.get_num_threads(), _STREAMS))
            jobs = [pool.submit(_release, share, divisor, generator) for share, generator in zip(shares, generators, strict=True)]
            for job in jobs:
                job.result()

    def generators(self, device: torch.device) -> list[torch.Generator]:
        """This mechanism's generators on a device; several on the CPU, where each fills its share of the pieces."""
        if device not in self._generators:
            made = [torch.Generator(device=device) for _ in range(_STREAMS if device.type == "cpu" else 1)]
            for number, generator in enumerate(made):
                generator.manual_seed(self._seed(number))
            self._generators[device] = made
        return self._generators[device]

    def _seed(self, number: int) -> int:
        if self._mechanism.randomness == "secret":
            return secrets.randbits(63)
        state = np.random.SeedSequence([self._mechanism.seed, _NOISE, number]).generate_state(1, np.uint64)
        return int(state[0] >> 1)


@torch.no_grad()
def _release(share: list[tuple[Tensor, float]], divisor: float, generator: torch.Generator) -> None:
    """Runs in a thread, where it must not enter an OpenMP region: the thread would get a team of its own, and from then on
    every parallel operation of the process would wait for sleeping workers. So no piece is larger than what torch does serially.
    """
    for part, std in share:
        if std > 0:
            noise = torch.empty_like(part).normal_(0.0, std / divisor, generator=generator)
            torch.add(noise, part, alpha=1 / divisor, out=part)
        else:
            part.mul_(1 / divisor)
