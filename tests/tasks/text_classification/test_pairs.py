"""Sentence pairs in the features and classify jobs, and that runs on single sentences keep their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dpbench import plugins
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import text_classification as classify
from dpbench.jobs import text_features as features
from dpbench.methods import engines
from dpbench.models import registry as models
from dpbench.models.text import cut_longer_first
from dpbench.plugins.identity import identity
from dpbench.records.packed import recorded_records
from dpbench.spec.expand import expand, run_id
from dpbench.spec.sources import Source
from dpbench.spec.tables import load_table
from dpbench.tasks.features import FILE
from dpbench.tasks.text_classification.encoding import TextData, compared, pooled
from dpbench.tasks.text_classification.model import Classifier, freeze, make_head
from dpbench.tasks.text_classification.task import meta_model
from dpbench.validation import parse

SCRATCH = Source(kind="scratch", synthetic=True)
SOURCES = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "qnli", "mnli", "wikitext2")} | {
    "model:tiny_bert": SCRATCH
}
FEATURES = {"dataset": "qnli", "model": "tiny_bert", "train_limit": 60, "max_length": 24}
CLASSIFY = {
    "dataset": "mnli",
    "training": "full",
    "model": "tiny_bert",
    "method": "bookkeeping",
    "clipping": {"function": "auto_s"},
    "epsilon": 8.0,
    "steps": 3,
    "expected_batch_size": 40,
    "max_length": 32,
    "train_limit": 300,
    "optimizer": {"learning_rate": 0.01},
}


def context(folder, **parents):
    return Context(folder, 0, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [((3, 4), 10, (3, 4)), ((2, 40), 10, (2, 8)), ((40, 2), 10, (8, 2)), ((40, 40), 11, (6, 5)), ((1, 40), 2, (1, 1))],
)
def test_the_longer_text_is_cut_first(lengths, room, kept):
    first, second = cut_longer_first(list(range(lengths[0])), list(range(lengths[1])), room)
    assert (len(first), len(second)) == kept
    assert first == list(range(kept[0]))
    assert second == list(range(kept[1]))


def test_a_pair_is_one_input_with_a_mark_behind_each_text():
    tokenizer = models.text_tokenizer("tiny_bert", SCRATCH, SOURCES["dataset:wikitext2"])
    end = tokenizer.encode([""], 4)[0][-1]
    (pair_ids,) = tokenizer.encode(["the town"], 32, ["a river"])
    assert pair_ids == tokenizer.encode(["the town"], 32)[0] + tokenizer.encode(["a river"], 32)[0]
    assert pair_ids.count(end) == 2
    (cut,) = tokenizer.encode(["the town"], 6, ["a river " * 20])
    assert len(cut) == 6
    with pytest.raises(DpbenchError, match="use more than 3"):
        tokenizer.encode(["a"], 3, ["b"])


def test_real_tokenizers_mark_pairs_as_their_models_were_trained(tmp_path):
    minilm = plugins.get("model", "minilm")
    if models.resolve("minilm").kind == "scratch":
        pytest.skip("no real tokenizer here")
    from transformers import AutoTokenizer

    from dpbench.models import sources

    source = models.resolve("minilm")
    ours = models.text_tokenizer("minilm", source, SOURCES["dataset:wikitext2"])
    theirs = AutoTokenizer.from_pretrained(sources.file_of(minilm, source, sources.TOKENIZER).parent)
    first, second = ["who came ?", "x " * 30], ["the mayor came", "y " * 12]
    for length in (64, 20):
        expected_ids = theirs(first, second, truncation="longest_first", max_length=length)["input_ids"]
        assert ours.encode(first, length, second) == expected_ids


def test_features_of_pairs_are_product_and_distance_of_texts(tmp_path):
    outcome = features.run(parse(features.Settings, FEATURES, "test"), context(tmp_path))
    stored = load_file(tmp_path / FILE)
    assert stored["train_x"].shape == (60, 64)
    assert stored["public_mean"].shape == (64,)
    assert outcome.facts["width"] == 64
    assert "label_phrases" not in stored
    data = TextData("qnli", "tiny_bert", SOURCES, 24)
    encoder = models.encoder("tiny_bert", SCRATCH).eval()
    both = data.split_one_by_one("train", 3)
    with torch.no_grad():
        one, two = (torch.cat([pooled(encoder, part.batch([i])) for i in range(3)]) for part in both)
    # stored in fp16: 11 significant bits
    torch.testing.assert_close(stored["train_x"][:3].float(), compared(one, two), rtol=1e-3, atol=1e-5)


def test_pairs_train_on_features_and_whole(tmp_path, as_parent):
    (tmp_path / "features").mkdir()
    features.run(parse(features.Settings, FEATURES, "test"), context(tmp_path / "features"))
    as_parent(tmp_path / "features", "text_features", [FILE])
    on_features = CLASSIFY | {"dataset": "qnli", "training": "features", "hidden": [8], "expected_batch_size": 20}
    done = classify.run(parse(classify.Settings, on_features, "test"), context(tmp_path, features=tmp_path / "features"))
    assert done.facts["train_rows"] == 60
    assert done.facts["evaluated_rows"] == 1000
    done = classify.run(parse(classify.Settings, CLASSIFY, "test"), context(tmp_path))
    assert done.facts["train_rows"] == 300
    assert done.privacy.epsilon <= 8
    assert 0 <= done.metrics[0].value <= 100


@pytest.mark.parametrize(("training_kind", "width"), [("features", 64), ("full", 32)])
def test_the_checked_model_has_the_width_of_the_trained_one(training_kind, width):
    run_settings = parse(classify.Settings, CLASSIFY | {"training": training_kind}, "test")
    model = meta_model(run_settings, SOURCES)
    head = model if training_kind == "features" else model.head
    assert head.out.weight.shape == (3, width)
    assert "M trainable parameters" in classify.check(run_settings, SOURCES)[0]


def test_a_pairs_gradient_depends_on_both_of_its_texts():
    """Swapping another text in for the second changes what one example adds: it is not cut away."""
    data = TextData("mnli", "tiny_bert", SOURCES, 32)
    encoded = data.encode(["the mayor sold a boat"] * 2, np.zeros(2, dtype=np.int64), ["in the park", "at noon"])
    run_settings = parse(classify.Settings, CLASSIFY, "test")
    head = make_head(run_settings, 32, 3, 0, None)
    torch.nn.init.normal_(head.out.weight)
    model = freeze(Classifier(models.encoder("tiny_bert", SCRATCH), head, run_settings), run_settings)
    sums = []
    for row in (0, 1):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        plan = run_settings.mechanism(300, 300, 0)
        handle = engines.attach("bookkeeping", model, optimizer, plan)
        handle.backward(
            lambda net, b: torch.nn.functional.cross_entropy(net(b), b["label"], reduction="none"), encoded.batch([row])
        )
        sums.append(torch.cat([handle.sum_of(p).flatten() for p in handle.trainable.values()]))
        handle.detach()
    assert (sums[0] - sums[1]).norm() > 1e-3 * sums[0].norm()


def test_runs_on_single_sentences_keep_their_names():
    """The names that SST-2's runs had before there were pairs, at every tier: how many, and the first and last of them.

    Runs that choose rows of features by what they hold (`chosen_by`) are others than those that chose by position.
    """

    def local(kind, name):
        return Source(kind="local", files={"train": name * 4})

    expected_names = {
        "smoke": (2, "3f64e8441b37", "f476d1a9f786"),
        "laptop": (8, "0c1d09d602fc", "d5287fc7c9d8"),
        "overnight": (43, "00513a62d9bf", "fcde97801973"),
        "gpu": (21, "1b2e9f8846b1", "eb5b75662223"),
        "paper": (21, "087ab3d5de4e", "f6720361a194"),
    }
    for tier, expected in expected_names.items():
        runs = expand(load_table("automatic", "glue_base"), tier, local).runs.values()
        configs = [run.config for run in runs if run.config["settings"]["dataset"] == "sst2"]
        settings = [{k: v for k, v in config["settings"].items() if k != "chosen_by"} for config in configs]
        ids = sorted(run_id(c | {"settings": s}) for c, s in zip(configs, settings, strict=True))
        assert (len(ids), ids[0], ids[-1]) == expected, tier


def test_recorded_runs_keep_their_names():
    """Every record of present versions is still named by the table it was made for, from the same sources, at a tier of then."""
    checked = 0
    for stored in recorded_records():
        record = stored.record
        present = all(identity(plugins.get(*key.split(":", 1))) == version for key, version in record.config["versions"].items())
        tiers = [r.tier for r in record.requests if (r.paper, r.table) == ("automatic", "glue_base")]
        if not present or not tiers:
            continue

        def resolve(kind, name, record_sources=record.sources):
            return record_sources.get(f"{kind}:{name}", SCRATCH)

        spec = load_table("automatic", "glue_base")
        assert any(record.run in expand(spec, tier, resolve, [0, 1, 2, 3, 4]).runs for tier in tiers)
        checked += 1
    assert checked > 3
