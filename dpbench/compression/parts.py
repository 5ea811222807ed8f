"""What a compressed run says: a student and its teacher, layers to drop, weights to prune. No torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from dpbench import plugins
from dpbench.validation import Strict

LayerMap = Literal["spread", "first", "last"] | list[int]
MOST_SPARSE = 0.99


class PublicStudent(Strict):
    """A small model distilled from the large one on public text: used for a published compressed model where none is at
    hand. Made once for all runs that ask alike; it costs no privacy."""

    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="Lines of public text a step.")
    learning_rate: float = Field(gt=0)
    max_length: int = Field(32, ge=4)
    layer_map: LayerMap = "spread"


class Student(Strict):
    """A model of fewer layers.

    layers: how many; start: `random` layers on the public embeddings, `pretrained` public layers of the full model, the
    `teacher`'s layers and head, or a `public` compressed model: the plug-in `model`, or one distilled here.
    layer_map: which layers are copied.
    """

    layers: int = Field(ge=1)
    start: Literal["random", "pretrained", "teacher", "public"] = "pretrained"
    layer_map: LayerMap = "spread"
    model: str | None = None
    distilled: PublicStudent | None = None

    @model_validator(mode="after")
    def _one_start(self) -> Student:
        named = (self.model is not None) + (self.distilled is not None)
        if (self.start == "public") != (named == 1):
            raise ValueError("start: public needs exactly one of model and distilled, and no other start takes any")
        return self


class Distil(Strict):
    """The student's loss: (1 - weight) CE + weight x temperature^2 x KL(teacher || student) at that temperature."""

    weight: float = Field(ge=0, le=1, description="w")
    temperature: float = Field(2.0, gt=0, description="t")


class Split(Strict):
    """Shares of epsilon. The teacher alone spends `teacher` of it; the student's noise is such that both together, by one
    accountant, spend `teacher` + `student`."""

    teacher: float = Field(0.5, gt=0, lt=1)
    student: float = Field(0.5, gt=0, lt=1)

    @model_validator(mode="after")
    def _within(self) -> Split:
        if self.total > 1 + 1e-9:
            raise ValueError(f"teacher {self.teacher:g} and student {self.student:g} sum to {self.total:g}, which is more than 1")
        return self

    @property
    def total(self) -> float:
        return self.teacher + self.student


class Teacher(Strict):
    """The private model that a student learns from; what is None is as in the student's run."""

    dataset: str | None = None
    model: str | None = None
    layers: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    expected_batch_size: float | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    head_learning_rate: float | None = Field(None, gt=0)


class Drop(Strict):
    """Structured DPIMP: `block_steps` DP steps, then `at_once` layers go, again until `layers` are left; the other steps
    fine-tune.

    choose: `position`, the layers outside `layer_map`, from the `first` end on; `weights`, the layer whose weights have the
    smallest root mean square after the private steps. Neither looks at the data, so neither costs privacy.
    """

    layers: int = Field(ge=1)
    block_steps: int = Field(ge=1)
    at_once: int = Field(1, ge=1)
    choose: Literal["position", "weights"] = "position"
    layer_map: LayerMap = "spread"
    first: Literal["top", "bottom"] = "top"

    def blocks(self, depth: int) -> list[int]:
        """Return how many layers are dropped after each block."""
        full, last = divmod(depth - self.layers, self.at_once)
        return [self.at_once] * full + [last] * (last > 0)


class Prune(Strict):
    """Unstructured DPIMP: `steps` DP steps, every `every`-th of which sets the smallest weights to zero, at event j of J a
    share j/J x sparsity; then the surviving weights go back to their start and the other steps train them.

    scope: of the magnitudes' comparison. rewind: what goes back; the head has no public start, `all` takes it to zero or label
    words; `none` goes on from where it is.
    """

    sparsity: float = Field(0.5, gt=0, le=MOST_SPARSE)
    steps: int = Field(ge=1)
    every: int = Field(1, ge=1)
    scope: Literal["global", "tensor"] = "global"
    rewind: Literal["encoder", "all", "none"] = "encoder"

    @model_validator(mode="after")
    def _reaches(self) -> Prune:
        if self.steps % self.every:
            raise ValueError(f"every {self.every} does not divide steps {self.steps}: the last event is the last of these steps")
        return self

    def sparsity_after(self, step: int) -> float:
        """Share of the prunable weights that is zero after so many steps."""
        events, all_events = min(step, self.steps) // self.every, self.steps // self.every
        return self.sparsity * events / all_events


def depth_of(model: str) -> int:
    """Layers of an encoder plug-in."""
    return int(plugins.get("model", model).extra["architecture"]["num_hidden_layers"])


def vocabulary_of(model: str) -> int:
    """Tokens of an encoder plug-in."""
    return int(plugins.get("model", model).extra["architecture"]["vocab_size"])


def layer_map(choice: LayerMap, layers: int, depth: int) -> list[int]:
    """Return the numbers of the `layers` layers that are kept of a model of `depth`, in order.

    `spread`: every depth/layers-th from the first on (6 to 3: 0, 2, 4; 12 to 6: 0, 2, .. 10), as DistilBERT is initialized;
    `first`, `last`; or the layers' numbers.

    Raises:
        ValueError: more layers than there are, a number that is no layer, too many or too few, or not in rising order.
    """
    if not 1 <= layers <= depth:
        raise ValueError(f"layers {layers}: the model that they are taken from has {depth}")
    if isinstance(choice, list):
        if len(choice) != layers:
            raise ValueError(f"layer_map {choice}: {len(choice)} layers, where layers says {layers}")
        if bad := [k for k in choice if not 0 <= k < depth]:
            raise ValueError(f"layer_map {choice}: {bad[0]} is out of range, the layers are 0 to {depth - 1}")
        if any(b <= a for a, b in pairwise(choice)):
            raise ValueError(f"layer_map {choice}: layers must rise, none twice")
        return list(choice)
    if choice == "first":
        return list(range(layers))
    if choice == "last":
        return list(range(depth - layers, depth))
    return [k * depth // layers for k in range(layers)]


def drop_order(kept: list[int], depth: int, first: Literal["top", "bottom"]) -> list[int]:
    """Return the layers to drop by position, one after another: those not kept, from the top down or from the bottom up."""
    dropped = [k for k in range(depth) if k not in kept]
    return dropped[::-1] if first == "top" else dropped
