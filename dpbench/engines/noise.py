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
_CHUNK = 1 << 18  # elements of noise made at once, so that no second copy of the model is needed for it


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")


class Noise:
    """Independent of sampling, initialisation and directions: generators of its own, drawn on from step to step."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self._generators: dict[torch.device, list[torch.Generator]] = {}

    def release_(self, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Each (sum, std) becomes (sum + N(0, std^2)) / divisor, in place, with independent noise in every element."""
        by_device: dict[torch.device, list[tuple[Tensor, float]]] = {}
        for total, std in sums:
            by_device.setdefault(total.device, []).append((total, std))
        for device, group in by_device.items():
            generators = self.generators(device)
            if device.type != "cpu":
                for total, std in group:
                    _release_(total, std, divisor, generators[0])
                continue
            pieces = [(piece, std) for total, std in group for piece in total.view(-1).split(_CHUNK)]
            shares = [pieces[number :: len(generators)] for number in range(len(generators))]
            jobs = [
                _pool(min(torch.get_num_threads(), _STREAMS)).submit(_release_share, share, divisor, generator)
                for share, generator in zip(shares, generators, strict=True)
            ]
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
def _release_share(share: list[tuple[Tensor, float]], divisor: float, generator: torch.Generator) -> None:
    for piece, std in share:
        _release_(piece, std, divisor, generator)


def _release_(total: Tensor, std: float, divisor: float, generator: torch.Generator) -> None:
    if std > 0:
        noise = torch.empty_like(total).normal_(0.0, std, generator=generator)
        total.add_(noise)
    total.div_(divisor)
