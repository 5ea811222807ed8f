"""Text classification with a zeroth-order method: what it trains, on which rows, to which epsilon, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from zeroth_runs import BASE, SOURCES, run, settings

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import text_classification as classify
from dpbench.tasks.holdout import share_of
from dpbench.tasks.text_classification.prompting import filled
from dpbench.tasks.text_classification.rows import RowSplit
from dpbench.tasks.text_classification.task import TextTask
from dpbench.validation import parse


@pytest.mark.parametrize("engine", ["dpzero", "dpgd_0th", "dp_zo_laplace"])
def test_a_private_run_counts_the_rows_there_are(tmp_path, engine):
    outcome = run(tmp_path, method=engine)
    assert outcome.facts["train_rows"] == outcome.facts["rows_drawn_from"] == 80
    assert outcome.facts["evaluated_rows"] == 30
    assert outcome.mechanism["sampling"]["sample_rate"] == 20 / 80
    assert 7.9 < outcome.privacy.epsilon <= 8.0
    assert outcome.facts["curve"][0][0] == 0
    assert outcome.facts["curve"][-1][0] == 4
    names = {m.name for m in outcome.metrics}
    assert names == {
        "accuracy",
        "epsilon",
        "stated_epsilon",
        "training_seconds",
        "processor_seconds",
        "clipped_fraction",
        "noise_ratio",
    }


def test_mezo_spends_nothing_and_moves_all_unfrozen_weights(tmp_path):
    outcome = run(tmp_path, method="mezo", clipping=None, epsilon=None)
    assert outcome.privacy is None
    unfrozen_outcome = run(tmp_path, method="mezo", clipping=None, epsilon=None, freeze_embeddings=False)
    assert unfrozen_outcome.facts["trainable_parameters"] > outcome.facts["trainable_parameters"]


def test_a_class_too_small_gives_what_it_has_and_says_so(tmp_path):
    outcome = run(tmp_path, per_class=190)
    assert any("where 190 were asked for" in warning for warning in outcome.warnings)
    assert outcome.facts["train_rows"] < 380


def chosen(seed, count=30, rows=400):
    labels = np.arange(rows) % 4 // 3  # one class three times as large
    split = RowSplit(settings(per_class=count), labels, lambda: [str(k) for k in range(rows)], seed)
    return split, labels


def test_k_rows_of_each_class_and_others_for_another_seed():
    split, labels = chosen(0)
    assert np.bincount(labels[split.drawn]).tolist() == [30, 30]
    assert split.rows == 60
    assert not split.warnings
    assert np.array_equal(split.drawn, chosen(0)[0].drawn)
    assert not np.array_equal(split.drawn, chosen(1)[0].drawn)
    assert split.drawn.tolist() == sorted(split.drawn.tolist())
    scores = [share_of(f"0 {k}".encode()) for k in range(400)]
    assert min(s for k, s in enumerate(scores) if labels[k] and k not in split.drawn) > max(
        scores[k] for k in split.drawn if labels[k]
    )


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"zeroth": None}, "dpzero needs it"),
        ({"method": "fused"}, "fused is no zeroth-order method"),
        ({"optimizer": {"name": "adamw", "learning_rate": 1.0}}, "optimizer name sgd"),
        ({"optimizer": {"name": "sgd", "learning_rate": 1.0, "head_learning_rate": 2.0}}, "one learning rate"),
        ({"zeroth": {"perturbation": 0}}, "perturbation"),
        ({"zeroth": {"perturbation": 5}}, "perturbation"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"method": "mezo"}, "takes neither clipping nor epsilon"),
        ({"method": "dpzro"}, "dpzro"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_clipping_by_layers_is_refused_before_training(tmp_path):
    with pytest.raises(DpbenchError, match="function abadi, scope flat"):
        run(tmp_path, clipping={"function": "auto_s"})


def test_older_settings_are_written_as_before():
    plain = {k: v for k, v in BASE.items() if k not in ("zeroth", "per_class", "evaluate_limit")} | {"method": "bookkeeping"}
    newer = {"zeroth", "per_class", "evaluate_limit", "lora", "accounted_rows"}
    assert not newer & set(parse(classify.Settings, plain, "test").model_dump())


def test_a_check_says_what_would_be_trained():
    assert any("two forward passes" in remark for remark in classify.check(settings(), SOURCES))


def test_a_head_of_prompt_words_starts_at_the_filled_prompts(tmp_path):
    """Rows of unit length, their mean over classes taken away; of a single text's features."""
    assert filled("sst2") == ["It was terrible.", "It was great."]
    run_settings = settings(head="prompt_words", centre=False)
    task = TextTask(run_settings, Context(tmp_path, 0, SOURCES, StepLog(tmp_path / "steps.jsonl")))
    weight = task.model.head.out.weight.detach()
    assert weight.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert weight[0].tolist() == pytest.approx((-weight[1]).tolist(), abs=1e-6)


def test_a_task_without_a_prompt_says_so():
    with pytest.raises(DpbenchError, match="dataset qqp declares no prompt"):
        filled("qqp")
