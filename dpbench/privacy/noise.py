"""The Gaussian noise of a mechanism. On the CPU it is drawn in parallel, with the same numbers for any number of threads."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakIdKeyDictionary

from dpbench.arguments import whole_number
from dpbench.errors import DpbenchError
from dpbench.kernels import launch
from dpbench.privacy.gaussian import KEY_BYTES, PIECE, Array, Gaussian, Scratch
from dpbench.privacy.mechanism import Mechanism
from dpbench.privacy.streams import (
    Role,
    key_of,
)

STREAMS = 4  # streams on the CPU; each perturbs its share of the pieces
_TORCH, _TRITON, _COUNTS = STREAMS, STREAMS + 1, STREAMS + 2  # numbers of further streams; _COUNTS is for adaptive thresholds
_DEVICES = 16  # torch's streams on devices after the first are numbered from here

Piece = tuple[Array, float]
"""Elements [n] of a sum, and their noise's standard deviation."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")


@dataclass
class _Drawn:
    """How far the streams of one seed and rank have been drawn.

    releases: The number of calls of `release_`. restored: The states of torch's generators, by device type, in the order in which
    the generators were first used.
    """

    streams: dict[int, Gaussian] = field(default_factory=dict)
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)
    restored: list[tuple[str, Tensor]] = field(default_factory=list)
    releases: int = 0


_LEDGER: MutableMapping[Any, dict[tuple[int, int], _Drawn]] = WeakIdKeyDictionary()
"""For each model, optimizer or tensor, by (seed, rank), what has been drawn for it."""


class Noise:
    """The noise of one mechanism in one process: independent of sampling, initialisation and directions, continued at every step.

    rank: The rank of this process in its group. Each rank has other streams, and rank 0 has those of a single process.
    kernels: As in `engines.attach`. On a CUDA device `auto` draws with a Triton kernel where there is Triton, else by torch.
    on: The model, the optimizer and the tensors that the noise is for.

    Guarantee: no number is drawn twice for anything in `on`, also by several objects with one seed, at once or after each other,
    because they draw from the same streams. Separate models with one seed get the same noise, so that methods are compared in
    pairs.

    Raises:
        DpbenchError: Parts of `on` have had noise of this seed in separate models, so that there is no one position to continue
            from.
    """

    def __init__(self, mechanism: Mechanism, rank: int = 0, kernels: str = "auto", on: Iterable[Any] = ()) -> None:
        self._mechanism, self._rank, self._kernels = mechanism, rank, kernels
        self._on = list(on) if mechanism.randomness == "seeded" else []
        earlier = [_LEDGER[holder][self._name] for holder in self._on if self._name in _LEDGER.get(holder, {})]
        if any(drawn is not earlier[0] for drawn in earlier):
            raise DpbenchError(
                f"parts of the model have had noise of seed {mechanism.seed} in separate models: this would use some again",
                "give the mechanism another seed",
            )
        self._take(earlier[0] if earlier else _Drawn())

    @property
    def _name(self) -> tuple[int, int]:
        return self._mechanism.seed, self._rank

    def _take(self, drawn: _Drawn) -> None:
        self._drawn = drawn
        for holder in self._on:
            _LEDGER.setdefault(holder, {})[self._name] = drawn

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of the streams, for `torch.save`.

        Under `randomness: secret` it holds only the rank: nothing that could reproduce noise is ever kept.
        """
        drawn = self._drawn
        if self._mechanism.randomness != "seeded":
            return {"rank": self._rank}
        generators = [(device.type, generator.get_state()) for device, generator in drawn.generators.items()]
        return {
            "rank": self._rank,
            "releases": drawn.releases,
            "positions": {number: stream.position for number, stream in drawn.streams.items()},
            "generators": generators + drawn.restored[len(generators) :],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the positions of the streams in `state`; under `randomness: secret` with fresh keys.

        Raises:
            DpbenchError: The state is of another rank, or no such state.
        """
        if state.get("rank") != self._rank:
            raise DpbenchError(
                f"the state is of rank {state.get('rank')}, not {self._rank}", "every rank loads the state that it saved"
            )
        if self._mechanism.randomness != "seeded":
            self._take(_Drawn())
            return
        try:
            streams = {
                number: Gaussian(self._key(number), whole_number(position, "position", least=0, most=2**63))
                for number, position in state["positions"].items()
            }
            restored = [(str(kind), values) for kind, values in state["generators"]]
            releases = whole_number(state["releases"], "releases", least=0)
        except (KeyError, TypeError, ValueError, AttributeError, DpbenchError) as error:
            raise DpbenchError(f"the state's noise is damaged ({error!r:.80})", "load what state_dict gave") from error
        self._take(_Drawn(streams, {}, restored, releases))

    def release_(self, sums: list[tuple[Tensor, float]], divisor: float) -> None:
        """Replace each (sum, std) by (sum + N(0, std^2)) / divisor, in place, with independent noise in every element.

        On the CPU threads share the pieces, which are the same for any number of threads. On a GPU the generator is Philox, by
        Triton or by torch. It is no cipher, so under `randomness: secret` the Triton kernel gets a fresh key from the operating
        system at every step.

        Guarantee: no number is drawn twice, whatever the tensors and steps.

        Args:
            sums: float32 or float64 tensors of any layout, each with its std.
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
                perturb_by_torch_(total, 1 / divisor, std / divisor, self.generator(total.device))
        # In order of appearance: the order of a set differs between processes.
        for dtype in dict.fromkeys(total.dtype for total, _ in on_cpu):
            streams = [self._stream(number) for number in range(STREAMS)]
            perturb_([(total, std) for total, std in on_cpu if total.dtype == dtype], 1 / divisor, streams)
        if on_chip:
            from dpbench.kernels.noise.triton import noise_add_

            key = int.from_bytes(self._key(_TRITON)[:8], "little", signed=True)
            for number, values, std in on_chip:
                noise_add_(values, std, 1 / divisor, key, number, self._drawn.releases)
        self._drawn.releases += 1

    def on_counts(self, counts: Sequence[float], std: float) -> list[float]:
        """Return counts + N(0, std^2), in fp64 on the host.

        The numbers are from a separate stream, so the noise of the sums is the same with and without counts.
        """
        noisy = np.array(counts, dtype="f8")
        if std > 0 and len(noisy):
            room = np.empty(Scratch.room_for(len(noisy), noisy.dtype), np.uint8)
            self._stream(_COUNTS).perturb_(noisy, 1.0, std, Scratch.inside(room, noisy.dtype))
        return [float(value) for value in noisy]

    def _by_triton(self, total: Tensor) -> bool:
        """Return whether a sum gets its noise from the Triton kernel, which needs elements without gaps in memory."""
        selected = self._kernels == "triton" or (self._kernels == "auto" and total.device.type in launch.DEVICES)
        return selected and launch.unavailable(total.device) is None and in_memory_order(total).is_contiguous()

    def generator(self, device: torch.device) -> torch.Generator:
        """Return this mechanism's torch generator on a device, for noise that torch or a peer draws.

        Raises:
            DpbenchError: A state was loaded whose generators were on another type of device.
        """
        drawn = self._drawn
        if device not in drawn.generators:
            place = len(drawn.generators)
            generator = torch.Generator("cpu" if device.type == "meta" else device)
            if place < len(drawn.restored):
                kind, values = drawn.restored[place]
                if kind != device.type:
                    raise DpbenchError(f"the state's noise was drawn on {kind}, not {device.type}", f"train on {kind}")
                generator.set_state(values)
            else:
                key = self._key(_DEVICES + place if place else _TORCH)
                generator.manual_seed(int.from_bytes(key[:8], "little") >> 1)
            drawn.generators[device] = generator
        return drawn.generators[device]

    def _stream(self, number: int) -> Gaussian:
        if number not in self._drawn.streams:
            self._drawn.streams[number] = Gaussian(self._key(number))
        return self._drawn.streams[number]

    def _key(self, number: int) -> bytes:
        match self._mechanism.randomness:
            case "secret":
                return secrets.token_bytes(KEY_BYTES)
            case "seeded":
                return key_of(self._mechanism.seed, Role.NOISE, number, self._rank)
            case _:
                assert_never(self._mechanism.randomness)


def perturb_by_torch_(total: Tensor, scale: float, std: float, generator: torch.Generator) -> None:
    """Set total = scale x total + N(0, std^2) by torch's generator, in place, on any device."""
    noise = torch.empty_like(total).normal_(0.0, std, generator=generator)
    torch.add(noise, total, alpha=scale, out=total)


def perturb_(sums: list[tuple[Tensor, float]], scale: float, streams: Sequence[Gaussian]) -> None:
    """Set each sum to scale x sum + N(0, std^2), for CPU tensors of one dtype, float32 or float64.

    The pieces are divided among the streams, and the streams among threads, so the numbers are the same for any number of
    threads.
    """
    flat = [(in_memory_order(total).contiguous().view(-1), std) for total, std in sums]
    split = [(piece, std) for values, std in flat for piece in values.split(PIECE)]
    workers = min(torch.get_num_threads(), len(streams))
    dtype = {torch.float32: np.dtype("f4"), torch.float64: np.dtype("f8")}[split[0][0].dtype]
    rooms = torch.empty(workers, Scratch.room_for(max(len(piece) for piece, _ in split), dtype), dtype=torch.uint8)
    if isinstance(rooms, FakeTensor):  # a simulated step has no values, and its memory is counted by now
        return
    pieces = [(piece.numpy(), std) for piece, std in split]
    shares = [(stream, pieces[number :: len(streams)]) for number, stream in enumerate(streams)]
    scratches = [Scratch.inside(room.numpy(), dtype) for room in rooms]
    jobs = [_pool(workers).submit(_work, shares[k::workers], scale, scratches[k]) for k in range(workers)]
    for job in jobs:
        job.result()
    for (values, _), (total, _) in zip(flat, sums, strict=True):
        if values.data_ptr() != total.data_ptr():  # its elements have gaps in memory, so `values` is a copy
            ordered = in_memory_order(total)
            ordered.copy_(values.view(ordered.shape))


def in_memory_order(total: Tensor) -> Tensor:
    """Return a view of a dense tensor with its dimensions in the order of decreasing stride."""
    return total.detach().permute(sorted(range(total.dim()), key=total.stride, reverse=True))


def _work(shares: list[tuple[Gaussian, list[Piece]]], scale: float, scratch: Scratch) -> None:
    """Perturb the pieces of some streams. This runs in a thread and uses numpy alone.

    A torch operation may enter an OpenMP region, which gives the thread a team of workers, and from then on every parallel
    operation of the process waits for sleeping workers.
    """
    for stream, pieces in shares:
        for values, std in pieces:
            stream.perturb_(values, scale, std, scratch)
