"""One step on tensors without storage: the code of the method runs, but no values are computed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorConverter, FakeTensorMode

from dpbench import methods
from dpbench.errors import DpbenchError
from dpbench.methods import timing
from dpbench.models import registry as models
from dpbench.privacy.mechanism import Mechanism
from dpbench.simulate.attention import flash
from dpbench.simulate.cost import Cost, Work

CUDA_QUANTUM = 512
"""Bytes that CUDA's caching allocator rounds a tensor up to."""


@dataclass(frozen=True)
class Setting:
    """The step to simulate.

    Attributes:
        engine: one of `dpbench.methods`.
        micro_batch: examples of a backward pass; None means all.
        layers: the number of blocks, in place of that of the size.
        device: the device whose memory is counted; `cuda` with flash attention, rounded sizes and AdamW over all tensors at once,
            as in torch on a GPU.
    """

    size: str
    engine: str
    mechanism: Mechanism
    tokens: int
    batch_size: int
    micro_batch: int | None = None
    layers: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tied: bool = False
    device: Literal["cuda", "cpu"] = "cuda"


@dataclass(frozen=True)
class Step:
    """The cost of one step, after another that allocated the optimizer's state.

    Attributes:
        passes: peak bytes in all forward and backward passes.
        release: peak bytes in noise and optimizer; 0 where they are part of the passes.
        live: bytes between two steps.
    """

    passes: int
    release: int
    live: int
    work: Work

    @property
    def peak(self) -> int:
        return max(self.passes, self.release)


def step(setting: Setting) -> Step:
    """Simulate one step.

    Raises:
        DpbenchError: the engine needs values that do not exist.
    """
    cost = Cost(CUDA_QUANTUM if setting.device == "cuda" else 1)
    try:
        model = _model(setting)
        with _place(setting.device):
            if setting.device == "cpu":
                _without_values(model)
            return _step(setting, model, cost)
    except (NotImplementedError, RuntimeError) as error:
        raise DpbenchError(
            f"engine {setting.engine} cannot be simulated: {str(error).splitlines()[0]}", "measure it instead"
        ) from error
    finally:
        gc.collect()


def _nothing(*_: object) -> None:
    """Replace a method. A mock of unittest would keep the tensors that it was called with."""


@contextmanager
def _place(device: str) -> Iterator[None]:
    """Prepare tensors without values: meta tensors for a GPU, so that engines take the branch for it; fake ones for the CPU."""
    if device == "cuda":
        with flash():
            yield
        return
    # A deep copy of a fake tensor belongs to another mode, and a tensor that the mode remembers cannot move to another device.
    # Opacus does both.
    copied = mock.patch.object(FakeTensor, "__deepcopy__", lambda self, _: self.detach().clone(), create=True)
    forgotten = mock.patch.object(FakeTensorConverter, "set_tensor_memo", _nothing)
    with copied, forgotten, FakeTensorMode():
        yield


def _step(setting: Setting, model: nn.Module, cost: Cost) -> Step:
    cuda = setting.device == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=cuda)
    ids = torch.zeros(setting.batch_size, setting.tokens, dtype=torch.long, device="meta" if cuda else "cpu")
    batches = [{"input_ids": part} for part in ids.split(setting.micro_batch or setting.batch_size)]
    with cost:
        cost.count([*model.parameters(), *model.buffers(), ids])
        stepper = timing.optimizer_of(setting.engine, list(model.parameters()), optimizer)
        method = methods.attach(setting.engine, model, stepper, setting.mechanism)

        def passes() -> int:
            cost.reset_peak()
            for batch in batches:
                method.backward(models.language_model_losses, batch)
            return cost.peak

        def release() -> int:
            cost.reset_peak()
            method.step()
            return cost.peak

        passes()
        release()
        cost.work = Work()
        costs = Step(passes(), release(), cost.live, cost.work)
        method.detach()
    return costs


def _model(setting: Setting) -> nn.Module:
    context = max(setting.tokens, models.language_model_size(setting.size)["context"])
    dtype = getattr(torch, setting.dtype)
    model = models.language_model(setting.size, tied=setting.tied, dtype=dtype, meta=True, layers=setting.layers, context=context)
    return model.train()


def _without_values(model: nn.Module) -> None:
    """Replace every meta tensor by a fake one of the CPU, in place; shared parameters stay shared."""
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = fakes.setdefault(
                    id(parameter), nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"))
                )
                module._parameters[name] = fake  # type: ignore[assignment]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cpu")
