"""What a caller passes is what was written, or is named."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpbench.arguments import between, finite_number, flag, known_name, whole_number
from dpbench.errors import DpbenchError

NO_NUMBERS = [None, "1", b"1", [1], (1,), {}, 1j, True, False, object()]


@given(st.text(max_size=12))
def test_only_the_name_to_the_letter_is_known(text):
    known = ("poisson", "fixed")
    if text in known:
        known_name(text, "sampler", known)
    else:
        with pytest.raises(DpbenchError, match="unknown sampler"):
            known_name(text, "sampler", known)


@pytest.mark.parametrize("written", ["Poisson", "POISSON", "poison", "poisson ", "pois_son"])
def test_the_nearest_name_is_in_the_hint_whatever_its_case(written):
    with pytest.raises(DpbenchError, match="did you mean 'poisson'"):
        known_name(written, "sampler", ("poisson", "fixed"))


@pytest.mark.parametrize("value", [*NO_NUMBERS, 2.0, 2.5, math.nan, Fraction(5, 2), np.float64(3), np.bool_(True)])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(DpbenchError, match=r"steps .* is not a whole number"):
        whole_number(value, "steps")


@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_have_both_ends(value):
    if 3 <= value <= 2**40:
        assert whole_number(value, "n", 3, 2**40) == value
    else:
        with pytest.raises(DpbenchError, match=r"n .* is (below|above)"):
            whole_number(value, "n", 3, 2**40)


def test_numpy_integers_become_ints():
    assert type(whole_number(np.int64(7), "steps")) is int
    assert type(finite_number(np.float32(0.5), "delta")) is float
    assert type(finite_number(3, "batch")) is int


@pytest.mark.parametrize("value", [*NO_NUMBERS, math.nan, math.inf, -math.inf, np.float64("nan"), -1.0, 0])
def test_what_is_no_positive_number_is_named(value):
    with pytest.raises(DpbenchError, match=r"bound .* is not a positive number"):
        finite_number(value, "bound", above=0)


@pytest.mark.parametrize("value", [*NO_NUMBERS, math.nan, math.inf, 0, 1, -1e-300, 1.0000001])
def test_what_does_not_lie_between_is_named(value):
    with pytest.raises(DpbenchError, match=r"delta .* is not between 0 and 1"):
        between(value, "delta", 0, 1)


@pytest.mark.parametrize("value", ["false", "True", 0, 1, None])
def test_a_flag_is_a_bool(value):
    flag(False, "rescale")
    with pytest.raises(DpbenchError, match="neither True nor False"):
        flag(value, "rescale")
