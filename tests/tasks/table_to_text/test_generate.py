"""The generate job: whose tokens the loss is of, the public start, what is measured, what leaves the machine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dpbench import plugins
from dpbench.data import described, registry
from dpbench.data.described import Described
from dpbench.data.tokenizer import bpe
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import table_to_text as job
from dpbench.models import sources as models
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.spec.expand import merge
from dpbench.tasks.language_model import WEIGHTS
from dpbench.tasks.table_to_text import task as module
from dpbench.tasks.table_to_text.task import TableToText, is_held_out, samples
from dpbench.training.run import fit
from dpbench.validation import parse

BASE = {
    "dataset": "e2e_nlg",
    "size": "tiny",
    "coding": "words",
    "vocabulary": 100,
    "max_length": 64,
    "method": "bookkeeping",
    "clipping": {"function": "auto_s", "bound": 1.0},
    "epsilon": 8,
    "steps": 3,
    "expected_batch_size": 40,
    "optimizer": {"learning_rate": 1e-2},
    "train_limit": 300,
    "evaluate_limit": 6,
    "samples": 2,
    "token_budget": 1024,
}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None}
START = {"tokens": 96, "train_blocks": 60, "steps": 3, "expected_batch_size": 10, "learning_rate": 1e-2}
PUBLIC = {"coding": "pieces", "vocabulary": 300, "max_length": 80, "start": START}
MODES = {"lora": {"mode": "lora"}, "prefix": {"mode": "prefix", "length": 4}, "last_layers": {"mode": "last_layers", "layers": 1}}


def settings(**over):
    return parse(job.Settings, merge(BASE, over), "test")


@pytest.fixture
def context(tmp_path):
    resolved = {f"dataset:{name}": registry.resolve(name, "embedded") for name in ("e2e_nlg", "web_nlg", "dart", "wikitext2")}
    resolved |= {f"model:{name}": models.resolve(name, "scratch") for name in ("gpt2", "openai_gpt2")}
    return Context(tmp_path, 1, resolved, StepLog(tmp_path / "steps.jsonl"))


@pytest.fixture
def started(context, as_parent):
    """The context with the public model that `PUBLIC` asks for."""
    ((role, (name, parent_settings, seed, _)),) = job.parents(settings(**PUBLIC), 1).items()
    assert (role, name, seed) == ("start", "language_modeling", 0)
    folder = context.out / "start"
    folder.mkdir()
    parent = parse(language_model.Settings, parent_settings, "parent")
    outcome = language_model.run(parent, Context(folder, seed, context.sources, StepLog(folder / "steps.jsonl")))
    context.parents["start"] = as_parent(folder, "language_modeling", outcome.artefacts)
    return context, outcome


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"method": "nonprivate"}, "takes neither clipping nor epsilon"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"tuning": {"mode": "lora"}}, "give start"),
        ({"start": START}, "coding must be pieces"),
        ({**PUBLIC, "max_length": 90, "tuning": MODES["prefix"] | {"length": 7}}, "below the 97 positions"),
        ({"tuning": {"mode": "lorra"}}, "tuning"),
        ({"weights": "openai_gpt2"}, "exactly one of size and weights"),
        ({"size": None, "weights": "openai_gpt2"}, "coding: own belongs to weights"),
        ({"from_scratch": True}, "from scratch already"),
        ({"size": None, "weights": "openai_gpt2", "coding": "own", "start": START}, "weights have been trained"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


@pytest.mark.parametrize("quick", [False, True])
def test_the_loss_is_of_the_text_alone(quick, context):
    """Against a loss written out a token at a time; inputs and padding must not matter."""
    task = TableToText(settings(), context)
    if quick:
        task.quicken()
        assert task.first == min(task.begins) - 1 > 0
    rows = np.asarray([0, 7, 30])
    batch_losses = task.losses(task.model, task.batch(rows)).detach()
    for value, row in zip(batch_losses, rows, strict=True):
        ids, begin = task.ids[row], task.begins[row]
        logits = task.model(torch.tensor([ids])).detach()[0].log_softmax(-1)
        token_losses = [float(logits[at - 1, ids[at]]) for at in range(begin, len(ids))]
        assert float(value) == pytest.approx(-sum(token_losses) / len(token_losses), rel=1e-5)  # float32
    assert len({len(task.ids[row]) for row in rows}) > 1  # so that one of them is padded
    other = dict(task.batch(rows[:1]))
    other["input_ids"] = other["input_ids"].clone()
    other["input_ids"][:, len(task.ids[0]) :] = 5
    assert torch.equal(task.losses(task.model, other), task.losses(task.model, task.batch(rows[:1])))


def test_long_rows_are_cut_but_have_text(context):
    task = TableToText(settings(dataset="web_nlg", max_length=24), context)
    assert task.facts["train_rows_cut"] > 0
    assert max(map(len, task.ids)) == 24
    assert all(begin <= 12 and len(ids) > begin for begin, ids in zip(task.begins, task.ids, strict=True))
    rows = np.arange(len(task))
    assert bool((task.batch(rows)["count"] > 0).all())


def train(run_settings, task, plan, context):
    return fit(run_settings, task, run_settings.optimizer.build(task.parameter_groups()), [plan], context)


def test_without_noise_and_clipping_it_is_plain_training(context):
    """Same sampling, same weights: only the order of sums differs, which AdamW may enlarge."""
    sampling = Sampling("poisson", 300, 40)
    ends = []
    for over, clipping in ((PLAIN, None), ({"clipping": {"function": "abadi"}}, Clipping(bound=1e6))):
        run_settings = settings(**over)
        task = TableToText(run_settings, context)
        done = train(run_settings, task, Mechanism(sampling, 3, clipping, seed=1), context)
        assert done.clipped_fractions == [0.0] * 3
        ends.append(task.losses(task.model, task.batch(np.arange(20))).detach())
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("dataset", ["e2e_nlg", "web_nlg", "dart"])
def test_a_private_run_measures_and_accounts(dataset, context):
    done = job.run(settings(dataset=dataset), context)
    metrics = {m.name: m for m in done.metrics}
    spent = ["epsilon", "stated_epsilon", "training_seconds", "processor_seconds", "clipped_fraction", "noise_ratio"]
    assert list(metrics) == ["bleu", "rouge_l", "nist", "meteor", "cider", *spent]
    assert all(0 <= metrics[name].value <= 100 for name in ("bleu", "rouge_l", "nist"))
    assert all(metrics[name].value is None and metrics[name].note.startswith("left out") for name in ("meteor", "cider"))
    assert 0.99 * 8 <= done.privacy.epsilon <= 8
    assert done.mechanism["sampling"]["dataset_size"] == done.facts["train_rows"] == 300
    assert done.facts["unprotected"] == []
    assert done.facts["evaluated_inputs"] == 6


def test_a_seed_gives_one_result(context):
    first = job.run(settings(), context)
    again = job.run(settings(), context)
    for outcome in (first, again):
        assert outcome.facts.pop("training_seconds") > 0
        outcome.metrics = [m for m in outcome.metrics if not m.name.endswith("_seconds")]
    assert first.metrics == again.metrics
    assert first.facts == again.facts
    context.seed = 2
    assert job.run(settings(), context).facts["outputs_sha256"] != first.facts["outputs_sha256"]


def test_it_learns_to_speak_of_its_input(context):
    """Without privacy, 160 steps: most names and places of the input are spoken of, and BLEU is no accident."""
    run_settings = settings(
        **PLAIN,
        size="nano",
        train_limit=None,
        steps=160,
        expected_batch_size=40,
        optimizer={"learning_rate": 5e-3},
        evaluate_limit=40,
        token_budget=8192,
    )
    task = TableToText(run_settings, context)
    untrained = task.score()
    train(run_settings, task, run_settings.mechanism(len(task), len(task), 1), context)
    trained, outputs = task.score(), task.write()
    assert untrained["bleu"] < 5
    assert trained["bleu"] > 25
    near = [(dict(row.fields).get("near"), text) for row, text in zip(task.inputs, outputs, strict=True)]
    spoken = [value in text for value, text in near if value]
    assert sum(spoken) / len(spoken) > 0.6
    assert all(dict(row.fields)["name"] in text for row, text in zip(task.inputs, outputs, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_parts_of_a_public_model_are_trained(mode, started):
    context, parent = started
    run_settings = settings(**PUBLIC, tuning=MODES[mode], decoding={"beams": 2})
    task = TableToText(run_settings, context)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    assert task.facts["tokenizer_sha256"] == parent.facts["tokenizer_sha256"]
    done = train(run_settings, task, run_settings.mechanism(300, 300, 1), context)
    moved = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert moved == trained
    assert 0 < done.facts["trainable_parameters"] < task.facts["parameters"]
    assert len(task.write()) == 6


def test_training_begins_with_the_public_weights(started):
    from safetensors.torch import load_file

    context, _ = started
    kept = load_file(context.out / "start" / WEIGHTS)
    model = TableToText(settings(**PUBLIC), context).model
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    random = TableToText(settings(coding="pieces", vocabulary=300, max_length=80), context).model
    assert not torch.equal(random.state_dict()["model.lm_head.weight"], kept["model.lm_head.weight"])


def test_the_held_out_train_rows_are_never_trained_on(context):
    full_task = TableToText(settings(train_limit=None), context)
    other_task = TableToText(settings(train_limit=None, evaluate_on="train_rest", held_out=0.2, evaluate_limit=None), context)
    source = context.sources["dataset:e2e_nlg"]
    rows = described.load("e2e_nlg", "train", source)
    train = described.grouped(rows)
    test = {row.fields for row in described.load("e2e_nlg", "test", source)}
    assert {row.fields for row in full_task.inputs} <= test
    held = {row.fields for row in other_task.inputs}
    assert held < {row.fields for row in train}
    assert 0.15 < len(held) / len(train) < 0.25
    assert len(other_task) == len(full_task) - sum(row.fields in held for row in rows)
    assert not any(is_held_out(row, 0.2) for row in train if row.fields not in held)


def test_samples_are_the_best_and_the_worst():
    inputs = [Described((("name", str(i)),), ("one two three four five",)) for i in range(5)]
    outputs = ["one two three four five", "six", "one two three four", "one two seven", ""]
    chosen = samples(inputs, outputs, 2)
    assert [(s["place"], s["index"]) for s in chosen] == [("best", 0), ("best", 2), ("worst", 4), ("worst", 1)]
    assert chosen[0]["bleu"] == 100.0
    assert chosen[0]["input"] == "name : 0"
    few = samples(inputs[:3], outputs[:3], 5)
    assert sorted(s["index"] for s in few) == [0, 1, 2]


OWN = {"size": None, "weights": "openai_gpt2", "coding": "own"}


@pytest.mark.parametrize("over", [{}, PLAIN, PUBLIC, OWN, *({**PUBLIC, "tuning": mode} for mode in MODES.values())])
def test_a_run_is_proven_without_running_it(over, context):
    run_settings = settings(**over)
    remarks = job.check(run_settings, context.sources)
    assert "trainable parameters" in remarks[0]


def test_a_model_with_published_weights_brings_its_tokenizer(context, tmp_path, monkeypatch):
    """With GPT-2's file laid out by hand, small: its <|endoftext|> ends inputs and texts, and pads."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2Model

    extra = plugins.get("model", "openai_gpt2").extra
    small = {"vocab_size": 400, "n_positions": 80, "n_embd": 16, "n_layer": 1, "n_head": 2, "eos_token_id": 7, "pad_token_id": 7}
    monkeypatch.setitem(extra, "architecture", extra["architecture"] | small)
    folder = tmp_path / "models" / "gpt2"
    folder.mkdir(parents=True)
    bpe("wikitext2", 400, context.sources["dataset:wikitext2"])[0].save(str(folder / "tokenizer.json"))
    save_file(GPT2Model(GPT2Config(**extra["architecture"])).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path / "models"))
    context.sources["model:openai_gpt2"] = models.resolve("openai_gpt2", "local")
    run_settings = settings(**OWN, max_length=80, tuning=MODES["last_layers"])
    task = TableToText(run_settings, context)
    assert all(ids[begin - 1] == 7 for ids, begin in zip(task.ids, task.begins, strict=True))
    assert (task.coding.pad, task.coding.eos) == (7, 7)
    assert 7 not in task.coding.banned
    assert len(job.run(run_settings, context).facts["samples"]) == 4
    scratch = TableToText(settings(**OWN, max_length=80, from_scratch=True), context)
    assert scratch.coding.sha256 == task.coding.sha256
    assert not torch.equal(scratch.model.state_dict()["model.lm_head.weight"], task.model.state_dict()["model.lm_head.weight"])


def test_nothing_to_evaluate_on_is_said_before_training(context, monkeypatch):
    monkeypatch.setattr(module, "model_of", lambda *_args, **_more: pytest.fail("a model was built first"))
    with pytest.raises(DpbenchError, match=r"no inputs to evaluate on \(evaluate_on: train_rest\)"):
        job.run(settings(evaluate_on="train_rest", held_out=1e-12), context)


def test_automatic_and_tight_clipping_are_one_under_adam(context):
    """With every example clipped, AUTO-V at bound 1 and a bound R differ by the factor R alone, in sums and noise, and Adam takes
    it out, but for the 1e-8 that keeps it from dividing by 0: made so small that it rounds away. R is a power of two: exact."""
    ends = []
    for clipping in ({"function": "auto_v", "bound": 1.0}, {"function": "abadi", "bound": 2.0**-7}):
        run_settings = settings(clipping=clipping, steps=4)
        task = TableToText(run_settings, context)
        stepper = run_settings.optimizer.build(task.parameter_groups())
        stepper.param_groups[0]["eps"] = 1e-30
        plan = Mechanism(Sampling("poisson", 300, 40), 4, run_settings.clipping.build(), 0.5, seed=1)
        done = fit(run_settings, task, stepper, [plan], context)
        assert done.clipped_fractions == [1.0] * 4
        ends.append(torch.cat([p.detach().flatten() for p in task.model.parameters()]))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-6  # of weights that moved by 4e-2; a rounding in fp32 is 1e-9


def test_a_dataset_without_tables_is_refused(context):
    context.sources["dataset:sst2"] = registry.resolve("sst2", "embedded")
    with pytest.raises(DpbenchError, match="is for classification"):
        job.check(settings(dataset="sst2"), context.sources)
