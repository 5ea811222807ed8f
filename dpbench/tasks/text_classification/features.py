"""A frozen encoder's pooled features of a dataset, computed once and shared by every run on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dpbench.data.public import PUBLIC
from dpbench.execution.contract import Context
from dpbench.spec.expand import Uses
from dpbench.tasks.features import FILE
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


def extract(settings: FeatureSettings, context: Context) -> tuple[dict[str, Any], float]:
    """Write `FILE`: features of train and validation rows (fp16 [N, H], of pairs [N, 2H]), labels [N], the mean of public text.

    The texts of a pair go through the encoder one by one; public pairs are sentences with the next one.

    Returns:
        (facts for the record, seconds).
    """
    import time

    import torch
    from safetensors.torch import save_file

    from dpbench.models import registry as models
    from dpbench.tasks.text_classification.config import are_pairs, feature_width
    from dpbench.tasks.text_classification.encoding import TextData, chosen_rows, compared, features

    data = TextData(settings.dataset, settings.model, context.sources, settings.max_length)
    encoder = models.encoder(settings.model, context.sources[f"model:{settings.model}"], settings.layers)
    encoder.to(settings.device).eval()
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
    seconds = time.perf_counter() - begun
    save_file(tensors, context.out / FILE)
    width = feature_width(settings.dataset, encoder.width)
    return {"rows": counts, "width": width, "tokenizer_sha256": data.tokenizer.sha256}, seconds
