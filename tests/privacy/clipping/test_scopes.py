"""Which layers share a norm, under every scope."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpbench.errors import DpbenchError
from dpbench.privacy.clipping import per_block, per_device

GPT = ["wte", "wpe", "h.0.ln_1", "h.0.attn.c_attn", "h.1.ln_1", "h.1.mlp.c_fc", "h.10.ln_1", "ln_f", "lm_head"]


@pytest.mark.parametrize(("layer", "block"), [
    ("model.transformer.h.3.attn.c_attn", "model.transformer.h.3"),
    ("encoder.layer.11.output.3.dense", "encoder.layer.11"),  # the first index counts
    ("h.3", "h.3"),
    ("0", "0"),
    ("lm_head", "lm_head"),
    ("block1.conv2", "block1.conv2"),  # a number in a name is no index
    ("h.0.a+h.0.b", "h.0"),
    ("h.0.a+h.1.a", "h.0.a+h.1.a"),  # tied over two blocks
    ("wte+lm_head", "wte+lm_head"),
])  # fmt: skip
def test_a_block_is_named_up_to_its_first_index(layer, block):
    assert per_block.block_of(layer) == block


def test_blocks_are_groups_and_other_layers_a_group_each():
    assert per_block.groups(GPT) == [
        ["wte"], ["wpe"], ["h.0.ln_1", "h.0.attn.c_attn"], ["h.1.ln_1", "h.1.mlp.c_fc"], ["h.10.ln_1"], ["ln_f"], ["lm_head"],
    ]  # fmt: skip


@pytest.mark.parametrize(("sizes", "devices", "ends"), [
    ([1, 1, 1, 1], 2, [2, 4]),
    ([10, 1, 1, 1], 2, [1, 4]),
    ([1, 1, 1, 10], 2, [3, 4]),
    ([10, 6, 4, 6, 4, 15], 2, [3, 6]),  # 20 | 25: half is 22.5, and 26 is farther
    ([100, 1, 1], 3, [1, 2, 3]),  # every device has a layer
    ([5, 5, 5], 1, [3]),
])  # fmt: skip
def test_devices_have_about_equal_parameter_counts(sizes, devices, ends):
    layers = [str(k) for k in range(len(sizes))]
    groups = per_device.groups(layers, sizes, devices)
    assert [sum(len(g) for g in groups[: k + 1]) for k in range(devices)] == ends
    assert [layer for group in groups for layer in group] == layers


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.data())
def test_devices_are_runs_that_none_is_far_from_its_share(sizes, drawn):
    devices = drawn.draw(st.integers(1, len(sizes)))
    layers = [str(k) for k in range(len(sizes))]
    groups = per_device.groups(layers, sizes, devices)
    assert [layer for group in groups for layer in group] == layers
    assert all(groups)
    if devices <= len(sizes) // max(sizes):  # shares of a layer or more: each end is within half a layer of where it should be
        largest = max(sum(sizes[int(layer)] for layer in group) for group in groups)
        assert largest <= sum(sizes) / devices + max(sizes)


@pytest.mark.parametrize(("devices", "says"), [(None, "needs a number of devices"), (4, "4 devices for 3 layers")])
def test_a_number_of_devices_that_makes_no_sense_is_refused(devices, says):
    with pytest.raises(DpbenchError, match=says):
        per_device.groups(["a", "b", "c"], [1, 1, 1], devices)
