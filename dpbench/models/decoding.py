"""Generating text: greedy and beam search in batches, with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad


class Decoder(Protocol):
    """A model that can be decoded: see `wrappers.LanguageModel`."""

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
    """Return the continuations of the prompts, without <eos>, in their order.

    Prompts of one length are decoded together, so that nothing is padded and a result does not depend on its neighbours.

    Args:
        limit: the most tokens of a prompt and its continuation, <eos> included.
        longest: the most tokens of a continuation, without its prompt.
        beams: 1 is greedy; with more, the result is the hypothesis with the highest log-probability / length ** length_penalty.
        banned: ids that are never generated.
        rows: the most hypotheses that are decoded at once.
        done: is called with the number of finished prompts.
    """
    continuations: list[list[int]] = [[] for _ in prompts]
    forbidden = torch.tensor(list(banned), dtype=torch.long, device=device)
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(index)
    finished = 0
    step = max(1, rows // beams)
    with torch.inference_mode():
        for length, indices in sorted(by_length.items()):
            most_tokens = limit - length if longest is None else min(limit - length, longest)
            for start in range(0, len(indices), step):
                batch = indices[start : start + step]
                ids = torch.tensor([list(prompts[i]) for i in batch], device=device)
                if beams == 1:
                    tokens = _greedy(model, ids, eos, most_tokens, forbidden)
                else:
                    tokens = _beam(model, ids, eos, most_tokens, forbidden, beams, length_penalty)
                for i, token_ids in zip(batch, tokens.tolist(), strict=True):
                    continuations[i] = token_ids[: token_ids.index(eos)] if eos in token_ids else token_ids
                finished += len(batch)
                done(finished)
    return continuations


def _scores(logits: Tensor, banned: Tensor) -> Tensor:
    """Turn [B, T, V] logits into [B, V] log-probabilities of the next token among the allowed ones."""
    return logits[:, -1].float().index_fill(-1, banned, float("-inf")).log_softmax(-1)


def _greedy(model: Decoder, ids: Tensor, eos: int, longest: int, banned: Tensor) -> Tensor:
    cache = model.start(len(ids))
    finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    tokens: list[Tensor] = []
    input_ids = ids
    while True:
        token = torch.where(finished, eos, _scores(model.cached(input_ids, cache), banned).argmax(-1))
        tokens.append(token)
        finished = finished | (token == eos)
        if len(tokens) == longest or bool(finished.all()):
            return torch.stack(tokens, 1)
        input_ids = token[:, None]


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
    hypotheses = tokens[..., None]  # [B, K, t]
    finished = tokens == eos
    length = torch.ones_like(total)
    origin = torch.arange(batch, device=device)[:, None] * beams
    frozen = torch.full((vocabulary,), float("-inf"), device=device)
    frozen[eos] = 0.0  # a finished hypothesis continues with <eos>, at no cost
    while hypotheses.shape[2] < longest and not bool(finished.all()):
        next_ = _scores(model.cached(hypotheses[..., -1].reshape(-1, 1), cache), banned).view(batch, beams, vocabulary)
        sums = total[..., None] + torch.where(finished[..., None], frozen, next_)
        longer = length + (~finished).to(length.dtype)
        _, best = (sums / longer[..., None] ** penalty).flatten(1).topk(beams)
        parent = best // vocabulary
        tokens = best % vocabulary
        total, length = sums.flatten(1).gather(1, best), longer.gather(1, parent)
        hypotheses = torch.cat([hypotheses.gather(1, parent[..., None].expand_as(hypotheses)), tokens[..., None]], 2)
        finished = finished.gather(1, parent) | (tokens == eos)
        cache.reorder_cache((origin + parent).flatten())
    chosen = (total / length**penalty).argmax(1)
    return hypotheses[torch.arange(batch, device=device), chosen]
