"""What is trained under each tuning, and that engines bound its gradients as the loop does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.models import registry as models
from dpbench.models import tuning
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

MAKE = {
    "last_layers": lambda model, meta: tuning.last_layers(model, 1),
    "lora": lambda model, meta: tuning.lora(model, 2, 8.0, seed=0, meta=meta),
    "prefix": lambda model, meta: tuning.prefix(model, 3, None, seed=0, meta=meta),
    "prefix_by_layer": lambda model, meta: tuning.prefix(model, 3, 8, seed=0, meta=meta),
}
TRAINED = {
    "last_layers": {"h.1.", "ln_f."},
    "lora": {".lora_A.", ".lora_B."},
    "prefix": {"prefix.embedding."},
    "prefix_by_layer": {"prefix.embedding.", "prefix.transform."},
}


def tuned_model(mode, meta=False, size="tiny"):
    return MAKE[mode](models.language_model(size, seed=1, vocabulary=40, context=16, meta=meta), meta)


def losses(model, batch):
    logits = model(batch["ids"])[:, :-1]
    return cross_entropy(logits.transpose(1, 2), batch["ids"][:, 1:], reduction="none").mean(1)


def released(mode, engine, scope):
    """The sum of bounded gradients of five examples, in fp64."""
    model = tuned_model(mode).double().train()
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at zero, where nothing reaches lora_A
                parameter.normal_()
    batch = {"ids": torch.randint(40, (5, 9))}
    stepper = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)
    plan = Mechanism(Sampling("fixed", 5, 5.0), 1, Clipping(scope=scope, bound=1e-3))
    handle = engines.attach(engine, model, stepper, plan)
    assert handle.unprotected == []
    handle.backward(losses, batch)
    stepper.step()
    assert handle.clipped_fraction > 0
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    handle.detach()
    return gradients


@pytest.mark.parametrize("mode", MAKE)
@pytest.mark.parametrize(("engine", "scope"), [("bookkeeping", "flat"), ("fused", "per_layer")])
def test_engines_agree_with_the_loop(mode, engine, scope):
    """fp64 throughout: sums in another order, 1e-12 of the norm; a leaf that is served wrongly is off by far more."""
    actual, expected = released(mode, engine, scope), released(mode, "loop", scope)
    assert set(actual) == set(expected)
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert all(float((actual[name] - g).norm() / norm) < 1e-9 for name, g in expected.items())
    assert float(norm) > 0


@pytest.mark.parametrize("mode", MAKE)
def test_only_what_is_named_is_trained(mode):
    model = tuned_model(mode)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(any(part in name for part in TRAINED[mode]) for name in trained)
    assert all(any(part in name for name in trained) for part in TRAINED[mode])
    meta = tuned_model(mode, meta=True)
    assert [(n, p.shape) for n, p in meta.named_parameters() if p.requires_grad] == [
        (n, p.shape) for n, p in model.named_parameters() if p.requires_grad
    ]
    assert all(p.is_meta for p in meta.parameters())


def test_adapters_start_at_the_model_and_depend_on_the_seed():
    torch.manual_seed(0)
    ids = torch.randint(40, (2, 9))
    plain = models.language_model("tiny", seed=1, vocabulary=40, context=16)(ids)
    assert torch.equal(tuned_model("lora")(ids), plain)
    torch.manual_seed(1)
    again = tuned_model("lora")
    assert all(torch.equal(a, b) for a, b in zip(tuned_model("lora").parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("size", ["llama_tiny", "opt_tiny"])
def test_other_families_have_adapters_and_last_layers_too(size):
    trained = {n.split(".")[-4] for n, p in tuned_model("lora", size=size).named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "k_proj", "v_proj"}
    names = [n for n, p in tuned_model("last_layers", size=size).named_parameters() if p.requires_grad]
    assert any("norm" in n for n in names)
    assert all("layers.1." in n or "norm" in n for n in names)


def test_more_layers_than_there_are():
    with pytest.raises(DpbenchError, match="the model has 2"):
        tuning.last_layers(models.language_model("tiny", vocabulary=40), 3)
