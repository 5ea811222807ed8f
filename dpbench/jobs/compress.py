"""Train a text classifier under a budget and make it small: by distillation into a student, by dropping layers, by pruning."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from dpbench.composition import Composition, Release, calibrated_beside, release_in, release_of, stage_seed
from dpbench.compression.layers import layer_map
from dpbench.compression.settings import (
    Distil,
    Drop,
    Inference,
    Prune,
    Split,
    Student,
    Teacher,
    classes_of,
    depth_of,
    vocabulary_of,
)
from dpbench.errors import DpbenchError
from dpbench.jobs import classify
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.features import PUBLIC
from dpbench.mechanism import Mechanism, Sampling
from dpbench.records.schema import Metric, Privacy
from dpbench.spec.expand import Uses
from dpbench.spec.models import Resources
from dpbench.spec.sources import Source
from dpbench.validation import parse

PLUGIN = {
    "kind": "job",
    "name": "compress",
    "version": 1,
    "summary": "train a text classifier, or a compressed one, and measure its accuracy, size and speed",
    "parents": ["compress", "inference", "public_student"],
}

STUDENT = "student"
"""Name of the stage whose draws and noise all students of a seed have, so that they are paired."""


class Settings(classify.Settings):
    """One cell: a task, a model, a budget, and at most one of student, drop and prune.

    Without any the whole model is trained, and leaves its weights to those that learn from it. `model` and `layers` are the
    whole model's. epsilon: of all stages together.
    """

    takes_zeroth: ClassVar[bool] = False

    steps: int = Field(ge=1, description="Of this run's stage.")
    training: Literal["full", "features"] = "full"
    noise_multiplier: float | None = Field(
        None, gt=0, exclude_if=lambda v: v is None, description="As published, in place of epsilon, which is then what it means."
    )
    student: Student | None = Field(None, exclude_if=lambda v: v is None)
    teacher: Teacher | None = Field(None, exclude_if=lambda v: v is None)
    distil: Distil | None = Field(None, exclude_if=lambda v: v is None)
    split: Split | None = Field(None, exclude_if=lambda v: v is None)
    budget: Literal["whole", "student"] = Field(
        "whole",
        exclude_if=lambda v: v == "whole",
        description="student: without a teacher, but with the noise of a student that has one under `split`.",
    )
    drop: Drop | None = Field(None, exclude_if=lambda v: v is None)
    prune: Prune | None = Field(None, exclude_if=lambda v: v is None)
    inference: Inference | None = Field(None, exclude_if=lambda v: v is None)
    curve_points: int = Field(5, ge=1, description="Evaluations along training.")
    save_model: bool = Field(False, exclude_if=lambda v: not v, description="A compressed model leaves its weights, too.")

    @model_validator(mode="after")
    def _private_or_not(self) -> Settings:
        private = self.plugin.extra["private"]
        given = (self.epsilon is not None) + (self.noise_multiplier is not None)
        if private and (self.clipping is None or given != 1):
            raise ValueError(f"engine {self.engine} needs clipping and one of epsilon and noise_multiplier")
        if not private and (self.clipping is not None or given):
            raise ValueError(f"engine {self.engine} takes neither clipping nor epsilon nor noise_multiplier")
        return self

    @model_validator(mode="after")
    def _compresses(self) -> Settings:
        if self.training != "full" or self.head not in ("zero", "label_words"):
            raise ValueError("compress trains whole encoders: training full, head zero or label_words")
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
        if teacher is not None and teacher.task is not None and classes_of(teacher.task) != classes_of(self.task):
            raise ValueError(
                f"teacher.task: {teacher.task} has other classes than {self.task}: teacher and student must share them"
            )
        layer_map(student.layer_map, student.layers, depth if student.start == "teacher" else self.depth)
        needs = [n for n, wanted in (("distil", self.distil), ("start: teacher", student.start == "teacher")) if wanted]
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
        """Layers of the whole model."""
        return self.layers or depth_of(self.model)

    @property
    def shape(self) -> tuple[str, int]:
        """(model, layers) of the result."""
        part, own = self.student or self.drop, None
        if self.student is not None:
            own = self.student.model or (self.teacher.model if self.teacher and self.student.start == "teacher" else None)
        return own or self.model, part.layers if part is not None else self.depth

    @property
    def compresses(self) -> bool:
        return any(part is not None for part in (self.student, self.drop, self.prune))

    @property
    def target_epsilon(self) -> float | None:
        """Of all stages together."""
        shared = self.split is not None and (self.teacher is not None or self.budget == "student")
        return self.epsilon if self.epsilon is None or not shared else self.epsilon * self.split.whole  # type: ignore[union-attr]

    def of_teacher(self) -> dict[str, Any]:
        """Settings of the teacher's run: the whole model's, with its share of epsilon."""
        own = self.teacher or Teacher()
        found = self.model_dump(mode="json")
        for name in ("student", "teacher", "distil", "split", "budget", "save_model"):
            found.pop(name, None)
        if self.epsilon is not None and self.split is not None:
            found["epsilon"] = self.epsilon * self.split.teacher
        if own.model is not None:
            found["layers"] = None
        for name in ("task", "model", "layers", "steps", "expected_batch_size"):
            if (value := getattr(own, name)) is not None:
                found[name] = value
        for name in ("learning_rate", "head_learning_rate"):
            if (value := getattr(own, name)) is not None:
                found["optimizer"][name] = value
        return found

    def plan(self, rows: int, kept: int, seed: int, spent: tuple[Release, ...] = ()) -> Mechanism | Composition:
        """The mechanism that sampler, noise and accountant are made from; behind a teacher, with what that has spent.

        Args:
            rows, kept: as in `mechanism`; spent: by the teacher, empty where there is none.

        Guarantee: draws and noise are not the teacher's, and epsilon is that of both stages.

        Raises:
            DpbenchError: no noise multiplier reaches epsilon, or the teacher has spent it.
        """
        if self.student is not None:
            seed = stage_seed(seed, STUDENT)
        if self.clipping is None:
            return self.mechanism(rows, kept, seed)
        delta = {"1/(2n)": 1 / (2 * rows), "n^-1.1": rows**-1.1}.get(str(self.delta)) or float(self.delta)
        sampling = Sampling(self.sampler, kept, min(self.expected_batch_size, kept))
        rest: dict[str, Any] = {"relation": self.relation, "seed": seed, "caveats": tuple(self.caveats)}
        if self.noise_multiplier is not None:
            return Mechanism(sampling, self.steps, self.clipping.made(), self.noise_multiplier, delta, **rest)
        if self.teacher is None and self.budget == "whole":
            return self.mechanism(rows, kept, seed)
        if not spent:  # a student without a teacher, or a check: the teacher's mechanism follows from its settings
            alone = parse(Settings, self.of_teacher(), "teacher")
            spent = (release_of(alone.mechanism(rows, kept, 0)),)
        assert self.target_epsilon is not None
        both = calibrated_beside(spent, sampling, self.steps, self.clipping.made(), self.target_epsilon, delta, **rest)
        return both if self.teacher is not None else both.own


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    student = settings.student
    others = (student.model,) if student is not None and student.model is not None else ()
    return Uses(tuple(settings.deciding_plugins), (settings.task, PUBLIC), (settings.model, *others))


def parents(settings: Settings, seed: int) -> dict[str, tuple[str, dict[str, Any], int, Resources]]:
    """The teacher of this seed, the public student, the timing of inference: each made once for all that ask alike."""
    found: dict[str, tuple[str, dict[str, Any], int, Resources]] = {}
    gpu = int(settings.device == "cuda")
    threads = 4 if gpu else 1
    if settings.inference is not None:
        timing = settings.inference.model_dump(mode="json")
        found["inference"] = ("inference", timing, 0, Resources(threads="all", minutes=0.5, mem_mb=4000))
    if settings.teacher is not None:
        room = Resources(threads=threads, minutes=2, mem_mb=6000, gpu=gpu)
        found["teacher"] = ("compress", settings.of_teacher(), seed, room)
    if settings.student is not None and settings.student.distilled is not None:
        wanted = settings.student.distilled.model_dump(mode="json") | {
            "model": settings.model,
            "layers": settings.layers,
            "student_layers": settings.student.layers,
            "precision": settings.precision,
            "device": settings.device,
        }
        lines = settings.student.distilled.steps * settings.student.distilled.batch_size
        minutes = max(0.4, lines / (100_000 if gpu else 2_500))  # a plan, as every table's
        found["public_student"] = ("public_student", wanted, 0, Resources(threads=threads, minutes=minutes, mem_mb=6000, gpu=gpu))
    return found


def run(settings: Settings, context: Context) -> Outcome:
    """Train, compress, evaluate along the way, and measure what is left.

    Raises:
        DpbenchError: no such device, the mechanism is out of reach, a guard of the engine or of pruning stopped the run.
    """
    from dpbench.jobs import compressing
    from dpbench.jobs.throughput import require_device
    from dpbench.runner import privacy_of

    require_device(settings.device)
    task = compressing.CompressedTask(settings, context)
    spent: tuple[Release, ...] = ()
    teacher = {}
    if settings.teacher is not None:
        record = context.parent("teacher")
        spent = () if settings.clipping is None else (release_in(record.mechanism),)
        teacher = {"teacher_run": record.run, "teacher_curve": record.facts.get("curve", [])}
    plan = settings.plan(task.rows, len(task), context.seed, spent)
    own = plan.own if isinstance(plan, Composition) else plan
    if settings.teacher is not None and record.mechanism is not None and record.mechanism["seed"] == own.seed:
        raise DpbenchError("teacher and student have one seed, so the same noise twice", "report this: it is a fault of the job")
    done = compressing.train(settings, task, own, context)
    privacy = privacy_of(plan)
    facts = {
        "train_rows": task.rows,
        "rows_drawn_from": len(task),
        "evaluated_rows": done.curve.rows,
        "curve": done.curve.points,
        **teacher,
        **done.fitted.facts,
        **task.facts,
        **done.facts,
    }
    start, end = done.curve.points[0][1], done.curve.points[-1][1]
    metrics = [metric("accuracy", end, "%"), metric("gained", end - start, "%"), *epsilon_metrics(settings, privacy)]
    metrics += [*compressing.size_metrics(settings, task, done), *timed(settings, context), *done.fitted.metrics]
    artefacts = task.save(context.out) if settings.save_model or not settings.compresses else []
    return Outcome(
        metrics,
        plan.describe(),
        privacy,
        facts,
        artefacts,
        warnings=[*done.fitted.warnings, *settings.without_effect, *task.warnings],
        device=settings.device,
    )


def epsilon_metrics(settings: Settings, privacy: Privacy | None) -> list[Metric]:
    """Epsilon of all stages by PLD and by RDP, and the first one's share of what was asked for."""
    if privacy is None or privacy.epsilon is None:
        return [Metric(name="epsilon", value=None, text="none", unit="", note="no clipping and no noise")]
    found = [Metric(name="epsilon", value=privacy.epsilon, unit="", kind="counted")]
    if privacy.epsilon_rdp is not None:
        found.append(Metric(name="epsilon_rdp", value=privacy.epsilon_rdp, unit="", kind="counted"))
    if settings.target_epsilon is not None:
        share = privacy.epsilon / (settings.epsilon or 1.0)
        found.append(Metric(name="spent_share", value=share, unit="x", kind="counted"))
    return found


def timed(settings: Settings, context: Context) -> list[Metric]:
    """Latency and throughput of this run's shape, from the run that timed all shapes in turn."""
    names = {"latency": "ms", "throughput": "examples/s"}
    if settings.inference is None:
        return [Metric(name=n, value=None, unit=u, note="inference is not timed at this tier") for n, u in names.items()]
    record = context.parent("inference")
    wanted = {"model": settings.shape[0], "layers": str(settings.shape[1])}
    own = [m for m in record.metrics if m.labels == wanted and m.name in names]
    return [m.model_copy(update={"labels": {}}) for m in own]


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema, the model on the meta device with its engine, and the budget of all stages."""
    from dpbench.data import registry as datasets
    from dpbench.jobs import compressing, training
    from dpbench.jobs.fitting import proven

    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.task, PUBLIC)}
    model = compressing.meta_model(settings, sources).train()
    count = rows[settings.task].get("train")
    own = settings.mechanism_of(None) if not count else settings.plan(count, count, 0)
    plan = own.own if isinstance(own, Composition) else own
    remarks = proven(settings.engine, model, training.optimizer(settings.optimizer, model), plan)
    if isinstance(own, Composition):
        remarks.append(f"epsilon {own.epsilon():.3f} with its teacher")
    return remarks
