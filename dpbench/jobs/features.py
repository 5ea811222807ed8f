"""A frozen encoder's pooled features of a classification task, computed once and shared by every run on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dpbench import plugins
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.validation import Strict

PLUGIN = {"kind": "job", "name": "features", "version": 1, "summary": "pooled features of a frozen encoder"}

FILE = "features.safetensors"
PUBLIC = "wikitext2"  # public text for centring and for tokenizers trained here


class Settings(Strict):
    """Which encoder on which task. Features are not private: only what is trained on them is."""

    task: str
    model: str
    layers: int | None = Field(None, ge=1)
    max_length: int = Field(128, ge=4)
    token_budget: int = Field(2048, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    evaluate_limit: int | None = Field(
        None, ge=1, exclude_if=lambda v: v is None, description="Rows of the validation split, by `text.some`."
    )
    device: Literal["cpu", "cuda"] = "cpu"


def uses(settings: Settings) -> Uses:
    """Sources that decide the numbers."""
    return Uses(datasets=(settings.task, PUBLIC), models=(settings.model,))


def are_pairs(task: str) -> bool:
    """Whether a task's examples are pairs of texts."""
    return "text_pair" in plugins.get("dataset", task).extra["columns"]


def width(task: str, encoder: int) -> int:
    """Elements of one example's features, for an encoder of that width: of a pair, its texts' product and distance."""
    return 2 * encoder if are_pairs(task) else encoder


def run(settings: Settings, context: Context) -> Outcome:
    """Write train and validation features (fp16 [N, H], of pairs [N, 2H]), labels [N] and the mean feature of public text.

    The texts of a pair go through the encoder one by one; public pairs are lines with the next one.
    """
    import time

    import torch
    from safetensors.torch import save_file

    from dpbench.jobs.text import TextData, compared, features, some
    from dpbench.jobs.throughput import require_device
    from dpbench.models import registry as models

    require_device(settings.device)
    data = TextData(settings.task, settings.model, context.sources, settings.max_length)
    encoder = (
        models.encoder(settings.model, context.sources[f"model:{settings.model}"], settings.layers).to(settings.device).eval()
    )
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16) if settings.precision == "bfloat16" else None
    begun = time.perf_counter()
    public = features(encoder, data.public_lines(), settings.token_budget, autocast)
    tensors = {"public_mean": (compared(public[:-1], public[1:]) if are_pairs(settings.task) else public).mean(0)}
    phrases = data.plugin.extra.get("label_phrases")
    if phrases is not None:
        means = [features(encoder, e, settings.token_budget, autocast).mean(0) for e in data.label_phrases()]
        tensors["label_phrases"] = torch.stack(means)
    counts = {}
    for number, split in enumerate(("train", "validation")):
        context.report(number, 2, f"{split} features")
        encoded, second = data.apart(split, settings.train_limit if split == "train" else None)
        if split == "validation" and settings.evaluate_limit is not None:
            chosen = some(len(encoded.ids), settings.evaluate_limit)
            encoded, second = encoded.part(chosen), None if second is None else second.part(chosen)
        found = features(encoder, encoded, settings.token_budget, autocast)
        if second is not None:
            found = compared(found, features(encoder, second, settings.token_budget, autocast))
        tensors[f"{split}_x"] = found.half()
        tensors[f"{split}_y"] = torch.as_tensor(encoded.labels)
        counts[split] = len(encoded.ids)
    seconds = time.perf_counter() - begun
    save_file(tensors, context.out / FILE)
    context.steps.write(step=0, rows=sum(counts.values()), seconds=seconds)
    rate = metric("rows_per_second", sum(counts.values()) / seconds, "rows/s")
    facts = {"rows": counts, "width": width(settings.task, encoder.width), "tokenizer_sha256": data.tokenizer.sha256}
    return Outcome([rate], facts=facts, artefacts=[FILE], device=settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema and the model on the meta device."""
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    rows = {name: datasets.check(name, sources[f"dataset:{name}"]) for name in (settings.task, PUBLIC)}
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"{settings.task}: {rows[settings.task] or 'rows not known before they are fetched'}"]
