"""The pipeline job: what it refuses, that processes train what one process trains, what it counts."""

from __future__ import annotations

import pytest
import torch

from dpbench.data import registry
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.study import study_at
from dpbench.execution.tracking import StepLog
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import table_to_text_pipeline as job
from dpbench.models import sources as models
from dpbench.models.stages import stage_of
from dpbench.spec.expand import merge
from dpbench.tasks.table_to_text import pipeline
from dpbench.tasks.table_to_text.stage import CountedStage, StageTask, stage
from dpbench.tasks.table_to_text.task import Examples, TableToText, model_of
from dpbench.validation import parse

START = {"tokens": 80, "train_blocks": 60, "steps": 3, "expected_batch_size": 10, "learning_rate": 1e-2}
BASE = {
    "dataset": "e2e_nlg",
    "size": "tiny",
    "coding": "pieces",
    "vocabulary": 300,
    "max_length": 80,
    "start": START,
    "tuning": {"mode": "lora", "rank": 2},
    "method": "bookkeeping",
    "clipping": {"function": "abadi", "scope": "per_device", "bound": 0.1, "allocation": "equal"},
    "epsilon": 8,
    "steps": 4,
    "expected_batch_size": 20,
    "optimizer": {"learning_rate": 1e-2},
    "train_limit": 200,
    "evaluate_limit": 4,
    "samples": 1,
    "token_budget": 1600,
    "devices": 2,
}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None}
NO_SCORE = {"score": False, "start": None}


def settings(**over):
    return parse(job.Settings, merge(BASE, over), "test")


@pytest.fixture(scope="module")
def sources():
    resolved = {f"dataset:{name}": registry.resolve(name, "embedded") for name in ("e2e_nlg", "samsum", "wikitext2")}
    return resolved | {f"model:{name}": models.resolve(name, "scratch") for name in ("gpt2", "openai_gpt2_xl")}


@pytest.fixture(scope="module")
def start(sources, tmp_path_factory, as_parent):
    """The folder of the public model that `BASE` asks for."""
    ((_, (_, parent_settings, seed, _)),) = job.parents(settings(), 1).items()
    folder = tmp_path_factory.mktemp("start")
    outcome = language_model.run(
        parse(language_model.Settings, parent_settings, "parent"), Context(folder, seed, sources, StepLog(folder / "steps.jsonl"))
    )
    return as_parent(folder, "language_modeling", outcome.artefacts)


@pytest.fixture
def context(sources, start, tmp_path):
    return Context(tmp_path, 1, sources, StepLog(tmp_path / "steps.jsonl"), threads=2, parents={"start": start})


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"tuning": {"mode": "last_layers"}}, "every stage must have something to train"),
        ({"clipping": {"devices": 2}}, "the job's `devices`"),
        ({"steps": 2}, "the first 2 are not timed"),
        ({"schedule": "1f1b", "micro_batches": 1}, "wants as many micro-batches"),
        ({"score": False}, "a size with random weights"),
        ({**NO_SCORE, "virtual": True}, "on real devices"),
        ({"start": None}, "give start or weights"),
        ({"devices": 0}, "devices"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"devices": 3}, "3 stages for 2 blocks"),
        ({"devices": 3, "virtual": True}, "3 stages for 2 blocks"),
        ({"method": "loop"}, "engine 'loop' does not run as stages"),
    ],
)
def test_what_cannot_run_is_refused_by_the_check(over, says, sources):
    with pytest.raises(DpbenchError, match=says):
        job.check(settings(**over), sources)


@pytest.mark.parametrize("over", [{}, PLAIN, {"clipping": {"scope": "flat"}}, {"virtual": True, "method": "loop"}, NO_SCORE])
def test_a_run_is_proven_without_running_it(over, sources):
    remarks = job.check(settings(**over), sources)
    assert "trainable parameters of" in remarks[0]
    assert remarks[-2].startswith("2 ")


def test_fewer_gpus_than_stages_is_said_before_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DpbenchError, match="2 stages want a GPU each, this machine has 1"):
        pipeline.require(settings(device="cuda"))
    pipeline.require(settings(device="cuda", virtual=True))


def test_summaries_asked_for_by_name_must_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_DATA", str(tmp_path))
    for kind, reason in (("local", "does not exist"), ("hub", "HF_HUB_OFFLINE is set")):
        with pytest.raises(DpbenchError, match=reason):
            registry.resolve("samsum", kind)
    assert registry.resolve("samsum").synthetic


def test_processes_train_what_one_process_trains(context):
    """Plain training, four steps of AdamW: the same batches and initial weights, so the weights differ by the order of sums
    alone, which AdamW enlarges where a gradient is nearly 0 (1e-3 of the largest step, 4 x the learning rate)."""
    ends = []
    for virtual in (False, True):
        run_settings = settings(**PLAIN, virtual=virtual)
        task = TableToText(run_settings, context)
        before = {n: p.detach().clone() for n, p in task.model.named_parameters() if p.requires_grad}
        done = pipeline.train(run_settings, task, run_settings.mechanism(200, 200, 1), context)
        assert len(done.training.step_seconds) == 4
        after = dict(task.model.named_parameters())
        assert all(not torch.equal(before[name], after[name]) for name in before)
        ends.append({name: after[name].detach() for name in before})
        if not virtual:
            assert done.bytes_per_example["clipping_bytes"] == 0
            assert done.training.trainable_parameters == sum(p.numel() for p in before.values())
    assert max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0]) < 4e-5


def test_a_private_run_of_two_processes(context):
    done = job.run(settings(), context)
    metrics = {m.name: m for m in done.metrics}
    trained = {"epsilon", "stated_epsilon", "training_seconds", "processor_seconds", "clipped_fraction", "noise_ratio"}
    assert set(metrics) == {"throughput", "step_seconds", "text_loss", *job.BYTES, *job.SCORES, *trained}
    assert metrics["clipping_bytes"].value == 0
    assert metrics["activation_bytes"].value == 2 * 4 * 80 * 32  # there and back, of every token the width in float32
    assert 0 < metrics["guard_bytes"].value < 20
    assert len(metrics["throughput"].rounds) == 2
    assert all(0 <= metrics[name].value <= 100 for name in job.SCORES)
    assert done.facts["groups"] == 2
    assert done.facts["unprotected"] == []
    assert done.facts["trainable_parameters"] == sum(done.facts["trainable_parameters_of_each_stage"])
    assert min(done.facts["trainable_parameters_of_each_stage"]) > 0
    assert done.facts["counted_examples"] % 20 == 0  # 1600 tokens are 20 examples of 80, some of them padding
    assert 0.99 * 8 <= done.privacy.epsilon <= 8


def test_the_evaluated_loss_is_the_mean_of_each_texts_loss(context):
    task = TableToText(settings(evaluate_limit=3, max_length=72), context)
    rows = [(row, text) for row in task.inputs for text in row.texts]
    assert len(rows) > len(task.inputs)
    expected_losses = []
    for row, text in rows:
        prompt = task.prompt(row)
        ids = [*prompt, *task.coding.target(row.fields, text)][:72]
        logits = task.model(torch.tensor([ids])).detach()[0].log_softmax(-1)
        token_losses = [float(logits[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]
        expected_losses.append(-sum(token_losses) / len(token_losses))
    assert task.text_loss() == pytest.approx(sum(expected_losses) / len(expected_losses), rel=1e-5)  # float32


def test_virtual_devices_group_as_stages_and_send_no_bytes(context):
    done = job.run(settings(virtual=True), context)
    metrics = {m.name: m for m in done.metrics}
    assert done.facts["groups"] == 2
    assert all(metrics[name].value is None and metrics[name].note == job.NO_BYTES for name in job.BYTES)


def test_a_stage_of_random_weights_is_made_without_the_others(sources):
    """Frozen weights in bfloat16, adapters in float32; both stages together are the model, and it runs."""
    run_settings = settings(**NO_SCORE, dtype="bfloat16")
    request = {"source": sources["model:gpt2"].model_dump(mode="json"), "start": None, "vocabulary": 300, "seed": 1}
    x, names = torch.randint(0, 300, (2, 7)), set()
    for rank in range(2):
        part = stage(run_settings, request, rank, torch.device("cpu"))
        kinds = {(".lora_" in n, p.requires_grad, p.dtype) for n, p in part.named_parameters()}
        assert kinds == {(True, True, torch.float32), (False, False, torch.bfloat16)}
        names |= {n for n, _ in part.named_parameters()}
        x = part(x)
    assert bool(torch.isfinite(x).all())
    whole_model = model_of(run_settings, 300, sources["model:gpt2"], meta=True)
    assert names == {n for k in range(2) for n, _ in stage_of(whole_model, k, 2).named_parameters()}


def test_physical_batches_of_a_stage_have_one_shape():
    import numpy as np

    run_settings = settings(micro_batches=4)
    examples = Examples(run_settings, torch.device("cpu"), [[5] * n for n in (10, 30, 200)], [2, 3, 4], 0)
    task = StageTask(examples, stage_of(model_of(run_settings, 300, models.resolve("gpt2", "scratch")), 0, 2), run_settings)
    assert task.size == 8  # 1600 tokens of 200 each
    pieces = list(task.physical(np.arange(3).repeat(4)))
    assert [(len(rows), real) for rows, real in pieces] == [(8, 8), (8, 4)]
    assert list(pieces[1][0][4:]) == [0] * 4
    batch, real = task.batch(pieces[0])
    assert (batch["input_ids"].shape, real) == ((8, 200), 8)
    assert list(task.physical(np.arange(0))) == []


def test_nothing_is_counted_where_no_step_has_examples():
    counter = CountedStage(settings())
    counter.step_done(None)
    assert (counter.examples, set(counter.bytes.values())) == (0, {0})


def test_the_gpu_tier_alone_has_virtual_devices():
    for tier, virtual in (("laptop", False), ("gpu", True), ("paper", False)):
        runs = study_at(tier, ["groupwise/per_device"], "test").runs.values()
        virtual_choices = {run.config["settings"]["virtual"] for run in runs if run.config["job"] == "table_to_text_pipeline"}
        assert virtual_choices == {virtual}
