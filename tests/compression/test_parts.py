"""The parts of compression by themselves: the loss, layer maps, cutting, masks, saving."""

from __future__ import annotations

import math

import pytest
import torch

from dpbench.compression import saved
from dpbench.compression.dropping import forget, keep_layers, smallest_layers
from dpbench.compression.parts import drop_order, layer_map
from dpbench.compression.pruning import Masks, prunable, start_of
from dpbench.compression.task import distillation_losses
from dpbench.errors import DpbenchError
from dpbench.models import registry as models
from dpbench.models.stages import blocks_of
from dpbench.spec.sources import Source

SCRATCH = Source(kind="scratch", synthetic=True)


def encoder(seed=0):
    return models.encoder("tiny_bert", SCRATCH, seed=seed)


def deep(layers=6):
    """A BERT of more layers than tiny_bert has."""
    from transformers import BertConfig, BertModel

    from dpbench.models.wrappers import Encoder

    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return Encoder(BertModel(config, add_pooling_layer=False)).eval()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_the_loss_is_the_formula(weight, temperature):
    """Against sums over classes written out, one example after another, in fp64."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(5, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 3, 1, 1, 2])
    loss_values = distillation_losses(student, teacher, labels, weight, temperature)
    for k in range(5):
        s, t = student[k].tolist(), teacher[k].tolist()
        entropy = math.log(sum(math.exp(v) for v in s)) - s[labels[k]]
        p = [math.exp(v / temperature) for v in t]
        q = [math.exp(v / temperature) for v in s]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert float(loss_values[k]) == pytest.approx((1 - weight) * entropy + weight * temperature**2 * divergence, rel=1e-12)


def test_the_teacher_gets_no_gradient_and_losses_are_separate():
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    losses = distillation_losses(student, teacher, torch.tensor([0, 1, 2]), 0.5, 2.0)
    losses[1].backward()
    assert teacher.grad is None
    assert student.grad[[0, 2]].abs().max() == 0
    assert student.grad[1].abs().max() > 0


@pytest.mark.parametrize(
    ("layer_choice", "layers", "depth", "expected_layers"),
    [
        ("spread", 3, 6, [0, 2, 4]),
        ("spread", 6, 12, [0, 2, 4, 6, 8, 10]),
        ("spread", 4, 6, [0, 1, 3, 4]),
        ("first", 3, 6, [0, 1, 2]),
        ("last", 3, 6, [3, 4, 5]),
        ([1, 5], 2, 6, [1, 5]),
    ],
)
def test_layer_maps(layer_choice, layers, depth, expected_layers):
    assert layer_map(layer_choice, layers, depth) == expected_layers


@pytest.mark.parametrize(
    ("layer_choice", "layers", "says"),
    [
        ("spread", 7, "has 6"),
        ([0, 6], 2, "6 is out of range"),
        ([0, -1], 2, "-1 is out"),
        ([2, 1], 2, "rise"),
        ([0], 2, "1 layers"),
    ],
)
def test_layer_maps_that_make_no_sense(layer_choice, layers, says):
    with pytest.raises(ValueError, match=says):
        layer_map(layer_choice, layers, 6)


def test_the_order_of_drops_by_position():
    assert drop_order([0, 2, 4], 6, "top") == [5, 3, 1]
    assert drop_order([0, 2, 4], 6, "bottom") == [1, 3, 5]


def test_kept_layers_are_the_models_own_in_order():
    full_encoder = deep()
    kept = [blocks_of(full_encoder)[k] for k in (0, 2, 4)]
    keep_layers(full_encoder, [0, 2, 4])
    assert all(a is b for a, b in zip(blocks_of(full_encoder), kept, strict=True))
    assert full_encoder.model.config.num_hidden_layers == 3
    with pytest.raises(DpbenchError, match="has 3"):
        keep_layers(full_encoder, [0, 3])


def test_the_layer_with_the_smallest_weights_goes_first():
    model = deep(4)
    with torch.no_grad():
        for number, scale in enumerate((1.0, 0.1, 1.0, 0.5)):
            for parameter in blocks_of(model)[number].parameters():
                parameter.mul_(scale)
    assert smallest_layers(model, 1) == [1]
    assert smallest_layers(model, 2) == [1, 3]


def test_the_optimizer_forgets_a_dropped_layer_alone():
    model = deep(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    kept = blocks_of(model)[0].intermediate.dense.weight
    memory = optimizer.state[kept]["exp_avg"].clone()
    keep_layers(model, [0])
    forget(optimizer, model)
    present = {id(p) for p in model.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == present
    assert {id(p) for p in optimizer.state} <= present
    assert torch.equal(optimizer.state[kept]["exp_avg"], memory)


def test_what_can_be_pruned_are_the_matrices_of_the_layers():
    prunable_weights = prunable(encoder())
    assert len(prunable_weights) == 2 * 6
    assert all(w.dim() == 2 for w in prunable_weights.values())
    assert not any("embeddings" in name or "LayerNorm" in name for name in prunable_weights)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_the_smallest_weights_go_and_the_number_is_exact(sparsity, scope):
    model = encoder()
    before = {name: w.detach().clone() for name, w in prunable(model).items()}
    masks = Masks(model, scope)
    masks.prune_(sparsity)
    groups = [list(before)] if scope == "global" else [[name] for name in before]
    for names in groups:
        kept = torch.cat([before[n][masks.masks[n]].abs() for n in names])
        gone = torch.cat([before[n][~masks.masks[n]].abs() for n in names])
        assert len(gone) == round(sparsity * (len(kept) + len(gone)))
        assert gone.max() <= kept.min()
    assert masks.check(sparsity) == masks.sparsity
    for name, weight in masks.weights.items():
        assert torch.equal(weight.detach(), before[name] * masks.masks[name])


def test_equal_weights_do_not_spoil_the_number():
    model = encoder()
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.fill_(0.3)
    masks = Masks(model)
    masks.prune_(0.37)
    assert masks.sparsity == pytest.approx(0.37, abs=1 / masks.size)


def test_masks_only_grow():
    masks = Masks(encoder())
    masks.prune_(0.3)
    first = {name: m.clone() for name, m in masks.masks.items()}
    with torch.no_grad():
        for weight in masks.weights.values():
            weight.copy_(torch.randn_like(weight))
    masks.apply_()
    masks.prune_(0.6)
    assert all(bool((~m | first[name]).all()) for name, m in masks.masks.items())
    with pytest.raises(DpbenchError, match="only grow"):
        masks.prune_(0.2)


def test_a_broken_mask_is_found():
    masks = Masks(encoder())
    masks.prune_(0.5)
    with pytest.raises(DpbenchError, match="was asked for"):
        masks.check(0.6)
    with torch.no_grad():
        next(iter(masks.weights.values())).add_(1e-30)
    with pytest.raises(DpbenchError, match="a masked weight is not 0"):
        masks.check(0.5)


def test_rewinding_brings_survivors_back_and_nothing_else():
    model = encoder()
    start = start_of(model)
    public = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    masks = Masks(model)
    masks.prune_(0.5)
    model.load_state_dict(start, strict=False)
    masks.apply_()
    for name, parameter in model.named_parameters():
        mask = next((m for n, m in masks.masks.items() if n == name), torch.ones_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter[mask], public[name][mask])
        assert parameter[~mask].abs().sum() == 0


@pytest.mark.parametrize("kind", ["cut", "pruned"])
def test_transformers_loads_what_was_saved(tmp_path, kind):
    from transformers import AutoModel

    model = deep()
    masks = Masks(model)
    if kind == "cut":
        keep_layers(model, [0, 2, 4])
    else:
        masks.prune_(0.5)
    saved.save(model, {"head": torch.ones(2)}, tmp_path)
    theirs = AutoModel.from_pretrained(tmp_path / saved.ENCODER, add_pooling_layer=False).eval()
    ours = saved.load_encoder(tmp_path / saved.ENCODER)
    assert theirs.config.num_hidden_layers == len(blocks_of(model))
    ids = torch.randint(5, 64, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected_output = model(ids, mask)
        torch.testing.assert_close(
            theirs(input_ids=ids, attention_mask=mask).last_hidden_state, expected_output, atol=1e-6, rtol=1e-5
        )
        assert torch.equal(ours(ids, mask), expected_output)
    assert torch.equal(saved.load_head(tmp_path)["head"], torch.ones(2))
    if kind == "pruned":
        prunable_weights = prunable(theirs)
        zeros = sum(int((w == 0).sum()) for w in prunable_weights.values())
        assert zeros / sum(w.numel() for w in prunable_weights.values()) == pytest.approx(0.5, abs=1e-3)
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    assert torch.equal(saved.load_encoder(again)(ids, mask), expected_output)


def test_a_damaged_model_says_what_to_do(tmp_path):
    saved.save(deep(2), {}, tmp_path)
    (tmp_path / saved.OF_ENCODER[1]).write_bytes(b"x")
    with pytest.raises(DpbenchError, match="run again what should have left it"):
        saved.load_encoder(tmp_path / saved.ENCODER)
    with pytest.raises(DpbenchError, match="run again what should have left it"):
        saved.load_encoder(tmp_path / "nowhere")


def test_sizes_and_work_are_counted():
    full_encoder, half = deep(), keep_layers(deep(), [0, 2, 4])
    every, nonzero = saved.sizes_of(full_encoder)
    assert every == sum(p.numel() for p in full_encoder.parameters())
    assert saved.file_bytes(full_encoder) == pytest.approx(4 * every, rel=0.2)
    assert saved.flops_of(half, 10) * 2 == saved.flops_of(full_encoder, 10)
    per_token = 2 * sum(w.numel() for w in prunable(half).values())
    scores = 3 * 2 * 2 * 10 * 10 * 16  # of 3 layers: two products of [10, 10] with width 16, two operations each
    assert saved.flops_of(half, 10) == 10 * per_token + scores
    masks = Masks(full_encoder)
    masks.prune_(0.5)
    fewer = saved.sizes_of(full_encoder)[1]
    assert nonzero - fewer == round(masks.size / 2)
    assert saved.packed_bytes(every, fewer, masks.size) == 4 * fewer + masks.size // 8
    assert saved.packed_bytes(every, nonzero, 0) == 4 * every


def test_distilbert_is_read_as_a_bert(tmp_path, monkeypatch):
    """Its own class and ours give the same for the same checkpoint."""
    from transformers import DistilBertConfig, DistilBertModel

    from dpbench import plugins

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
    plugin = plugins.get("model", "distilbert_base")
    monkeypatch.setitem(plugin.extra, "architecture", plugin.extra["architecture"] | small)
    config = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, dropout=0.0, attention_dropout=0.0)
    theirs = DistilBertModel(config).eval()
    folder = tmp_path / plugin.extra["folder"]
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path))
    ours = models.encoder("distilbert_base", models.resolve("distilbert_base", "local")).eval()
    ids = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected_states = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(ours(ids, mask), expected_states, atol=1e-6, rtol=1e-5)
