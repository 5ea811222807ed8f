"""Decoding with a cache, against decoding without one and against looking at every continuation."""

from __future__ import annotations

import itertools

import pytest
import torch

from dpbench.models import registry as models
from dpbench.models import tuning
from dpbench.models.decoding import generate

VOCABULARY, EOS = 6, 1
PROMPTS = [[2, 3], [4], [5, 2, 0], [3, 3], [2], [0, 4]]


def language_model(vocabulary=VOCABULARY, size="tiny", scale=8.0):
    """Weights blown up, so that the next token is not a matter of rounding."""
    model = models.language_model(size, seed=3, vocabulary=vocabulary, context=24).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.dim() > 1 else 1.0)
    return model


def prefixed():
    torch.manual_seed(0)
    model = tuning.prefix(language_model(), 3, None, seed=5, meta=False).eval().double()
    with torch.no_grad():
        model.prefix.embedding.weight.normal_(std=2.0)
    return model


@pytest.mark.parametrize(
    "make", [language_model, lambda: language_model(size="llama_tiny"), lambda: language_model(size="opt_tiny"), prefixed]
)
def test_the_cache_changes_nothing(make):
    """fp64: sums in another order, 1e-12. A cache that hides or shows a token too many is off by whole units."""
    model = make()
    torch.manual_seed(1)
    ids = torch.randint(VOCABULARY, (3, 12))
    with torch.no_grad():
        full_output, cache = model(ids), model.start(3)
        parts = [model.cached(part, cache) for part in ids.split([5, 1, 4, 1, 1], dim=1)]
    assert float((torch.cat(parts, 1) - full_output).abs().max()) < 1e-10


def next_scores(model, tokens, banned):
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0, -1].float()
    logits[list(banned)] = float("-inf")
    return logits.log_softmax(0)


@pytest.mark.parametrize("make", [language_model, prefixed])
@pytest.mark.parametrize("banned", [(), (0, 4)])
def test_greedy_takes_the_likeliest_token_each_time(make, banned):
    model = make()
    continuations = generate(model, PROMPTS, eos=EOS, limit=12, banned=banned)
    for prompt, continuation in zip(PROMPTS, continuations, strict=True):
        tokens = list(prompt)
        while len(tokens) < 12:
            token = int(next_scores(model, tokens, banned).argmax())
            if token == EOS:
                break
            tokens.append(token)
        assert continuation == tokens[len(prompt) :]
        assert not set(continuation) & set(banned)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_continuations(penalty):
    """With as many hypotheses as there are continuations of three tokens nothing is lost on the way."""
    model = language_model(scale=3.0)
    prompt = [2, 3]
    best = (-1e9, [])
    for tokens in itertools.product(range(VOCABULARY), repeat=3):
        continuation = list(tokens[: tokens.index(EOS) + 1]) if EOS in tokens else list(tokens)
        score = sum(float(next_scores(model, prompt + continuation[:i], ())[token]) for i, token in enumerate(continuation))
        best = max(best, (score / len(continuation) ** penalty, continuation))
    (best_tokens,) = generate(model, [prompt], eos=EOS, limit=5, beams=VOCABULARY**3, length_penalty=penalty, rows=VOCABULARY**3)
    assert best_tokens == [token for token in best[1] if token != EOS]


def test_a_beam_scores_no_worse_than_greedy():
    model = language_model(scale=3.0)

    def score(prompt, continuation):
        full = [*continuation, EOS] if len(prompt) + len(continuation) < 10 else continuation
        return sum(float(next_scores(model, list(prompt) + full[:i], ())[token]) for i, token in enumerate(full))

    greedy = generate(model, PROMPTS, eos=EOS, limit=10)
    wide = generate(model, PROMPTS, eos=EOS, limit=10, beams=200, length_penalty=0.0)
    for prompt, one, other in zip(PROMPTS, greedy, wide, strict=True):
        assert score(prompt, other) >= score(prompt, one) - 1e-6


@pytest.mark.parametrize("beams", [1, 3])
def test_a_result_does_not_depend_on_its_neighbours(beams):
    model = language_model()
    together = generate(model, PROMPTS, eos=EOS, limit=12, beams=beams)
    alone = [generate(model, [prompt], eos=EOS, limit=12, beams=beams)[0] for prompt in PROMPTS]
    small = generate(model, PROMPTS, eos=EOS, limit=12, beams=beams, rows=2)
    assert together == alone == small
    assert all(len(prompt) + len(continuation) <= 12 for prompt, continuation in zip(PROMPTS, together, strict=True))


@pytest.mark.parametrize("beams", [1, 3])
def test_a_continuation_may_be_kept_short_whatever_its_prompt(beams):
    """Unbounded ones reach the limit, so that cutting shows."""
    model = language_model()
    unlimited = generate(model, PROMPTS, eos=EOS, limit=12, beams=beams, banned=[EOS])
    short = generate(model, PROMPTS, eos=EOS, limit=12, beams=beams, banned=[EOS], longest=4)
    assert [len(continuation) for continuation in unlimited] == [12 - len(prompt) for prompt in PROMPTS]
    assert [len(continuation) for continuation in short] == [4] * len(PROMPTS)
    if beams == 1:
        assert short == [continuation[:4] for continuation in unlimited]
    assert [len(continuation) for continuation in generate(model, PROMPTS, eos=EOS, limit=5, banned=[EOS], longest=4)] == [
        3,
        4,
        2,
        3,
        4,
        3,
    ]
