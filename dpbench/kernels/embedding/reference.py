"""The oracle: every per-example gradient of the table, materialised in fp64."""

from __future__ import annotations

import torch
from torch import Tensor


def per_example(ids: Tensor, g: Tensor, rows: int, padding: int | None = None) -> Tensor:
    """Return the gradients [B, V, D], fp64, of ids [B, T] with g [B, T, D]; the padding row gets none."""
    one_hot = torch.nn.functional.one_hot(ids, rows).double()
    if padding is not None:
        one_hot[..., padding] = 0
    return torch.einsum("btv,btd->bvd", one_hot, g.double())
