"""From the settings of a run to its mechanism, and what is warned of."""

from __future__ import annotations

import pytest
from text_settings import FEATURES

from dpbench.jobs import text_classification as classify
from dpbench.validation import parse


def settings(**over):
    return parse(classify.Settings, FEATURES | over, "test")


@pytest.mark.parametrize(("rule", "delta"), [("1/(2n)", 1 / 2000), ("n^-1.1", 1000**-1.1), (1e-6, 1e-6)])
def test_delta_rules(rule, delta):
    plain = settings(method="nonprivate", clipping=None, epsilon=None, delta=rule)
    assert plain.mechanism(1000, 800, 0).delta == pytest.approx(delta)


def test_a_batch_larger_than_the_data_is_the_data():
    assert (
        settings(method="nonprivate", clipping=None, epsilon=None, expected_batch_size=5000)
        .mechanism(1000, 800, 0)
        .sampling.sample_rate
        == 1.0
    )


@pytest.mark.parametrize(
    ("clipping", "says"),
    [
        ({"function": "auto_s", "bound": 0.1}, ["bound 0.1 has no effect under auto_s but to multiply SGD's learning rate"]),
        ({"function": "auto_v", "bound": 4.0}, ["bound 4 has no effect under auto_v but to multiply SGD's learning rate"]),
        ({"function": "auto_v", "gamma": 0.02}, ["gamma has no effect under auto_v"]),
        ({"function": "abadi", "gamma": 0.01}, []),
        ({"function": "auto_s", "bound": 1.0, "gamma": 0.01}, []),
        ({"function": "abadi", "bound": 0.1}, []),
    ],
)
def test_a_bound_given_to_automatic_clipping_is_warned_of(clipping, says):
    assert settings(clipping=clipping).without_effect == says
