"""Prompts as token ids with the ways they may go on, and a model's scores of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


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
        chosen = [self.candidates[i] for i in index]
        forms, choices, ends = self.forms, len(chosen[0]), int(self.longest[index].max())
        inputs = [[self.prompts[i] + way[:-1] for way in ways[:forms]] for i, ways in zip(index, chosen, strict=True)]
        ids = torch.full((len(index), forms, max(len(form) for forms_of in inputs for form in forms_of)), self.pad)
        at = torch.zeros(len(index), forms, ends, dtype=torch.long)
        tokens = torch.zeros(len(index), choices, ends, dtype=torch.long)
        real = torch.zeros(len(index), choices, ends, dtype=torch.bool)
        for b, forms_of in enumerate(inputs):
            begin = len(self.prompts[index[b]]) - 1
            for f, form in enumerate(forms_of):
                ids[b, f, : len(form)] = torch.tensor(form)
                at[b, f] = torch.arange(begin, begin + ends).clamp(max=len(form) - 1)
            for k, way in enumerate(chosen[b]):
                tokens[b, k, : len(way)] = torch.tensor(way)
                real[b, k, : len(way)] = True
        return {"input_ids": ids, "at": at, "tokens": tokens, "real": real, "label": torch.as_tensor(self.label[index])}


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
