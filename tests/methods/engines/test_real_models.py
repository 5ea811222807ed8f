"""Models that people train: GPT-2 and Llama shapes, whole and with LoRA, in fp32 against the fp64 loop and in bfloat16."""

from __future__ import annotations

import peft
import pytest
import torch
from small_models import gradients, mechanism, relative
from torch import nn

from dpbench.models import registry as models

OURS = [("fused", "per_layer"), ("bookkeeping", "flat"), ("bookkeeping", "per_layer"), ("ghost", "flat"), ("vmap", "flat")]
TOKENS = 48  # so many that a linear layer's single pass forms products, not Gram matrices


def lora(size: str) -> nn.Module:
    model = models.language_model(size, seed=1)
    gpt2 = models.language_model_family(size) == "gpt2"
    targets = ["c_attn", "c_proj"] if gpt2 else ["q_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, fan_in_fan_out=gpt2, lora_dropout=0.0)
    model.model = peft.get_peft_model(model.model, config)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide lora_A's gradient
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    return model


MODELS = {
    "gpt2": lambda: models.language_model("tiny", seed=1),
    "gpt2_tied": lambda: models.language_model("tiny", seed=1, tied=True),
    "llama": lambda: models.language_model("llama_tiny", seed=1),
    "opt": lambda: models.language_model("opt_tiny", seed=1),
    "gpt2_lora": lambda: lora("tiny"),
    "llama_lora": lambda: lora("llama_tiny"),
}


def data(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 512, (batch, TOKENS), generator=generator)
    return {"input_ids": ids, "weight": torch.linspace(0.0, 2.0, batch)}


def losses(model, batch):
    """[B]; the weights put gradients on both sides of any bound near their middle."""
    return models.language_model_losses(model, batch) * batch["weight"]


def released(name, model, plan, dtype, kernels="auto"):
    """(gradients of one step of two physical batches, flattened to fp64; the handle)."""
    return gradients(name, model, plan, (data(4), data(3)), losses, dtype, kernels)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("name", "scope", "kernels"), [(*pair, k) for pair in OURS for k in ("auto", "torch") if k == "auto" or pair[0] != "vmap"]
)
def test_parity_with_the_fp64_loop(name, scope, kernels, model, poisoned_empty):
    built_model = MODELS[model]()
    plan = mechanism(scope, "abadi", bound=0.1 if "lora" in model else 0.8)
    expected, oracle = released("loop", built_model, plan, torch.float64)
    actual, handle = released(name, built_model, plan, torch.float32, kernels)
    assert 0 < oracle.clipped_fraction < 1, "the data do not make clipping bite"
    assert relative(actual, expected) < 1e-5
    assert handle.clipped_fraction == oracle.clipped_fraction
    assert handle.unprotected == []


@pytest.mark.parametrize("model", ["gpt2", "llama", "llama_lora"])
@pytest.mark.parametrize(("name", "scope"), OURS)
def test_bfloat16_is_the_loop_in_bfloat16(name, scope, model):
    """The same rounded weights and the same rounded forward and backward pass: only sums differ, and those are kept in fp32."""
    built_model = MODELS[model]()
    plan = mechanism(scope, "auto_s")
    expected, _ = released("loop", built_model, plan, torch.bfloat16)
    actual, _ = released(name, built_model, plan, torch.bfloat16)
    assert relative(actual, expected) < 2e-2


def test_lora_trains_the_adapters_alone():
    adapted_model = lora("tiny")
    _, handle = released("fused", adapted_model, mechanism("per_layer"), torch.float32)
    assert all("lora_" in name for name in handle.trainable)
    assert len(handle.bounds) == len(handle.trainable)  # every adapter matrix is a layer, so a group, of its own
