"""Gaussian noise of a mechanism: its own streams, filled in parallel on the CPU, the same for any number of threads."""

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
    key_of,  # directions take it from here, too
)

STREAMS = 4  # on the CPU; each perturbs its share of the pieces
_TORCH, _TRITON, _COUNTS = STREAMS, STREAMS + 1, STREAMS + 2  # numbers of further streams; _COUNTS: of adaptive thresholds
_DEVICES = 16  # torch's streams on further devices than the first are numbered from here

Piece = tuple[Array, float]
"""Elements [n] of a sum, and their noise's standard deviation."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="noise")


@dataclass
class _Drawn:
    """How far the streams of one seed and rank have been drawn. releases: calls of `release_`; restored: the states of torch's
    generators, by device type, in the order in which they were first asked for."""

    streams: dict[int, Gaussian] = field(default_factory=dict)
    generators: dict[torch.device, torch.Generator] = field(default_factory=dict)
    restored: list[tuple[str, Tensor]] = field(default_factory=list)
    releases: int = 0


_LEDGER: MutableMapping[Any, dict[tuple[int, int], _Drawn]] = WeakIdKeyDictionary()
"""Model, optimizer or tensor -> (seed, rank) -> what has been drawn for it."""


class Noise:
    """Independent of sampling, initialisation and directions; drawn on from step to step.

    rank: of this process in its group; each has streams of its own, rank 0 those of a process alone. kernels: as in
    `engines.attach`. On a CUDA device `auto` draws with a Triton kernel where there is Triton, else by torch. on: the model, the
    optimizer and the tensors that it is for.

    Guarantee: no number is drawn twice for anything in `on`, also by several of these with one seed, at once or after each other:
    they draw from the same streams. For models apart a seed gives the same noise, so that methods are compared in pairs.

    Raises:
        DpbenchError: parts of `on` have noise of this seed from models apart, so that there is no one place to go on from.
    """

    def __init__(self, mechanism: Mechanism, rank: int = 0, kernels: str = "auto", on: Iterable[Any] = ()) -> None:
        self._mechanism, self._rank, self._kernels = mechanism, rank, kernels
        self._on = list(on) if mechanism.randomness == "seeded" else []
        known = [_LEDGER[one][self._name] for one in self._on if self._name in _LEDGER.get(one, {})]
        if any(drawn is not known[0] for drawn in known):
            raise DpbenchError(
                f"parts of the model have had noise of seed {mechanism.seed} apart from each other: this would use some again",
                "give the mechanism another seed",
            )
        self._take(known[0] if known else _Drawn())

    @property
    def _name(self) -> tuple[int, int]:
        return self._mechanism.seed, self._rank

    def _take(self, drawn: _Drawn) -> None:
        self._drawn = drawn
        for one in self._on:
            _LEDGER.setdefault(one, {})[self._name] = drawn

    def state_dict(self) -> dict[str, Any]:
        """Where the streams are, for `torch.save`. Under `randomness: secret` only the rank: nothing by which noise could be made
        again is ever kept."""
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
        """Go on where the streams of `state` were; under `randomness: secret` with fresh keys.

        Raises:
            DpbenchError: another rank's, or no such state.
        """
        if state.get("rank") != self._rank:
            raise DpbenchError(f"the state is of rank {state.get('rank')}, not {self._rank}", "every rank loads its own state")
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
                perturb_by_torch_(total, 1 / divisor, std / divisor, self.generator(total.device))
        for dtype in dict.fromkeys(total.dtype for total, _ in on_cpu):  # in their order: a set's is another in every process
            streams = [self._stream(number) for number in range(STREAMS)]
            perturb_([(total, std) for total, std in on_cpu if total.dtype == dtype], 1 / divisor, streams)
        if on_chip:
            from dpbench.kernels.noise.triton import noise_add_

            key = int.from_bytes(self._key(_TRITON)[:8], "little", signed=True)
            for number, values, std in on_chip:
                noise_add_(values, std, 1 / divisor, key, number, self._drawn.releases)
        self._drawn.releases += 1

    def on_counts(self, counts: Sequence[float], std: float) -> list[float]:
        """counts + N(0, std^2), in fp64 on the host, from a stream of their own: the sums' noise is the same with and without."""
        found = np.array(counts, dtype="f8")
        if std > 0 and len(found):
            room = np.empty(Scratch.room_for(len(found), found.dtype), np.uint8)
            self._stream(_COUNTS).perturb_(found, 1.0, std, Scratch.inside(room, found.dtype))
        return [float(value) for value in found]

    def _by_triton(self, total: Tensor) -> bool:
        """Whether a sum gets its noise from the Triton kernel: its elements must lie together."""
        wanted = self._kernels == "triton" or (self._kernels == "auto" and total.device.type in launch.DEVICES)
        return wanted and launch.unavailable(total.device) is None and in_memory_order(total).is_contiguous()

    def generator(self, device: torch.device) -> torch.Generator:
        """This mechanism's torch generator, for noise that is not made here: on other devices, or by a peer.

        Raises:
            DpbenchError: a state was loaded whose generators were of other kinds of device.
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
    """total = scale x total + N(0, std^2) by torch's generator, in place, on any device."""
    noise = torch.empty_like(total).normal_(0.0, std, generator=generator)
    torch.add(noise, total, alpha=scale, out=total)


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


def in_memory_order(total: Tensor) -> Tensor:
    """A view of a dense tensor whose last dimension is the one that lies together."""
    return total.detach().permute(sorted(range(total.dim()), key=total.stride, reverse=True))


def _work(shares: list[tuple[Gaussian, list[Piece]]], scale: float, scratch: Scratch) -> None:
    """Runs in a thread, with numpy alone: a torch operation there may enter an OpenMP region, which gives the thread a team of
    its own, and from then on every parallel operation of the process waits for sleeping workers."""
    for stream, pieces in shares:
        for values, std in pieces:
            stream.perturb_(values, scale, std, scratch)
