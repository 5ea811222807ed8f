"""Image classifiers: sizes, determinism, and that every engine of ours serves each of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.models.registry import image_model
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling

GREY = {"channels": 1, "height": 28, "width": 28}
COLOUR = {"channels": 3, "height": 32, "width": 32}
SCATTERED = {"channels": 243, "height": 4, "width": 4}
IMAGES = {"cnn4": GREY, "cifar_cnn": COLOUR, "resnet9": COLOUR, "wrn16_4": COLOUR, "linear": SCATTERED}
PARAMETERS = {"cnn4": 26_010, "cifar_cnn": 33_834, "resnet9": 2_447_946, "wrn16_4": 2_751_146, "linear": 38_890}
ENGINES = [("bookkeeping", "flat"), ("bookkeeping", "per_layer"), ("ghost", "flat"), ("fused", "per_layer"), ("vmap", "flat")]


def test_every_image_model_is_listed_here():
    assert {n for n, p in plugins.discover("model").items() if p.extra["family"] == "image"} == set(IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_sizes_and_seeds(name):
    image = IMAGES[name]
    model = image_model(name, image, 10, seed=1)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    x = torch.randn(2, image["channels"], image["height"], image["width"])
    with torch.no_grad():
        assert model(x).shape == (2, 10)
        again, other = image_model(name, image, 10, seed=1), image_model(name, image, 10, seed=2)
        assert torch.equal(model(x), again(x))
        assert not torch.equal(model(x), other(x))
        # an example's logits do not depend on its neighbours, to the rounding of products in another order
        torch.testing.assert_close(model(x[:1]), model(x)[:1], rtol=1e-4, atol=1e-5)


def test_meta_models_have_no_storage():
    assert all(p.is_meta for p in image_model("wrn16_4", COLOUR, 10, meta=True).parameters())


@pytest.mark.parametrize(
    ("name", "image", "says"),
    [
        ("cnn4", COLOUR, "takes images of 28 x 28, not 32 x 32"),
        ("resnet9", {"channels": 3, "height": 32, "width": 48}, "not 32 x 48"),
        ("tiny_bert", COLOUR, "unknown image model 'tiny_bert'"),
    ],
)
def test_what_does_not_fit_is_named(name, image, says):
    with pytest.raises(DpbenchError, match=says):
        image_model(name, image, 10)


def losses(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"], reduction="none") * batch["weight"]


def released(name, scope, model, batch, bound):
    """The gradient of one step without noise, in fp64."""
    model = copy.deepcopy(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plan = Mechanism(Sampling("poisson", 20, 3.0), 1, Clipping(scope=scope, bound=bound))
    handle = engines.attach(name, model, optimizer, plan)
    handle.backward(losses, batch)
    optimizer.step()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    clipped = handle.clipped_fraction
    handle.detach()
    return gradient, clipped


@pytest.mark.parametrize("name", IMAGES)
def test_engines_serve_every_model(name):
    """Against one backward pass an example, all in fp64, where products in another order agree to far below 1e-9."""
    image = IMAGES[name]
    model = image_model(name, image, 10)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(3, image["channels"], image["height"], image["width"], generator=generator, dtype=torch.float64),
        "y": torch.tensor([1, 2, 3]),
        "weight": torch.tensor([1e-6, 0.5, 1.0], dtype=torch.float64),
    }
    expected_by_scope = {scope: released("loop", scope, model, batch, 0.05) for scope in ("flat", "per_layer")}
    for engine, scope in ENGINES:
        gradient, clipped = released(engine, scope, model, batch, 0.05)
        assert float((gradient - expected_by_scope[scope][0]).norm() / expected_by_scope[scope][0].norm()) < 1e-9, (engine, scope)
        assert clipped == expected_by_scope[scope][1]
    assert 0 < expected_by_scope["flat"][1] < 1
