"""Data parallel: two processes release what one would, with one draw of noise."""

from __future__ import annotations

import math

import pytest
import torch

from dpbench import distributed as parallel
from dpbench.distributed.replicas import share_of
from dpbench.errors import DpbenchError
from dpbench.privacy import sampling
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

ENGINES = ["nonprivate", "fused-per_layer", "ghost-flat", "bookkeeping-flat", "bookkeeping-per_layer"]


@pytest.fixture(scope="module")
def both(ranks):
    return [rank["replicas"] for rank in ranks]


def key(name):
    engine, _, scope = name.partition("-")
    return engine, scope or None


@pytest.mark.parametrize("name", ENGINES)
def test_two_processes_release_what_one_does(both, name):
    """Steps with an empty batch and with an empty share among them; fp32 sums in another order: 1e-6."""
    two, one = both[0]["equality"][key(name)]
    for actual, expected in zip(two["gradients"], one["gradients"], strict=True):
        assert float((actual - expected).norm()) <= 1e-6 * max(float(expected.norm()), 1e-6)
    assert two["tallies"] == one["tallies"]
    assert two["sensitivity"] == one["sensitivity"]
    if name != "nonprivate":
        assert any(0 < (fraction or 0) < 1 for fraction, _ in one["tallies"]), "the data do not make clipping bite"


@pytest.mark.parametrize("name", ENGINES)
def test_replicas_stay_the_same_bits(both, name):
    assert torch.equal(both[0]["equality"][key(name)][0]["weights"], both[1]["equality"][key(name)][0]["weights"])


def test_replicas_start_from_rank_0s_weights(both):
    first_weights = both[0]["equality"][key("fused-per_layer")][0]["weights"]
    assert torch.equal(both[0]["other_weights_at_first"], first_weights)
    assert torch.equal(both[1]["other_weights_at_first"], first_weights)


def test_sums_sent_in_buckets_or_one_by_one_are_the_same(both):
    buckets = both[0]["equality"][key("fused-per_layer")][0]["gradients"]
    assert all(torch.equal(a, b) for a, b in zip(both[0]["large_sums"], buckets, strict=True))


def test_the_baseline_is_torchs_and_takes_the_same_step(both):
    baseline = both[0]["baseline"]
    assert baseline["kind"] == "TorchReplicas"
    assert float((baseline["torch"] - baseline["ours"]).norm()) < 1e-6 * float(baseline["ours"].norm())


def one_draw(noises):
    """Whether every eighth of every step has the std of one draw: 5 025 elements give it to 5 / sqrt(2 x 5 025) = 5 %. An eighth
    is less than the half of a tensor that one rank perturbs: a whole would hide noise twice on one half and none on the other."""
    for noise in noises["noise"]:
        for part in noise.chunk(8):
            if abs(float(part.std()) / noises["std"] - 1) > 5 / math.sqrt(2 * len(part)):
                return False
    return True


@pytest.mark.parametrize("kind", ["right", "secret"])
def test_the_noise_is_one_draw(both, kind):
    noises = both[0]["noises"][kind]
    assert one_draw(noises)
    assert torch.equal(noises["weights"], both[1]["noises"][kind]["weights"])
    values = torch.cat(noises["noise"])
    assert abs(float(values.mean())) < 5 * noises["std"] / math.sqrt(len(values))
    assert len(values.unique()) > 0.99 * len(values)  # no stretch has another's numbers


def test_noise_of_different_ranks_and_steps_is_independent(both):
    """The two parts of each tensor come from two ranks: no correlation beyond 4 / sqrt(n)."""
    steps = both[0]["noises"]["right"]["noise"]
    first = steps[0][:20_000]  # the first weight: half of it from each rank
    for a, b in ((first[:10_000], first[10_000:]), (steps[0], steps[1])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / math.sqrt(len(a))


@pytest.mark.parametrize("fault", ["everyone", "same_half"])
def test_planted_noise_on_all_ranks_or_half_a_tensor_is_seen(both, fault):
    assert not one_draw(both[0]["noises"][fault])


@pytest.mark.parametrize("name", ENGINES[1:])
def test_thresholds_adapt_to_the_examples_of_all_ranks(both, name):
    """Without noise as in one process, a share that is empty and a logical batch that is among the steps; fp64 sums of halves."""
    two, one = both[0]["adaptive"][(*key(name), 0.0)]
    assert two["trajectory"] == one["trajectory"]
    assert len({tuple(bounds) for bounds in one["trajectory"]}) == 5
    for actual, expected in zip(two["gradients"], one["gradients"], strict=True):
        assert float((actual - expected).norm()) <= 1e-6 * max(float(expected.norm()), 1e-6)


@pytest.mark.parametrize("name", ENGINES[1:])
def test_ranks_have_the_same_thresholds_under_noise(both, name):
    (first, alone), (second, _) = (rank["adaptive"][(*key(name), 1.0)] for rank in both)
    assert first["trajectory"] == second["trajectory"]
    assert torch.equal(first["weights"], second["weights"])
    assert first["fractions"][0] == pytest.approx(alone["fractions"][0], rel=1e-12)  # later weights have other noise


def one_draw_of_counts(noise):
    """1 200 numbers give their std to 5 / sqrt(2 x 1 200) = 10 %."""
    return abs(float(noise.square().mean().sqrt()) - 1) < 5 / math.sqrt(2 * noise.numel())


@pytest.mark.parametrize("kind", ["right", "secret"])
def test_counts_have_one_draw_of_noise_over_the_group(both, kind):
    first, second = (rank["count_noises"][kind] for rank in both)
    assert one_draw_of_counts(first)
    assert torch.equal(first, second)


def test_planted_noise_of_every_rank_on_the_counts_is_seen(both):
    assert not one_draw_of_counts(both[0]["count_noises"]["everyone"])


@pytest.mark.parametrize(("what", "says"), [
    ("mechanism", "rank 1 has another mechanism than rank 0"),
    ("optimizer", "rank 1 has another optimizer than rank 0"),
    ("parameters", "rank 1 has another parameter list than rank 0"),
    ("engine", "rank 1 has another engine than rank 0"),
    ("loop", "engine 'loop' does not run as replicas on several processes"),
    ("non-finite", "all 4 examples have non-finite gradients"),
    ("step", "not have the same number of steps"),
])  # fmt: skip
def test_every_rank_refuses(both, what, says):
    assert all(says in rank["guards"][what] for rank in both)


def test_a_fault_of_one_rank_stops_the_others(both):
    assert "from outside the engine" in both[0]["guards"]["outside"]
    assert "1 of 2 ranks stopped" in both[1]["guards"]["outside"]


def test_a_bad_example_on_any_rank_is_counted_and_adds_nothing(both):
    assert [rank["guards"]["one non-finite"] for rank in both] == [1, 1]


@pytest.mark.parametrize("randomness", ["seeded", "secret"])
def test_the_logical_batch_is_dealt_without_loss(both, randomness):
    clipping = Clipping(scope="per_layer", bound=0.5)
    plan_of_all = Mechanism(Sampling("poisson", 100, 30.0), 10, clipping, seed=0)
    sizes = []
    for first, second, expected_rows in zip(
        both[0]["dealing"][randomness], both[1]["dealing"][randomness], sampling.batches(plan_of_all), strict=True
    ):
        assert not set(first) & set(second)
        assert 0 <= len(first) - len(second) <= 1
        sizes.append(len(first) + len(second))
        if randomness == "seeded":
            assert sorted(first + second) == expected_rows.tolist()
    assert len(set(sizes)) > 1  # 10 Poisson batches of 30 +- 4.6


@pytest.mark.parametrize("elements", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_shares_cover_every_element_once(elements, size):
    parts = [share_of(elements, rank, size) for rank in range(size)]
    assert [e for first, last in parts for e in range(first, last)] == list(range(elements))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


def test_without_a_process_group_it_says_so():
    from small_models import Language, mechanism

    model = Language()
    with pytest.raises(DpbenchError, match="no process group"):
        parallel.attach("fused", model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism("per_layer"))
