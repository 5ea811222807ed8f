"""The classifier: an encoder, pooled features, a head. Its initial weights are the same for all methods of a seed."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dpbench.models import tuning
from dpbench.models.wrappers import Encoder
from dpbench.tasks.text_classification.config import Settings
from dpbench.tasks.text_classification.encoding import pooled


class Head(nn.Module):
    """Features [B, H] to logits [B, classes]: tanh layers, then a linear one that starts at zero or at the label words."""

    def __init__(self, width: int, hidden: list[int], classes: int) -> None:
        super().__init__()
        widths = [width, *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.out(x)


class Classifier(nn.Module):
    """Encoder, mean pooling, centring by public text, head."""

    def __init__(self, encoder: Encoder, head: Head, settings: Settings) -> None:
        super().__init__()
        self.encoder, self.head, self.settings = encoder, head, settings
        self.register_buffer("centre", torch.zeros(encoder.width))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(prepared(pooled(self.encoder, batch).float(), self.centre, self.settings))  # type: ignore[arg-type]


def prepared(x: Tensor, centre: Tensor, settings: Settings) -> Tensor:
    """Return features as the head sees them; each row by itself."""
    if settings.centre:
        x = x - centre
    if settings.feature_norm is not None:
        x = normalize(x, dim=-1) * settings.feature_norm
    return x * settings.feature_scale


def make_head(settings: Settings, width: int, classes: int, seed: int, phrases: Tensor | None) -> Head:
    """Return a head with its initial weights.

    Args:
        phrases: [classes, H] prepared mean features of public texts of each class, for `label_words` and `prompt_words`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(width, settings.hidden, classes)
    nn.init.zeros_(head.out.weight)
    nn.init.zeros_(head.out.bias)
    if settings.head in ("label_words", "prompt_words"):
        assert phrases is not None
        with torch.no_grad():
            head.out.weight.copy_(normalize(phrases - phrases.mean(0), dim=-1))
    return head


def freeze(model: nn.Module, settings: Settings, seed: int = 0, meta: bool = False) -> nn.Module:
    """Return the model of full fine-tuning, its embeddings frozen if the settings say so; or frozen but for adapters and head."""
    if settings.lora is not None:
        return tuning.encoder_lora(model, settings.lora.rank, settings.lora.alpha, seed, meta)
    if settings.freeze_embeddings:
        for name, parameter in model.named_parameters():
            if ".embeddings." in name:
                parameter.requires_grad_(False)
    return model
