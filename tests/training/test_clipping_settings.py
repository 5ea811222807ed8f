"""Groups and thresholds in the settings of jobs: names of runs that do not use them stay, and nonsense is named."""

from __future__ import annotations

import math

import pytest

from dpbench.errors import DpbenchError
from dpbench.jobs import language_modeling as language_model
from dpbench.jobs import text_classification as classify
from dpbench.measure import parallel, throughput
from dpbench.spec.expand import config_of, merge, run_id
from dpbench.spec.sources import Source
from dpbench.validation import parse

CLASSIFY = {
    "dataset": "sst2",
    "training": "features",
    "model": "tiny_bert",
    "method": "bookkeeping",
    "clipping": {"function": "abadi", "bound": 0.1},
    "epsilon": 3.0,
    "steps": 5,
    "expected_batch_size": 10,
    "optimizer": {"learning_rate": 0.01},
}
LANGUAGE = {
    "size": "tiny",
    "vocabulary": 300,
    "tokens": 16,
    "train_blocks": 400,
    "validation_blocks": 40,
    "evaluate_every": 2,
    "method": "fused",
    "clipping": {"scope": "per_layer", "bound": 1.0},
    "epsilon": 8,
    "steps": 6,
    "expected_batch_size": 40,
    "optimizer": {"learning_rate": 1e-2},
}
TIMED = {"size": "tiny", "tokens": 8, "batch_size": 2, "methods": ["nonprivate", "fused"]}
RANKS = TIMED | {"mode": "ddp", "processes": 2}
ADAPTIVE = {"quantile": 0.6}


def named(job, settings):
    """The run's name with all versions left out: those are raised on purpose."""
    config = config_of(job, settings, 1, lambda kind, name: Source(kind="embedded", revision="v1", synthetic=True))
    return run_id(config | {"versions": {}, "parents": {}})


@pytest.mark.parametrize(("job", "settings", "name"), [
    ("text_classification", CLASSIFY, "0a6c2f031b1b"),
    ("text_classification", merge(CLASSIFY, {"clipping": {"function": "auto_s", "bound": 1.0, "gamma": 0.02}}), "460eb244c331"),
    ("language_modeling", LANGUAGE, "253500214bd7"),
    ("language_modeling", merge(LANGUAGE, {"clipping": {"bound": None, "group_bound": 100.0}}), "ae1d6cfe81b1"),
    ("throughput", TIMED, "6e718a32a860"),
    ("parallel", RANKS, "506ea6757201"),
])  # fmt: skip
def test_runs_that_use_none_of_it_keep_their_names(job, settings, name):
    """Names as they were before there were groups and thresholds to set."""
    assert named(job, settings) == name


@pytest.mark.parametrize(
    "over",
    [{"allocation": "equal"}, {"scope": "per_device", "devices": 2}, {"thresholds": [0.5], "bound": 1.0}, {"adaptive": ADAPTIVE}],
)
def test_what_is_given_is_part_of_the_name(over):
    base = merge(CLASSIFY, {"clipping": {"bound": 1.0}})
    assert named("text_classification", merge(base, {"clipping": over})) != named("text_classification", base)


def test_what_is_left_at_its_default_is_not():
    same = {"allocation": "global", "devices": None, "thresholds": None, "adaptive": None}
    assert named("text_classification", merge(CLASSIFY, {"clipping": same})) == named("text_classification", CLASSIFY)
    assert named("throughput", TIMED | {"adaptive": None}) == named("throughput", TIMED)


def test_the_version_of_adaptive_thresholds_counts_if_used():
    def versions(job, settings):
        return config_of(job, settings, 1, lambda kind, name: Source(kind="embedded", revision="v1", synthetic=True))["versions"]

    for job, base, over in (
        ("text_classification", CLASSIFY, {"clipping": {"adaptive": ADAPTIVE}}),
        ("language_modeling", LANGUAGE, {"clipping": {"adaptive": ADAPTIVE}}),
        ("throughput", TIMED, {"adaptive": ADAPTIVE}),
    ):
        assert "threshold:adaptive" not in versions(job, base)
        assert versions(job, merge(base, over))["threshold:adaptive"] >= 1


def test_settings_become_clipping_and_come_back_from_a_record():
    over = {"scope": "per_device", "devices": 2, "allocation": "equal", "adaptive": ADAPTIVE | {"budget": 0.1, "rescale": True}}
    settings = parse(classify.Settings, merge(CLASSIFY, {"clipping": over}), "test")
    clipping = settings.clipping.build()
    assert (clipping.scope, clipping.devices, clipping.allocation, clipping.bound) == ("per_device", 2, "equal", 0.1)
    adaptive = clipping.adaptive
    assert (adaptive.quantile, adaptive.rate, adaptive.budget, adaptive.rescale) == (0.6, 0.3, 0.1, True)
    assert parse(classify.Settings, settings.model_dump(mode="json"), "test") == settings
    parsed_settings = parse(
        language_model.Settings, merge(LANGUAGE, {"clipping": {"bound": None, "thresholds": [3.0, 4.0]}}), "test"
    )
    assert parsed_settings.clipping.build(groups=2).bound == 5.0
    assert parse(language_model.Settings, parsed_settings.model_dump(mode="json"), "test") == parsed_settings


@pytest.mark.parametrize(("over", "says"), [
    ({"adaptive": {"quantile": 1.0}}, "clipping.adaptive.quantile"),
    ({"adaptive": {"quantile": 0.5, "budget": 0.0}}, "clipping.adaptive.budget"),
    ({"adaptive": {"quantile": 0.5, "rate": math.inf}}, "clipping.adaptive.rate"),
    ({"adaptive": {"quantil": 0.5}}, "did you mean 'quantile'"),
    ({"adaptive": ADAPTIVE, "function": "auto_s"}, "adaptive thresholds with auto_s"),
    ({"thresholds": [0.1, -0.1], "bound": 1.0}, "threshold -0.1 of number 1"),
    ({"thresholds": {"all": 0.0}, "bound": 1.0}, "threshold 0.0 of all"),
    ({"thresholds": [0.1]}, "bound 0.1 beside thresholds"),
    ({"devices": 2}, "flat has no use for devices 2"),
    ({"allocation": "fair"}, "clipping.allocation"),
])  # fmt: skip
def test_nonsense_is_named(over, says):
    with pytest.raises(DpbenchError, match=says):
        parse(classify.Settings, merge(CLASSIFY, {"clipping": over}), "test")


def test_a_language_model_has_one_kind_of_bound():
    for over in ({"bound": None}, {"thresholds": [1.0]}, {"group_bound": 1.0}):
        with pytest.raises(DpbenchError, match="exactly one of bound, group_bound and thresholds"):
            parse(language_model.Settings, merge(LANGUAGE, {"clipping": over}), "test")
    with pytest.raises(DpbenchError, match="pays for no adaptive thresholds"):
        parse(
            language_model.Settings, merge(LANGUAGE, {"noise": "flashdp_published", "clipping": {"adaptive": ADAPTIVE}}), "test"
        )


def test_only_timed_engines_that_can_adapt_do():
    settings = parse(throughput.Settings, TIMED | {"methods": ["nonprivate", "fused", "opacus"], "adaptive": ADAPTIVE}, "test")
    assert settings.mechanism("fused").clipping.adaptive.quantile == 0.6
    assert settings.mechanism("opacus").clipping.adaptive is None
    assert settings.mechanism("nonprivate").clipping is None
    assert parse(parallel.Settings, RANKS | {"adaptive": ADAPTIVE}, "test").mechanism("fused").clipping.adaptive is not None


@pytest.mark.parametrize(("over", "says"), [
    ({"scope": "per_device", "devices": 9}, "9 devices for 3 layers"),
    ({"scope": "per_layer", "bound": 1.0, "thresholds": [0.1, 0.2]}, "2 thresholds for 3 groups"),
    ({"scope": "per_layer", "bound": 1.0, "thresholds": {"hidden.0": 0.1, "hidden.1": 0.1, "outt": 0.1}}, "unknown group 'outt'"),
])  # fmt: skip
def test_unknown_groups_are_refused_before_training(over, says):
    """`hidden` of two widths and an output layer: three layers. `check` attaches the engine to a model without weights."""
    from dpbench.data import registry as datasets

    settings = parse(classify.Settings, merge(CLASSIFY, {"hidden": [8, 4], "clipping": over}), "test")
    sources = {f"dataset:{name}": datasets.resolve(name, "embedded") for name in ("sst2", "wikitext2")}
    with pytest.raises(DpbenchError, match=says):
        classify.check(settings, sources | {"model:tiny_bert": Source(kind="scratch", synthetic=True)})
