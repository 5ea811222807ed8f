"""Memory and throughput of training steps, engines measured in turn inside one run."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dpbench import methods, plugins
from dpbench.errors import DpbenchError
from dpbench.jobs.clipping import AdaptiveSettings
from dpbench.jobs.contract import Context, Outcome, over_rounds
from dpbench.jobs.memory import Peaks, is_out_of_memory, measure_memory, out_of_memory
from dpbench.mechanism import Clipping, Mechanism
from dpbench.models.language import language_model_family
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {"kind": "job", "name": "throughput", "version": 1, "summary": "memory and throughput of training steps"}

BASELINE = "nonprivate"


class StepSettings(Strict):
    """What is said of timed steps, on one process or several; every engine on the same tokens and the same weights."""

    dataset: str = "wikitext2"
    size: str = Field(description="Size of the GPT-2, Llama or OPT family; or an encoder's name: a classifier of two classes.")
    tokens: int = Field(ge=2, description="T, tokens an example.")
    batch_size: int = Field(ge=1, description="B, examples a step, of all processes together.")
    engines: list[str] = Field(min_length=1, description="Engines, zeroth-order methods, or inference: a forward pass alone.")
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
        """Whether `size` names an encoder."""
        plugin = plugins.discover("model").get(self.size)
        return plugin is not None and plugin.extra["family"] in ("bert", "roberta")

    def scope_of(self, engine: str) -> str | None:
        """The scope an engine is measured with: the first it declares; None for the non-private one."""
        return methods.scope_of(engine)

    def uses(self) -> Uses:
        """Versions and sources that decide the numbers."""
        engines = methods.plugins_of(self.engines)
        scopes = tuple(dict.fromkeys(("scope", s) for s in map(self.scope_of, self.engines) if s))
        policies = (("threshold", "adaptive"),) if self.adaptive is not None else ()
        encoders = (("model", self.size),) if self.classifies else ()  # with random weights: no source of it counts
        return Uses(
            plugins=(*engines, *scopes, ("function", self.function), *policies, *encoders),
            datasets=(self.dataset,),
            models=() if encoders else (language_model_family(self.size),),
        )

    def rounds_of(self, engine: str) -> int:
        """How often an engine is measured."""
        return self.rounds

    def mechanism(self, engine: str) -> Mechanism:
        """What one engine does in a timed step."""
        scope, steps = self.scope_of(engine), self.rounds_of(engine) * (self.steps + self.warmup)
        adapts = methods.kind_of(engine) == "engine" and plugins.get("engine", engine).extra.get("adaptive")
        adaptive = self.adaptive.made() if self.adaptive is not None and adapts else None
        clipping = Clipping(self.function, scope, self.bound, adaptive=adaptive) if scope else None
        return methods.of_timing(self.batch_size, clipping, self.noise_multiplier, steps, methods.noise_of(engine))

    def seconds_per_step(self, step: Callable[[], None], wait: Callable[[], None]) -> float:
        """After the warm-up, between two waits for all that is under way."""
        for _ in range(self.warmup):
            step()
        gc.collect()
        wait()
        begun = time.perf_counter()
        for _ in range(self.steps):
            step()
        wait()
        return (time.perf_counter() - begun) / self.steps


class Closer(Strict):
    """Engines that differ too little for the common rounds: measured on, in turn, without the others."""

    engines: list[str] = Field(min_length=2)
    rounds: int = Field(ge=1, description="After the common ones.")


class Settings(StepSettings):
    """One cell row: a model, a length, a batch size."""

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
        """How often an engine is measured."""
        return self.rounds + (self.closer.rounds if self.closer is not None and engine in self.closer.engines else 0)

    def turns(self, engines: list[str]) -> Iterator[tuple[int, list[str]]]:
        """(round, the engines that it measures, one after another). The order turns: no engine always follows the same one."""
        common = engines
        for number in range(self.rounds + (self.closer.rounds if self.closer is not None else 0)):
            if self.closer is not None and number >= self.rounds:
                common = [engine for engine in engines if engine in self.closer.engines]
            turn = number % max(len(common), 1)
            yield number, common[turn:] + common[:turn]

    @model_validator(mode="after")
    def _stands(self) -> Settings:
        for engine in self.closer.engines if self.closer is not None else []:
            if engine not in self.engines:
                raise ValueError(f"closer: {engine!r} is not one of engines: {', '.join(self.engines)}")
        if self.lora_rank is not None and not self.classifies:
            raise ValueError(f"lora_rank: adapters are timed on encoders alone, and {self.size} is none")
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise ValueError(f"micro_batch {self.micro_batch} is more than batch_size {self.batch_size}")
        return self


def uses(settings: Settings) -> Uses:
    """Versions and sources that decide the numbers."""
    return settings.uses()


def run(settings: Settings, context: Context) -> Outcome:
    """Memory first, in a fresh process an engine; then timed rounds, A B C A B C ... An engine that does not fit is `OOM`.

    Raises:
        DpbenchError: no such device.
    """
    import torch

    from dpbench.engines import gaussian
    from dpbench.kernels.linear import native

    require_device(settings.device)
    ids, facts = batch_ids(settings, context.sources[f"dataset:{settings.dataset}"])
    runnable, metrics = skip_missing(settings.engines)
    total = len(runnable) + sum(map(settings.rounds_of, runnable))
    done = 0
    memory: dict[str, Peaks] = {}
    context.report(done, total, "memory")
    for engine, found in measure_memory(settings, list(runnable), ids, context):
        if isinstance(found, str):
            runnable.remove(engine)
            metrics += empty_metrics(engine, found)
        else:
            memory[engine] = found
        done += 1
        context.report(done, total, f"memory of {engine}")
    torch.set_num_threads(context.threads)
    facts["noise_is_compiled"] = settings.device == "cpu" and gaussian.compiled() is not None
    facts["kernels_are_compiled"] = settings.device == "cpu" and settings.kernels != "torch" and native.unavailable() is None
    facts["freed_memory_is_kept"] = keep_freed_memory() if settings.device == "cpu" else True
    rounds, lost = _rounds(settings, context, ids, runnable, done, total) if runnable else ({}, {})
    for engine, why in lost.items():
        metrics += empty_metrics(engine, why)
    for engine in rounds:
        metrics += metrics_of(settings, engine, rounds, memory)
    facts["mechanisms"] = {engine: settings.mechanism(engine).describe() for engine in runnable}
    return Outcome(metrics, facts=facts, device=settings.device)


def _rounds(
    settings: Settings, context: Context, ids: np.ndarray, engines: list[str], done: int, total: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds a step of every engine in every round, engines that ran out of memory and at what)."""
    from dpbench.jobs.bench import Bench

    bench = Bench(settings, ids, context.seed)
    found: dict[str, list[float]] = {engine: [] for engine in engines}
    lost: dict[str, str] = {}
    for number, wanted in settings.turns(engines):
        for engine in wanted:
            done += 1
            if engine in lost:
                continue
            context.report(done - 1, total, f"round {number + 1} of {engine}")
            try:
                seconds = bench.timed(engine)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                lost[engine] = out_of_memory(settings, error)
                del found[engine]
                bench.optimizer.zero_grad()
                continue
            found[engine].append(seconds)
            context.steps.write(round=number, engine=engine, seconds_per_step=seconds)
    return found, lost


def metrics_of(settings: StepSettings, engine: str, rounds: dict[str, list[float]], memory: dict[str, Peaks]) -> list[Metric]:
    tokens = settings.batch_size * settings.tokens
    own, labels = memory[engine], {"engine": engine}
    found = [
        over_rounds("throughput", "tokens/s", labels, [tokens / s for s in rounds[engine]]),
        over_rounds("seconds_per_step", "s", labels, rounds[engine]),
        over_rounds("peak_memory", "MiB", labels, [b / 2**20 for b in own["tensors"]]),
    ]
    if own["process"]:
        found.append(Metric(name="process_peak", value=own["process"] / 2**20, unit="MiB", labels=labels))
    if BASELINE in rounds:
        ratios = [base / s for base, s in zip(rounds[BASELINE], rounds[engine], strict=False)]  # some have more, see Closer
        found.append(over_rounds("throughput_ratio", "x", labels, ratios))
        ratios = [b / base for b, base in zip(own["tensors"], memory[BASELINE]["tensors"], strict=True)]
        found.append(over_rounds("memory_ratio", "x", labels, ratios))
    return found


def empty_metrics(engine: str, why: str) -> list[Metric]:
    units = {"throughput": "tokens/s", "seconds_per_step": "s", "throughput_ratio": "x"}
    units |= {"peak_memory": "MiB", "memory_ratio": "x", "process_peak": "MiB"}
    text = "OOM" if why.startswith("OOM") else ""
    labels = {"engine": engine}
    return [Metric(name=name, value=None, unit=unit, labels=labels, note=why, text=text) for name, unit in units.items()]


def skip_missing(engines: list[str]) -> tuple[list[str], list[Metric]]:
    """Engines whose package is there, and empty metrics that say why for the others."""
    runnable, metrics = [], []
    for engine in engines:
        if missing := methods.missing(engine):
            metrics += empty_metrics(engine, f"skipped: {missing}")
        else:
            runnable.append(engine)
    return runnable, metrics


def batch_ids(settings: StepSettings, source: Source) -> tuple[np.ndarray, dict[str, Any]]:
    """The step's tokens [B, T] from the public text, and what they were made with."""
    from dpbench.data import registry as datasets
    from dpbench.data.tokenizer import bpe, token_blocks
    from dpbench.models import registry as models

    if settings.classifies:
        vocabulary = plugins.get("model", settings.size).extra["architecture"]["vocab_size"]
    else:
        vocabulary = models.language_model_size(settings.size)["vocabulary"]
    tokenizer, sha256 = bpe(settings.dataset, min(vocabulary, 8192), source)
    texts = datasets.load(settings.dataset, "train", source).columns["text"]
    ids = token_blocks(tokenizer, texts, settings.tokens, limit=settings.batch_size)
    if len(ids) < settings.batch_size:
        raise DpbenchError(
            f"{settings.dataset} fills {len(ids)} blocks of {settings.tokens}", "use a smaller batch or shorter blocks"
        )
    return ids, {"tokenizer_sha256": sha256, "tokenizer_vocabulary": tokenizer.get_vocab_size()}


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory, as CUDA's caching allocator does: else page faults, not engines, are timed.

    Returns False where there is no glibc.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    return all(mallopt(option, value) for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)))


def require_device(device: str) -> None:
    """Stop before long work if the device is not there.

    Raises:
        DpbenchError: no CUDA device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DpbenchError("this run needs a CUDA device and none is available", "choose another tier, or run on a GPU machine")


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: the model on the meta device, every engine attached; returns remarks.

    Raises:
        DpbenchError: an engine that cannot protect the model.
    """
    runnable, metrics = skip_missing(settings.engines)
    remarks = sorted({f"{m.labels['engine']}: {m.note}" for m in metrics})
    from dpbench.jobs.bench import Bench

    bench = Bench(settings, np.zeros((settings.batch_size, settings.tokens), dtype=np.int64), seed=0, meta=True)
    for engine in runnable:
        attached = bench.attach(engine)
        if attached.unprotected:
            raise DpbenchError(f"engine {engine} leaves {attached.unprotected[0]} unprotected")
        attached.detach()
    steppers = [methods.kind_of(engine) == "engine" for engine in runnable]
    trained = sum(p.numel() * p.element_size() for p in bench.model.parameters() if p.requires_grad)
    floor = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    floor += 3 * trained * any(steppers)  # gradients and two moments
    remarks.append(
        f"{sum(p.numel() for p in bench.model.parameters()) / 1e6:.1f} M parameters, at least {math.ceil(floor / 2**20)} MiB"
    )
    return remarks
