"""Prompts as token ids with the ways they may go on, and a model's scores of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpbench.tasks.forward import padded


class Rows:
    """Prompts as token ids, with the ways they may go on. prompts: of each row; candidates: of each row, one or more; label: [N]
    number of the right one; pad: an id.

    What is read of a candidate is all but its last token, so where all have one token their inputs are the same: `forms` is then
    1, and else the number of candidates.
    """

    def __init__(self, prompts: list[list[int]], candidates: list[list[list[int]]], label: Sequence[int], pad: int) -> None:
        self.prompts, self.candidates, self.label, self.pad = prompts, candidates, np.asarray(label), pad
        self.longest = np.asarray([max(map(len, ways)) for ways in candidates], dtype=np.int64)
        self.forms = 1 if (self.longest <= 1).all() else max(map(len, candidates))
        self.lengths = self.forms * (np.asarray([len(p) for p in prompts], dtype=np.int64) + self.longest - 1)

    def __len__(self) -> int:
        return len(self.prompts)

    def right(self) -> Rows:
        """Return the rows with the right candidate of each alone."""
        kept = [[ways[label]] for ways, label in zip(self.candidates, self.label, strict=True)]
        return Rows(self.prompts, kept, [0] * len(self), self.pad)

    def batch(self, index: np.ndarray[Any, Any]) -> dict[str, Tensor]:
        """Return one physical batch.

        input_ids: [B, F, T] in F forms; at: [B, F, A] positions whose logits are about a candidate's tokens; tokens and real:
        [B, K, A] of the K candidates; label: [B].
        """
        ways = [way for i in index for way in self.candidates[i]]
        forms = [self.prompts[i] + way[:-1] for i in index for way in self.candidates[i][: self.forms]]
        tokens = padded(ways).view(len(index), -1, max(map(len, ways)))
        begins = torch.tensor([len(self.prompts[i]) - 1 for i in index])[:, None, None]
        ends = torch.tensor([len(form) - 1 for form in forms]).view(len(index), self.forms, 1)
        return {
            "input_ids": padded(forms, self.pad).view(len(index), self.forms, -1),
            "at": (begins + torch.arange(tokens.shape[-1])).minimum(ends),
            "tokens": tokens,
            "real": padded([[1] * len(way) for way in ways]).view(tokens.shape).bool(),
            "label": torch.as_tensor(self.label[index]),
        }


def scores(model: nn.Module, batch: dict[str, Tensor], trim: bool = True) -> Tensor:
    """Return [B, K] mean log-likelihoods of the candidates' tokens, fp32.

    Args:
        trim: make no logits of the positions before the first that is asked for; looks at values, which vmap cannot.
    """
    (examples, forms, _), choices = batch["input_ids"].shape, batch["tokens"].shape[1]
    ids, at = batch["input_ids"].flatten(0, 1), batch["at"].flatten(0, 1)
    first = int(at.min()) if trim else 0
    logits = model(ids, first) if first else model(ids)
    picked = logits[torch.arange(len(ids), device=ids.device)[:, None], at - first]  # [B F, A, V]
    each = picked.float().log_softmax(-1).view(examples, forms, *picked.shape[1:])
    each = each.expand(-1, choices, -1, -1).gather(3, batch["tokens"][..., None])[..., 0]
    return (each * batch["real"]).sum(-1) / batch["real"].sum(-1)
