"""The task: text classification with a student or a model that is cut, its teacher's logits, and the result's size and speed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from dpbench.compression import saved
from dpbench.compression.config import Settings
from dpbench.compression.dropping import keep_layers
from dpbench.compression.parts import layer_map
from dpbench.compression.pruning import MagnitudePruning
from dpbench.data import registry as datasets
from dpbench.execution.contract import Context
from dpbench.models import registry as models
from dpbench.models.wrappers import Encoder
from dpbench.records.schema import Metric
from dpbench.spec.sources import Source
from dpbench.tasks.text_classification import task as text_classification
from dpbench.tasks.text_classification.model import Classifier, Head


class CompressedTask(text_classification.TextTask):
    """Text classification with a student in the full model's place, where there is one, and its teacher's logits.

    teacher: frozen and in eval mode, its logits [N, C] computed once a row and kept; None without distillation.
    """

    settings: Settings

    def __init__(self, settings: Settings, context: Context) -> None:
        self.teacher: Classifier | None = None
        if settings.teacher is not None:
            self.teacher = load_classifier(settings, context.artefacts("teacher", saved.FILES))
        super().__init__(settings, context)
        student = settings.student
        if student is not None and student.start == "teacher":
            assert self.teacher is not None
            head: nn.Module = self.model.head  # type: ignore[assignment]
            head.load_state_dict(self.teacher.head.state_dict())
        if settings.distil is None:
            self.teacher = None
        else:
            assert self.teacher is not None
            self.teacher.to(self.device)
            self._logits = torch.full((len(self.train.ids), len(datasets.classes(settings.dataset))), float("nan"))

    def _encoder(self, context: Context) -> Encoder:
        settings, student = self.settings, self.settings.student
        if student is not None and student.model is not None:
            source = context.sources[f"model:{student.model}"]
            return models.encoder(student.model, source, student.layers, seed=context.seed)
        if student is not None and student.start == "public":
            return saved.load_encoder(context.artefacts("public_student", saved.OF_ENCODER) / saved.ENCODER)
        if student is not None and student.start == "teacher":
            encoder = saved.load_encoder(context.artefacts("teacher", saved.OF_ENCODER) / saved.ENCODER)
            return keep_layers(encoder, layer_map(student.layer_map, student.layers, encoder.model.config.num_hidden_layers))
        full = super()._encoder(context)
        if student is None:
            return full
        if student.start == "pretrained":
            return keep_layers(full, layer_map(student.layer_map, student.layers, settings.depth))
        random = models.encoder(settings.model, Source(kind="scratch"), student.layers, seed=context.seed)
        random.model.embeddings.load_state_dict(full.model.embeddings.state_dict())
        return random

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        batch = super().batch(rows)
        if self.teacher is not None:
            batch["teacher"] = self.teacher_logits(rows, batch).to(self.device)
        return batch

    def teacher_logits(self, rows: np.ndarray, batch: dict[str, Tensor]) -> Tensor:
        """Return [B, C] of the frozen teacher; a row that was asked for before is not computed again."""
        assert self.teacher is not None
        index = torch.as_tensor(rows)
        if bool(self._logits[index].isnan().any()):
            self.teacher.eval()
            with torch.no_grad():
                self._logits[index] = self.logits(self.teacher, batch).cpu()
        return self._logits[index]

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return [B] cross entropies, or the distillation's losses."""
        logits = self.logits(model, {name: value for name, value in batch.items() if name != "teacher"})
        distil = self.settings.distil
        if distil is None:
            return cross_entropy(logits, batch["label"], reduction="none")
        return distillation_losses(logits, batch["teacher"], batch["label"], distil.weight, distil.temperature)

    @property
    def encoder(self) -> Encoder:
        return self.model.encoder  # type: ignore[return-value]

    def save(self, folder: Path) -> list[str]:
        """Save the classifier for whoever loads it, a student's run or transformers; return the files."""
        head = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        return saved.save(self.encoder, head, folder)


def distillation_losses(student: Tensor, teacher: Tensor, labels: Tensor, weight: float, temperature: float) -> Tensor:
    """Return losses [B] (1 - w) CE(y, student) + w t^2 KL(teacher_t || student_t), each of one example alone.

    Source: Hinton et al., 2015; Mireshghallah et al., NeurIPS 2022, section 3. Whether they scale by t^2 is not known: ours.

    Args:
        student, teacher: [B, C] logits; no gradient goes to the teacher's. labels: [B].
    """
    hard = cross_entropy(student, labels, reduction="none")
    soft = kl_div(
        log_softmax(student / temperature, dim=-1),
        log_softmax(teacher.detach() / temperature, dim=-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    return (1 - weight) * hard + weight * temperature**2 * soft


def load_classifier(settings: Settings, folder: Path) -> Classifier:
    """Return the teacher that a run left, frozen and in eval mode."""
    encoder, head = saved.load_encoder(folder / saved.ENCODER), saved.load_head(folder)
    model = Classifier(encoder, Head(encoder.width, settings.hidden, len(datasets.classes(settings.dataset))), settings)
    model.load_state_dict(head | {f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    return model.eval().requires_grad_(False)


def meta_model(settings: Settings, sources: dict[str, Source]) -> nn.Module:
    """Return what is trained first, on the meta device."""
    if settings.student is None:
        return text_classification.meta_model(settings, sources)
    name, layers = settings.shape
    shape = settings.model_copy(update={"model": name, "layers": layers})
    return text_classification.meta_model(shape, {f"model:{name}": Source(kind="scratch")} | sources)


def inference_metrics(settings: Settings, context: Context) -> list[Metric]:
    """Return latency and throughput of this run's shape, from the run that timed all shapes in turn."""
    names = {"latency": "ms", "throughput": "examples/s"}
    if settings.inference is None:
        return [Metric(name=n, value=None, unit=u, note="inference is not timed at this tier") for n, u in names.items()]
    record = context.parent("inference")
    shape = {"model": settings.shape[0], "layers": str(settings.shape[1])}
    return [m.model_copy(update={"labels": {}}) for m in record.metrics if m.labels == shape and m.name in names]


def size_metrics(settings: Settings, task: CompressedTask, pruning: MagnitudePruning | None) -> list[Metric]:
    """Return parameters, files and work of the encoder with its head: counted, not measured."""
    parameters, nonzero = saved.sizes_of(task.model)
    masked = pruning.masks.size if pruning is not None else 0
    tokens = settings.inference.tokens if settings.inference is not None else 32
    values = {
        "parameters": (parameters / 1e6, "M"),
        "nonzero_parameters": (nonzero / 1e6, "M"),
        "file_size": (saved.file_bytes(task.encoder) / 2**20, "MiB"),
        "packed_size": (saved.packed_bytes(parameters, nonzero, masked) / 2**20, "MiB"),
        "flops": (saved.flops_of(task.encoder, tokens) / 1e9, "GFLOP"),
    }
    metrics = [Metric(name=name, value=value, unit=unit, kind="counted") for name, (value, unit) in values.items()]
    if pruning is not None:
        metrics.append(Metric(name="sparsity", value=100 * pruning.sparsities[-1], unit="%", kind="counted"))
    return metrics
