"""Deep models from shallow ones, and the largest batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_settings import setting

from dpbench.errors import DpbenchError
from dpbench.simulate.devices import DEVICES, device
from dpbench.simulate.scale import estimate, largest_batch

LINES = st.lists(st.tuples(st.floats(0, 1e9), st.floats(1, 1e9)), min_size=1, max_size=4)


@pytest.mark.parametrize("engine", ["nonprivate", "fused", "ghost", "opacus"])
def test_the_straight_line_meets_the_whole_model(engine):
    step_setting = setting(engine, size="small", tokens=128, batch_size=2, device="cuda", layers=8)
    sheets = [DEVICES["a100_80"]]
    line, full_estimate = estimate(step_setting, sheets), estimate(step_setting, sheets, every_block=True)
    assert line.peak == pytest.approx(full_estimate.peak, rel=0.005)
    for name in ("flops", "moved"):
        assert getattr(line, name) == pytest.approx(getattr(full_estimate, name), rel=1e-9)
    assert line.seconds["A100 80GB SXM"] == pytest.approx(full_estimate.seconds["A100 80GB SXM"], rel=1e-9)


@given(lines=LINES, usable=st.floats(1, 1e12))
def test_the_largest_batch_never_exceeds_the_truth(lines, usable):
    """A true peak is the largest of straight lines: what is read off chords fits, and where one line rules it is exact."""

    def peak(batch):
        return max(base + slope * batch for base, slope in lines)

    sizes = (1, 8, 32)
    largest = largest_batch({b: peak(b) for b in sizes}, usable)
    if largest <= sizes[-1] and largest:
        assert peak(largest) <= usable * (1 + 1e-9)
    if len(lines) == 1 and 0 < largest < 1e6:
        assert peak(largest + 1.001) > usable
    if largest == 0:
        assert peak(1) > usable


def test_one_point_is_no_line():
    with pytest.raises(DpbenchError, match="no line"):
        largest_batch({1: 5.0}, 10)


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(DpbenchError, match="did you mean 'a100_80'"):
        device("a100")
