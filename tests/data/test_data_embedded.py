"""The generated stand-ins: the same everywhere, and worth training on."""

import hashlib
import json

import pytest

from dpbench.data.embedded import articles, restaurants, sentiment

PINNED = {
    (sentiment, "train"): "68569a5595b94f465e180a952a951d2d8aaea075d19c1f1bb19a2c3b26fc2058",
    (sentiment, "validation"): "e7e2baf3b83c5586d0e6c99b6ea3b6dd6052d4c23e2319aeda4b25ef0dcc0d59",
    (articles, "train"): "d045c8489b3a43e40ca53b35f294db0067fb4102cfe4998f821a245c40d47fe6",
    (articles, "validation"): "b4a31cac3093ba9bfe8235720c845720e79fccb278b761907a617b561d4452ff",
    (articles, "test"): "0a92e98e5901f548c6ba4b9088d89d47906d9d953054f99378000abc1782b188",
    (restaurants, "train"): "aafb64817aef5c29871947a08757f354ef680b850f8934ec2f2414c73c004581",
    (restaurants, "validation"): "9cadf935082449e5932ae37129ff3951619ddb568314ceab49001ba3a221bf34",
    (restaurants, "test"): "e3017d8678b0201d12cb084c198405524c049ae2c4f99a9b3675eb6a30df6113",
}


@pytest.mark.parametrize(("module", "split"), PINNED, ids=lambda v: getattr(v, "__name__", v))
def test_same_bytes_everywhere(module, split):
    """A change here must raise the module's VERSION, for it makes old records stale."""
    text = json.dumps(module.generate(split), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[module, split]


def test_sentiment_is_balanced_and_its_splits_are_apart():
    train, validation = sentiment.generate("train"), sentiment.generate("validation")
    assert (len(train["text"]), len(validation["text"])) == (8_000, 1_000)
    for columns in (train, validation):
        assert 0.45 < sum(columns["label"]) / len(columns["label"]) < 0.55
    assert not set(train["text"]) & set(validation["text"])
    assert len(set(train["text"])) == len(train["text"])
    assert len({word for text in train["text"] for word in text.split()}) > 200


def test_articles_look_like_wikitext():
    lines = articles.generate("validation")["text"]
    assert "" in lines
    assert any(line.startswith(" = ") and line.endswith(" = \n") for line in lines)
    assert any(line.startswith(" = = ") for line in lines)
    assert lines != articles.generate("test")["text"]
    assert not any("{" in line for line in lines)


def _accuracy(hidden: int) -> float:
    """Validation accuracy of summed word embeddings: with a hidden layer, or 0 for a linear model."""
    import torch

    train, validation = sentiment.generate("train"), sentiment.generate("validation")
    words = {w: i + 1 for i, w in enumerate(sorted({w for text in train["text"] for w in text.split()}))}

    def encode(texts):
        rows = [[words.get(w, 0) for w in text.split()] for text in texts]
        return torch.tensor([row + [0] * (48 - len(row)) for row in rows])

    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = [torch.nn.Linear(32, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2)] if hidden else [torch.nn.Linear(32, 2)]
        bag = torch.nn.EmbeddingBag(len(words) + 1, 32, mode="sum", padding_idx=0)
        model = torch.nn.Sequential(bag, *head)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        inputs, labels = encode(train["text"]), torch.tensor(train["label"])
        for _ in range(10):
            for rows in torch.randperm(len(labels)).split(64):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    found = model(encode(validation["text"])).argmax(1)
    return float((found == torch.tensor(validation["label"])).float().mean())


def test_sentiment_is_learnable_but_no_list_of_words_is_enough():
    assert _accuracy(hidden=64) > 0.85
    assert 0.7 < _accuracy(hidden=0) < 0.85
