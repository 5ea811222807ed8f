"""The byte-level BPE and its cache."""

import numpy as np
import pytest

from dpbench import paths
from dpbench.data import registry, tokenizer
from dpbench.errors import DpbenchError


@pytest.fixture
def source():
    return registry.resolve("wikitext2", "embedded")


def cache_file():
    (path,) = (paths.cache() / "tokenizers").glob("*.json")
    return path


def test_same_tokenizer_from_training_and_from_the_cache(source, monkeypatch):
    first, sha = tokenizer.bpe("wikitext2", 400, source)
    trained = cache_file().read_bytes()
    monkeypatch.setattr(tokenizer, "_train", lambda *_: pytest.fail("trained again"))
    again, sha_again = tokenizer.bpe("wikitext2", 400, source)
    assert sha == sha_again
    assert first.to_str() == again.to_str()
    monkeypatch.undo()
    monkeypatch.setenv("DPBENCH_CACHE", str(paths.cache().parent / "other"))
    assert tokenizer.bpe("wikitext2", 400, source)[1] == sha
    assert cache_file().read_bytes() == trained


def test_vocabulary_and_source_have_their_own_files(source):
    tokenizer.bpe("wikitext2", 300, source)
    tokenizer.bpe("wikitext2", 310, source)
    tokenizer.bpe("wikitext2", 300, source.model_copy(update={"files": {}, "says": "other words, same identity"}))
    assert len(list((paths.cache() / "tokenizers").glob("*.json"))) == 2


def test_a_tokenizer_of_another_split_is_another(source):
    """What trains on `train` privately must not have its tokenizer from there."""
    _, train = tokenizer.bpe("wikitext2", 300, source)
    _, test = tokenizer.bpe("wikitext2", 300, source, "test")
    assert train != test
    assert len(list((paths.cache() / "tokenizers").glob("*.json"))) == 2


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b.replace(b"the", b"thf"), lambda b: b"[]", lambda b: b"\xff"]
)
def test_a_damaged_cache_is_built_again(source, damage):
    _, sha = tokenizer.bpe("wikitext2", 400, source)
    path = cache_file()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert path.read_bytes() != good
    assert tokenizer.bpe("wikitext2", 400, source)[1] == sha
    assert path.read_bytes() == good


def test_text_comes_back_whole(source):
    bpe, _ = tokenizer.bpe("wikitext2", 512, source)
    assert bpe.get_vocab_size() == 512
    assert (bpe.token_to_id("<pad>"), bpe.token_to_id("<eos>")) == (0, 1)
    for text in (" The <unk> of Øresund @-@ 1 @,@ 000 \n", "naïve 中文 \t", ""):
        assert bpe.decode(bpe.encode(text).ids) == text


def test_blocks_are_the_texts_in_order_with_ends_between(source):
    bpe, _ = tokenizer.bpe("wikitext2", 300, source)
    texts = ["one two", "", "three"] * 5
    blocks = tokenizer.token_blocks(bpe, texts, 7)
    assert blocks.dtype == np.int64
    expected = [i for text in texts if text for i in [*bpe.encode(text).ids, 1]]
    assert blocks.flatten().tolist() == expected[: blocks.size]
    assert len(expected) - blocks.size < 7
    assert np.array_equal(tokenizer.token_blocks(bpe, texts, 7, limit=2), blocks[:2])
    with pytest.raises(DpbenchError, match="do not fill one block"):
        tokenizer.token_blocks(bpe, ["a"], 100)


def test_vocabulary_below_the_bytes_is_refused(source):
    with pytest.raises(DpbenchError, match="below 258"):
        tokenizer.bpe("wikitext2", 100, source)
