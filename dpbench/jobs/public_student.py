"""Distil a small encoder from the first layers' whole model on public text: hidden states of the last layer, token by token."""

from __future__ import annotations

from pydantic import model_validator

from dpbench.compression.layers import layer_map
from dpbench.compression.settings import PublicStudent, depth_of
from dpbench.jobs.contract import Context, Outcome, metric
from dpbench.jobs.features import PUBLIC
from dpbench.spec.expand import Uses
from dpbench.spec.sources import Source

PLUGIN = {
    "kind": "job",
    "name": "public_student",
    "version": 1,
    "summary": "distil an encoder into one of fewer layers on public text",
}


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
    """Sources that decide the numbers: public text and the model."""
    return Uses(datasets=(PUBLIC,), models=(settings.model,))


def run(settings: Settings, context: Context) -> Outcome:
    """AdamW with a linear decay on the mean squared difference of hidden states, over real tokens of random public lines.

    Source: the hidden-state loss of XtremeDistil (Mukherjee and Awadallah, ACL 2020), task-agnostic; settings ours.
    """
    import numpy as np
    import torch

    from dpbench.compression.cutting import keep_layers
    from dpbench.compression.saved import CONFIG, ENCODER, WEIGHTS, save_encoder
    from dpbench.jobs.text import Encoded, public_texts
    from dpbench.jobs.throughput import require_device
    from dpbench.models import registry as models

    require_device(settings.device)
    source, public = context.sources[f"model:{settings.model}"], context.sources[f"dataset:{PUBLIC}"]
    tokenizer = models.text_tokenizer(settings.model, source, public)
    lines = public_texts(public)
    encoded = Encoded(tokenizer.encode(lines, settings.max_length), np.zeros(len(lines), dtype=np.int64), tokenizer.pad)
    teacher = models.encoder(settings.model, source, settings.layers).to(settings.device).eval().requires_grad_(False)
    student = models.encoder(settings.model, source, settings.layers)
    keep_layers(student, settings.kept).to(settings.device).train()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embeddings." not in name)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=settings.learning_rate)
    draw = np.random.default_rng(np.random.SeedSequence([context.seed, 4]))
    autocast = torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")
    curve = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        rows = draw.choice(len(lines), settings.batch_size, replace=len(lines) < settings.batch_size)
        batch = {k: v.to(settings.device) for k, v in encoded.batch(rows).items()}
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with autocast:
            with torch.no_grad():
                wanted = teacher(ids, mask).float()
            found = student(ids, mask).float()
        loss = ((found - wanted).square().mean(-1) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append([step + 1, float(loss.detach())])
        context.steps.write(step=step, loss=curve[-1][1])
        context.report(step + 1, settings.steps, f"public distillation, loss {curve[-1][1]:.4f}")
    student.cpu().eval()
    save_encoder(student, context.out / ENCODER)
    facts = {"loss": curve[:: max(1, settings.steps // 20)], "lines": len(lines), "kept": settings.kept}
    return Outcome([metric("loss", curve[-1][1], "")], facts=facts, artefacts=[CONFIG, WEIGHTS], device=settings.device)


def check(settings: Settings, sources: dict[str, Source]) -> list[str]:
    """Prove a run without running it: data schema and the model on the meta device."""
    from dpbench.data import registry as datasets
    from dpbench.models import registry as models

    datasets.check(PUBLIC, sources[f"dataset:{PUBLIC}"])
    models.encoder(settings.model, sources[f"model:{settings.model}"], settings.layers, meta=True)
    return [f"layers {', '.join(map(str, settings.kept))} of {settings.model}, {settings.steps} steps on public text"]
