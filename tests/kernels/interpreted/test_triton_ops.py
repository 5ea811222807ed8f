"""The operators `dpbench::*`: their schemas, fake implementations and what `torch.compile` makes of them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from dpbench.kernels.embedding import triton as embedding
from dpbench.kernels.layernorm import triton as layernorm
from dpbench.kernels.linear import triton as linear
from dpbench.kernels.noise import triton as noise
from dpbench.kernels.onchip import FUNCTIONS

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def arguments():
    torch.manual_seed(0)
    x, g, ids = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.randint(0, 6, (2, 3))
    weight, bias = torch.zeros(4, 5), torch.zeros(4)
    abadi = FUNCTIONS["abadi"]
    return {
        "linear_sq_norms": (linear.linear_sq_norms, (x, g, True)),
        "linear_add_weighted": (linear.linear_add_weighted, (x, g, torch.rand(2), weight, bias, False)),
        "linear_add_weighted, no bias": (linear.linear_add_weighted, (x, g, torch.rand(2), weight, None, True)),
        "linear_clip": (linear.linear_clip, (x, g, weight, bias, abadi, 0.5, 0.01, False)),
        "norm_gradients": (layernorm.norm_gradients, (x, x.clone(), 1e-5, True, True, True)),
        "embedding_sq_norms": (embedding.embedding_sq_norms, (ids, g, -1)),
        "embedding_add_weighted": (embedding.embedding_add_weighted, (ids, g, torch.rand(2), torch.zeros(6, 4), 1)),
        "noise_add_": (noise.noise_add_, (torch.zeros(9), 1.0, 0.5, 3, 0, 0)),
    }


@pytest.mark.parametrize("name", arguments())
def test_the_operator_keeps_its_contract(name):
    op, values = arguments()[name]
    opcheck(op, values, test_utils=CHECKS)


@pytest.mark.parametrize("name", arguments())
def test_fake_tensors_pass_through(name):
    """Simulation: the same shapes, dtypes and layouts, and no kernel runs."""
    op, values = arguments()[name]
    real = op(*values)
    for device in ("cpu", "meta"):
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(v.to(device)) if isinstance(v, torch.Tensor) else v for v in values]
        with mode:
            fake = op(*fakes)
        if real is None:
            assert fake is None
        else:
            assert (fake.shape, fake.dtype, fake.device.type) == (real.shape, real.dtype, device)
            assert fake.stride() == real.stride()


def test_torch_compile_sees_through():
    x, g, weight, bias = torch.randn(2, 3, 5), torch.randn(2, 3, 4), torch.zeros(4, 5), torch.zeros(4)

    def step(x, g, weight, bias):
        norms = linear.linear_clip(x * 2, g, weight, bias, FUNCTIONS["abadi"], 0.5, 0.0, False)
        return weight * 3, norms + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    expected = step(x, g, weight.clone(), bias.clone())
    for actual, value in zip(compiled(x, g, weight, bias), expected, strict=True):
        torch.testing.assert_close(actual, value)
