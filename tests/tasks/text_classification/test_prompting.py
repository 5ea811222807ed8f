"""Prompts around texts, label words, and a masked language model's own head, on a small RoBERTa on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import text_classification as classify
from dpbench.models import registry as models
from dpbench.models.text import TextTokenizer
from dpbench.spec.sources import Source
from dpbench.tasks.text_classification.encoding import TextData
from dpbench.tasks.text_classification.prompting import Prompt
from dpbench.tasks.text_classification.task import TextTask
from dpbench.validation import parse

WORDS = ["terrible", "great", "It", "was", ".", "?", ",", "Yes", "No", "Maybe", "a", "film", "very", "fine", "unhappily"]
SETTINGS = {
    "dataset": "sst2",
    "training": "full",
    "model": "roberta_base",
    "method": "nonprivate",
    "head": "prompt",
    "centre": False,
    "steps": 0,
    "expected_batch_size": 10,
    "max_length": 16,
    "train_limit": 60,
    "evaluate_limit": 20,
    "optimizer": {"learning_rate": 0.01},
}


def tokenizer(words=WORDS):
    """Words behind a space; what is not known becomes its letters."""
    from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
    from tokenizers.models import BPE

    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    for symbol in ["Ġ", *letters]:
        vocabulary[symbol] = len(vocabulary)
    merges = []
    for word in words:
        joined = "Ġ"
        for letter in word:
            pair, joined = (joined, letter), joined + letter
            if joined not in vocabulary:
                vocabulary[joined] = len(vocabulary)
                merges.append(pair)
    bpe_tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>"))
    bpe_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe_tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True), *(AddedToken(t) for t in ("<s>", "<pad>", "</s>"))])
    bpe_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return bpe_tokenizer


@pytest.fixture
def roberta(monkeypatch, tmp_path):
    """A masked language model of two layers in a local folder, and transformers' own model of it."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    bpe_tokenizer = tokenizer()
    architecture = plugins.get("model", "roberta_base").extra["architecture"] | {
        "vocab_size": bpe_tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    monkeypatch.setitem(plugins.get("model", "roberta_base").extra, "architecture", architecture)
    torch.manual_seed(0)
    theirs = RobertaForMaskedLM(RobertaConfig(**architecture, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases start at zero, which would hide one that is not read
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder = tmp_path / "models" / "roberta-base"
    theirs.save_pretrained(folder)
    bpe_tokenizer.save(str(folder / "tokenizer.json"))
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path / "models"))
    return theirs


def sources():
    resolved = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "wikitext2")}
    return resolved | {"model:roberta_base": models.resolve("roberta_base", "local")}


def own_tokenizer(words=WORDS):
    return TextTokenizer(tokenizer(words), 1, 500, "0" * 64, published=True)


def test_logits_are_transformers_own_of_the_label_words(roberta, tmp_path):
    settings = parse(classify.Settings, SETTINGS, "test")
    task = TextTask(settings, Context(tmp_path, 0, sources(), StepLog(tmp_path / "steps.jsonl")))
    batch = task.train.batch(np.arange(5))
    logits = task.model.eval()(batch)
    model_logits = roberta(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    at_mask = model_logits[torch.arange(5), (batch["input_ids"] == 4).int().argmax(1)]
    words = [tokenizer().token_to_id(f"Ġ{word}") for word in ("terrible", "great")]
    torch.testing.assert_close(logits, at_mask[:, words], atol=1e-5, rtol=1e-5)
    assert (batch["input_ids"] == 4).sum(1).tolist() == [1] * 5


@pytest.mark.parametrize("engine", ["nonprivate", "mezo"])
def test_the_head_is_trained_with_the_rest(roberta, tmp_path, engine):
    more = {"zeroth": {}, "optimizer": {"name": "sgd", "learning_rate": 0.01}} if engine == "mezo" else {}
    settings = parse(classify.Settings, SETTINGS | {"method": engine, "steps": 2} | more, "test")
    outcome = classify.run(settings, Context(tmp_path, 0, sources(), StepLog(tmp_path / "steps.jsonl")))
    assert outcome.facts["trainable_parameters"] > 32 * 32 + 2 * 33
    assert outcome.privacy is None


def test_zero_shot_evaluates_the_start_and_reads_no_training_row(roberta, tmp_path):
    settings = parse(classify.Settings, SETTINGS, "test")
    context = Context(tmp_path, 0, sources(), StepLog(tmp_path / "steps.jsonl"))
    outcome = classify.run(settings, context)
    task = TextTask(settings, context)
    assert outcome.metrics[0].value == 100 * task.accuracy()[0]
    assert [m.name for m in outcome.metrics] == ["accuracy"]
    assert (outcome.mechanism, outcome.privacy, outcome.facts["evaluated_rows"]) == (None, None, 20)


def test_a_long_text_is_cut_and_the_prompt_is_not():
    prompt_tokenizer = own_tokenizer()
    prompt = Prompt.of("sst2", prompt_tokenizer)
    short, long = prompt.encode(prompt_tokenizer, ["a fine film", "very " * 50 + "fine"], None, 12)
    assert len(long) <= 12
    assert long[0] == 0
    end = prompt.encode(prompt_tokenizer, [""], None, 12)[0]
    assert long[-3:] == end[-3:]  # <mask> . </s>
    assert short.count(4) == long.count(4) == 1
    assert prompt.places([short, long]).tolist() == [short.index(4), long.index(4)]
    with pytest.raises(DpbenchError, match="no room for the prompt"):
        prompt.encode(prompt_tokenizer, ["a"], None, 4)


def test_of_a_pair_the_longer_text_is_cut_first():
    prompt_tokenizer = own_tokenizer()
    ids = Prompt.of("rte", prompt_tokenizer).encode(prompt_tokenizer, ["very " * 40 + "fine"], ["a fine film"], 16)[0]
    assert prompt_tokenizer.tokenizer.decode(ids).endswith("Ġa Ġfine Ġfilm")
    assert len(ids) <= 16


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda: Prompt.of("sst2", own_tokenizer([w for w in WORDS if w != "terrible"])),
            "label word 'terrible' of sst2 is 9 tokens",
        ),
        (lambda: Prompt.of("qqp", own_tokenizer()), "dataset qqp declares no prompt"),
        (lambda: TextData("sst2", "tiny_bert", SCRATCH, 16, prompts=True), "needs a masked language model's tokenizer"),
    ],
)
def test_what_cannot_be_prompted_says_why(change, says):
    with pytest.raises(DpbenchError, match=says):
        change()


SCRATCH = {f"dataset:{n}": datasets.resolve(n, "embedded") for n in ("sst2", "wikitext2")} | {
    "model:tiny_bert": Source(kind="scratch", synthetic=True)
}


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"training": "features"}, "prompt fills a mask inside the encoder"),
        ({"centre": True}, "prompt takes no pooled features"),
        (
            {"method": "bookkeeping", "clipping": {"function": "abadi"}, "epsilon": 1.0},
            "steps: 0 trains nothing, so bookkeeping",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        parse(classify.Settings, SETTINGS | over, "test")


def test_each_prompt_has_one_mask_its_texts_and_class_words():
    seen = 0
    for plugin in plugins.discover("dataset").values():
        if (prompt := plugin.extra.get("prompt")) is None:
            continue
        seen += 1
        assert prompt["template"].count("{mask}") == 1
        assert prompt["template"].count("{text}") == 1
        assert ("{text_pair}" in prompt["template"]) == ("text_pair" in plugin.extra["columns"])
        assert set(prompt["words"]) == set(plugin.extra["classes"])
        assert len(set(prompt["words"].values())) == len(plugin.extra["classes"])
    assert seen == 6


def test_a_checkpoint_without_the_head_says_so(roberta, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "models" / "roberta-base" / "model.safetensors"
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("lm_head.dense")}, path)
    settings = parse(classify.Settings, SETTINGS, "test")
    with pytest.raises(DpbenchError, match=r"lacks lm_head\.dense\.bias"):
        TextTask(settings, Context(tmp_path, 0, sources(), StepLog(tmp_path / "steps.jsonl")))
    assert json.loads((path.parent / "config.json").read_text())["hidden_size"] == 32
