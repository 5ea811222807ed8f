"""What happens beside a training step: in which order, at which steps, and that looking changes nothing."""

from __future__ import annotations

import json

import pytest
import torch
from text_settings import FEATURES
from torch import nn

from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import text_classification as classify
from dpbench.training.callbacks import Callback, GradientClip, LearningCurve, WeightAverage
from dpbench.training.run import fit
from dpbench.validation import parse

NOT_PRIVATE = {"method": "nonprivate", "clipping": None, "epsilon": None}
SGD = {"name": "sgd", "learning_rate": 0.5}


def settings(**over):
    return parse(classify.Settings, FEATURES | {"steps": 7, "expected_batch_size": 20, "optimizer": SGD} | over, "test")


def context(folder):
    return Context(folder, 0, {}, StepLog(folder / "steps.jsonl"))


class _Points:
    """Two clouds, and an accuracy that runs the model as tasks do."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(60) % 2
        self.x = torch.randn(60, 4, generator=generator) + 2 * self.y[:, None]
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    def physical(self, drawn):
        yield drawn

    def batch(self, rows):
        return {"x": self.x[rows], "y": self.y[rows]}

    def losses(self, model, batch):
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    def evaluate(self):
        self.model.eval()
        with torch.inference_mode():
            return {"accuracy": 100 * float((self.model(self.x).argmax(-1) == self.y).float().mean())}


def train(run_settings, folder, callbacks=lambda task: []):
    """Returns (task, the callbacks of its training)."""
    task = _Points()
    plan = run_settings.mechanism(60, 60, 0)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=run_settings.optimizer.learning_rate)
    callbacks = callbacks(task)
    fit(run_settings, task, optimizer, [plan], context(folder), callbacks)
    return task, callbacks


def curve_of(every):
    return lambda task: [LearningCurve(task.model, task.evaluate, every)]


@pytest.mark.parametrize("engine", ["nonprivate", "bookkeeping", "ghost", "opacus", "dpzero", "mezo"])
def test_a_learning_curve_changes_nothing(engine, tmp_path):
    over = {"method": engine}
    over |= {"clipping": None, "epsilon": None} if engine in ("nonprivate", "mezo") else {"clipping": {"function": "abadi"}}
    run_settings = settings(**over, **({"zeroth": {}} if engine in ("dpzero", "mezo") else {}))
    plain, _ = train(run_settings, tmp_path)
    looked, (curve,) = train(run_settings, tmp_path, curve_of(2))
    for a, b in zip(plain.model.parameters(), looked.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plain.model.training == looked.model.training == (engine not in ("dpzero", "mezo"))
    assert [step for step, _ in curve.points] == [2, 4, 6, 7]
    assert curve.points[-1][1] == looked.evaluate()["accuracy"]
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [line["step"] + 1 for line in lines if "validation" in line] == [2, 4, 6, 7]


class _Seen(Callback):
    """Notes what it is called for, and when."""

    def __init__(self, model):
        self.calls, self.weights = [], []
        self._model = model

    def _note(self, name, trainer):
        self.calls.append((name, trainer.done))
        self.weights.append(torch.cat([p.detach().flatten() for p in self._model.parameters()]))

    def gradients_released(self, trainer):
        self._note("gradients_released", trainer)

    def step_done(self, trainer):
        self._note("step_done", trainer)

    def observe(self, trainer):
        self._note("observe", trainer)

    def phase_done(self, trainer, number):
        self._note(f"phase_done {number}", trainer)

    def training_done(self, trainer):
        self._note("training_done", trainer)


@pytest.mark.parametrize("engine", ["nonprivate", "bookkeeping"])
def test_callbacks_run_in_order_before_and_after_each_step(engine, tmp_path):
    run_settings = settings(**(NOT_PRIVATE if engine == "nonprivate" else {}), steps=2)
    _, (seen,) = train(run_settings, tmp_path, lambda task: [_Seen(task.model)])
    steps = [[("gradients_released", k), ("step_done", k + 1), ("observe", k + 1)] for k in range(2)]
    assert seen.calls == [*steps[0], *steps[1], ("phase_done 0", 2), ("training_done", 2)]
    assert not torch.equal(seen.weights[0], seen.weights[1])
    assert torch.equal(seen.weights[1], seen.weights[2])


def test_the_average_of_weights_is_the_recursion(tmp_path):
    """min(decay, (1 + t) / (10 + t)) at step t, in place of the weights at the end."""
    run_settings = settings(**NOT_PRIVATE)
    task, (seen, _) = train(run_settings, tmp_path, lambda task: [_Seen(task.model), WeightAverage(task.model, 0.5)])
    initial = torch.cat([p.detach().flatten() for p in _Points().model.parameters()])
    weights = [w for (name, _), w in zip(seen.calls, seen.weights, strict=True) if name == "step_done"]
    mean = initial
    for t, weight in enumerate(weights):
        decay = min(0.5, (1 + t) / (10 + t))
        mean = decay * mean + (1 - decay) * weight
    averaged = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    torch.testing.assert_close(averaged, mean)
    assert not torch.allclose(averaged, weights[-1])


def test_a_released_gradient_is_brought_to_a_norm(tmp_path):
    """Step after step of SGD moves the weights by at most the learning rate times that norm, noise and all."""
    longest = 1e-3
    run_settings = settings(steps=3)
    _, (_, seen) = train(run_settings, tmp_path, lambda task: [GradientClip(longest), _Seen(task.model)])
    before = [w for (name, _), w in zip(seen.calls, seen.weights, strict=True) if name == "gradients_released"]
    after = [w for (name, _), w in zip(seen.calls, seen.weights, strict=True) if name == "step_done"]
    for a, b in zip(before, after, strict=True):
        assert float((a - b).norm()) == pytest.approx(0.5 * longest, rel=1e-3)
