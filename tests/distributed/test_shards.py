"""`fully_shard`: two processes with half of each tensor release what one does, with one draw of noise."""

from __future__ import annotations

import math

import pytest
import torch

ENGINES = [
    ("nonprivate", None),
    ("fused", "per_layer"),
    ("fused", "per_tensor"),
    ("bookkeeping", "per_layer"),
    ("bookkeeping", "flat"),
]


@pytest.fixture(scope="module")
def both(ranks):
    return [rank["shards"] for rank in ranks]


@pytest.mark.parametrize("pair", ENGINES, ids=str)
def test_two_processes_release_what_one_does(both, pair):
    """With padding wherever a rank's share is shorter or empty; fp32 sums in another order: 1e-6."""
    two, one = both[0]["equality"][pair]
    for actual, expected in zip(two["gradients"], one["gradients"], strict=True):
        assert float((actual - expected).norm()) <= 1e-6 * max(float(expected.norm()), 1e-6)
    assert two["tallies"] == one["tallies"]
    assert torch.allclose(two["weights"], one["weights"], atol=1e-7)


@pytest.mark.parametrize("pair", ENGINES[1:], ids=str)
def test_thresholds_adapt_to_all_ranks_and_to_no_padding(both, pair):
    two, one = both[0]["adaptive"][pair]
    assert two["trajectory"] == both[1]["adaptive"][pair][0]["trajectory"] == one["trajectory"]
    assert len({tuple(bounds) for bounds in one["trajectory"]}) == 5
    for actual, expected in zip(two["gradients"], one["gradients"], strict=True):
        assert float((actual - expected).norm()) <= 1e-6 * max(float(expected.norm()), 1e-6)


@pytest.mark.parametrize("name", ["nonprivate", "fused"])
@pytest.mark.parametrize("shape", ["tiny", "llama_tiny"])
def test_language_models_a_shard_a_block(both, shape, name):
    actual, expected = both[0]["language"][shape, name]
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


def test_the_noise_is_one_draw_over_all_shards(both):
    """201 rows over 2 ranks: shards of unequal length. An eighth has 5 025 elements: 5 / sqrt(2 x 5 025)."""
    noises = both[0]["noise"]
    for part in noises["noise"].chunk(8):
        assert abs(float(part.std()) / noises["std"] - 1) < 5 / math.sqrt(2 * len(part))
    one, other = (rank["noise"]["own"] for rank in both)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(len(one))


@pytest.mark.parametrize(("what", "says"), [
    ("ghost", "engine 'ghost' does not run as shards"),
    ("partly", "is not sharded by rows over all 2 ranks"),
    ("fallback", "0 (Bilinear) has no kernel"),
    ("tied", "share a tensor"),
    ("non-finite", "all 4 examples have non-finite gradients"),
])  # fmt: skip
def test_every_rank_refuses(both, what, says):
    assert all(says in rank["guards"][what] for rank in both)


def test_one_full_sum_at_a_time_and_no_weight_gradient_of_torch(both):
    assert both[0]["frugality"] == {"most": 2, "left": 0, "weights asked for": 0}  # a weight and its bias
