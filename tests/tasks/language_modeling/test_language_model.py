"""The language_model job: budget, schedule, the published noise, and that private training is training."""

from __future__ import annotations

import json
import math

import pytest
import torch
from spending import epsilon_of

from dpbench.data import registry
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import language_modeling as job
from dpbench.methods import engines
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.spec.expand import merge
from dpbench.tasks.language_modeling.task import LanguageModelingTask, model_of, parameter_groups
from dpbench.training.callbacks import LearningCurve
from dpbench.training.config import OptimizerSettings
from dpbench.training.run import fit
from dpbench.validation import parse

BASE = {
    "size": "tiny",
    "vocabulary": 300,
    "tokens": 16,
    "train_blocks": 400,
    "validation_blocks": 40,
    "evaluate_every": 2,
    "method": "fused",
    "clipping": {"scope": "per_layer", "bound": 1.0},
    "epsilon": 8,
    "delta": "1/(2n)",
    "steps": 6,
    "expected_batch_size": 40,
    "optimizer": {"learning_rate": 1e-2, "schedule": "cosine", "min_learning_rate": 1e-3, "warmup_steps": 2},
    "token_budget": 400,
}
PLAIN = {"method": "nonprivate", "clipping": None, "epsilon": None}


def settings(**over):
    return parse(job.Settings, merge(BASE, over), "test")


@pytest.fixture
def context(tmp_path):
    source = registry.resolve("wikitext2", "embedded")
    return Context(tmp_path, 1, {"dataset:wikitext2": source}, StepLog(tmp_path / "steps.jsonl"))


def trained(run_settings, context, plan=None, seed=1):
    """Return the validation losses along training and what training did, under the settings' own mechanism or another."""
    context.seed = seed
    task = LanguageModelingTask(run_settings, context)
    plan = plan or run_settings.mechanism(task.rows, len(task), seed, task.groups)
    curve = LearningCurve(task.model, task.evaluate, run_settings.evaluate_every)
    curve.evaluate(0)
    training = fit(run_settings, task, run_settings.optimizer.build(task.parameter_groups()), [plan], context, [curve])
    return torch.tensor([loss for _, loss in curve.points], dtype=torch.float64), training


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"method": "nonprivate"}, "takes neither clipping nor epsilon"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"clipping": {"group_bound": 1.0}}, "exactly one of bound, group_bound and thresholds"),
        ({**PLAIN, "noise": "flashdp_published"}, "adds no noise"),
        ({"expected_batch_size": 500}, "more than train_blocks"),
        ({"optimizer": {"min_learning_rate": 1.0}}, "is above learning_rate"),
        ({"method": "flashdp_publishd"}, "unknown engine"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_the_rate_warms_up_and_falls_as_a_cosine():
    optimizer = OptimizerSettings(schedule="cosine", learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4)
    rates = [optimizer.rate(1.0, step, 15) for step in range(15)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.55)  # half way between steps 4 and 14
    assert rates[14] == pytest.approx(0.1)
    assert OptimizerSettings(schedule="cosine", learning_rate=1.0).rate(1.0, 0, 1) == 1.0


def test_the_budget_is_the_mechanisms():
    plan = settings().mechanism(400, 400, 0, groups=9)
    spent = epsilon_of(noise_multiplier=plan.noise_multiplier, sample_rate=0.1, steps=6, delta=1 / 800)
    assert 0.99 * 8 <= spent == plan.epsilon() <= 8
    assert plan.sensitivity == 1.0


def test_a_bound_of_each_group_is_the_sensitivity_of_all():
    plan = settings(clipping={"bound": None, "group_bound": 2.0}).mechanism(400, 400, 0, groups=9)
    assert plan.clipping.bounds(9) == pytest.approx([2.0] * 9)
    assert plan.sensitivity == pytest.approx(6.0)


def published_gradient(task, bounds, sigma, parts, generator):
    """FlashDP's published update, written out: every backward pass releases clipped sum / B + N(0, sigma^2 / B) a tensor.

    Returns the sum over passes, brought to the mean over all examples.
    """
    layers = [(n, m) for n, m in task.model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    total = {id(p): torch.zeros_like(p) for p in task.model.parameters()}
    for part in parts:
        part_sums = {key: torch.zeros_like(value) for key, value in total.items()}
        for i in range(len(part)):
            loss = task.losses(task.model, task.batch(part[i : i + 1])).sum()
            gradients = dict(
                zip(map(id, task.model.parameters()), torch.autograd.grad(loss, [*task.model.parameters()]), strict=True)
            )
            for (_, module), bound in zip(layers, bounds, strict=True):
                mine = [gradients[id(p)] for p in module.parameters(recurse=False)]
                norm = torch.cat([g.flatten() for g in mine]).norm()
                for p, g in zip(module.parameters(recurse=False), mine, strict=True):
                    part_sums[id(p)] += g * min(1.0, bound / float(norm))
        for key, value in part_sums.items():
            noise = torch.randn(value.shape, generator=generator) * sigma / math.sqrt(len(part))
            total[key] += (value / len(part) + noise) * len(part)
    return torch.cat([total[id(p)].flatten() for p in task.model.parameters()]) / sum(map(len, parts))


@pytest.mark.parametrize("each", [1.0, 100.0])
def test_published_noise_is_our_mechanism_with_a_new_multiplier(context, each):
    """FLASH-1: the mean of the released gradient and its noise, against the update as it is published, on the same batch."""
    run_settings = settings(noise="flashdp_published", clipping={"bound": None, "group_bound": each})
    task = LanguageModelingTask(run_settings, context)
    stated = settings(clipping={"bound": None, "group_bound": each}).mechanism(400, 400, 0, task.groups)
    plan = run_settings.mechanism(400, 400, 0, task.groups)
    bounds, drawn = plan.clipping.bounds(task.groups), torch.arange(40).numpy()
    quiet = Mechanism(plan.sampling, plan.steps, plan.clipping)

    def released(mechanism):
        stepper = torch.optim.SGD(task.model.parameters(), lr=0.0)
        handle = engines.attach("fused", task.model, stepper, mechanism)
        for part in (drawn[:16], drawn[16:]):
            handle.backward(task.losses, task.batch(part))
        stepper.step()
        gradient = torch.cat([p.grad.flatten() for p in task.model.parameters()])
        stepper.zero_grad()
        handle.detach()
        return gradient

    parts = [drawn[:16], drawn[16:]]
    expected_gradient = published_gradient(task, bounds, 0.0, parts, None)
    assert float((released(quiet) - expected_gradient).norm() / expected_gradient.norm()) < 1e-5
    noisy = published_gradient(task, bounds, stated.noise_multiplier, parts, torch.Generator().manual_seed(0)) - expected_gradient
    ours = released(plan) - expected_gradient
    formula = stated.noise_multiplier / math.sqrt(40)
    within = 4 / math.sqrt(2 * len(ours))  # four standard errors of a standard deviation of that many draws
    assert float(noisy.std()) == pytest.approx(formula, rel=within)
    assert float(ours.std()) == pytest.approx(formula, rel=within)
    assert plan.target_epsilon is None
    assert (plan.epsilon() > 100 * stated.epsilon()) == (each == 100.0)
    assert (plan.epsilon() < stated.epsilon()) == (each == 1.0)


@pytest.mark.parametrize(("engine", "scope"), [("fused", "per_layer"), ("bookkeeping", "flat")])
def test_without_noise_and_clipping_it_is_plain_training(context, engine, scope):
    """Same sampling, same weights: only the order of sums differs, 1e-7 a step in float32, which AdamW may enlarge."""
    sampling = Sampling("poisson", 400, 40)
    expected, plain = trained(settings(**PLAIN), context, Mechanism(sampling, 6, seed=1))
    run_settings = settings(method=engine, clipping={"scope": scope})
    losses, clipped = trained(run_settings, context, Mechanism(sampling, 6, Clipping(scope=scope, bound=1e6), seed=1))
    assert clipped.batch_sizes == plain.batch_sizes
    assert set(clipped.clipped_fractions) == {0.0}
    assert losses == pytest.approx(expected, abs=1e-4)
    assert float(expected[0] - expected[-1]) > 0.3  # it learns at all


def test_fused_draws_the_same_curve_as_the_reference(context):
    """F5 with noise on: one noise stream, so that curves differ by rounding alone; another seed moves them far more."""
    fused, _ = trained(settings(), context)
    reference, _ = trained(settings(method="vmap"), context)
    other, _ = trained(settings(), context, seed=2)
    assert float((fused - reference).abs().max()) < 1e-4
    assert float((fused - other).abs().max()) > 1e-2


def test_a_private_run_records_its_epsilon_and_curve(context):
    done = job.run(settings(save_weights=True), context)
    metrics = {m.name: m for m in done.metrics}
    assert 0.99 * 8 <= metrics["epsilon"].value <= 8 == metrics["stated_epsilon"].value
    assert done.privacy.validity == "valid"
    assert [step for step, _ in done.facts["curve"]] == [0, 2, 4, 6]
    assert metrics["perplexity"].value == pytest.approx(math.exp(metrics["validation_loss"].value))
    assert metrics["noise_std"].value == pytest.approx(done.mechanism["noise_std"])
    assert done.facts["example"] == "one block of 16 tokens"
    assert done.facts["tokenizer_split"] == "test"
    assert done.facts["unprotected"] == []
    from safetensors.torch import load_file

    kept = load_file(context.out / done.artefacts[0])
    assert sum(t.numel() for t in kept.values()) == done.facts["parameters"]


def test_thresholds_that_adapt_are_in_the_log_and_in_the_facts(context):
    run_settings = settings(clipping={"adaptive": {"quantile": 0.6, "budget": 0.1}})
    outcome = job.run(run_settings, context)
    lines = [json.loads(line) for line in (context.out / "steps.jsonl").read_text().splitlines()]
    bounds = outcome.facts["thresholds"]
    assert len(bounds) == outcome.facts["groups"]
    assert [first for first, _ in bounds.values()] == lines[0]["thresholds"]
    assert all(first != last for first, last in bounds.values())
    assert all(len(line["released_fractions"]) == len(bounds) for line in lines)
    assert outcome.privacy.epsilon <= 8
    stds = {m.name: m.value for m in outcome.metrics}
    assert stds["noise_std"] == pytest.approx(outcome.privacy.noise_multiplier / math.sqrt(0.9))


def test_check_proves_groups_and_thresholds():
    sources = {"dataset:wikitext2": registry.resolve("wikitext2", "embedded")}
    for over in ({"adaptive": {"quantile": 0.6}}, {"scope": "per_tensor", "allocation": "equal"}):
        assert any("epsilon" in remark for remark in job.check(settings(clipping=over), sources))
    deep = {"scope": "per_device", "devices": 2}
    assert job.check(settings(method="bookkeeping", clipping=deep), sources)
    for over, says in (
        ({"method": "bookkeeping", "clipping": {"scope": "per_device"}}, "needs a number of devices"),
        ({"clipping": {"bound": None, "thresholds": [1.0, 2.0]}}, "2 thresholds for 16 groups"),
        ({"method": "opacus", "clipping": {"scope": "flat", "adaptive": {"quantile": 0.6}}}, "does not do adaptive"),
        ({"method": "flashdp_published", "clipping": {"adaptive": {"quantile": 0.6}}}, "does not do adaptive"),
    ):
        with pytest.raises(DpbenchError, match=says):
            job.check(settings(**over), sources)


def test_a_run_as_published_says_the_real_epsilon_or_none(context):
    noise = job.run(settings(noise="flashdp_published", clipping={"bound": None, "group_bound": 100.0}), context)
    metrics = {m.name: m for m in noise.metrics}
    assert noise.privacy.target_epsilon == metrics["stated_epsilon"].value == 8
    assert noise.privacy.epsilon == metrics["epsilon"].value > 1000
    assert "epsilon 8 and added as published gives" in noise.warnings[0]
    layers = job.run(settings(method="flashdp_published"), context)
    metrics = {m.name: m for m in layers.metrics}
    assert (metrics["epsilon"].value, metrics["epsilon"].text) == (None, "none")
    assert metrics["epsilon"].note.startswith("FLASH-2, FLASH-4: no finite epsilon")
    assert (layers.privacy.epsilon, layers.privacy.epsilon_rdp, layers.privacy.validity) == (None, None, "nominal")
    assert "model.lm_head.weight" in layers.facts["unprotected"]
    plain = job.run(settings(**PLAIN), context)
    assert plain.privacy is None
    assert [m.text for m in plain.metrics if m.name == "epsilon"] == ["none"]


def test_the_released_gradient_is_shortened_after_the_noise(context):
    run_settings = settings(optimizer={"gradient_clip": 1e-3})
    norms = []
    zero_grad = torch.optim.AdamW.zero_grad

    def watch(optimizer, *args, **kwargs):
        released = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(released).norm()))
        return zero_grad(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "zero_grad", watch)
        job.run(run_settings, context)
    assert norms == pytest.approx([1e-3] * run_settings.steps, rel=1e-3)


def test_weight_decay_is_of_matrices_alone():
    run_settings = settings(optimizer={"weight_decay": 0.1})
    optimizer = run_settings.optimizer.build(parameter_groups(run_settings, model_of(run_settings)))
    assert {(p.dim() >= 2, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


def test_settings_are_chosen_on_blocks_that_are_not_trained_on(context):
    task = LanguageModelingTask(settings(evaluate_on="train_rest"), context)
    real = LanguageModelingTask(settings(), context)
    longer = LanguageModelingTask(settings(train_blocks=440), context)
    assert torch.equal(task.train, real.train)
    assert torch.equal(torch.cat([task.train, task.validation]), longer.train)
    assert not torch.equal(task.validation, real.validation)


def test_a_text_that_is_too_short_is_used_whole_and_says_so(context):
    done = job.run(settings(train_blocks=10**6, **PLAIN), context)
    assert done.mechanism["sampling"]["dataset_size"] == done.facts["train_blocks"] < 10**6
    assert f"fills {done.facts['train_blocks']} blocks" in done.warnings[0]
    assert done.mechanism["delta"] == pytest.approx(1 / (2 * done.facts["train_blocks"]))
