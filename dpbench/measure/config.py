"""Settings of timed training steps, on one process or several. No torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Literal

from pydantic import Field, model_validator

from dpbench import methods, plugins
from dpbench.measure.rounds import seconds_per_call, turns
from dpbench.methods import timing
from dpbench.models.language import language_model_family
from dpbench.privacy.mechanism import Clipping, Mechanism
from dpbench.spec.expand import Uses
from dpbench.training.config import AdaptiveSettings
from dpbench.validation import Strict

BASELINE = "nonprivate"


class StepSettings(Strict):
    """Settings of timed steps, on one process or several; every engine has the same tokens and the same weights."""

    dataset: str = "wikitext2"
    size: str = Field(description="Size of the GPT-2, Llama or OPT family; or an encoder's name: a classifier of two classes.")
    tokens: int = Field(ge=2, description="T, tokens an example.")
    batch_size: int = Field(ge=1, description="B, examples a step, of all processes together.")
    methods: list[str] = Field(min_length=1, description="Engines, zeroth-order methods, or inference: a forward pass alone.")
    device: Literal["cpu", "cuda"] = "cpu"
    function: str = "abadi"
    bound: float = 1.0
    noise_multiplier: float = 1.0
    learning_rate: float = 1e-4
    rounds: int = Field(5, ge=1, description="Every engine is measured once a round, in turn.")
    steps: int = Field(2, ge=1, description="Timed steps of an engine in a round.")
    warmup: int = Field(1, ge=1, description="Steps before them, not timed.")
    adaptive: AdaptiveSettings | None = Field(
        None, exclude_if=lambda v: v is None, description="Thresholds of the engines that do such; others keep fixed ones."
    )

    @property
    def classifies(self) -> bool:
        """Return whether `size` names an encoder."""
        plugin = plugins.discover("model").get(self.size)
        return plugin is not None and plugin.extra["family"] in ("bert", "roberta")

    def scope_of(self, engine: str) -> str | None:
        """Return the scope that an engine is measured with: the first that it declares; None for the non-private one."""
        return timing.scope_of(engine)

    def uses(self) -> Uses:
        """Return the plug-in versions and sources that determine the numbers."""
        engines = timing.plugins_of(self.methods)
        scopes = tuple(dict.fromkeys(("scope", s) for s in map(self.scope_of, self.methods) if s))
        policies = (("threshold", "adaptive"),) if self.adaptive is not None else ()
        encoders = (("model", self.size),) if self.classifies else ()  # with random weights: no source of it counts
        return Uses(
            plugins=(*engines, *scopes, ("function", self.function), *policies, *encoders),
            datasets=(self.dataset,),
            models=() if encoders else (language_model_family(self.size),),
        )

    def rounds_of(self, engine: str) -> int:
        """Return the number of rounds of an engine."""
        return self.rounds

    def mechanism(self, engine: str) -> Mechanism:
        """Return the mechanism of one engine in a timed step."""
        scope, steps = self.scope_of(engine), self.rounds_of(engine) * (self.steps + self.warmup)
        adapts = methods.kind_of(engine) == "engine" and plugins.get("engine", engine).extra.get("adaptive")
        adaptive = self.adaptive.build() if self.adaptive is not None and adapts else None
        clipping = Clipping(self.function, scope, self.bound, adaptive=adaptive) if scope else None
        return timing.mechanism_of(self.batch_size, clipping, self.noise_multiplier, steps, timing.noise_of(engine))

    def seconds_per_step(self, step: Callable[[], None], wait: Callable[[], None]) -> float:
        """Return the seconds of a step after the warm-up; `wait` returns when all pending work is done."""
        for _ in range(self.warmup):
            step()
        gc.collect()
        return seconds_per_call(step, self.steps, wait)


class Closer(Strict):
    """More rounds for engines that differ too little for the common rounds; they are measured in turn, without the others."""

    methods: list[str] = Field(min_length=2)
    rounds: int = Field(ge=1, description="After the common ones.")


class ThroughputSettings(StepSettings):
    """Settings of one row of cells: a model, a length, a batch size."""

    tied: bool = False
    micro_batch: int | None = Field(
        None, ge=1, exclude_if=lambda v: v is None, description="Examples a backward pass, if not B: the step adds them up."
    )
    lora_rank: int | None = Field(
        None, ge=1, exclude_if=lambda v: v is None, description="Train low-rank adapters of attention, and a classifier's head."
    )
    dtype: Literal["float32", "bfloat16", "float16", "amp"] = Field(
        "float32", description="Of the weights; amp: float32 weights, products in bfloat16 by autocast."
    )
    kernels: Literal["auto", "torch", "native", "triton"] = Field(
        "auto", exclude_if=lambda v: v == "auto", description="What forms norms and sums in engines of ours; see engines.attach."
    )

    closer: Closer | None = Field(None, exclude_if=lambda v: v is None)

    def rounds_of(self, engine: str) -> int:
        """Return the number of rounds of an engine."""
        return self.rounds + (self.closer.rounds if self.closer is not None and engine in self.closer.methods else 0)

    def turns(self, engines: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield (round, its engines in order): the common rounds, then those of `closer`."""
        yield from turns(engines, range(self.rounds))
        if self.closer is not None:
            close = [engine for engine in engines if engine in self.closer.methods]
            yield from turns(close, range(self.rounds, self.rounds + self.closer.rounds))

    @model_validator(mode="after")
    def _closer_methods_are_there(self) -> ThroughputSettings:
        for engine in self.closer.methods if self.closer is not None else []:
            if engine not in self.methods:
                raise ValueError(f"closer: {engine!r} is not one of methods: {', '.join(self.methods)}")
        if self.lora_rank is not None and not self.classifies:
            raise ValueError(f"lora_rank: adapters are timed on encoders alone, and {self.size} is none")
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch {self.micro_batch} is more than batch_size {self.batch_size}")
        return self


WAYS = {"ddp": "replicas", "fsdp": "shards", "gpipe": "stages", "1f1b": "stages"}
"""Mode -> the distributed form that an engine must support."""


class ParallelSettings(StepSettings):
    """Settings of one row of cells: a model, a mode, a number of processes."""

    mode: Literal["ddp", "fsdp", "gpipe", "1f1b"] = Field(description="ddp, fsdp: data parallel; gpipe, 1f1b: a pipeline.")
    processes: int = Field(ge=1, description="One a GPU; on a CPU they share its cores.")
    micro_batch: int | None = Field(
        None, ge=1, description="Examples a backward pass of one process; None: its whole share, or for a pipeline B / processes."
    )
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def pipeline(self) -> bool:
        return WAYS[self.mode] == "stages"

    def scope_of(self, engine: str) -> str | None:
        """Return the scope as on one process; in a pipeline per_layer."""
        scope = super().scope_of(engine)
        return "per_layer" if scope and self.pipeline else scope

    @property
    def share(self) -> int:
        """Return the examples of a step that one process computes."""
        return self.batch_size if self.pipeline else self.batch_size // self.processes

    @property
    def physical(self) -> int:
        """Return the examples of a backward pass of one process."""
        return self.micro_batch or max(self.batch_size // self.processes, 1)

    @model_validator(mode="after")
    def _divisible(self) -> ParallelSettings:
        if not self.pipeline and self.batch_size % self.processes:
            raise ValueError(
                f"batch_size {self.batch_size} is not divisible by {self.processes} processes: their shares would differ"
            )
        if self.share % self.physical:
            raise ValueError(f"micro_batch {self.physical} does not divide the {self.share} examples of a process")
        if self.mode == "1f1b" and self.share // self.physical < self.processes:
            raise ValueError(f"1f1b on {self.processes} stages wants as many micro-batches, or more: lower micro_batch")
        return self
