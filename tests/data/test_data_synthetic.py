"""The generated stand-ins: the same everywhere, and worth training on."""

import hashlib
import json

import pytest

from dpbench.data.synthetic import stand_in
from dpbench.errors import DpbenchError

PINNED = {
    ("sentiment", "train"): "68569a5595b94f465e180a952a951d2d8aaea075d19c1f1bb19a2c3b26fc2058",
    ("sentiment", "validation"): "e7e2baf3b83c5586d0e6c99b6ea3b6dd6052d4c23e2319aeda4b25ef0dcc0d59",
    ("articles", "train"): "d045c8489b3a43e40ca53b35f294db0067fb4102cfe4998f821a245c40d47fe6",
    ("articles", "validation"): "b4a31cac3093ba9bfe8235720c845720e79fccb278b761907a617b561d4452ff",
    ("articles", "test"): "0a92e98e5901f548c6ba4b9088d89d47906d9d953054f99378000abc1782b188",
    ("entailment", "train"): "869bb33774693a4b398ea6ff42c18b8a949a29e515a94c39a4024f4f5bc2f0b0",
    ("entailment", "validation"): "aec9ebc218a4d8fc2fb22dfcdf9ec2e6206eb7c84c984caa9f59b354f83e39ef",
    ("answers", "train"): "ee39bee17d7e4020a04d138b970a3a13967673a1506e68040c611f6d0db2e044",
    ("answers", "validation"): "a7239a80e3341be67c3e7ca2bf7197960a2f7ede5a0113e6b07d88c02c10df7b",
    ("paraphrases", "train"): "17154955f85ef2771bdc0f300ff4e77c908c40ee9b6fcf4b5d14cbe4accbb7a1",
    ("paraphrases", "validation"): "81f670cb5f69732e552da5370bd5224b175be7d8c1f678c1c077bc78a1168479",
    ("restaurants", "train"): "aafb64817aef5c29871947a08757f354ef680b850f8934ec2f2414c73c004581",
    ("restaurants", "validation"): "9cadf935082449e5932ae37129ff3951619ddb568314ceab49001ba3a221bf34",
    ("restaurants", "test"): "e3017d8678b0201d12cb084c198405524c049ae2c4f99a9b3675eb6a30df6113",
}
IMAGES = {
    ("grey_shapes", "train"): "af9ba01351ee1c1fd2b42ebfb5bcd1f081a8f87ca93f492419c03c40a6221af7",
    ("grey_shapes", "test"): "028e99090052d0c997dd809b9d332b5ee9c4118793dae04cd8ed8b2250867b9a",
    ("colour_shapes", "train"): "2d29a20a3b44dec8e6cc642a8e4f64a2f21459fbf6408f1b3996e639c692a346",
    ("colour_shapes", "test"): "2b83bbfb1287b3837840b99c7a2388501266482b18c060c3e7dc2a0191d25d18",
}


@pytest.mark.parametrize(("name", "split"), PINNED)
def test_same_bytes_everywhere(name, split):
    """A change here must raise the stand-in's version, for it makes old records stale."""
    text = json.dumps(stand_in(name).generate(split), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[name, split]


@pytest.mark.parametrize(("name", "split"), IMAGES)
def test_same_pixels_everywhere(name, split):
    columns = stand_in(name).generate(split)
    assert hashlib.sha256(b"".join(columns["image"]) + bytes(columns["label"])).hexdigest() == IMAGES[name, split]


def test_sentiment_is_balanced_and_its_splits_are_apart():
    train, validation = stand_in("sentiment").generate("train"), stand_in("sentiment").generate("validation")
    assert (len(train["text"]), len(validation["text"])) == (8_000, 1_000)
    for columns in (train, validation):
        assert 0.45 < sum(columns["label"]) / len(columns["label"]) < 0.55
    assert not set(train["text"]) & set(validation["text"])
    assert len(set(train["text"])) == len(train["text"])
    assert len({word for text in train["text"] for word in text.split()}) > 200


def test_articles_look_like_wikitext():
    lines = stand_in("articles").generate("validation")["text"]
    assert "" in lines
    assert any(line.startswith(" = ") and line.endswith(" = \n") for line in lines)
    assert any(line.startswith(" = = ") for line in lines)
    assert lines != stand_in("articles").generate("test")["text"]
    assert not any("{" in line for line in lines)


def _accuracy(hidden: int) -> float:
    """Validation accuracy of summed word embeddings: with a hidden layer, or 0 for a linear model."""
    import torch

    train, validation = stand_in("sentiment").generate("train"), stand_in("sentiment").generate("validation")
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
    predicted = model(encode(validation["text"])).argmax(1)
    return float((predicted == torch.tensor(validation["label"])).float().mean())


def test_sentiment_is_learnable_but_no_list_of_words_is_enough():
    assert _accuracy(hidden=64) > 0.85
    assert 0.7 < _accuracy(hidden=0) < 0.85


def test_a_stand_in_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(DpbenchError, match="card: unknown stand-in 'sentiments'") as caught:
        stand_in("sentiments", "card")
    assert "did you mean 'sentiment'" in caught.value.hint
