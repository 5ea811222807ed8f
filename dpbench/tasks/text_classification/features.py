"""A frozen encoder's pooled features of a dataset, computed once and shared by every run on them."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import Field

from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Context, Outcome
from dpbench.execution.environment import require_device
from dpbench.models import registry as models
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source
from dpbench.tasks.checking import checked_rows
from dpbench.tasks.features import outcome_of
from dpbench.validation import Strict, omitted


class FeatureSettings(Strict):
    """Which encoder on which dataset. Features are not private: only what is trained on them is."""

    dataset: str
    model: str
    layers: int | None = Field(None, ge=1)
    max_length: int = Field(128, ge=4)
    token_budget: int = Field(2048, ge=16, description="Padded tokens of a physical batch.")
    precision: Literal["float32", "bfloat16"] = "float32"
    train_limit: int | None = Field(None, ge=1)
    evaluate_limit: int | None = omitted(ge=1, description="Rows of the validation split, by `encoding.chosen_rows`.")
    device: Literal["cpu", "cuda"] = "cpu"


def uses(settings: FeatureSettings) -> Uses:
    """Return the sources that decide the numbers."""
    return Uses(datasets=(settings.dataset, PUBLIC), models=(settings.model,))


def run(settings: FeatureSettings, context: Context) -> Outcome:
    """Write the file: features of train and validation rows (fp16 [N, H], of pairs [N, 2H]), labels [N], the mean of public text.

    The texts of a pair go through the encoder one by one; public pairs are sentences with the next one.

    Raises:
        DpbenchError: no such device; what loading data and weights raises.
    """
    import torch

    from dpbench.tasks.text_classification.config import are_pairs, feature_width
    from dpbench.tasks.text_classification.encoding import TextData, chosen_rows, compared, features

    device = require_device(settings.device)
    data = TextData(settings.dataset, settings.model, context.sources, settings.max_length)
    encoder = models.encoder(settings.model, context.sources[f"model:{settings.model}"], settings.layers)
    encoder.to(device).eval()
    forward = (settings.token_budget, settings.precision)
    begun = time.perf_counter()
    public = features(encoder, data.public_lines(), *forward)
    tensors = {"public_mean": (compared(public[:-1], public[1:]) if are_pairs(settings.dataset) else public).mean(0)}
    if data.plugin.extra.get("label_phrases") is not None:
        means = [features(encoder, texts, *forward).mean(0) for texts in data.label_phrases()]
        tensors["label_phrases"] = torch.stack(means)
    counts = {}
    for number, split in enumerate(("train", "validation")):
        context.report(number, 2, f"{split} features")
        encoded, second = data.split_one_by_one(split, settings.train_limit if split == "train" else None)
        if split == "validation" and settings.evaluate_limit is not None:
            chosen = chosen_rows(len(encoded.ids), settings.evaluate_limit)
            encoded, second = encoded.part(chosen), None if second is None else second.part(chosen)
        rows = features(encoder, encoded, *forward)
        if second is not None:
            rows = compared(rows, features(encoder, second, *forward))
        tensors[f"{split}_x"] = rows.half()
        tensors[f"{split}_y"] = torch.as_tensor(encoded.labels)
        counts[split] = len(encoded.ids)
    width = feature_width(settings.dataset, encoder.width)
    facts = {"rows": counts, "width": width, "tokenizer_sha256": data.tokenizer.sha256}
    return outcome_of(context, tensors, facts, time.perf_counter() - begun, settings.device)


def check(settings: FeatureSettings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema and the model on the meta device."""
    rows = checked_rows(settings, sources)
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"{settings.dataset}: {rows or 'rows not known before they are fetched'}"]
