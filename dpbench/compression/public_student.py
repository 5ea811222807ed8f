"""A small encoder, distilled from a public one on public text: hidden states of the last layer, token by token.

Source: the hidden-state loss of XtremeDistil (Mukherjee and Awadallah, ACL 2020), task-agnostic; settings ours.
"""

from __future__ import annotations

import time

from pydantic import model_validator

from dpbench.compression.parts import PublicStudent, depth_of, layer_map
from dpbench.data import registry as datasets
from dpbench.data.public import PUBLIC, public_sentences
from dpbench.execution.contract import Context, Outcome, metric
from dpbench.execution.environment import require_device
from dpbench.models import registry as models
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source


class Settings(PublicStudent):
    """model, layers: what is distilled, cut to so many; student_layers: of the result."""

    model: str
    layers: int | None = None
    student_layers: int
    precision: str = "float32"
    device: str = "cpu"

    @property
    def kept(self) -> list[int]:
        """Layers that the small model starts from."""
        return layer_map(self.layer_map, self.student_layers, self.layers or depth_of(self.model))

    @model_validator(mode="after")
    def _map(self) -> Settings:
        _ = self.kept
        return self


def uses(settings: Settings) -> Uses:
    """Return the sources that decide the numbers: public text and the model."""
    return Uses(datasets=(PUBLIC,), models=(settings.model,))


def run(settings: Settings, context: Context) -> Outcome:
    """Distil by AdamW with a linear decay on the mean squared difference of hidden states, over real tokens of random sentences.

    The mean is over all tokens of a batch, so that the loss is no sum over examples: there is nothing private about it.

    Raises:
        DpbenchError: no such device; what loading data and weights raises.
    """
    import numpy as np
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    from dpbench.compression.dropping import keep_layers
    from dpbench.compression.saved import ENCODER, OF_ENCODER, save_encoder
    from dpbench.tasks.forward import autocast
    from dpbench.tasks.text_classification.encoding import Encoded

    device = require_device(settings.device)
    source, public = context.sources[f"model:{settings.model}"], context.sources[f"dataset:{PUBLIC}"]
    tokenizer = models.text_tokenizer(settings.model, source, public)
    lines = public_sentences(public)
    encoded = Encoded(tokenizer.encode(lines, settings.max_length), np.zeros(len(lines), dtype=np.int64), tokenizer.pad)
    teacher = models.encoder(settings.model, source, settings.layers).to(device).eval().requires_grad_(False)
    student = models.encoder(settings.model, source, settings.layers)
    keep_layers(student, settings.kept).to(device).train()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embeddings." not in name)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=settings.learning_rate)
    draw = np.random.default_rng(np.random.SeedSequence([context.seed, 4]))
    schedule = LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    losses: list[list[float]] = []
    begun, worked = time.perf_counter(), time.process_time()
    for step in range(settings.steps):
        rows = draw.choice(len(lines), settings.batch_size, replace=len(lines) < settings.batch_size)
        batch = {k: v.to(device) for k, v in encoded.batch(rows).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with autocast(device, settings.precision):
            with torch.no_grad():
                target = teacher(ids, mask).float()
            hidden = student(ids, mask).float()
        loss = ((hidden - target).square().mean(-1) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append([step + 1, float(loss.detach())])
        context.steps.write(step=step, loss=losses[-1][1])
        context.report(step + 1, settings.steps, f"public distillation, loss {losses[-1][1]:.4f}")
    metrics = [metric("loss", losses[-1][1], ""), metric("training_seconds", time.perf_counter() - begun, "s")]
    if device.type == "cpu":
        metrics.append(metric("processor_seconds", time.process_time() - worked, "s"))
    save_encoder(student.cpu().eval(), context.out / ENCODER)
    facts = {"loss": losses[:: max(1, settings.steps // 20)], "lines": len(lines), "kept": settings.kept}
    return Outcome(metrics, facts=facts, artefacts=OF_ENCODER, device=settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Return remarks of a dry run: data schema and the model on the meta device."""
    datasets.check(PUBLIC, sources[f"dataset:{PUBLIC}"])
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"layers {', '.join(map(str, settings.kept))} of {settings.model}, {settings.steps} steps on public text"]
