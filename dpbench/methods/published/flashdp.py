"""FlashDP's review-time code (liangyuwang/FlashDP4Review at a89db902), including its faults FLASH-2 and FLASH-4.

Linear layers are clipped and get noise as in `fused`, so that a run differs from `fused` by these faults alone:

- FLASH-2: LayerNorm, by its default path, gets no noise. Its gradient is collected token by token in a few running buffers;
  a buffer is clipped elementwise before the next token's gradient is added to it, and no example is clipped by its norm.
- FLASH-4: Layers that the wrapper leaves out (embeddings, and the head by its name) are trained on their exact gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers.pytorch_utils import Conv1D

from dpbench.kernels.leaf import Use, accumulation_dtype
from dpbench.methods.engines import fused
from dpbench.methods.engines.layers import Cluster, Layer

PLUGIN = {
    "kind": "published_engine",
    "name": "flashdp_published",
    "version": 1,
    "summary": "FlashDP's published code: LayerNorm, embeddings and head are released as they are",
    "private": False,
    "scopes": ["per_layer"],
    "deviations": ["FLASH-2", "FLASH-4"],
}

SKIPPED = "lm_head"
"""The name of the layer that the published example tells its wrapper to leave out."""
_BUFFERS = ((1024, 256), (4096, 128), (8192, 96))  # widest LayerNorm -> running buffers, as in its kernel's launch
_FEWEST = 64


class Engine(fused.Engine):
    """The engine `fused`, except for LayerNorm, embeddings and head.

    Guarantee: none. One example moves the released sums without bound, and `unprotected` names the tensors.
    """

    def _set_noise(self) -> None:
        super()._set_noise()
        assert self.layout is not None
        for cluster in self.layout.clusters:
            if not all(_protected(layer) for layer in cluster.layers):
                for parameter in (p for layer in cluster.layers for p in layer.parameters.values()):
                    self.noise_stds.pop(id(parameter), None)  # a tied tensor is in several layers
        self.sensitivity = float("inf")

    def epsilon(self) -> float | None:
        """Return None: no finite epsilon holds, whatever the noise on the other layers."""
        return None

    def _clip(self, cluster: Cluster, uses: list[tuple[Layer, Use]]) -> Tensor:
        if all(_protected(layer) for layer in cluster.layers):
            return super()._clip(cluster, uses)
        for layer, use in uses:
            into = self.sums_of(layer).zeroed()
            if isinstance(layer.module, nn.LayerNorm):
                for name, rows in _by_token(layer.module, use).items():
                    if name in into:
                        into[name].add_(running(rows, self.bounds[cluster.group]))
            else:
                layer.leaf.add_weighted(use, torch.ones(len(use.g), device=use.g.device), into)
        return torch.zeros(len(uses[0][1].g), device=uses[0][1].g.device)  # no norm is taken


def _protected(layer: Layer) -> bool:
    return isinstance(layer.module, nn.Linear | Conv1D) and layer.name.rsplit(".", 1)[-1] != SKIPPED


def _by_token(module: nn.LayerNorm, use: Use) -> dict[str, Tensor]:
    """Return the gradients [B x T, D] of each token by the name of the parameter."""
    wide, width = accumulation_dtype(use.g), module.normalized_shape[-1]
    normalised = layer_norm(use.x.to(wide), module.normalized_shape, eps=module.eps)
    g = use.g.to(wide)
    return {"weight": (g * normalised).reshape(-1, width), "bias": g.reshape(-1, width)}


def running(rows: Tensor, bound: float) -> Tensor:
    """Return the sum [D] that the published kernel forms of the gradients [M, D] of tokens.

    Token r goes to buffer r modulo the number of buffers. A buffer's elements are clamped to [-bound, bound] before a token is
    added, never after, so the last token of each buffer is not clipped.
    """
    width = rows.shape[1]
    count = next((buffers for widest, buffers in _BUFFERS if width <= widest), _FEWEST)
    buffers = torch.zeros(count, width, dtype=rows.dtype, device=rows.device)
    for start in range(0, len(rows), count):
        part = rows[start : start + count]
        buffers[: len(part)].clamp_(-bound, bound).add_(part)
    return buffers.sum(0)
