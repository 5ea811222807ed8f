"""The Triton kernels on a real device: what the interpreter cannot show."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from gradients import of_linear
from torch import nn

from dpbench.kernels.leaf import Factor, Sums, Use
from dpbench.kernels.linear import plan
from dpbench.privacy.clipping import abadi

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("triton") is None, reason="no device, or no triton"
    ),
]
# Sums in fp32 of up to 4096 terms; half precision rounds the scaled output gradient to 2^-9 or 2^-11
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
SHAPES = [(1, 1, 17, 3), (5, 37, 50, 41), (8, 256, 768, 768), (3, 130, 768, 2304), (4, 64, 1600, 801), (2, 2048, 300, 200)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", ["single", "gram", "direct"])
def test_every_way_of_a_linear_layer(way, shape, dtype, monkeypatch):
    from dpbench.kernels import launch
    from dpbench.kernels.linear.triton import LinearTritonLeaf

    torch.manual_seed(0)
    batch, tokens, inputs, outputs = shape
    x, g = torch.randn(batch, tokens, inputs).to(dtype), torch.randn(batch, tokens, outputs).to(dtype)
    if batch > 2:
        g[1, 0, 0] = float("nan")
    rate = launch.rate(dtype)
    plans = [p for p in plan.plans(launch.sheet_of(torch.device("cuda")), *shape, rate) if p.way == way]
    if not plans:
        pytest.skip("this weight does not fit the chip")
    weight, bias = of_linear(x, g)
    norms = (weight.flatten(1).square().sum(1) + bias.square().sum(1)).sqrt()
    good = torch.isfinite(norms)
    bound = float(norms[good].median())
    scale = abadi.factor(norms[good], bound, 0.0)
    expected_sums = [torch.einsum("b,b...->...", scale, value[good]) for value in (weight, bias)]
    leaf = LinearTritonLeaf(nn.Linear(inputs, outputs).cuda().to(dtype))
    for chosen in plans:
        monkeypatch.setattr(plan, "choose", lambda *_, chosen=chosen: chosen)
        if chosen.norms is not None:
            monkeypatch.setattr(plan, "norm_way", lambda *_, chosen=chosen: (chosen.way, chosen.norms))
        results = []
        for _ in range(2):
            sums = {n: torch.full_like(p, float("nan"), dtype=torch.float32) for n, p in leaf.parameters.items()}
            use = Use(x.cuda(), g.cuda())
            torch.cuda.synchronize()
            if results:  # compiled by now: from here on nothing may wait
                torch.cuda.set_sync_debug_mode("error")
            try:
                actual_norms = leaf.clip_into(use, Factor("abadi", bound, 0.0, abadi.factor), Sums(sums, sums))
            finally:
                torch.cuda.set_sync_debug_mode("default")
            results.append((actual_norms, sums["weight"], sums["bias"]))
        actual_norms, *both = (value.double().cpu() for value in results[0])
        assert torch.equal(torch.isfinite(actual_norms), good)
        assert float((actual_norms[good] - norms[good]).norm() / norms[good].norm()) < 1e-5
        for value, want in zip(both, expected_sums, strict=True):
            assert float((value - want).norm() / want.norm()) < TOLERANCE[dtype]
        assert all(torch.equal(a[~a.isnan()], b[~b.isnan()]) for a, b in zip(*results, strict=True)), "not the same bits twice"


def test_the_bench_finds_every_kernel_right(tmp_path):
    from dpbench.execution.runner import execute
    from dpbench.spec.expand import config_of

    for dtype in ("float32", "bfloat16"):
        bench_settings = {"kernels": ["torch", "triton"], "device": "cuda", "dtype": dtype, "rounds": 1, "milliseconds": 1.0}
        assert execute(config_of("kernel_bench", bench_settings), tmp_path / dtype, quiet=True).warnings == []


def test_noise_on_the_device_is_that_of_the_interpreter():
    """Philox' words are integers: the same everywhere; the transform is to fp32."""
    from scipy import stats

    from dpbench.kernels.noise.triton import noise_add_

    noise = torch.zeros(1_000_000, device="cuda")
    noise_add_(noise, 1.0, 1.0, 7, 0, 0)
    again = torch.zeros_like(noise)
    noise_add_(again, 1.0, 1.0, 7, 0, 0)
    assert torch.equal(noise, again)
    assert stats.kstest(noise.cpu().numpy(), "norm").pvalue > 1e-3
