"""Settings of a text classifier that is compressed under a budget: by distillation, by dropping layers, by pruning. No torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dpbench.compression.parts import Distil, Drop, Prune, Split, Student, Teacher, depth_of, layer_map, vocabulary_of
from dpbench.data import registry as datasets
from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Parents
from dpbench.measure.inference import Settings as Inference
from dpbench.privacy.composition import Release, release_of, stage_seed
from dpbench.privacy.mechanism import Mechanism, calibrated
from dpbench.records.schema import Metric, Privacy
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.tasks.text_classification import config as text_classification
from dpbench.training.config import check_spent
from dpbench.validation import omitted, parse

STUDENT = "student"
"""Name of the stage whose draws and noise all students of a seed have, so that they are paired."""


class Settings(text_classification.Settings):
    """One cell: a task, a model, a budget, and at most one of student, drop and prune.

    Without any the full model is trained, and leaves its weights to those that learn from it. `model` and `layers` are those
    of the full model. epsilon: of all stages together.
    """

    kinds: ClassVar[tuple[str, ...]] = ("engine",)

    steps: int = Field(ge=1, description="Of this run's stage.")
    training: Literal["full", "features"] = "full"
    noise_multiplier: float | None = omitted(gt=0, description="As published, in place of epsilon, which is then what it means.")
    student: Student | None = omitted()
    teacher: Teacher | None = omitted()
    distil: Distil | None = omitted()
    split: Split | None = omitted()
    budget: Literal["whole", "student"] = omitted(
        "whole", description="student: without a teacher, but with the noise of a student that has one under `split`."
    )
    drop: Drop | None = omitted()
    prune: Prune | None = omitted()
    inference: Inference | None = omitted()
    curve_points: int = Field(5, ge=1, description="Evaluations along training.")
    save_model: bool = omitted(False, description="A compressed model leaves its weights, too.")

    @model_validator(mode="after")
    def _budget_belongs_to_the_method(self) -> Settings:
        budgets = (self.epsilon is not None) + (self.noise_multiplier is not None)
        if self.clips and (self.clipping is None or budgets != 1):
            raise ValueError(f"method {self.method} needs clipping and one of epsilon and noise_multiplier")
        if not self.clips and (self.clipping is not None or budgets):
            raise ValueError(f"method {self.method} takes neither clipping nor epsilon nor noise_multiplier")
        return self

    @model_validator(mode="after")
    def _can_be_compressed(self) -> Settings:
        if self.training != "full" or self.head not in ("zero", "label_words"):
            raise ValueError("compress trains full encoders: training full, head zero or label_words")
        for name in ("lora", "accounted_rows"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: not for compress")
        if sum(part is not None for part in (self.student, self.drop, self.prune)) > 1:
            raise ValueError("at most one of student, drop and prune")
        if self.layers is not None and self.layers > depth_of(self.model):
            raise ValueError(f"layers {self.layers}: {self.model} has {depth_of(self.model)}")
        if self.student is None:
            for name in ("teacher", "distil", "split"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: there is no student")
        else:
            self._check_student(self.student)
        if self.drop is not None:
            layer_map(self.drop.layer_map, self.drop.layers, self.depth)
            blocks = self.drop.blocks(self.depth)
            if len(blocks) * self.drop.block_steps >= self.steps:
                raise ValueError(f"drop: {len(blocks)} blocks of {self.drop.block_steps} leave none of {self.steps} steps")
        if self.prune is not None and self.prune.steps >= self.steps:
            raise ValueError(f"prune.steps {self.prune.steps} leave none of {self.steps} steps to the sparse model")
        if self.inference is not None and self.shape not in [(s.model, s.layers) for s in self.inference.shapes]:
            raise ValueError(f"inference.shapes: {self.shape[1]} layers of {self.shape[0]} are not among them")
        return self

    def _check_student(self, student: Student) -> None:
        teacher = self.teacher
        of = (teacher and teacher.model) or self.model
        depth = (teacher and teacher.layers) or (depth_of(of) if of != self.model else self.depth)
        if depth > depth_of(of):
            raise ValueError(f"teacher.layers {depth}: {of} has {depth_of(of)}")
        if student.layers > depth:
            raise ValueError(f"student.layers {student.layers}: deeper than its teacher, which has {depth}")
        if student.model is not None and student.layers > depth_of(student.model):
            raise ValueError(f"student.layers {student.layers}: {student.model} has {depth_of(student.model)}")
        for name, other in (("student.model", student.model), ("teacher.model", of)):
            if other is not None and vocabulary_of(other) != vocabulary_of(self.model):
                raise ValueError(
                    f"{name}: {other} has a vocabulary of {vocabulary_of(other)}, {self.model} of {vocabulary_of(self.model)}: "
                    "teacher and student must read the same tokens"
                )
        if teacher and teacher.dataset and datasets.classes(teacher.dataset) != datasets.classes(self.dataset):
            raise ValueError(
                f"teacher.dataset: {teacher.dataset} has other classes than {self.dataset}: teacher and student must share them"
            )
        layer_map(student.layer_map, student.layers, depth if student.start == "teacher" else self.depth)
        needs = [name for name, used in (("distil", self.distil), ("start: teacher", student.start == "teacher")) if used]
        if needs and teacher is None:
            raise ValueError(f"{needs[0]} needs teacher, if only as {{}}")
        if teacher is not None and not needs:
            raise ValueError("teacher: neither distil nor start: teacher asks for one")
        if teacher is not None and self.noise_multiplier is not None:
            raise ValueError("noise_multiplier: the published number is of one stage; a teacher needs epsilon")
        shares = self.split is not None and self.epsilon is not None
        if (teacher is not None or self.budget == "student") and self.epsilon is not None and not shares:
            raise ValueError("split: two private stages need their shares of epsilon")
        if self.budget == "student" and (teacher is not None or not shares):
            raise ValueError("budget: student is for a private student without a teacher, which needs split")

    @property
    def depth(self) -> int:
        """Layers of the full model."""
        return self.layers or depth_of(self.model)

    @property
    def shape(self) -> tuple[str, int]:
        """(model, layers) of the result."""
        part, model = self.student or self.drop, None
        if self.student is not None:
            model = self.student.model or (self.teacher.model if self.teacher and self.student.start == "teacher" else None)
        return model or self.model, part.layers if part is not None else self.depth

    @property
    def target_epsilon(self) -> float | None:
        """Of all stages together."""
        shared = self.split is not None and (self.teacher is not None or self.budget == "student")
        return self.epsilon if self.epsilon is None or not shared else self.epsilon * self.split.total  # type: ignore[union-attr]

    def of_teacher(self) -> dict[str, Any]:
        """Return the settings of the teacher's run: those of the full model, with its share of epsilon."""
        teacher = self.teacher or Teacher()
        settings = self.model_dump(mode="json")
        for name in ("student", "teacher", "distil", "split", "budget", "save_model"):
            settings.pop(name, None)
        if self.epsilon is not None and self.split is not None:
            settings["epsilon"] = self.epsilon * self.split.teacher
        if teacher.model is not None:
            settings["layers"] = None
        for name in ("dataset", "model", "layers", "steps", "expected_batch_size"):
            if (value := getattr(teacher, name)) is not None:
                settings[name] = value
        for name in ("learning_rate", "head_learning_rate"):
            if (value := getattr(teacher, name)) is not None:
                settings["optimizer"][name] = value
        return settings

    def plan(self, rows: int, kept: int, seed: int, spent: tuple[Release, ...] = ()) -> Mechanism:
        """Return the mechanism of sampler, noise and accountant; after a teacher, with what the teacher spent.

        Args:
            rows, kept: as in `mechanism`; spent: by the teacher, empty where there is none.

        Guarantee: draws and noise are not the teacher's, and epsilon is that of both stages.

        Raises:
            DpbenchError: no noise multiplier reaches epsilon, or the teacher has spent it.
        """
        if self.student is not None:
            seed = stage_seed(seed, STUDENT)
        if self.clipping is not None and self.noise_multiplier is not None:
            return replace(self.without_noise(rows, kept, seed), noise_multiplier=self.noise_multiplier)
        if self.clipping is None or (self.teacher is None and self.budget == "whole"):
            return self.mechanism(rows, kept, seed)
        if not spent:  # a student without a teacher, or a check: the teacher's mechanism follows from its settings
            alone = parse(Settings, self.of_teacher(), "teacher")
            spent = (release_of(alone.mechanism(rows, kept, 0)),)
        assert self.target_epsilon is not None
        without_noise = replace(self.without_noise(rows, kept, seed), spent=spent)
        both = check_spent(calibrated(without_noise, self.target_epsilon), self.target_epsilon)
        return both if self.teacher is not None else replace(both, spent=(), target_epsilon=None)

    def epsilon_metrics(self, plan: Mechanism, privacy: Privacy | None) -> list[Metric]:
        """Return epsilon of all stages by PLD and by RDP, and the spent share of the epsilon that the settings name."""
        if privacy is None or privacy.epsilon is None:
            return [Metric(name="epsilon", value=None, text="none", unit="", note="no clipping and no noise")]
        metrics = [Metric(name="epsilon", value=privacy.epsilon, unit="", kind="counted")]
        if privacy.epsilon_rdp is not None:
            metrics.append(Metric(name="epsilon_rdp", value=privacy.epsilon_rdp, unit="", kind="counted"))
        if self.target_epsilon is not None:
            share = privacy.epsilon / (self.epsilon or 1.0)
            metrics.append(Metric(name="spent_share", value=share, unit="x", kind="counted"))
        return metrics


def uses(settings: Settings) -> Uses:
    """Return versions and sources that decide the numbers."""
    student = settings.student
    others = (student.model,) if student is not None and student.model is not None else ()
    return Uses(tuple(settings.deciding_plugins), (settings.dataset, PUBLIC), (settings.model, *others))


def parents(settings: Settings, seed: int) -> Parents:
    """Return the runs of the teacher of this seed, the public student and the timing of inference, which others share."""
    runs: Parents = {}
    gpu = int(settings.device == "cuda")
    threads = 4 if gpu else 1
    if settings.inference is not None:
        timing = settings.inference.model_dump(mode="json")
        runs["inference"] = ("inference", timing, 0, Resources(threads="all", minutes=0.5, mem_mb=4000))
    if settings.teacher is not None:
        room = Resources(threads=threads, minutes=2, mem_mb=6000, gpu=gpu)
        runs["teacher"] = ("compression", settings.of_teacher(), seed, room)
    if settings.student is not None and settings.student.distilled is not None:
        distilled = settings.student.distilled.model_dump(mode="json") | {"student_layers": settings.student.layers}
        distilled |= {name: getattr(settings, name) for name in ("model", "layers", "precision", "device")}
        lines = settings.student.distilled.steps * settings.student.distilled.batch_size
        minutes = max(0.4, lines / (100_000 if gpu else 2_500))  # a plan, as every table's
        room = Resources(threads=threads, minutes=minutes, mem_mb=6000, gpu=gpu)
        runs["public_student"] = ("public_student", distilled, 0, room)
    return runs
