"""The prompted job: whose tokens the loss is of, what is trained and evaluated, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpbench.data import registry
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import prompt_completion as job
from dpbench.jobs import table_to_text as generate
from dpbench.models import registry as models
from dpbench.models import sources
from dpbench.spec.expand import merge
from dpbench.tasks.language_model import WEIGHTS as START_FILE
from dpbench.tasks.prompt_completion import task as module
from dpbench.tasks.prompt_completion.rows import scores
from dpbench.tasks.prompt_completion.task import PromptTask, model_of
from dpbench.validation import parse

BASE = {
    "dataset": "sst2",
    "size": "opt_tiny",
    "vocabulary": 300,
    "max_length": 96,
    "method": "dpzero",
    "zeroth": {},
    "clipping": {"function": "abadi", "bound": 10.0},
    "epsilon": 6.0,
    "steps": 4,
    "expected_batch_size": 12,
    "optimizer": {"name": "sgd", "learning_rate": 1e-4},
    "train_limit": 40,
    "evaluate_limit": 16,
    "token_budget": 512,
}
MEZO = {"method": "mezo", "clipping": None, "epsilon": None}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None, "zeroth": None}
ZERO_SHOT = PLAIN | {"steps": 0}
FIRST_ORDER = {"method": "bookkeeping", "zeroth": None, "size": "tiny", "optimizer": {"name": "adamw", "learning_rate": 1e-3}}
ANSWERS = {"dataset": "squad", "max_length": 160, "answer_length": 10}
START = {"tokens": 96, "train_blocks": 60, "steps": 3, "expected_batch_size": 10, "learning_rate": 1e-2}
LONG = {"negative": " bad and dull", "positive": " good"}


def settings(**over):
    return parse(job.Settings, merge(BASE, over), "test")


@pytest.fixture
def context(tmp_path):
    resolved = {f"dataset:{name}": registry.resolve(name, "embedded") for name in ("sst2", "boolq", "squad", "drop", "wikitext2")}
    resolved |= {
        f"model:{name}": sources.resolve(name, "scratch") for name in ("opt", "gpt2", "openai_gpt2", "facebook_opt_1_3b")
    }
    return Context(tmp_path, 1, resolved, StepLog(tmp_path / "steps.jsonl"))


def metrics(outcome):
    return {m.name: m.value for m in outcome.metrics}


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (ZERO_SHOT | {"method": "mezo", "zeroth": {}}, "steps: 0 trains nothing, so mezo has nothing to do"),
        ({"steps": 0}, "steps: 0 trains nothing, so dpzero has nothing to do"),
        ({"zeroth": None}, "dpzero needs it"),
        (FIRST_ORDER | {"zeroth": {}}, "bookkeeping is no zeroth-order method"),
        ({"optimizer": {"name": "adamw"}}, "optimizer name sgd"),
        ({"optimizer": {"weight_decay": 0.1}}, "without weight decay"),
        ({"epsilon": None}, "needs clipping and epsilon"),
        (MEZO | {"epsilon": 6}, "takes neither clipping nor epsilon"),
        ({"size": None}, "exactly one of size and weights"),
        ({"weights": "openai_gpt2"}, "exactly one of size and weights"),
        ({"size": None, "weights": "openai_gpt2"}, "vocabulary belongs to a size"),
        ({"vocabulary": 0}, "vocabulary: a model of a size needs one"),
        ({"start": START | {"tokens": 95}}, "start.tokens 95 is below the 96 positions"),
        ({"start": START, "tied": True}, "tied"),
        (PLAIN | {"dtype": "float16"}, "dtype float16: for zeroth-order"),
        (PLAIN | {"tied": True}, "tied True: for zeroth-order"),
        ({"dtype": "float8"}, "dtype"),
        ({"label_words": {"negative": " bad", "positive": ""}}, "those of positive are empty"),
        ({"label_words": {"negative": " bad"}}, "its classes are negative, positive"),
        (ANSWERS | {"label_words": LONG}, "label_words: squad is answered in free text"),
        (ANSWERS | {"loss": "tokens"}, "loss: squad is answered in free text"),
        (ANSWERS | {"answer_length": 160}, "answer_length 160 leaves no room for a prompt"),
        ({"evaluate_on": "train_rest", "train_limit": None}, "train_rest needs a train_limit"),
        ({"dataset": "e2e_nlg"}, "dataset e2e_nlg has no prompts"),
        ({"trian_limit": 3}, "trian_limit"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError) as caught:
        settings(**over)
    assert says in str(caught.value) + caught.value.hint


@pytest.mark.parametrize("over", [{}, ANSWERS, ZERO_SHOT, FIRST_ORDER | {"loss": "tokens"}, {"start": START}])
def test_settings_are_read_as_they_are_written(over):
    """A run's config is what its process is given."""
    run_settings = settings(**over)
    assert parse(job.Settings, run_settings.model_dump(mode="json"), "test") == run_settings


def reference(model, prompt, way):
    """Mean log-likelihood of a candidate's tokens, one forward pass over the whole of it."""
    ids = torch.tensor([prompt + way])
    with torch.no_grad():
        each = model(ids)[0].float().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(way) - 1)
    return float(sum(each[place, token] for place, token in zip(places, way, strict=True)) / len(way))


@pytest.mark.parametrize("words", [None, LONG, {"negative": " a", "positive": " b"}], ids=["own", "unequal", "one token"])
def test_scores_are_mean_log_likelihoods_of_the_words_own_tokens(context, words):
    task = PromptTask(settings(label_words=words, dtype="float32"), context)
    assert task.examples.forms == (1 if all(len(ids) == 1 for ids in task.words) else 2)
    index = np.array([3, 0, 17, 5])
    with torch.no_grad():
        word_scores = scores(task.model, task.examples.batch(index))
        untrimmed_scores = scores(task.model, task.examples.batch(index), trim=False)
    expected_scores = torch.tensor([[reference(task.model, task.examples.prompts[i], way) for way in task.words] for i in index])
    assert float((word_scores - expected_scores).abs().max()) < 1e-4
    assert float((word_scores - untrimmed_scores).abs().max()) < 1e-5
    losses = task.losses(task.model, task.examples.batch(index))
    right = torch.as_tensor(task.examples.label[index])
    assert torch.allclose(losses, -expected_scores.log_softmax(1)[torch.arange(4), right], atol=1e-4)


def test_the_loss_of_tokens_is_that_of_the_right_words_alone(context):
    task = PromptTask(settings(label_words=LONG, loss="tokens"), context)
    every = PromptTask(settings(label_words=LONG), context)
    index = np.arange(8)
    losses = task.losses(task.model, task.batch(index))
    label = every.examples.label[index]
    assert set(label.tolist()) == {0, 1}
    expected_losses = [-reference(task.model, task.examples.prompts[i], task.words[label[i]]) for i in index]
    assert torch.allclose(losses, torch.tensor(expected_losses), atol=1e-4)


@pytest.mark.parametrize("over", [{}, {"label_words": LONG}, {"loss": "tokens"}, ANSWERS, ANSWERS | {"dataset": "drop"}])
def test_an_example_does_not_depend_on_its_neighbours(context, over):
    """Without this the sensitivity of a step is not the bound."""
    task = PromptTask(settings(**over), context)
    index = np.arange(9)
    together = task.losses(task.model, task.batch(index))
    alone = torch.cat([task.losses(task.model, task.batch(index[i : i + 1])) for i in index])
    assert torch.allclose(together, alone, atol=1e-4)
    assert len(task.examples.lengths) == 40
    assert float(together.detach().std()) > 0


def test_answers_are_trained_on_their_tokens_and_their_end(context):
    task = PromptTask(settings(**ANSWERS), context)
    row = next(i for i, candidates in enumerate(task.examples.candidates) if len(candidates[0]) < 10)
    (way,) = task.examples.candidates[row]
    assert way[-1] == task.stop
    loss = float(task.losses(task.model, task.batch(np.array([row]))).detach()[0])
    assert loss == pytest.approx(-reference(task.model, task.examples.prompts[row], way), abs=1e-4)


def test_answers_that_do_not_fit_are_cut_and_counted(context):
    cut_outcome = job.run(settings(**ANSWERS | {"answer_length": 3}), context)
    assert cut_outcome.facts["answers_cut"] > 0
    assert any("were cut to 3 tokens" in warning for warning in cut_outcome.warnings)
    full_outcome = job.run(settings(**ANSWERS | {"answer_length": 40}), context)
    assert full_outcome.facts["answers_cut"] == 0
    assert full_outcome.warnings == []


def test_of_a_long_prompt_the_end_is_kept(context):
    task = PromptTask(settings(max_length=16), context)
    assert task.facts["prompts_cut"] > 20
    assert max(map(len, task.examples.prompts)) == 16 - max(map(len, task.words))
    ending = task.coding.ids(" It was")
    assert all(prompt[-len(ending) :] == ending for prompt in task.examples.prompts)
    with pytest.raises(DpbenchError, match=r"has 1[6-9] tokens, max_length is 16"):
        PromptTask(settings(max_length=16, label_words={"negative": " q!q!q!q!q!q!q!q!", "positive": " x"}), context)


def test_label_words_without_a_token_or_with_the_same_are_named(context, monkeypatch):
    from dpbench.data import coding

    task = PromptTask(settings(), context)
    real_ids = coding.Pieces.ids
    monkeypatch.setattr(coding.Pieces, "ids", lambda self, text: [] if text == " great" else real_ids(self, text))
    with pytest.raises(DpbenchError, match="' great' of positive has no token"):
        PromptTask(settings(), context)
    monkeypatch.setattr(coding.Pieces, "ids", lambda self, text: task.words[0])
    with pytest.raises(DpbenchError, match="two classes have the same tokens"):
        PromptTask(settings(), context)


def test_the_seed_chooses_the_rows_and_the_rest_is_apart(context):
    def prompts(seed, **over):
        task = PromptTask(settings(**over), Context(context.out, seed, context.sources, context.steps))
        return {tuple(p) for p in task.examples.prompts}, [tuple(p) for p in task.asked.prompts]

    (one, same), (again, _), (other, evaluated) = prompts(0), prompts(0), prompts(1)
    assert one == again
    assert len(one) == 40
    assert len(one & other) < 10
    assert same == evaluated  # of the validation split, for every seed
    drawn, other_rows = prompts(0, evaluate_on="train_rest")
    assert drawn == one
    assert len(other_rows) == 16
    assert not drawn & set(other_rows)


@pytest.mark.parametrize("task", ["sst2", "boolq"])
def test_a_private_run_says_what_it_did(context, task):
    outcome = job.run(settings(dataset=task), context)
    assert outcome.facts["train_rows"] == 40
    assert outcome.facts["evaluated_rows"] == 16
    assert outcome.mechanism["sampling"]["sample_rate"] == 12 / 40
    assert 5.9 < outcome.privacy.epsilon <= 6.0
    assert outcome.facts["curve"][0][0] == 0
    assert outcome.facts["curve"][-1] == [4, metrics(outcome)["accuracy"]]
    assert sum(outcome.facts["picks"]) == 16
    assert 0 <= metrics(outcome)["accuracy"] <= 100


@pytest.mark.parametrize("task", ["squad", "drop"])
def test_answers_are_scored_after_the_last_step(context, task, monkeypatch):
    evaluate, lines = PromptTask.evaluate, []

    def counted(task):
        lines.append(len((context.out / "steps.jsonl").read_text().splitlines()))
        return evaluate(task)

    monkeypatch.setattr(PromptTask, "evaluate", counted)
    outcome = job.run(settings(**ANSWERS | {"dataset": task}), context)
    assert outcome.privacy is not None
    assert set(metrics(outcome)) >= {"f1", "exact_match"}
    assert lines == [4]  # once, when all steps have been logged
    assert "curve" not in outcome.facts
    assert len(outcome.facts["outputs_sha256"]) == 64


def test_right_answers_score_a_hundred(context, monkeypatch):
    """What is written is compared with the answers of its own row."""
    task = PromptTask(settings(**ANSWERS), context)
    ways = [task.coding.ids(f" The {row.answers[0]}!") for row in task.evaluated]
    monkeypatch.setattr(module, "generate", lambda *args, **options: ways)
    metrics = task.evaluate()
    assert (metrics["f1"], metrics["exact_match"]) == (100.0, 100.0)
    monkeypatch.setattr(module, "generate", lambda *args, **options: [*ways[8:], *ways[:8]])
    assert task.evaluate()["exact_match"] < 60


@pytest.mark.parametrize("over", [{}, ANSWERS])
def test_the_evaluated_loss_is_the_mean_of_the_rows(context, over):
    task = PromptTask(settings(**over), context)
    rows = task.asked
    each = []
    for prompt, ways, label in zip(rows.prompts, rows.candidates, rows.label, strict=True):
        row_losses = torch.tensor([reference(task.model, prompt, way) for way in ways])
        each.append(-float(row_losses.log_softmax(0)[label] if len(ways) > 1 else row_losses[0]))
    assert task.evaluate()["loss"] == pytest.approx(np.mean(each), abs=1e-4)


def test_written_answers_end_at_their_length_or_their_mark(context, monkeypatch):
    seen_options = {}

    def generate_(model, prompts, **options):
        seen_options.update(options, prompts=prompts)
        return [[] for _ in prompts]

    monkeypatch.setattr(module, "generate", generate_)
    task = PromptTask(settings(**ANSWERS), context)
    assert task.evaluate()["f1"] == 0
    assert (seen_options["eos"], seen_options["longest"], seen_options["limit"]) == (task.stop, 10, 160)
    assert max(map(len, seen_options["prompts"])) <= 150


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_zero_shot_evaluates_the_model_as_it_starts(context, task):
    over = ANSWERS if task == "squad" else {}
    outcome = job.run(settings(**ZERO_SHOT | over), context)
    assert outcome.mechanism is None
    assert outcome.privacy is None
    assert "train_rows" not in outcome.facts
    if task == "sst2":
        trained = job.run(settings(**MEZO), context)
        assert outcome.facts["curve"] == [[0, metrics(outcome)["accuracy"]]] == trained.facts["curve"][:1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("over", [{}, ANSWERS], ids=["words", "answers"])
def test_half_precision_trains_by_zeroth_order(context, dtype, over):
    outcome = job.run(settings(**{"dtype": dtype, **over}), context)
    assert not any("not finite" in warning for warning in outcome.warnings)
    task = PromptTask(settings(**{"dtype": dtype, **over}), context)
    assert {p.dtype for p in task.model.parameters()} == {getattr(torch, dtype)}
    wide = PromptTask(settings(**over), context)
    index = np.arange(6)
    losses = [variant.losses(variant.model, variant.batch(index)) for variant in (task, wide)]
    assert losses[0].dtype == torch.float32
    assert torch.allclose(*losses, rtol=0.05)


def test_mezo_lowers_the_loss(context):
    """Of the rows it trains on, all of them each step."""
    over = MEZO | {
        "size": "tiny",
        "steps": 60,
        "train_limit": 24,
        "evaluate_limit": 4,
        "expected_batch_size": 24,
        "token_budget": 4096,
        "optimizer": {"learning_rate": 1e-2},
    }
    task = PromptTask(settings(**over), context)
    start = float(task.losses(task.model, task.batch(np.arange(24))).detach().mean())
    outcome = job.run(settings(**over), context)
    losses = [json.loads(line)["loss"] for line in (context.out / "steps.jsonl").read_text().splitlines()]
    assert abs(start - losses[0]) < 0.02
    assert np.mean(losses[-10:]) < start - 0.01
    assert outcome.facts["trainable_parameters"] == outcome.facts["parameters"]


def test_a_first_order_engine_needs_one_input_an_example(context):
    with pytest.raises(DpbenchError, match="makes 2 inputs of an example of sst2, and method bookkeeping") as caught:
        job.run(settings(**FIRST_ORDER), context)
    assert "loss: tokens" in caught.value.hint


@pytest.mark.parametrize("over", [{"loss": "tokens"}, {"label_words": {"negative": " a", "positive": " b"}}, ANSWERS])
def test_first_order_engines_sum_what_the_oracle_sums(context, over):
    """Noise 0 and a bound that bites: the clipped sums of three engines are equal to fp32 rounding."""
    from dpbench.methods import engines
    from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

    sums = {}
    for engine in ("loop", "vmap", "bookkeeping"):
        task = PromptTask(settings(**merge(FIRST_ORDER, {"method": engine, **over})), context)
        stepper = torch.optim.SGD(task.model.parameters(), lr=1.0)
        handle = engines.attach(engine, task.model, stepper, Mechanism(Sampling("poisson", 40, 5.0), 3, Clipping(bound=0.5), 0.0))
        handle.backward(task.losses, task.batch(np.array([1, 8, 2, 30])))
        stepper.step()
        assert handle.clipped_fraction == 1.0
        sums[engine] = torch.cat([p.grad.flatten() for p in task.model.parameters()])
        handle.detach()
    assert float(sums["loop"].norm()) > 0.01
    for engine in ("vmap", "bookkeeping"):
        assert float((sums[engine] - sums["loop"]).abs().max()) < 1e-5, engine


def test_the_public_start_is_the_one_of_the_generate_job(context, as_parent):
    over = {"size": "tiny", "start": START | {"token_budget": 1024}}
    ((role, (name, parent_settings, seed, _)),) = job.parents(settings(**over), 1).items()
    other = {
        "dataset": "e2e_nlg",
        "size": "tiny",
        "coding": "pieces",
        "vocabulary": 300,
        "max_length": 80,
        "method": "nonprivate",
        "steps": 3,
        "expected_batch_size": 4,
        "optimizer": {"learning_rate": 1e-2},
        "token_budget": 1024,
        "start": START,
    }
    theirs = generate.parents(parse(generate.Settings, other, "test"), 7)[role]
    assert (role, name, seed) == ("start", "language_modeling", 0)
    assert theirs[:3] == (name, parent_settings, seed)
    folder = context.out / "start"
    folder.mkdir()
    outcome = language_model.run(
        parse(language_model.Settings, parent_settings, "parent"),
        Context(folder, seed, context.sources, StepLog(folder / "steps.jsonl")),
    )
    context.parents["start"] = as_parent(folder, "language_modeling", outcome.artefacts)
    task = PromptTask(settings(**over), context)
    stored = models.language_model("tiny", seed=9, vocabulary=300, context=96)
    from safetensors.torch import load_file

    stored.load_state_dict(load_file(folder / START_FILE))
    assert all(torch.equal(a, b) for a, b in zip(task.model.parameters(), stored.parameters(), strict=True))
    assert outcome.facts["tokenizer_sha256"] == task.facts["tokenizer_sha256"]


SMALL = {"vocab_size": 400, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2} | {
    "num_attention_heads": 2,
    "max_position_embeddings": 192,
}


@pytest.fixture
def published(tmp_path, context, monkeypatch):
    """A small OPT in a local folder, with a tokenizer whose marks have the ids that OPT gives them."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import OPTConfig, OPTForCausalLM

    from dpbench import plugins

    extra = plugins.get("model", "facebook_opt_1_3b").extra
    monkeypatch.setitem(extra, "architecture", extra["architecture"] | SMALL)
    folder = tmp_path / "models" / "opt-1.3b"
    torch.manual_seed(0)
    OPTForCausalLM(OPTConfig(**extra["architecture"])).half().save_pretrained(folder)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["It was great . It was terrible . Yes No"] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("DPBENCH_MODELS", str(folder.parent))
    context.sources["model:facebook_opt_1_3b"] = sources.resolve("facebook_opt_1_3b", "local")
    return context, tokenizer


WEIGHTS = {"size": None, "vocabulary": 0, "weights": "facebook_opt_1_3b", "dtype": "float16", "tied": True}


@pytest.mark.parametrize("over", [{}, ANSWERS | {"dataset": "drop"}], ids=["words", "answers"])
def test_published_weights_with_their_own_tokenizer(published, over):
    context, tokenizer = published
    task = PromptTask(settings(**WEIGHTS | over), context)
    assert all(prompt[0] == 2 for prompt in task.examples.prompts)  # </s>, as OPT was trained
    assert task.stop == tokenizer.encode("\n").ids[-1]
    assert {1, 380, 399} <= set(task.coding.banned)
    outcome = job.run(settings(**WEIGHTS | over), context)
    assert outcome.facts["vocabulary"] == 400
    assert outcome.privacy.epsilon <= 6.0


def test_answers_of_published_weights_end_with_line_or_text(published):
    context, tokenizer = published
    task = PromptTask(settings(**WEIGHTS | ANSWERS), context)
    ids = tokenizer.encode(" great").ids
    assert task.coding.text((), [*ids, 2, *ids]) == "great"


def test_max_length_beyond_the_positions_is_named(context):
    with pytest.raises(DpbenchError, match="max_length 1025: openai_gpt2 has 1024 positions"):
        model_of(
            settings(**WEIGHTS | {"weights": "openai_gpt2", "max_length": 1025}),
            0,
            context.sources["model:openai_gpt2"],
            meta=True,
        )


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({}, "two forward passes"),
        (ZERO_SHOT, "evaluated as they start"),
        (FIRST_ORDER | {"loss": "tokens"}, "trainable parameters"),
        (WEIGHTS | {"weights": "facebook_opt_13b"}, "12853.47 M trainable parameters"),
    ],
)
def test_a_run_is_proven_without_running_it(context, over, says):
    context.sources["model:facebook_opt_13b"] = sources.resolve("facebook_opt_13b", "scratch")
    remarks = job.check(settings(**over), context.sources)
    assert any(says in remark for remark in remarks)
