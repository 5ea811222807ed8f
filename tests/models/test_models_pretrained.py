"""OPT with published weights: the function of transformers' own, in every precision, and files that are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import registry

NAME = "facebook_opt_1_3b"
SMALL = {
    "vocab_size": 300,
    "max_position_embeddings": 32,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
IDS = torch.arange(3, 33).view(2, 15)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """(folder, transformers' model) of a small OPT, written as transformers writes it."""
    from transformers import OPTConfig, OPTForCausalLM

    extra = plugins.get("model", NAME).extra
    monkeypatch.setitem(extra, "architecture", extra["architecture"] | SMALL)
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**extra["architecture"])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path / "opt-1.3b"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path))
    return folder, model


def test_logits_are_those_of_transformers(published):
    _, model = published
    loaded_model = registry.pretrained_language_model(NAME, registry.resolve(NAME, "local")).eval()
    with torch.no_grad():
        assert float((loaded_model(IDS) - model(IDS).logits).abs().max()) < 1e-5
    assert loaded_model.context == 32
    assert all(p.requires_grad and not p.is_meta for p in loaded_model.parameters())
    head, embedding = loaded_model.model.lm_head.weight, loaded_model.model.get_input_embeddings().weight
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()


def test_a_tied_head_is_the_embedding(published):
    source = registry.resolve(NAME, "local")
    loaded_model = registry.pretrained_language_model(NAME, source, tied=True)
    assert loaded_model.model.lm_head.weight is loaded_model.model.get_input_embeddings().weight
    apart = registry.pretrained_language_model(NAME, source)
    numbers = [sum(p.numel() for p in model.parameters()) for model in (loaded_model, apart)]
    assert numbers[1] - numbers[0] == 300 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_weights_rounded_once(published, dtype):
    _, model = published
    loaded_model = registry.pretrained_language_model(NAME, registry.resolve(NAME, "local"), dtype=dtype, tied=True).eval()
    assert {p.dtype for p in loaded_model.parameters()} == {dtype}
    assert torch.equal(loaded_model.model.model.decoder.layers[1].fc1.weight, model.model.decoder.layers[1].fc1.weight.to(dtype))
    with torch.no_grad():
        expected_logits, logits = model(IDS).logits, loaded_model(IDS).float()
    assert 0 < float((logits - expected_logits).abs().max()) < 0.05 * float(expected_logits.abs().max())


@pytest.mark.parametrize("prefix", ["decoder.", ""])
def test_names_of_older_checkpoints_are_known(published, prefix):
    folder, model = published
    tensors = load_file(folder / "model.safetensors")
    old = {key.replace("model.decoder.", prefix): value for key, value in tensors.items()}
    save_file(old, folder / "model.safetensors")
    loaded_model = registry.pretrained_language_model(NAME, registry.resolve(NAME, "local")).eval()
    with torch.no_grad():
        assert float((loaded_model(IDS) - model(IDS).logits).abs().max()) < 1e-5


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(published):
    folder, _ = published
    tensors = load_file(folder / "model.safetensors")
    key = "model.decoder.layers.1.fc2.bias"
    save_file({k: v for k, v in tensors.items() if k != key}, folder / "model.safetensors")
    with pytest.raises(DpbenchError, match=r"lacks 1 tensors, first layers\.1\.fc2\.bias"):
        registry.pretrained_language_model(NAME, registry.resolve(NAME, "local"))
    save_file(tensors | {key: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(DpbenchError, match=r"layers\.1\.fc2\.bias has shape \[3\], facebook_opt_1_3b needs \[16\]"):
        registry.pretrained_language_model(NAME, registry.resolve(NAME, "local"))
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DpbenchError, match="not a readable safetensors file"):
        registry.pretrained_language_model(NAME, registry.resolve(NAME, "local"))


def test_another_architecture_is_refused(published):
    folder, _ = published
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    with pytest.raises(DpbenchError, match="num_attention_heads is 4, but facebook_opt_1_3b has 2"):
        registry.pretrained_language_model(NAME, registry.resolve(NAME, "local"))


def test_random_weights_depend_on_the_seed_alone(published):
    source = registry.resolve(NAME, "scratch")
    assert source.synthetic
    one, same, other = (registry.pretrained_language_model(NAME, source, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one(IDS), same(IDS))
    assert not torch.equal(one(IDS), other(IDS))
    assert all(p.is_meta for p in registry.pretrained_language_model(NAME, source, meta=True, dtype=torch.float16).parameters())


def test_no_revision_is_made_up():
    for plugin in plugins.discover("model").values():
        if plugin.extra["family"] == "opt" and plugin.extra["pretrained"]:
            assert plugin.extra["hub"]["revision"] is None
            with pytest.raises(DpbenchError, match="no revision of facebook/opt"):
                registry.resolve(plugin.name, "hub")


@pytest.mark.parametrize("size", ["1_3b", "2_7b", "6_7b", "13b"])
def test_the_published_shapes_are_those_of_the_family(size):
    shape = registry.language_model_size(f"opt_{size}")
    architecture = plugins.get("model", f"facebook_opt_{size}").extra["architecture"]
    pairs = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "hidden": "ffn_dim",
        "heads": "num_attention_heads",
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
    }
    assert shape == {ours: architecture[theirs] for ours, theirs in pairs.items()}
