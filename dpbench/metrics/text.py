"""Corpus scores of generated texts with several references each.

Letter case is ignored and words are split like in mteval-v13a, as in the E2E challenge.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING

from dpbench.errors import DpbenchError

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

References = Sequence[Sequence[str]]
"""One or more texts for each output."""

LEFT_OUT = {
    "meteor": "left out: nltk's needs WordNet, which it downloads; the published scorer is a Java program",
    "cider": "left out: the published scorer, pycocoevalcap, cuts words by a Java program and was last released in 2020",
}
"""Metrics of the published tables that are not computed here, and why."""


def require() -> None:
    """Require the packages that score texts, before any long work begins.

    Raises:
        DpbenchError: a package is not installed; the error names it.
    """
    for module, package in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score"), ("nltk", "nltk")):
        if importlib.util.find_spec(module) is None:
            raise DpbenchError(f"{package} is not installed, and generated text is scored by it", f"pip install {package}")


def _check(outputs: Sequence[str], references: References) -> None:
    if not outputs or len(outputs) != len(references):
        raise DpbenchError(f"{len(outputs)} outputs and {len(references)} lists of references", "give a list for each output")
    if empty := [i for i, texts in enumerate(references) if not any(texts)]:
        raise DpbenchError(f"output {empty[0]} has no reference", "leave out inputs without references")


@cache
def _bleu(sentence: bool) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, tokenize="13a", effective_order=sentence)


def bleu(outputs: Sequence[str], references: References) -> float:
    """Return corpus BLEU-4 by sacrebleu, 0 to 100.

    Raises:
        DpbenchError: there are no outputs, or an output has no references.
    """
    _check(outputs, references)
    streams = [list(stream) for stream in zip_longest(*references)]  # None where an output has fewer
    return float(_bleu(False).corpus_score(list(outputs), streams).score)


def sentence_bleu(output: str, references: Sequence[str]) -> float:
    """Return BLEU of one output, 0 to 100, over the orders that it is long enough for, smoothed as in sacrebleu."""
    return float(_bleu(True).sentence_score(output, list(references)).score)


def rouge(outputs: Sequence[str], references: References) -> tuple[float, float, float]:
    """Return ROUGE-1, ROUGE-2, ROUGE-L by rouge-score, 0 to 100: means over outputs of the best F-measure over its references.

    Raises:
        DpbenchError: as `bleu`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check(outputs, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    scored = [scorer.score_multi(list(texts), output) for output, texts in zip(outputs, references, strict=True)]
    one, two, longest = (100 * sum(scores[kind].fmeasure for scores in scored) / len(scored) for kind in kinds)
    return one, two, longest


def nist(outputs: Sequence[str], references: References) -> float:
    """Return NIST-5 by nltk (Doddington, 2002): information-weighted n-gram precision, without an upper bound.

    Raises:
        DpbenchError: as `bleu`.
    """
    from nltk.translate.nist_score import corpus_nist

    _check(outputs, references)
    cut = _bleu(False).tokenizer
    tokens = [cut(output.lower()).split() for output in outputs]
    longest = max(map(len, tokens))
    if longest == 0:
        return 0.0
    # nltk divides by the number of n-grams of each order; an order that no output is long enough for adds nothing.
    return float(
        corpus_nist(
            [[cut(text.lower()).split() for text in texts] for texts in references],
            tokens,
            min(5, longest),
        )
    )
