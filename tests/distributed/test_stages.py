"""A pipeline of two processes releases what one process would, with no norm exchanged but for flat clipping."""

from __future__ import annotations

import math

import pytest
import torch

from dpbench.models.registry import language_model
from dpbench.models.stages import boundaries, stage_of

GROUPS = {"tiny": 2 + 2 * 6 + 2, "llama_tiny": 1 + 2 * 9 + 2}  # leaf modules: embeddings, two blocks, norm and head


@pytest.fixture(scope="module")
def both(ranks):
    return [rank["stages"] for rank in ranks]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("engine", ["nonprivate", "fused", "bookkeeping"])
@pytest.mark.parametrize("size", ["tiny", "llama_tiny"])
def test_two_stages_release_what_one_process_does(both, size, engine, schedule):
    """With padding in the second physical batch; fp32 sums in another order: 1e-5, as for micro-batches in one process."""
    first, last = (rank["equality"][size, engine, schedule] for rank in both)
    for stage_result in (first, last):
        assert stage_result["difference"] < 1e-5
        assert stage_result["tensors"][0] == stage_result["tensors"][1]
        assert stage_result["clipped"][0] == stage_result["clipped"][1]
        assert stage_result["sensitivity"][0] == stage_result["sensitivity"][1]
        assert stage_result["groups"] == (0 if engine == "nonprivate" else GROUPS[size])
    assert first["tensors"][0] + last["tensors"][0] == first["all"]
    assert (first["losses"], last["losses"] < 1e-5) == (None, True)
    if engine != "nonprivate":
        assert 0 < first["clipped"][1] < 1, "the data do not make clipping bite"


@pytest.mark.parametrize(("size", "engine", "scope"), [
    ("tiny", "fused", "per_layer"), ("tiny", "fused", "per_tensor"), ("tiny", "bookkeeping", "per_block"),
    ("tiny", "bookkeeping", "per_device"), ("llama_tiny", "bookkeeping", "per_device"),
])  # fmt: skip
def test_stages_group_and_adapt_as_one_process_does(both, size, engine, scope):
    """In a pipeline a stage is a device; of these models one process cuts its virtual devices at the same layer."""
    first, last = (rank["scopes"][size, engine, scope, 0.0] for rank in both)
    for stage_result in (first, last):
        assert max(stage_result["differences"]) < 1e-5
        assert stage_result["sizes"][0] == stage_result["sizes"][1]
        assert stage_result["trajectories"][0] == stage_result["trajectories"][1]
    groups = len(first["sizes"][0])
    assert first["own"] | last["own"] == set(range(groups))
    assert not first["own"] & last["own"]
    assert scope != "per_device" or groups == 2
    noisy = [rank["scopes"][size, engine, scope, 1.0] for rank in both]
    assert noisy[0]["trajectories"][0] == noisy[1]["trajectories"][0]
    for stage_result in noisy:
        once, alone = stage_result["trajectories"]
        assert once[:2] == alone[:2]  # one draw of the same noise; later weights have other noise
        assert stage_result["stds"] == [0.0, 0.0]


@pytest.mark.parametrize("scope", ["flat", "per_device"])
@pytest.mark.parametrize(("size", "schedule"), [("tiny", "gpipe"), ("tiny", "1f1b"), ("llama_tiny", "gpipe")])
def test_stages_with_adapters_equal_the_virtual_devices_oracle(both, size, scope, schedule):
    """Released gradients and weights of two steps; fp32 against fp64: 1e-5."""
    first, last = (rank["adapters"][size, scope, schedule] for rank in both)
    for stage_result in (first, last):
        assert max(stage_result["differences"]) < 1e-5
        assert stage_result["clipped"][0] == stage_result["clipped"][1]
        assert stage_result["sizes"][0] == stage_result["sizes"][1]
        assert stage_result["sensitivity"] == pytest.approx(0.02)
    assert 0 < first["clipped"][1] < 1, "the data do not make clipping bite"
    assert len(first["sizes"][0]) == (1 if scope == "flat" else 2)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_stages_exchange_norms_for_flat_clipping_alone(both, schedule):
    """A float32 an example and stage, padding included; activations of width 32 and 6 tokens there and back."""
    examples = 8 + 8
    for number, rank in enumerate(both):
        flat, per_device = (rank["adapters"]["tiny", scope, schedule]["bytes"] for scope in ("flat", "per_device"))
        assert flat == (4 * examples, 4 * examples * 6 * 32), number
        assert per_device == (0, 4 * examples * 6 * 32), number


def test_a_planted_exchange_of_norms_is_seen(both):
    for rank in both:
        assert rank["leaks"] == [0, 4 * 4]


def test_sensitivity_and_noise_of_equal_stages_by_hand(both):
    """bound 0.3 on two devices: each adds at most 0.3 / sqrt(2), all of them 0.3. Equal budget: the noise of group k has std
    noise_multiplier x C_k x sqrt(K) = 2 x 0.3 / sqrt(2) x sqrt(2). Flat: one group of 0.3, shared by the stages as it falls."""
    added, stds = zip(*(rank["worst"]["per_device"] for rank in both), strict=True)
    assert added == pytest.approx([0.3 / math.sqrt(2)] * 2, rel=1e-5)
    assert [std for stage_stds in stds for std in stage_stds] == pytest.approx([0.6, 0.6])
    added, stds = zip(*(rank["worst"]["flat"] for rank in both), strict=True)
    assert math.hypot(*added) == pytest.approx(0.3, rel=1e-5)
    assert min(added) < 0.29 / math.sqrt(2), "the stages' shares are alike: flat and per device would be one"
    assert [std for stage_stds in stds for std in stage_stds] == pytest.approx([0.6, 0.6])


def test_cutting_a_batch_into_micro_batches_changes_nothing(both):
    """Losses are summed: an average over micro-batches would scale the sum by their number."""
    for rank in both:
        two, *others = rank["micro_batches"]
        for other in others:
            assert float((other - two).norm() / two.norm()) < 1e-5


@pytest.mark.parametrize("allocation", ["global", "equal", "weighted"])
def test_each_stage_adds_noise_of_the_whole_models_std(both, allocation):
    """A stage that knew its own groups alone would add sqrt(2) too little; 3 072 elements give a std to 5 / sqrt(2 x 3 072)."""
    ratios = [ratio for rank in both for ratio in rank["noise"][allocation]["ratios"].values()]
    assert len(ratios) >= 6
    assert all(abs(ratio - 1) < 5 / math.sqrt(2 * 3000) for ratio in ratios)


def test_stages_draw_from_streams_of_their_own(both):
    one, other = (rank["noise"]["global"]["blocks"].flatten() for rank in both)
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 5 / math.sqrt(len(one))


def test_clipped_examples_are_counted_over_all_stages(both):
    for rank in both:
        ours, lone = zip(*rank["fractions"], strict=True)
        assert ours == lone
        assert ours[:2] == (0.0, None)
        assert 0 < ours[2] < 1


def test_bad_examples_are_counted_once_over_all_stages(both):
    assert [rank["non_finite"][0] for rank in both] == [2, 2]
    assert all("all 4 examples have non-finite gradients" in rank["non_finite"][1] for rank in both)


@pytest.mark.parametrize(("what", "says"), [
    ("flat", "an adaptive threshold with flat clipping in a pipeline"),
    ("ghost", "engine 'ghost' does not run as stages"),
    ("devices", "3 devices in a pipeline of 2 stages"),
    ("thresholds", "3 thresholds for 16 groups"),
    ("twice", "parameter 0.weight is in the stages of rank 0 and rank 1"),
    ("mechanism", "rank 1 has another mechanism than rank 0"),
    ("micro-batches", "1 micro-batches for 2 stages"),
    ("uneven", "a batch of 5 examples in 2 micro-batches"),
    ("shapes", "pad every batch to one shape"),
    ("tied", "one tensor would be in two stages"),
    ("deep", "3 stages for 2 blocks"),
])  # fmt: skip
def test_every_rank_refuses(both, what, says):
    assert all(says in rank["guards"][what] for rank in both)


@pytest.mark.parametrize("size", ["tiny", "llama_tiny"])
@pytest.mark.parametrize("stages", [1, 2])
def test_the_stages_are_the_model(size, stages):
    model = language_model(size, seed=3)
    ids = torch.randint(0, 512, (2, 7))
    x, names = ids, []
    for number in range(stages):
        stage = stage_of(model, number, stages)
        x = stage(x)
        names += [id(p) for p in stage.parameters()]
    assert torch.equal(x, model(ids))
    assert sorted(names) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(("blocks", "stages", "head", "expected_split"), [
    (4, 2, 1.78, [0, 3, 4]),  # mini: a head of 1.8 blocks
    (40, 4, 0.52, [0, 10, 20, 30, 40]),  # llama_13b
    (2, 2, 5.0, [0, 1, 2]),  # every stage has a block
    (3, 1, 1.0, [0, 3]),
])  # fmt: skip
def test_stages_are_balanced(blocks, stages, head, expected_split):
    assert boundaries(blocks, stages, head) == expected_split
