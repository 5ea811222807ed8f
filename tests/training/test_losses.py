"""A batch's losses are those of its rows one by one, for every task: no example's loss looks at another example."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from job_runs import CASES, context_of, stirred, task_of
from parents import as_parent
from torch import Tensor

from dpbench.compression.task import CompressedTask
from dpbench.methods.engines.base import without_padding
from dpbench.models.stages import stage_of
from dpbench.tasks.image_classification.task import ImageTask
from dpbench.tasks.table_to_text.stage import StageTask
from dpbench.tasks.table_to_text.task import Rows, TableToText

ROWS = np.asarray([0, 3, 8, 11, 20, 33, 41, 57])
TASKS = {name: case for name, case in CASES.items() if name not in ("drop", "prune", "virtual_stages")}
OVER = {
    "text": {"centre": True, "feature_norm": 2.0},
    "features": {"centre": True, "feature_norm": 2.0, "hidden": [5]},
    "pairs": {"head": "zero", "freeze_embeddings": False},
}
SAME = 2e-5
"""Of fp32: an example's padding, and so the shape of its products, differs with its batch."""


def losses_of(task, model, batch):
    with torch.no_grad():
        return task.losses(model, batch).double()


def check_rows_apart(task, batch_of):
    """batch_of: rows -> batch."""
    model = stirred(task.model).train()
    together = losses_of(task, model, batch_of(ROWS))
    assert together.shape == (len(ROWS),)
    assert float(together.std()) > 1e-3, "rows whose losses are all alike show nothing"
    alone = torch.cat([losses_of(task, model, batch_of(ROWS[k : k + 1])) for k in range(len(ROWS))])
    assert torch.allclose(together, alone, rtol=SAME, atol=SAME)
    part = losses_of(task, model, batch_of(ROWS[:3]))
    assert torch.allclose(together[:3], part, rtol=SAME, atol=SAME), "of a batch with other labels, too"


def batches_of(task):
    """As the loops make them: an image's batch is of places in the logical batch that was drawn."""
    if not isinstance(task, ImageTask):
        return task.batch
    list(task.physical(ROWS))
    places = {int(row): place for place, row in enumerate(ROWS)}
    return lambda rows: task.batch(np.asarray([places[int(row)] for row in rows]))


@pytest.mark.parametrize("name", TASKS)
def test_losses_of_a_batch_are_those_of_its_rows(name, tmp_path):
    task = task_of(TASKS[name], tmp_path, **OVER.get(name, {}))
    check_rows_apart(task, batches_of(task))


def test_losses_over_candidates_are_those_of_its_rows(tmp_path):
    task = task_of(TASKS["prompted_zeroth"], tmp_path, label_words={"negative": " bad and dull", "positive": " good"})
    assert task.examples.forms == 2
    check_rows_apart(task, task.batch)


def test_a_students_losses_are_those_of_its_rows(tmp_path):
    """Under distillation, with the teacher's logits beside the rows."""
    case = TASKS["compress"]
    context = context_of(case, tmp_path)
    task = CompressedTask(case.parsed(), context)
    context.parents["teacher"] = as_parent(tmp_path, "compression", task.save(tmp_path))
    over = {"student": {"layers": 1, "start": "teacher"}, "teacher": {}, "distil": {"weight": 0.5, "temperature": 2.0}}
    settings = case.parsed(**over, split={"teacher": 0.5, "student": 0.5})
    check_rows_apart(student := CompressedTask(settings, context), student.batch)


def test_losses_of_a_stage_are_its_rows_and_padding_has_none(tmp_path):
    """A stage pads each batch with copies of row 0, which must not count."""
    case = CASES["virtual_stages"]
    settings = case.parsed(virtual=False)
    rows = Rows(settings, context_of(case, tmp_path))
    model = stirred(TableToText(settings, context_of(case, tmp_path)).model)
    task = StageTask(rows, stage_of(model, 0, 1), settings)
    (first, *_), drawn = task.physical(np.asarray([5])), 5
    batch, real = task.batch(first)
    assert real == 1
    assert len(batch["input_ids"]) == task.size > 1
    values = without_padding(task.losses, real)(model, batch).detach()
    assert not values[1:].any()
    alone = task.losses(model, rows.batch(np.asarray([drawn]))).detach()
    assert torch.allclose(values[:1], alone, rtol=SAME, atol=SAME)


class _Faulty:
    """Planted: what each of these makes of the losses of a batch is seen by the comparison with rows one by one."""

    @staticmethod
    def averaged(values: Tensor, batch):
        return values / len(values)

    @staticmethod
    def weighted(values: Tensor, batch):
        label = batch["label"]
        return values / (label[:, None] == label).double().mean(1)

    @staticmethod
    def centred(values: Tensor, batch):
        return values - values.mean() / 2


@pytest.mark.parametrize(
    ("name", "fault"),
    [*itertools.product(("features", "text", "image"), ("averaged", "weighted", "centred")), ("prompted", "averaged")],
)
def test_a_planted_fault_in_the_losses_is_seen(name, fault, tmp_path, monkeypatch):
    task = task_of(TASKS[name], tmp_path)
    sound = task.losses
    monkeypatch.setattr(task, "losses", lambda model, batch: getattr(_Faulty, fault)(sound(model, batch), batch))
    with pytest.raises(AssertionError):
        check_rows_apart(task, batches_of(task))


def test_features_centred_by_their_batch_are_seen(tmp_path, monkeypatch):
    task = task_of(TASKS["features"], tmp_path)
    sound = task.batch

    def centred(rows):
        batch = sound(rows)
        return batch | {"x": batch["x"] - batch["x"].mean(0)}

    monkeypatch.setattr(task, "batch", centred)
    with pytest.raises(AssertionError):
        check_rows_apart(task, task.batch)
