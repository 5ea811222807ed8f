"""F1 and exact match of answers, against values worked out by hand."""

from __future__ import annotations

import pytest

from dpbench.errors import DpbenchError
from dpbench.metrics.answers import exact_match, f1, normalised, token_f1


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The Cat, sat.", "cat sat"),
        ("an  apple\na day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre banana another", "theatre banana another"),  # articles are whole words
        ("well-known", "wellknown"),
        ("The", ""),
    ],
)
def test_case_punctuation_articles_and_spaces_say_nothing(text, normalized):
    assert normalised(text) == normalized


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    """2 of 3 words given are among 4 asked for: precision 2/3, recall 1/2."""
    assert token_f1("red big boat", "big red old house") == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_a_word_counts_as_often_as_both_have_it():
    assert token_f1("one one one", "one one two") == pytest.approx(2 / 3)


@pytest.mark.parametrize(("output", "answer"), [("", "x"), ("x", ""), ("the", "a"), ("x", "y")])
def test_nothing_in_common_is_zero(output, answer):
    assert token_f1(output, answer) == 0


def test_the_best_answer_counts_and_outputs_are_averaged():
    outputs, answers = ["in 1990", "blue"], [["1990", "the year 1990", "in 1990"], ["a red boat"]]
    assert f1(outputs, answers) == pytest.approx(50)
    assert f1(["1990 or so"], [["1990", "so"]]) == pytest.approx(50)
    assert exact_match(["The Blue!", "blue boat"], [["blue"], ["blue"]]) == pytest.approx(50)


def test_what_cannot_be_scored_is_named():
    with pytest.raises(DpbenchError, match="output 1 has no answer"):
        f1(["a", "b"], [["a"], []])
    with pytest.raises(DpbenchError, match="0 outputs"):
        exact_match([], [])
    with pytest.raises(DpbenchError, match="2 outputs and 1 lists"):
        f1(["a", "b"], [["a"]])
