"""Sentence pairs: stand-ins that must be compared to be told apart, and what a local folder must hold."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dpbench import plugins
from dpbench.data import registry
from dpbench.data.synthetic import stand_in
from dpbench.errors import DpbenchError

CLASSES = {"entailment": 3, "answers": 2, "paraphrases": 2}


@pytest.mark.parametrize("name", CLASSES)
def test_pairs_are_balanced_and_no_pair_stands_twice(name):
    rows = stand_in(name).splits
    splits = {split: stand_in(name).generate(split) for split in rows}
    seen = [pair for columns in splits.values() for pair in zip(columns["text"], columns["text_pair"], strict=True)]
    assert len(seen) == len(set(seen)) == sum(rows.values())
    for split, columns in splits.items():
        shares = torch.bincount(torch.tensor(columns["label"]), minlength=CLASSES[name]) / rows[split]
        assert (shares - 1 / CLASSES[name]).abs().max() < 0.05


def accuracy(name, both: bool) -> float:
    """Validation accuracy of an MLP on sums of word embeddings of the two texts, or of the second text alone."""
    train, validation = stand_in(name).generate("train"), stand_in(name).generate("validation")
    texts = [t for key in ("text", "text_pair") for t in train[key]]
    words = {w: i + 1 for i, w in enumerate(sorted({w for text in texts for w in text.split()}))}

    def encode(texts):
        rows = [[words.get(w, 0) for w in text.split()] for text in texts]
        return torch.tensor([row + [0] * (24 - len(row)) for row in rows])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        bag = torch.nn.EmbeddingBag(len(words) + 1, 32, mode="sum", padding_idx=0)
        head = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES[name]))

        def logits(first, second):
            a, b = bag(first) * both, bag(second)
            return head(torch.cat([a, b, (a - b).abs()], 1))

        optimizer = torch.optim.AdamW([*bag.parameters(), *head.parameters()], lr=3e-3)
        first, second = encode(train["text"]), encode(train["text_pair"])
        labels = torch.tensor(train["label"])
        for _ in range(12):
            for rows in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits(first[rows], second[rows]), labels[rows]).backward()
                optimizer.step()
    predicted = logits(encode(validation["text"]), encode(validation["text_pair"])).argmax(1)
    return float((predicted == torch.tensor(validation["label"])).float().mean())


@pytest.mark.parametrize("name", CLASSES)
def test_pairs_are_learnable_but_not_from_one_text_alone(name):
    """Chance is 1 / classes; 1,000 rows have a binomial sd of 1.6 points, so 8 points above it are no chance."""
    chance = 1 / CLASSES[name]
    assert accuracy(name, both=True) > chance + 0.2
    assert accuracy(name, both=False) < chance + 0.08


def test_mnli_knows_no_mismatched_split():
    source = registry.resolve("mnli", "embedded")
    with pytest.raises(DpbenchError, match="unknown split 'validation_mismatched'"):
        registry.load("mnli", "validation_mismatched", source)


@pytest.mark.parametrize("name", ["qnli", "qqp", "mnli"])
def test_a_local_folder_gives_both_texts_under_canonical_names(name, tmp_path, monkeypatch):
    plugin = plugins.get("dataset", name)
    folder = tmp_path / "data" / plugin.extra["folder"]
    folder.mkdir(parents=True)
    first, second = plugin.extra["columns"]["text"], plugin.extra["columns"]["text_pair"]
    for file in plugin.extra["files"].values():
        pq.write_table(pa.table({first: ["a", "b", "c"], second: ["d", "e", "f"], "label": [0, 1, 0]}), folder / file)
    monkeypatch.setenv("DPBENCH_DATA", str(folder.parent))
    source = registry.resolve(name)
    examples = registry.load(name, "validation", source, limit=2)
    assert examples.columns == {"text": ["a", "b"], "text_pair": ["d", "e"], "label": [0, 1]}
    pq.write_table(pa.table({first: ["a"], second: [1], "label": [0]}), folder / plugin.extra["files"]["train"])
    with pytest.raises(DpbenchError, match=f"column '{second}' holds int64, not text"):
        registry.check(name, registry.resolve(name))
