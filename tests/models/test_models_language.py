"""GPT-2 from scratch and its per-example losses."""

import json

import pytest
import torch

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.models import registry

IDS = torch.randint(0, 512, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
def test_head_is_tied_only_when_asked(tied):
    model = registry.language_model("tiny", tied=tied)
    assert (model.model.lm_head.weight is model.model.transformer.wte.weight) == tied
    assert model.model.config._attn_implementation == "dpbench_causal"  # sdpa with is_causal and no mask
    assert len(list(model.parameters())) == (28 if tied else 29)
    assert model(IDS).shape == (3, 16, 512)
    registry.language_model_losses(model, {"input_ids": IDS}).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("size", "millions"), [("small", 124.44), ("medium", 354.82), ("large", 774.03), ("xl", 1557.61)])
def test_published_sizes(size, millions):
    model = registry.language_model(size, tied=True, meta=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert (model.vocabulary, model.context) == (50257, 1024)
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}
    assert registry.language_model_losses(model, batch).shape == (2,)


def test_gpt3s_size_is_its_published_one():
    """175 billion (Brown et al., 2020, table 2.1, which rounds); with a head of its own."""
    model = registry.language_model("gpt3_175b", tied=True, meta=True)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(175, abs=0.5)


@pytest.mark.parametrize(("size", "millions"), [("llama_7b", 6738.42), ("llama_13b", 13015.86)])
def test_published_llama_sizes(size, millions):
    model = registry.language_model(size, meta=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert (model.vocabulary, model.context) == (32000, 2048)
    assert registry.language_model_family(size) == "llama"
    assert len(registry.language_model(size, meta=True, layers=3).model.model.layers) == 3


@pytest.mark.parametrize(
    ("size", "millions"), [("opt_1_3b", 1315.76), ("opt_2_7b", 2651.60), ("opt_6_7b", 6658.47), ("opt_13b", 12853.47)]
)
def test_published_opt_sizes(size, millions):
    model = registry.language_model(size, tied=True, meta=True)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert (model.vocabulary, model.context) == (50272, 2048)


@pytest.mark.parametrize("size", ["tiny", "llama_tiny", "opt_tiny"])
def test_equals_transformers_and_is_causal(size):
    model = registry.language_model(size)
    expected = registry.language_model(size)
    expected.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(IDS)
        torch.testing.assert_close(logits, expected.model(IDS).logits, atol=1e-5, rtol=1e-5)
        changed = IDS.clone()
        changed[:, 8:] = 7
        torch.testing.assert_close(model(changed)[:, :8], logits[:, :8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "llama_tiny", "opt_tiny"])
def test_losses_are_each_examples_own(size):
    model = registry.language_model(size)
    losses = registry.language_model_losses(model, {"input_ids": IDS})
    logits = model(IDS)
    for row in range(3):
        row_losses = torch.nn.functional.cross_entropy(logits[row, :-1], IDS[row, 1:])
        torch.testing.assert_close(losses[row], row_losses)
    alone = registry.language_model_losses(model, {"input_ids": IDS[:1]})
    torch.testing.assert_close(losses[:1], alone, atol=1e-6, rtol=1e-6)


def test_a_loss_has_no_gradient_at_other_examples():
    model = registry.language_model("tiny")
    kept = []

    def keep(_, __, output):
        output.retain_grad()
        kept.append(output)

    model.model.transformer.wte.register_forward_hook(keep)
    registry.language_model_losses(model, {"input_ids": IDS})[0].backward()
    grad = kept[0].grad
    assert grad[0].abs().sum() > 0
    assert grad[1:].abs().sum() == 0


def test_positions_are_whole_and_contiguous():
    model = registry.language_model("tiny")
    seen = []
    model.model.transformer.wpe.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(IDS)
    assert seen[0].shape == IDS.shape
    assert seen[0].is_contiguous()
    assert seen[0].stride() == (16, 1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("size", ["tiny", "llama_tiny", "opt_tiny"])
def test_runs_under_vmap_and_on_fake_tensors(size):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = registry.language_model(size)
    parameters = {k: v.detach() for k, v in model.named_parameters()}

    def loss(parameters, ids):
        def call(batch_ids):
            return torch.func.functional_call(model, parameters, (batch_ids,))

        return registry.language_model_losses(call, {"input_ids": ids[None]})[0]

    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, IDS)
    registry.language_model_losses(model, {"input_ids": IDS})[1].backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name][1], parameter.grad, atol=1e-6, rtol=1e-4)
    with FakeTensorMode():
        fake = registry.language_model(size)
        assert registry.language_model_losses(fake, {"input_ids": torch.zeros(2, 8, dtype=torch.long)}).shape == (2,)


def test_seed_dtype_and_shape_overrides():
    state = torch.get_rng_state()
    first, again = (registry.language_model("tiny", seed=5, dtype=torch.bfloat16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert {p.dtype for p in first.parameters()} == {torch.bfloat16}
    assert registry.language_model_losses(first, {"input_ids": IDS}).dtype == torch.float32
    model = registry.language_model("tiny", vocabulary=300, context=16)
    assert (model.vocabulary, model.context) == (300, 16)
    with pytest.raises(DpbenchError, match="takes 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(DpbenchError, match="2 tokens"):
        registry.language_model_losses(model, {"input_ids": IDS[:, :1]})
    with pytest.raises(DpbenchError, match="did you mean 'medium'"):
        registry.language_model("mediun")


SMALL = {"vocab_size": 300, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}


@pytest.fixture
def openai(tmp_path, monkeypatch):
    """A local copy of GPT-2 of a size that a test can make, with the names that the published file has."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2Model

    extra = plugins.get("model", "openai_gpt2").extra
    monkeypatch.setitem(extra, "architecture", extra["architecture"] | SMALL)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(**extra["architecture"]))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 32, 32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(extra["architecture"]))
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path))
    return folder, tensors


def test_published_weights_are_the_files_and_the_head_is_apart(openai):
    folder, tensors = openai
    source = registry.resolve("openai_gpt2", "local")
    loaded_model = registry.pretrained_language_model("openai_gpt2", source)
    loaded_state = loaded_model.model.transformer.state_dict()
    assert all(torch.equal(loaded_state[name], value) for name, value in tensors.items())
    assert torch.equal(loaded_model.model.lm_head.weight, tensors["wte.weight"])
    assert loaded_model.model.lm_head.weight is not loaded_model.model.transformer.wte.weight
    assert loaded_model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 300)
    (folder / "config.json").write_text(json.dumps({"n_head": 4}))
    with pytest.raises(DpbenchError, match="n_head is 4, but openai_gpt2 has 2"):
        registry.pretrained_language_model("openai_gpt2", source)


def test_random_weights_replace_missing_published_ones(openai):
    source = registry.resolve("openai_gpt2", "scratch")
    assert source.synthetic
    one, same, other = (registry.pretrained_language_model("openai_gpt2", source, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.model.lm_head.weight, same.model.lm_head.weight)
    assert not torch.equal(one.model.lm_head.weight, other.model.lm_head.weight)
    assert all(p.is_meta for p in registry.pretrained_language_model("openai_gpt2", source, meta=True).parameters())


def test_a_model_without_published_weights_is_refused():
    with pytest.raises(DpbenchError, match="gpt2 is no language model with published weights"):
        registry.pretrained_language_model("gpt2", registry.resolve("gpt2", "scratch"))


def test_one_gelu_equals_transformers_eight_operations():
    from dpbench.models.wrappers import fuse_gelu

    model = registry.language_model("tiny", seed=3).double()
    before = registry.language_model_losses(model, {"input_ids": IDS})
    expected_gradients = torch.autograd.grad(before.sum(), list(model.parameters()))
    named = list(model.state_dict())
    assert fuse_gelu(model) is model
    assert [type(block.mlp.act) for block in model.model.transformer.h] == [torch.nn.GELU] * 2
    assert list(model.state_dict()) == named
    after = registry.language_model_losses(model, {"input_ids": IDS})
    gradients = torch.autograd.grad(after.sum(), list(model.parameters()))
    assert float((after - before).detach().abs().max()) < 1e-12  # fp64 rounding of values near 6
    assert max(float((a - b).abs().max()) for a, b in zip(gradients, expected_gradients, strict=True)) < 1e-12


def test_an_opt_is_transformers_own_by_another_way():
    """Its blocks keep [B, T, H] and its positions are a plain embedding: the same function."""
    from transformers import OPTForCausalLM

    model = registry.language_model("opt_tiny", seed=3)
    theirs = OPTForCausalLM(model.model.config).eval()
    theirs.load_state_dict(
        {k.replace("embed_positions.table", "embed_positions"): v for k, v in model.model.state_dict().items()}
    )
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=1e-5)
