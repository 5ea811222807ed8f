"""Corpus scores of generated texts with several references each.

Letter case is ignored and words are cut as mteval-v13a cuts them, which is how the E2E challenge scored.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

from dpbench.errors import DpbenchError

References = Sequence[Sequence[str]]
"""One or more texts for each output."""

LEFT_OUT = {
    "meteor": "left out: nltk's needs WordNet, which it downloads; the published scorer is a Java program",
    "cider": "left out: the published scorer, pycocoevalcap, cuts words by a Java program and was last released in 2020",
}
"""Metrics of the published tables that are not computed here, and why."""


def require() -> None:
    """See that what scores is there, before anything long begins.

    Raises:
        DpbenchError: a package is not installed; names it.
    """
    for module, package in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score"), ("nltk", "nltk")):
        if importlib.util.find_spec(module) is None:
            raise DpbenchError(f"{package} is not installed, and generated text is scored by it", f"pip install {package}")


def _check(outputs: Sequence[str], references: References) -> None:
    if not outputs or len(outputs) != len(references):
        raise DpbenchError(f"{len(outputs)} outputs and {len(references)} lists of references", "give a list for each output")
    if empty := [i for i, own in enumerate(references) if not any(own)]:
        raise DpbenchError(f"output {empty[0]} has no reference", "leave out inputs without references")


@cache
def _bleu(sentence: bool) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True, tokenize="13a", effective_order=sentence)


def bleu(outputs: Sequence[str], references: References) -> float:
    """Corpus BLEU-4 by sacrebleu, 0 to 100.

    Raises:
        DpbenchError: no outputs, or one without references.
    """
    _check(outputs, references)
    streams = [list(stream) for stream in zip_longest(*references)]  # None where an output has fewer
    return float(_bleu(False).corpus_score(list(outputs), streams).score)


def sentence_bleu(output: str, references: Sequence[str]) -> float:
    """BLEU of one output, 0 to 100, over the orders that it is long enough for; smoothed, as sacrebleu does."""
    return float(_bleu(True).sentence_score(output, list(references)).score)


def rouge(outputs: Sequence[str], references: References) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L by rouge-score, 0 to 100: mean over outputs of the best F-measure over its references.

    Raises:
        DpbenchError: as `bleu`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _check(outputs, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds)
    found = [scorer.score_multi(list(own), output) for output, own in zip(outputs, references, strict=True)]
    one, two, longest = (100 * sum(scores[kind].fmeasure for scores in found) / len(found) for kind in kinds)
    return one, two, longest


def nist(outputs: Sequence[str], references: References) -> float:
    """NIST-5 by nltk (Doddington, 2002): information-weighted n-gram precision; no upper bound.

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
    return float(corpus_nist([[cut(text.lower()).split() for text in own] for own in references], tokens, min(5, longest)))
