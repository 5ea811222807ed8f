"""Scores of generated text, against values worked out by hand."""

from __future__ import annotations

import importlib.util
import math

import pytest

from dpbench.errors import DpbenchError
from dpbench.metrics.text import bleu, nist, require, rouge, sentence_bleu


def test_bleu_is_the_mean_of_four_precisions():
    """5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 fours; a second reference has the sixth word."""
    assert bleu(["a b c d e f"], [["a b c d x f"]]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert bleu(["a b c d e f"], [["a b c d x f", "y y y y e y"]]) == pytest.approx(100 * (3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_bleu_sums_over_the_corpus_and_takes_the_nearest_length():
    """Counts are added before dividing; brevity by the reference nearest in length: 5 + 8 words against 5 + 6."""
    outputs = ["a b c d e", "a b c d e f"]
    references = [["a b c d e", "a b c d e f g h i j"], ["a b c d e f x x"]]
    assert bleu(outputs, references) == pytest.approx(100 * math.exp(1 - 13 / 11))


def test_letter_case_is_ignored_and_punctuation_is_a_word():
    assert bleu(["The Mill is a PUB, by the river."], [["the mill is a pub , by the river ."]]) == pytest.approx(100)
    assert nist(["A, B"], [["a , b"]]) == nist(["a , b"], [["a , b"]]) > 0


def test_a_sentence_is_scored_over_the_orders_it_has():
    assert sentence_bleu("a b", ["a b"]) == pytest.approx(100)
    assert sentence_bleu("", ["a b"]) == 0.0


def test_rouge_is_lins_example_with_equal_weights():
    """Lin (2004), section 3.1: against `police killed the gunman` both have 3 of 4 words and 1 of 3 pairs, and the longest common
    subsequences are 3 and 2 of 4 words."""
    reference = ["police killed the gunman"]
    assert rouge(["police kill the gunman"], [reference]) == pytest.approx((75, 100 / 3, 75))
    assert rouge(["the gunman kill police"], [reference]) == pytest.approx((75, 100 / 3, 50))
    both = [["nothing alike", *reference], reference]
    assert rouge(["police kill the gunman", "the gunman kill police"], both) == pytest.approx((75, 100 / 3, 62.5))


def test_nist_weighs_words_by_their_information():
    """Doddington (2002), equations 2 and 3. In `a b` each word tells log2(2 / 1) = 1 bit, and b after a nothing more."""
    assert nist(["a b"], [["a b"]]) == pytest.approx(1)
    assert nist(["a c"], [["a b"]]) == pytest.approx(0.5)


def test_nist_penalises_what_is_short():
    """One word of three: log2 3 bits, and half the score would be left at two thirds of the length."""
    penalty = math.exp(math.log(0.5) * (math.log(1 / 3) / math.log(1.5)) ** 2)
    assert nist(["a"], [["a b c"]]) == pytest.approx(math.log2(3) * penalty)


def test_nothing_written_scores_nothing():
    for score in (bleu, nist):
        assert score(["", ""], [["a b"], ["c"]]) == 0.0
    assert rouge(["", ""], [["a b"], ["c"]]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("outputs", "references", "says"),
    [([], [], "0 outputs"), (["a"], [["a"], ["b"]], "1 outputs and 2"), (["a", "b"], [["a"], [""]], "output 1 has no reference")],
)
def test_what_cannot_be_scored_is_named(outputs, references, says):
    for score in (bleu, rouge, nist):
        with pytest.raises(DpbenchError, match=says):
            score(outputs, references)


def test_a_missing_package_is_named_before_training(monkeypatch):
    require()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rouge_score" else real(name))
    with pytest.raises(DpbenchError, match="rouge-score is not installed"):
        require()
