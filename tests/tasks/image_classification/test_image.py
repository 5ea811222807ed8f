"""The image job: copies of an example are one example, averaged weights, and that training is training."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import image_classification as job
from dpbench.methods import engines
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.spec.expand import merge
from dpbench.spec.sources import Source
from dpbench.tasks.image_classification.augmentation import Moves, scaled
from dpbench.tasks.image_classification.config import AugmentationSettings
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.validation import parse

BASE = {
    "dataset": "mnist",
    "model": "cnn4",
    "method": "bookkeeping",
    "clipping": {"function": "auto_s"},
    "epsilon": 8,
    "steps": 3,
    "expected_batch_size": 40,
    "optimizer": {"name": "sgd", "learning_rate": 0.5},
    "train_limit": 400,
    "train_evaluated": 100,
}
COPIES = {"augmentation": {"multiplicity": 3, "flip": True, "shift": 2}}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None}


def settings(**over):
    return parse(job.Settings, merge(BASE, over), "test")


def context(folder, seed=1):
    sources = {"dataset:mnist": datasets.resolve("mnist", "embedded"), "model:cnn4": Source(kind="scratch")}
    return Context(folder, seed, sources, StepLog(folder / "steps.jsonl"))


@pytest.mark.parametrize(
    ("over", "says"),
    [
        (PLAIN | {"epsilon": 3}, "takes neither clipping nor epsilon"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"dataset": "sst2"}, "sst2 has no images"),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "momentum is a setting of sgd"),
        ({"optimizer": {"name": "adamw", "by_bound": True}}, "by_bound is a setting of sgd"),
        (PLAIN | {"optimizer": {"name": "sgd", "by_bound": True}}, "by_bound needs clipping"),
        ({"ema": 1.0}, "ema"),
        ({"augmentation": {"copies": 3}}, "unknown key 'augmentation.copies'"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_a_copy_is_its_image_moved_and_mirrored():
    images = torch.arange(2 * 1 * 5 * 6, dtype=torch.float32).view(2, 1, 5, 6)
    moves = Moves(AugmentationSettings(multiplicity=4, flip=True, shift=2), 2, np.random.default_rng(0))
    copies = moves.copies(images, np.asarray([1, 0]))
    assert copies.shape == (2, 4, 1, 5, 6)
    for place, row in enumerate((1, 0)):  # images[place] stands at position `row` of the batch
        wide = np.pad(images[place, 0].numpy(), 2, mode="reflect")
        for copy in range(4):
            top, left = moves.down[row, copy], moves.right[row, copy]
            expected_copy = wide[top : top + 5, left : left + 6]
            expected_copy = expected_copy[:, ::-1] if moves.mirrored[row, copy] else expected_copy
            assert np.array_equal(copies[place, copy, 0].numpy(), expected_copy)
    assert 0 < moves.mirrored.sum() < moves.mirrored.size


def test_no_move_gives_the_image_itself():
    images = torch.randn(3, 1, 5, 5)
    moves = Moves(AugmentationSettings(multiplicity=2, flip=False, shift=0), 3, np.random.default_rng(0))
    assert torch.equal(moves.copies(images, np.arange(3)), images[:, None].expand(3, 2, 1, 5, 5))


def test_copies_do_not_depend_on_how_a_batch_is_cut(tmp_path):
    drawn = np.asarray([3, 8, 20, 21, 90])
    whole_task, cut = (ImageTask(settings(physical=size, **COPIES), context(tmp_path)) for size in (8, 2))
    (piece,) = whole_task.physical(drawn)
    expected_batch = whole_task.batch(piece)
    pieces = [cut.batch(rows) for rows in cut.physical(drawn)]
    assert [len(p["label"]) for p in pieces] == [2, 2, 1]
    for key in ("image", "label"):
        assert torch.equal(torch.cat([p[key] for p in pieces]), expected_batch[key])
    assert not torch.equal(whole_task.batch(next(iter(whole_task.physical(drawn))))["image"], expected_batch["image"]), (
        "every step draws anew"
    )


@pytest.mark.parametrize(
    ("engine", "scope"), [("bookkeeping", "flat"), ("ghost", "flat"), ("fused", "per_layer"), ("vmap", "flat")]
)
def test_copies_of_an_example_are_clipped_as_one(engine, scope, tmp_path):
    """Every engine gives what one backward pass an example gives, on the mean loss over its copies; rounding of fp64 apart."""
    task = ImageTask(settings(**COPIES), context(tmp_path))
    (rows,) = task.physical(np.arange(4))
    batch = {k: v.double() if v.is_floating_point() else v for k, v in task.batch(rows).items()}
    task.model.double()
    results = {}
    for name in ("loop", engine):
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
        plan = Mechanism(Sampling("poisson", 400, 4.0), 1, Clipping(scope=scope, bound=0.05))
        handle = engines.attach(name, task.model, optimizer, plan)
        handle.backward(task.losses, batch)
        results[name] = torch.cat([handle.sum_of(p).flatten() for p in task.model.parameters()])
        assert float(handle.sensitivity) == pytest.approx(0.05)
        handle.detach()
    assert float((results[engine] - results["loop"]).norm() / results["loop"].norm()) < 1e-6  # the loss is fp32
    assert float(results["loop"].norm()) <= 4 * 0.05 * (1 + 1e-9)


def test_one_example_adds_at_most_the_bound_whatever_its_copies(tmp_path):
    task = ImageTask(settings(**COPIES), context(tmp_path))
    (rows,) = task.physical(np.arange(1))
    plan = Mechanism(Sampling("poisson", 400, 4.0), 1, Clipping(bound=1e-3))
    handle = engines.attach("bookkeeping", task.model, torch.optim.SGD(task.model.parameters(), lr=0.0), plan)
    handle.backward(task.losses, task.batch(rows))
    total = torch.cat([handle.sum_of(p).flatten() for p in task.model.parameters()])
    assert float(total.norm()) == pytest.approx(1e-3, rel=1e-5)
    handle.detach()


def test_pixels_are_scaled_by_constants():
    assert scaled(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).flatten().tolist() == [-1.0, 1.0]


def test_a_private_run_keeps_its_budget_and_says_what_it_saw(tmp_path):
    done = job.run(settings(ema=0.9, **COPIES), context(tmp_path))
    assert done.privacy.epsilon <= 8
    assert done.privacy.validity == "valid"
    assert done.facts["train_rows"] == 400
    assert done.facts["evaluated_rows"] == 1000
    assert done.facts["unprotected"] == []
    learnt = {m.name: m.value for m in done.metrics if not m.name.endswith("_seconds")}
    private = ["epsilon", "stated_epsilon", "clipped_fraction", "noise_ratio"]
    assert list(learnt) == ["accuracy", "train_accuracy", *private]
    again = job.run(settings(ema=0.9, **COPIES), context(tmp_path))
    assert {m.name: m.value for m in again.metrics if m.name in learnt} == learnt


ADAPTIVE = {"method": "fused", "clipping": {"function": "abadi", "scope": "per_layer", "adaptive": {"quantile": 0.5}}}


@pytest.mark.parametrize("clipping", [{"clipping": {"bound": 0.25}}, ADAPTIVE], ids=["fixed", "adaptive"])
def test_a_rate_by_the_bound_keeps_its_product_with_each_bound(clipping, tmp_path):
    run_settings = settings(
        **merge(clipping, {"optimizer": {"name": "sgd", "learning_rate": 0.5, "by_bound": True, "schedule": "linear"}})
    )
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    done = job.run(run_settings, context(tmp_path))
    hook.remove()
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    bounds = [math.hypot(*line.get("thresholds", [0.25])) for line in lines]
    assert rates == pytest.approx([0.5 * (1 - step / 3) * bounds[0] / bound for step, bound in enumerate(bounds)])
    assert (len(set(bounds)) == 3) == ("thresholds" in done.facts)


def test_training_learns_the_shapes(tmp_path):
    """Ten balanced classes, 1,000 test images: chance is 10 % with a standard deviation of 1 point."""
    run_settings = settings(
        **PLAIN, train_limit=None, steps=80, expected_batch_size=200, optimizer={"name": "adamw", "learning_rate": 3e-3}
    )
    done = job.run(run_settings, context(tmp_path))
    assert done.metrics[0].value > 30


@pytest.mark.parametrize(
    ("task", "model"), [("mnist", "cnn4"), ("cifar10", "cifar_cnn"), ("cifar10", "resnet9"), ("cifar10", "wrn16_4")]
)
@pytest.mark.parametrize("engine", ["nonprivate", "bookkeeping", "fused"])
def test_every_model_stands_with_its_engines(task, model, engine):
    private = {} if engine == "nonprivate" else {"clipping": {"function": "abadi", "scope": "per_layer"}, "epsilon": 3}
    run_settings = parse(job.Settings, BASE | PLAIN | {"dataset": task, "model": model, "method": engine} | private, "test")
    sources = {f"dataset:{task}": datasets.resolve(task, "embedded"), f"model:{model}": Source(kind="scratch")}
    assert job.check(run_settings, sources)[0].endswith("M trainable parameters")
