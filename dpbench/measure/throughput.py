"""Memory and throughput of training steps, engines measured in turn inside one run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpbench import methods, plugins
from dpbench.errors import DpbenchError, is_out_of_memory
from dpbench.execution.contract import Context, Outcome, over_rounds
from dpbench.execution.environment import require_device
from dpbench.measure.config import BASELINE, StepSettings
from dpbench.measure.config import ThroughputSettings as Settings
from dpbench.measure.memory import Peaks, measure_memory, out_of_memory
from dpbench.measure.rounds import split_missing, unmeasured
from dpbench.methods import timing
from dpbench.records.schema import Metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source

UNITS = {"throughput": "tokens/s", "seconds_per_step": "s", "throughput_ratio": "x"}
UNITS |= {"peak_memory": "MiB", "memory_ratio": "x", "process_peak": "MiB"}


def uses(settings: Settings) -> Uses:
    """Return the plug-in versions and sources that determine the numbers."""
    return settings.uses()


def run(settings: Settings, context: Context) -> Outcome:
    """Measure memory, in a fresh process for each engine, then timed rounds, A B C A B C ... An engine without room is `OOM`.

    Raises:
        DpbenchError: there is no such device.
    """
    import torch

    from dpbench.kernels.linear import native
    from dpbench.privacy import gaussian

    require_device(settings.device)
    ids, facts = batch_ids(settings, context.sources[f"dataset:{settings.dataset}"])
    runnable, reasons = split_missing(settings.methods)
    total = len(runnable) + sum(map(settings.rounds_of, runnable))
    done = 0
    memory: dict[str, Peaks] = {}
    context.report(done, total, "memory")
    for engine, peaks_or_reason in measure_memory(settings, list(runnable), ids, context):
        if isinstance(peaks_or_reason, str):
            runnable.remove(engine)
            reasons[engine] = peaks_or_reason
        else:
            memory[engine] = peaks_or_reason
        done += 1
        context.report(done, total, f"memory of {engine}")
    torch.set_num_threads(context.threads)
    facts["noise_is_compiled"] = settings.device == "cpu" and gaussian.compiled() is not None
    facts["kernels_are_compiled"] = settings.device == "cpu" and settings.kernels != "torch" and native.unavailable() is None
    facts["freed_memory_is_kept"] = keep_freed_memory() if settings.device == "cpu" else True
    rounds, reasons_of_rounds = _rounds(settings, context, ids, runnable, done, total) if runnable else ({}, {})
    metrics = [m for engine, why in (reasons | reasons_of_rounds).items() for m in unmeasured(UNITS, {"engine": engine}, why)]
    for engine in rounds:
        metrics += metrics_of(settings, engine, rounds, memory)
    facts["mechanisms"] = {engine: settings.mechanism(engine).describe() for engine in runnable}
    return Outcome(metrics, facts=facts, device=settings.device)


def _rounds(
    settings: Settings, context: Context, ids: np.ndarray, engines: list[str], done: int, total: int
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return (seconds of a step of every engine in every round, reasons of the engines that ran out of memory)."""
    from dpbench.measure.bench import Bench

    bench = Bench(settings, ids, context.seed)
    seconds_of_engine: dict[str, list[float]] = {engine: [] for engine in engines}
    reasons: dict[str, str] = {}
    for number, engines_of_round in settings.turns(engines):
        for engine in engines_of_round:
            done += 1
            if engine in reasons:
                continue
            context.report(done - 1, total, f"round {number + 1} of {engine}")
            try:
                seconds = bench.timed(engine)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reasons[engine] = out_of_memory(settings, error)
                del seconds_of_engine[engine]
                bench.optimizer.zero_grad()
                continue
            seconds_of_engine[engine].append(seconds)
            context.steps.write(round=number, engine=engine, seconds_per_step=seconds)
    return seconds_of_engine, reasons


def metrics_of(settings: StepSettings, engine: str, rounds: dict[str, list[float]], memory: dict[str, Peaks]) -> list[Metric]:
    tokens = settings.batch_size * settings.tokens
    peaks, labels = memory[engine], {"engine": engine}
    metrics = [
        over_rounds("throughput", "tokens/s", labels, [tokens / s for s in rounds[engine]]),
        over_rounds("seconds_per_step", "s", labels, rounds[engine]),
        over_rounds("peak_memory", "MiB", labels, [b / 2**20 for b in peaks["tensors"]]),
    ]
    if peaks["process"]:
        metrics.append(Metric(name="process_peak", value=peaks["process"] / 2**20, unit="MiB", labels=labels))
    if BASELINE in rounds:
        ratios = [base / s for base, s in zip(rounds[BASELINE], rounds[engine], strict=False)]  # some have more, see Closer
        metrics.append(over_rounds("throughput_ratio", "x", labels, ratios))
        ratios = [b / base for b, base in zip(peaks["tensors"], memory[BASELINE]["tensors"], strict=True)]
        metrics.append(over_rounds("memory_ratio", "x", labels, ratios))
    return metrics


def batch_ids(settings: StepSettings, source: Source) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the tokens [B, T] of a step, from the public text, and facts about their tokenizer."""
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

    Returns:
        Whether it does; False where there is no glibc.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    return all(mallopt(option, value) for option, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**28)))


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Check a run without running it and return remarks: every engine is attached to the model on the meta device.

    Raises:
        DpbenchError: an engine cannot protect the model.
    """
    runnable, reasons = split_missing(settings.methods)
    remarks = sorted(f"{engine}: {why}" for engine, why in reasons.items())
    from dpbench.measure.bench import Bench

    bench = Bench(settings, np.zeros((settings.batch_size, settings.tokens), dtype=np.int64), seed=0, meta=True)
    for engine in runnable:
        attached = bench.attach(engine)
        timing.require_protected(engine, attached)
        attached.detach()
    steppers = [methods.kind_of(engine) == "engine" for engine in runnable]
    trained = sum(p.numel() * p.element_size() for p in bench.model.parameters() if p.requires_grad)
    floor = sum(p.numel() * p.element_size() for p in bench.model.parameters())
    floor += 3 * trained * any(steppers)  # gradients and two moments
    remarks.append(
        f"{sum(p.numel() for p in bench.model.parameters()) / 1e6:.1f} M parameters, at least {math.ceil(floor / 2**20)} MiB"
    )
    return remarks
