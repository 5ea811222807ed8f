"""Datasets with yes-or-no attributes, images of other sizes, and a hub revision that nobody has seen."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dpbench import plugins
from dpbench.data import hub, images, registry
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import image_classification as job
from dpbench.spec.sources import Source
from dpbench.tasks.image_classification.task import ImageTask, cross_entropies
from dpbench.validation import parse

NAMES = registry.attributes("celeba_multilabel")


def jpeg(height, width, shade):
    out = io.BytesIO()
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[(height - 178) // 2 : (height + 178) // 2] = shade  # the middle square has one shade, the rims are black
    Image.fromarray(pixels).save(out, "JPEG", quality=95)
    return out.getvalue()


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """CelebA's layout: 218 x 178 JPEGs and 40 columns of yes or no."""
    folder = tmp_path / "data" / "celeba"
    folder.mkdir(parents=True)
    columns = {"image": [{"bytes": jpeg(218, 178, 40 * i), "path": None} for i in range(1, 5)]}
    columns |= {key.removeprefix("label_"): [bool((i + n) % 3) for i in range(4)] for n, key in enumerate(NAMES)}
    for split in ("train", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    monkeypatch.setenv("DPBENCH_DATA", str(folder.parent))


def test_forty_attributes_come_in_the_order_of_their_columns(faces):
    source = registry.resolve("celeba_multilabel")
    assert registry.check("celeba_multilabel", source) == {"train": 4, "test": 4}
    columns = registry.load("celeba_multilabel", "train", source).columns
    assert list(columns) == ["image", "labels"]
    assert columns["labels"].tolist() == [[int((i + n) % 3 > 0) for n in range(40)] for i in range(4)]


def test_one_attribute_is_a_class_of_two(faces):
    columns = registry.load("celeba_male", "test", registry.resolve("celeba_male"), limit=3).columns
    number = NAMES.index("label_Male")
    assert columns["label"] == [int((i + number) % 3 > 0) for i in range(3)]
    assert columns["image"].shape == (3, 3, 64, 64)


def test_other_sizes_are_cut_to_the_middle(faces):
    """Nothing of the black rims is left; 2 levels are JPEG's."""
    images = registry.load("celeba_smiling", "train", registry.resolve("celeba_smiling")).columns["image"]
    for row in range(4):
        inner = images[row][:, 1:-1].astype(int)
        assert abs(inner - 40 * (row + 1)).max() <= 2


def test_without_fit_another_size_is_refused():
    with pytest.raises(DpbenchError, match=r"row 1 \(row 0 counted from 0\) is 218 x 178, not 64 x 64"):
        images.decode([jpeg(218, 178, 9)], {"channels": 3, "height": 64, "width": 64}, "here")


def test_a_revision_that_nobody_has_seen_is_not_taken():
    spec = plugins.get("dataset", "fashion_mnist").extra["hub"]
    assert spec["revision"] is None
    assert "no revision of zalando-datasets/fashion_mnist is pinned" in hub.why_not(spec, spec["files"].values(), "dataset")
    assert registry.resolve("fashion_mnist").synthetic
    with pytest.raises(DpbenchError, match="no revision of"):
        registry.resolve("fashion_mnist", "hub")


@pytest.mark.parametrize(("name", "classes"), [("imagenette", 10), ("celeba_smiling", 2), ("celeba_multilabel", 40)])
def test_stand_ins_have_what_the_dataset_has(name, classes):
    columns = registry.load(name, "test", registry.resolve(name, "embedded")).columns
    assert columns["image"].shape == (1000, 3, 64, 64)
    if name == "celeba_multilabel":
        assert columns["labels"].shape == (1000, classes)
        assert columns["labels"].mean(0).min() > 0.2
        assert columns["labels"].mean(0).max() < 0.8
    else:
        assert set(columns["label"]) == set(range(classes))


def test_the_loss_of_attributes_sums_binary_cross_entropies():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, dtype=torch.float64), torch.randint(0, 2, (3, 4), dtype=torch.uint8)
    p = torch.sigmoid(logits)
    expected_losses = -torch.where(labels.bool(), p.log(), (1 - p).log()).sum(1)
    assert torch.allclose(cross_entropies(logits, labels), expected_losses, rtol=1e-12)


def test_attributes_are_trained_and_counted_one_by_one(tmp_path):
    run_settings = {
        "dataset": "celeba_multilabel",
        "model": "linear",
        "features": "scattering",
        "method": "nonprivate",
        "steps": 1,
        "expected_batch_size": 2,
        "optimizer": {"learning_rate": 0.1},
    }
    settings = parse(job.Settings, run_settings, "test")

    class Stored(Context):
        def artefact(self, role, name):
            return path

    path = tmp_path / "features.safetensors"
    labels = torch.tensor([[1] * 40, [0] * 40], dtype=torch.uint8)
    x = torch.zeros(2, 243, 8, 8, dtype=torch.float16)
    save_file({f"{s}_{k}": v for s in ("train", "test") for k, v in (("x", x.clone()), ("y", labels.clone()))}, path)
    task = ImageTask(settings, Stored(tmp_path, 0, {"model:linear": Source(kind="scratch")}, StepLog(tmp_path / "steps.jsonl")))
    with torch.no_grad():
        layer = task.model[1]
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([1.0] * 30 + [-1.0] * 10))
    assert task.accuracy("test") == (0.5, 2)  # 30 of 40, then 10 of 40
    rows = next(task.physical(np.asarray([0, 1])))
    assert task.losses(task.model, task.batch(rows)).shape == (2,)
