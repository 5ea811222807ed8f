"""The classify job's pieces: thinning by one row, heads, optimizers, and learning on generated text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dpbench.errors import DpbenchError
from dpbench.jobs import classify, training
from dpbench.measure import memory, throughput
from dpbench.validation import parse

BASE = {
    "task": "sst2",
    "training": "features",
    "model": "tiny_bert",
    "engine": "bookkeeping",
    "clipping": {"function": "auto_s"},
    "epsilon": 3.0,
    "steps": 5,
    "expected_batch_size": 10,
    "optimizer": {"learning_rate": 0.01},
}
CLASSES = ["negative", "positive"]


def settings(**over):
    return parse(classify.Settings, BASE | over, "test")


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"engine": "nonprivate"}, "takes neither clipping nor epsilon"),
        ({"clipping": None}, "needs clipping and epsilon"),
        ({"epsilon": -1}, "epsilon"),
        ({"class_keep": {"positive": 1.5}}, "class_keep"),
        ({"head": "label_words", "hidden": [4]}, "takes no hidden layers"),
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"optimizer": {"learning_rat": 1}}, "did you mean 'learning_rate'"),
    ],
)
def test_settings_that_make_no_sense_are_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_thinning_looks_at_one_row_at_a_time():
    """Removing a row leaves the fate of all others as it was: the stability that keeps epsilon what it says."""
    keys = [f"text {i}" for i in range(2000)]
    labels = np.arange(2000) % 2
    own = settings(class_keep={"positive": 0.5})
    kept = {keys[i] for i in training.kept_rows(own, labels, lambda: keys, CLASSES)}
    fewer = {keys[:-1][i] for i in training.kept_rows(own, labels[:-1], lambda: keys[:-1], CLASSES)}
    assert kept - {keys[-1]} == fewer
    share = sum(int(k.split()[1]) % 2 for k in kept) / 1000
    assert share == pytest.approx(0.5, abs=0.06)
    assert sum(1 - int(k.split()[1]) % 2 for k in kept) == 1000


def test_thinning_names_an_unknown_class():
    with pytest.raises(DpbenchError, match="did you mean 'positive'"):
        training.kept_rows(settings(class_keep={"positiv": 0.5}), np.zeros(3, dtype=int), lambda: ["a", "b", "c"], CLASSES)


def test_heads_of_a_seed_are_the_same_and_leave_torchs_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = training.make_head(settings(hidden=[6]), 4, 2, 1, None)
    assert torch.equal(torch.get_rng_state(), state)
    again = training.make_head(settings(hidden=[6]), 4, 2, 1, None)
    other = training.make_head(settings(hidden=[6]), 4, 2, 2, None)
    assert torch.equal(first.hidden[0].weight, again.hidden[0].weight)
    assert not torch.equal(first.hidden[0].weight, other.hidden[0].weight)
    assert not first.out.weight.any()


def test_a_label_word_head_tells_its_own_phrases_apart():
    phrases = torch.randn(2, 8)
    head = training.make_head(settings(head="label_words"), 8, 2, 0, phrases)
    assert head(phrases - phrases.mean(0)).argmax(-1).tolist() == [0, 1]
    with pytest.raises(DpbenchError, match="no label phrases"):
        training.make_head(settings(head="label_words"), 8, 2, 0, None)


def test_the_head_has_its_own_rate():
    body, head = nn.Linear(3, 3), training.Head(3, [], 2)
    model = nn.Module()
    model.body, model.head = body, head
    found = training.optimizer(classify.Optimizer(learning_rate=0.1, head_learning_rate=0.4), model)
    assert [(g["lr"], sum(p.numel() for p in g["params"])) for g in found.param_groups] == [(0.4, 8), (0.1, 12)]


@pytest.mark.parametrize(("rule", "delta"), [("1/(2n)", 1 / 2000), ("n^-1.1", 1000**-1.1), (1e-6, 1e-6)])
def test_delta_rules(rule, delta):
    plain = settings(engine="nonprivate", clipping=None, epsilon=None, delta=rule)
    assert plain.mechanism(1000, 800, 0).delta == pytest.approx(delta)


def test_a_batch_larger_than_the_data_is_the_data():
    assert (
        settings(engine="nonprivate", clipping=None, epsilon=None, expected_batch_size=5000)
        .mechanism(1000, 800, 0)
        .sampling.sample_rate
        == 1.0
    )


def test_missing_peers_are_reasons_not_holes(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "opacus" else real(name, *a))
    runnable, metrics = throughput.skip_missing(["nonprivate", "opacus", "fused"])
    assert runnable == ["nonprivate", "fused"]
    assert {m.note for m in metrics} == {"skipped: opacus is not installed (pip install opacus)"}
    assert all(m.value is None for m in metrics)


def test_peak_bytes_count_live_storage():
    from dpbench.simulate.peak import PeakBytes

    with PeakBytes() as peak:
        a = torch.zeros(1000)
        b = a + 1
        view = b.view(10, 100)
        del a
        c = torch.zeros(500)
        del b, view, c
        torch.zeros(10)
    assert peak.peak == 8000
    with PeakBytes(quantum=512) as rounded:
        torch.zeros(1)
    assert rounded.peak == 512


def test_memory_worker_measures_every_engine(tmp_path):
    from dpbench.execution.contract import Context
    from dpbench.execution.tracking import StepLog

    own = parse(
        throughput.Settings, {"size": "tiny", "tokens": 16, "batch_size": 2, "engines": ["nonprivate", "opacus", "fused"]}, "test"
    )
    context = Context(tmp_path, 0, {}, StepLog(tmp_path / "steps.jsonl"))
    found = dict(memory.measure_memory(own, own.engines, np.zeros((2, 16), dtype=np.int64), context))
    assert list(found) == ["nonprivate", "opacus", "fused"]
    for peaks in found.values():
        assert len(set(peaks["tensors"])) == 1, "the count is exact: every step has the same peak"
    assert found["opacus"]["tensors"][0] > 1.0 * found["nonprivate"]["tensors"][0]
    assert found["fused"]["tensors"][0] < 1.1 * found["nonprivate"]["tensors"][0]


class _Points:
    """Two clouds, and an accuracy that runs the model as the jobs' tasks do."""

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

    def accuracy(self):
        self.model.eval()
        with torch.inference_mode():
            return float((self.model(self.x).argmax(-1) == self.y).float().mean()), len(self.y)


@pytest.mark.parametrize("engine", ["nonprivate", "bookkeeping", "ghost", "opacus"])
def test_a_learning_curve_changes_nothing(engine, tmp_path):
    from dpbench.execution.contract import Context
    from dpbench.execution.tracking import StepLog
    from dpbench.jobs.fitting import fit

    over = {"engine": engine, "steps": 7, "expected_batch_size": 20}
    own = settings(
        **over, **({"clipping": None, "epsilon": None} if engine == "nonprivate" else {"clipping": {"function": "abadi"}})
    )
    plan = own.mechanism(60, 60, 0)

    def trained(curve):
        task = _Points()
        found = training.Curve(task, own.steps, 3)
        after = {"watch": found} if curve else {}
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.5)
        fit(engine, task, optimizer, plan, Context(tmp_path, 0, {}, StepLog(tmp_path / "steps.jsonl")), **after)
        assert task.model.training
        return task, found

    (plain, _), (looked, curve) = trained(False), trained(True)
    for a, b in zip(plain.model.parameters(), looked.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [step for step, _ in curve.points] == [2, 4, 6, 7]
    assert curve.points[-1][1] == pytest.approx(100 * looked.accuracy()[0])
    assert curve.rows == 60


@pytest.mark.parametrize(
    ("clipping", "says"),
    [
        ({"function": "auto_s", "bound": 0.1}, ["bound 0.1 has no effect under auto_s but to multiply SGD's learning rate"]),
        ({"function": "auto_v", "bound": 4.0}, ["bound 4 has no effect under auto_v but to multiply SGD's learning rate"]),
        ({"function": "auto_v", "gamma": 0.02}, ["gamma has no effect under auto_v"]),
        ({"function": "abadi", "gamma": 0.01}, []),
        ({"function": "auto_s", "bound": 1.0, "gamma": 0.01}, []),
        ({"function": "abadi", "bound": 0.1}, []),
    ],
)
def test_a_bound_given_to_automatic_clipping_is_warned_of(clipping, says):
    assert settings(clipping=clipping).without_effect == says
