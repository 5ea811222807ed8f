"""Scores of short answers against one or more right ones, as SQuAD scores them (Rajpurkar et al., EMNLP 2016)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from dpbench.errors import DpbenchError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return the text in lower case with single spaces, without punctuation and English articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(output: str, answer: str) -> float:
    """Return the harmonic mean of the shares of common words, 0 to 1; 0 where there are none, also for two empty texts."""
    output_tokens, answer_tokens = normalised(output).split(), normalised(answer).split()
    common = sum((Counter(output_tokens) & Counter(answer_tokens)).values())
    return 2 * common / (len(output_tokens) + len(answer_tokens)) if common else 0.0


def f1(outputs: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Return the mean over outputs of the best F1 over its answers, 0 to 100.

    Raises:
        DpbenchError: there are no outputs, or an output has no answers.
    """
    return _mean(outputs, answers, token_f1)


def exact_match(outputs: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Return the percentage of outputs that equal one of their answers, both normalised.

    Raises:
        DpbenchError: as `f1`.
    """
    return _mean(outputs, answers, lambda output, answer: float(normalised(output) == normalised(answer)))


def _mean(outputs: Sequence[str], answers: Sequence[Sequence[str]], score: Callable[[str, str], float]) -> float:
    if not outputs or len(outputs) != len(answers):
        raise DpbenchError(f"{len(outputs)} outputs and {len(answers)} lists of answers", "give a list for each output")
    if empty := [i for i, right_answers in enumerate(answers) if not right_answers]:
        raise DpbenchError(f"output {empty[0]} has no answer", "leave out questions without answers")
    best = (
        max(score(output, answer) for answer in right_answers) for output, right_answers in zip(outputs, answers, strict=True)
    )
    return 100 * sum(best) / len(outputs)
