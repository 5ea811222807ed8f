"""The chooser of linear kernels, on the sheets of real devices."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpbench.kernels import sheet
from dpbench.kernels.linear import plan

RATES = ("bfloat16", "float16", "tf32", "float32")
sizes = st.sampled_from([1, 3, 64, 768, 1600, 4096, 11008, 50257])


@given(st.sampled_from(sheet.SHEETS), st.integers(1, 64), st.integers(1, 4096), sizes, sizes, st.sampled_from(RATES))
@settings(max_examples=200, deadline=None)
def test_every_shape_has_a_plan_that_can_run(device, batch, tokens, inputs, outputs, rate):
    chosen = plan.choose(device, batch, tokens, inputs, outputs, rate)
    assert 0 < chosen.seconds < float("inf")
    assert (chosen.norms is None) == (chosen.way == "single")
    if chosen.way == "single":
        assert plan.programs(chosen.sums, outputs, inputs) <= device.sms * chosen.sums.residents
    assert chosen.seconds <= min(p.seconds for p in plan.plans(device, batch, tokens, inputs, outputs, rate)) + 1e-12
    assert plan.choose(device, batch, tokens, inputs, outputs, rate, single=False).way != "single"
    assert chosen is plan.choose(device, batch, tokens, inputs, outputs, rate)  # chosen once a shape (FLASH-12)


@pytest.mark.parametrize("device", sheet.SHEETS, ids=lambda d: d.name)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("inputs", "outputs"), [(768, 768), (1600, 6400), (4096, 11008)])
def test_longer_texts_never_go_back_from_direct_to_gram(device, rate, inputs, outputs):
    """With examples enough to fill the device: of very few, either way leaves most of it idle."""
    lengths = (1, 16, 64, 256, 1024, 4096, 16384, 65536)
    ways = [plan.norm_way(device, 528, tokens, inputs, outputs, rate)[0] for tokens in lengths]
    assert ways[0] == "gram"
    assert ways[-1] == "direct"
    assert ways == sorted(ways, reverse=True)  # all gram, then all direct


@pytest.mark.parametrize("rate", RATES)
def test_time_grows_with_the_work(rate):
    for way in (0, 1):
        grid = [64, 256, 1024, 4096]
        if way == 0:
            seconds = [plan.choose(sheet.A100, 8, tokens, 1024, 4096, rate).seconds for tokens in grid]
        else:
            seconds = [plan.choose(sheet.A100, batch, 512, 1024, 4096, rate).seconds for batch in (1, 4, 16, 64)]
        assert seconds == sorted(seconds)


def test_the_known_corners():
    h100 = sheet.H100
    # an attention output of GPT-2 small stays on the chip; a projection of Llama-7B is far too large for that
    assert plan.choose(h100, 8, 1024, 768, 768, "bfloat16").way == "single"
    assert not any(plan.fits(h100, tile, 4096, 11008) for tile in plan.single_tiles("bfloat16"))
    # a short text: two T x T matrices are nothing beside the weight
    assert plan.choose(h100, 64, 16, 4096, 11008, "bfloat16").way == "gram"
    assert plan.norm_way(h100, 8, 128, 4096, 11008, "bfloat16")[0] == "gram"
    # a long text over a small weight
    assert plan.norm_way(h100, 8, 8192, 768, 768, "bfloat16")[0] == "direct"
    # the head of GPT-2: 50257 rows do not fit either
    assert plan.choose(h100, 4, 1024, 768, 50257, "bfloat16").way != "single"


def test_residency_is_exactly_the_devices():
    tile = plan.Tile(64, 64, 32, 4, 3, 0.5, residents=2)
    assert plan.fits(sheet.H100, tile, 64 * 132, 64 * 2)
    assert not plan.fits(sheet.H100, tile, 64 * 132 + 1, 64 * 2)
    assert sheet.H100.residents(registers=255, shared=0, warps=8) == 1
    assert sheet.H100.residents(registers=128, shared=0, warps=8) == 2
    assert sheet.H100.residents(registers=32, shared=100 * 1024, warps=4) == 2
    assert sheet.RTX3090.residents(registers=32, shared=0, warps=8) == 6  # 1536 threads


def test_the_lower_triangle_is_half_the_work():
    tile = plan.Tile(64, 64, 32, 4, 3, 0.5)
    assert [plan.pairs(tokens, tile) for tokens in (1, 64, 65, 128, 1024)] == [1, 1, 3, 3, 136]


def test_a_device_without_a_sheet_takes_the_nearest_of_its_kind():
    nearest_sheet = sheet.sheet_of(SimpleNamespace(major=8, minor=9, multi_processor_count=41, name="half of an L40"))
    assert (nearest_sheet.name, nearest_sheet.capability, nearest_sheet.sms) == ("half of an L40", (8, 9), 41)
    assert nearest_sheet.flops["bfloat16"] == pytest.approx(sheet.RTX3090.flops["bfloat16"] / 2)
    whole_gpu = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, name="H200", shared_memory_per_block_optin=1, regs_per_multiprocessor=2
    )
    assert sheet.sheet_of(whole_gpu).shared == 1
    assert sheet.sheet_of(whole_gpu).registers_sm == 2


def test_plans_are_made_without_torch():
    code = "import sys, dpbench.kernels.linear.plan; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
