"""Generating text: greedy and beam search in batches, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


class Decoder(Protocol):
    """What is decoded: see `wrappers.LanguageModel`."""

    def start(self, batch: int) -> Any: ...

    def cached(self, input_ids: Tensor, cache: Any) -> Tensor: ...


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    eos: int,
    limit: int,
    longest: int | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    banned: Sequence[int] = (),
    rows: int = 64,
    device: torch.device | str = "cpu",
    done: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Continuations of the prompts, without <eos>, in their order.

    Prompts of one length are decoded together, so that nothing is padded and a result does not depend on its neighbours.

    Args:
        limit: tokens of a prompt and its continuation, <eos> included, at most; longest: those of a continuation alone.
        beams: 1 is greedy; with more, the hypothesis with the highest log-probability / length ** length_penalty.
        banned: ids that are never generated.
        rows: hypotheses at once, at most.
        done: called with the number of prompts finished.
    """
    found: list[list[int]] = [[] for _ in prompts]
    forbidden = torch.tensor(list(banned), dtype=torch.long, device=device)
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    finished = 0
    step = max(1, rows // beams)
    with torch.inference_mode():
        for length, indices in sorted(by_length.items()):
            room = limit - length if longest is None else min(limit - length, longest)
            for start in range(0, len(indices), step):
                piece = indices[start : start + step]
                ids = torch.tensor([list(prompts[i]) for i in piece], device=device)
                if beams == 1:
                    tokens = _greedy(model, ids, eos, room, forbidden)
                else:
                    tokens = _beam(model, ids, eos, room, forbidden, beams, length_penalty)
                for i, own in zip(piece, tokens.tolist(), strict=True):
                    found[i] = own[: own.index(eos)] if eos in own else own
                finished += len(piece)
                done(finished)
    return found


def _scores(logits: Tensor, banned: Tensor) -> Tensor:
    """[B, T, V] logits -> [B, V] log-probabilities of the next token among those that are allowed."""
    return logits[:, -1].float().index_fill(-1, banned, float("-inf")).log_softmax(-1)


def _greedy(model: Decoder, ids: Tensor, eos: int, longest: int, banned: Tensor) -> Tensor:
    cache = model.start(len(ids))
    over = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    found: list[Tensor] = []
    given = ids
    while True:
        token = torch.where(over, eos, _scores(model.cached(given, cache), banned).argmax(-1))
        found.append(token)
        over = over | (token == eos)
        if len(found) == longest or bool(over.all()):
            return torch.stack(found, 1)
        given = token[:, None]


def _beam(model: Decoder, ids: Tensor, eos: int, longest: int, banned: Tensor, beams: int, penalty: float) -> Tensor:
    """Beam search in which finished hypotheses keep their place as long as their score does."""
    batch, device = len(ids), ids.device
    cache = model.start(batch)
    first = _scores(model.cached(ids, cache), banned)
    vocabulary = first.shape[1]
    total, tokens = first.topk(min(beams, vocabulary))
    unused = (0, beams - total.shape[1])  # a small vocabulary has fewer beginnings than there are places
    total, tokens = pad(total, unused, value=float("-inf")), pad(tokens, unused, value=eos)
    cache.batch_repeat_interleave(beams)
    found = tokens[..., None]  # [B, K, t]
    over = tokens == eos
    length = torch.ones_like(total)
    origin = torch.arange(batch, device=device)[:, None] * beams
    frozen = torch.full((vocabulary,), float("-inf"), device=device)
    frozen[eos] = 0.0  # what is finished goes on with <eos>, at no cost
    while found.shape[2] < longest and not bool(over.all()):
        next_ = _scores(model.cached(found[..., -1].reshape(-1, 1), cache), banned).view(batch, beams, vocabulary)
        sums = total[..., None] + torch.where(over[..., None], frozen, next_)
        longer = length + (~over).to(length.dtype)
        _, best = (sums / longer[..., None] ** penalty).flatten(1).topk(beams)
        parent = best // vocabulary
        tokens = best % vocabulary
        total, length = sums.flatten(1).gather(1, best), longer.gather(1, parent)
        found = torch.cat([found.gather(1, parent[..., None].expand_as(found)), tokens[..., None]], 2)
        over = over.gather(1, parent) | (tokens == eos)
        cache.reorder_cache((origin + parent).flatten())
    chosen = (total / length**penalty).argmax(1)
    return found[torch.arange(batch, device=device), chosen]
