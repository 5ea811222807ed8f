"""Table YAML -> runs: what is refused and how, hashing, sharing, axes."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dpbench import paths
from dpbench.errors import DpbenchError
from dpbench.files import read_yaml
from dpbench.spec import tables
from dpbench.spec.expand import expand, merge, run_id, tier_axes
from dpbench.spec.includes import with_includes
from dpbench.spec.models import TIERS, TableSpec
from dpbench.spec.sources import Source

REPOSITORY = Path(__file__).resolve().parents[2]


def local(kind, name):
    return Source(kind="local", files={"train": name * 4}, says=f"{name} from a folder")


def embedded(kind, name):
    return Source(kind="embedded", revision="v1", synthetic=True)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of benchmarks/ that a test may spoil."""
    shutil.copytree(REPOSITORY / "benchmarks", tmp_path / "benchmarks")
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    tables._index.cache_clear()
    tables._load.cache_clear()
    yield tmp_path / "benchmarks"
    tables._index.cache_clear()
    tables._load.cache_clear()


def spoil(tree, change):
    """Change a table that has its fragments written out."""
    path = tree / "flashdp" / "batch_size.yaml"
    values = with_includes(read_yaml(path), path)
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return lambda: tables.load_table("flashdp", "batch_size")


def test_every_table_expands_at_every_tier():
    for spec in tables.all_tables():
        for tier in TIERS:
            plan = expand(spec, tier, local)
            assert plan.cells
            assert {cell.run for cell in plan.cells} <= set(plan.runs)
            assert len({(tuple(c.labels.items()), c.seed) for c in plan.cells}) == len(plan.cells)


def test_smoke_has_at_most_three_runs_a_table():
    assert all(len(expand(spec, "smoke", embedded).runs) <= 3 for spec in tables.all_tables())


@pytest.mark.parametrize(
    ("change", "says", "way"),
    [
        (lambda v: v.update(titel="x"), r"batch_size\.yaml: unknown key 'titel'", "did you mean 'title'"),
        (
            lambda v: v["claims"][0]["test"].update(ratio_at_lest=1),
            r"unknown key 'claims\.0\.test\.ratio_at_lest'",
            "ratio_at_least",
        ),
        (lambda v: v["claims"][0]["test"].update(ratio_at_most=1), "exactly one threshold", ""),
        (lambda v: v["tiers"].pop("gpu"), "gpu missing", ""),
        (lambda v: v["tiers"].update(nightly={}), "nightly", ""),
        (lambda v: v["metrics"]["throughput"].update(better="more"), "metrics.throughput.better", ""),
        (lambda v: v["claims"][0]["test"].update(metric="speed"), "speed", ""),
        (lambda v: v["claims"][0]["test"].update(of={"machine": "x"}), "machine", ""),
        (lambda v: v["claims"][0]["test"].update(precondition={"metric": "speed", "of": {}, "above": 0}), "speed", ""),
        (
            lambda v: v["claims"][0]["test"].update(precondition={"metric": "throughput", "of": {"gpu": "x"}, "above": 0}),
            "gpu",
            "",
        ),
        (lambda v: v.update(cells=[{"engin": "fused"}]), "cells, block 1: 'engin' is not one of", ""),
        (lambda v: v.update(cells=[{}, {"engine": "fusd"}]), "cells, block 2: engine: 'fusd' is not one of", ""),
        (lambda v: v["tiers"]["gpu"].update(cells=[{"engine": ["x"]}]), r"tiers\.gpu\.cells, block 1: engine", ""),
        (lambda v: v.update(cells=[]), "cells", ""),
        (lambda v: v["plots"][0].update(x="batch"), "batch", ""),
        (lambda v: v["tiers"]["laptop"].update(rows={"modell": [1]}), "modell", ""),
        (lambda v: v.update(paper="other"), "name folder and file", ""),
        (lambda v: v["columns"].update(tokens=[1]), "both a row and a column", ""),
    ],
)
def test_faults_name_file_key_and_the_nearest(tree, change, says, way):
    load = spoil(tree, change)
    with pytest.raises(DpbenchError, match=says) as caught:
        load()
    assert way in str(caught.value)


def test_malformed_yaml_names_the_line(tree):
    path = tree / "flashdp" / "batch_size.yaml"
    path.write_text("paper: flashdp\ntable: [unclosed\n")
    with pytest.raises(DpbenchError, match=r"batch_size\.yaml: malformed YAML at line"):
        tables.load_table("flashdp", "batch_size")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(DpbenchError, match="'a' occurs twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tables.load_table("flashdpp", "batch_size"), "did you mean 'flashdp'"),
        (lambda: tables.load_table("flashdp", "batchsize"), "did you mean 'flashdp/batch_size'"),
        (lambda: tables.load_named("batch_size"), "PAPER/TABLE"),
        (lambda: expand(tables.load_table("flashdp", "batch_size"), "latop", local), "did you mean 'laptop'"),
    ],
)
def test_unknown_names_name_the_nearest(call, says):
    with pytest.raises(DpbenchError, match=says):
        call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda v: v["tiers"]["laptop"]["columns"].update(engine=["nonprivate", "fusd"]),
            "unknown engine 'fusd'\n.*did you mean 'fused'",
        ),
        (lambda v: v["settings"].update(dataset="wikitext3"), "wikitext3"),
        (lambda v: v["settings"].update(tokns=1), "unknown key 'tokns'"),
        (lambda v: v.update(job="thruput"), "unknown job 'thruput'"),
    ],
)
def test_unknown_plugins_and_settings_stop_the_expansion(tree, change, says):
    spec = spoil(tree, change)()

    def resolve(kind, name):
        from dpbench.data import registry as datasets

        return datasets.resolve(name) if kind == "dataset" else local(kind, name)

    with pytest.raises(DpbenchError, match=says):
        expand(spec, "laptop", resolve)


def names(spec, tier="laptop", resolve=local, **options):
    return set(expand(spec, tier, resolve, **options).runs)


def test_a_run_is_named_by_what_decides_its_numbers(tree, monkeypatch):
    spec = tables.load_table("automatic", "glue_base")
    assert names(spec) == names(spec)
    assert not names(spec) & names(spec, resolve=embedded), "real and synthetic runs must never share a record"
    assert not names(spec) & names(spec, seeds=[5]) - _parents(spec)
    laptop = [run for run in expand(spec, "laptop", local).runs.values() if run.config["job"] == "text_features"]
    full_runs = {run.id for run in laptop if run.config["settings"]["train_limit"] is None}
    assert full_runs
    assert full_runs <= names(spec, "overnight"), "the same features serve both tiers"


def _parents(spec):
    return {p.id for run in expand(spec, "laptop", local).runs.values() for p in run.parents.values()}


def test_a_raised_version_renames_the_run(monkeypatch):
    from dpbench import plugins

    spec = tables.load_table("flashdp", "batch_size")
    before = names(spec)
    engines = dict(plugins.discover("engine"))
    old = engines["fused"]
    engines["fused"] = dataclasses.replace(old, version=old.version + 1)
    real = plugins.discover
    monkeypatch.setattr(plugins, "discover", lambda kind: engines if kind == "engine" else real(kind))
    assert not before & names(spec)


def test_resources_and_titles_do_not_rename_a_run(tree):
    before = names(tables.load_table("flashdp", "batch_size"))

    def change(values):
        values["title"] = "another title"
        values["tiers"]["laptop"]["resources"]["minutes"] = 99

    assert names(spoil(tree, change)()) == before


def test_engines_of_a_row_are_measured_in_one_run():
    plan = expand(tables.load_table("flashdp", "batch_size"), "laptop", local)
    by_run = {}
    for cell in plan.cells:
        by_run.setdefault(cell.run, []).append(cell.select["engine"])
    expected_engines = ["nonprivate", "opacus", "opacus_ghost", "opake", "ghost", "bookkeeping", "fused"]
    assert all(engines == expected_engines for engines in by_run.values())


def test_methods_of_a_seed_share_it():
    plan = expand(tables.load_table("automatic", "glue_base"), "overnight", local)
    seeds = {}
    for cell in plan.cells:
        seeds.setdefault((cell.labels["method"], cell.labels["epsilon"], cell.labels["model"]), set()).add(cell.seed)
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


def test_a_table_has_the_cells_of_its_blocks(tree):
    """An axis that a block does not name has all its values; a block with a reason has cells that stay empty."""
    path = tree / "automatic" / "glue_base.yaml"
    values = yaml.safe_load(path.read_text())
    values["tiers"].setdefault("laptop", {})["cells"] = [
        {"method": "nonprivate", "epsilon": "inf", "task": "sst2"},
        {"method": ["abadi", "auto_s"], "epsilon": [3, "8"], "task": "sst2"},
        {"method": "auto_v", "why": "left out"},
    ]
    path.write_text(yaml.safe_dump(values))
    plan = expand(tables.load_table("automatic", "glue_base"), "laptop", local)
    there = {(cell.labels["method"], cell.labels["epsilon"]) for cell in plan.cells}
    assert there == {("nonprivate", "inf"), *itertools.product(["abadi", "auto_s"], ["3", "8"])}
    assert {(labels["method"], why) for labels, why in plan.skipped} == {("auto_v", "left out")}
    assert len(plan.skipped) == 3 * 5


def test_an_error_names_the_file_of_a_table_outside(tree, tmp_path, monkeypatch):
    values = yaml.safe_load((tree / "automatic" / "convergence.yaml").read_text()) | {"paper": "mine", "table": "twice"}
    values |= {"cells": [{}, {}], "claims": [], "plots": [], "measured_together": {}}
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "twice.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("DPBENCH_PLUGINS", str(tmp_path / "outside"))
    with pytest.raises(DpbenchError, match=r"outside/twice\.yaml \(tier laptop\): blocks 1 and 2"):
        expand(tables.load_table("mine", "twice"), "laptop", local)


def test_two_blocks_that_have_one_cell_are_an_error(tree):
    path = tree / "automatic" / "glue_base.yaml"
    values = yaml.safe_load(path.read_text())
    values["tiers"].setdefault("laptop", {})["cells"] = [{"method": "nonprivate"}, {"epsilon": "inf", "why": "x"}]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(DpbenchError, match=r"glue_base\.yaml \(tier laptop\): blocks 1 and 2 of `cells` both have"):
        expand(tables.load_table("automatic", "glue_base"), "laptop", local)


def test_a_fragment_lies_under_what_a_table_says_itself(tree):
    shared = tree / "_shared"
    shared.mkdir(exist_ok=True)
    (shared / "tiers.yaml").write_text("include: sizes\nlaptop: {settings: {rounds: 9}, seeds: [7]}\n")
    (shared / "sizes.yaml").write_text("laptop: {settings: {rounds: 3, steps: 4}}\n")
    path = tree / "flashdp" / "batch_size.yaml"
    values = yaml.safe_load(path.read_text())
    tier_settings = dict(values["tiers"]["laptop"].get("settings", {}))
    values["tiers"]["include"] = "tiers"
    path.write_text(yaml.safe_dump(values))
    tier = tables.load_table("flashdp", "batch_size").tiers["laptop"]
    assert tier.settings == {"rounds": 9, "steps": 4} | tier_settings
    assert {path.stem for path in tables.fragments_of(path)} >= {"tiers", "sizes", "metrics"}
    assert tables.papers() == sorted({folder.name for folder in tree.iterdir() if not folder.name.startswith("_")})


def test_a_list_names_the_settings_of_one_origin(tree):
    load = spoil(tree, lambda v: v.update(origin={"ours": ["rounds", "steps"], "tokens": "the paper's"}))
    assert load().origin == {"rounds": "ours", "steps": "ours", "tokens": "the paper's"}


def test_a_setting_with_two_origins_is_an_error(tree):
    load = spoil(tree, lambda v: v.update(origin={"ours": ["rounds"], "rounds": "the paper's"}))
    with pytest.raises(DpbenchError, match=r"batch_size\.yaml: origin: .*'rounds' has two origins"):
        load()


def test_a_list_takes_the_items_of_a_fragment_that_is_a_list(tree):
    """A fragment that is a mapping is one item, to which keys may be added."""
    (tree / "_shared" / "two_notes.yaml").write_text("- first\n- second\n")
    (tree / "_shared" / "one_plot.yaml").write_text("{name: a, title: A, kind: lines, metric: throughput, series: engine}\n")
    path = tree / "flashdp" / "batch_size.yaml"
    values = yaml.safe_load(path.read_text())
    values["notes"] = ["before", {"include": "two_notes"}, "after"]
    values["plots"] = [{"include": "one_plot", "x": "tokens"}]
    path.write_text(yaml.safe_dump(values))
    spec = tables.load_table("flashdp", "batch_size")
    assert spec.notes == ["before", "first", "second", "after"]
    assert [(plot.name, plot.x) for plot in spec.plots] == [("a", "tokens")]
    assert {path.stem for path in tables.fragments_of(path)} >= {"two_notes", "one_plot"}


@pytest.mark.parametrize(
    ("fragments", "says"),
    [
        ({}, "include a: there is no such fragment"),
        ({"a": "include: b", "b": "include: a"}, "fragments include each other: a -> b -> a"),
        ({"a": "include: a"}, "fragments include each other: a -> a"),
        ({"a": "- x"}, r"a\.yaml: not a mapping"),
        ({"a": "x: ["}, r"a\.yaml: malformed YAML"),
        ({"a": "include: ../a"}, "is not the name of a fragment"),
        ({"a": "include: [1]"}, "is not the name of a fragment"),
    ],
)
def test_a_wrong_fragment_is_one_error_that_names_the_file(tree, fragments, says):
    (tree / "_shared").mkdir(exist_ok=True)
    for name, text in fragments.items():
        (tree / "_shared" / f"{name}.yaml").write_text(text)
    path = tree / "flashdp" / "kernel_traffic.yaml"
    path.write_text("include: a\n" + path.read_text())
    with pytest.raises(DpbenchError, match=says):
        tables.load_table("flashdp", "kernel_traffic")


METRICS = "accuracy: {unit: '%', better: higher, says: right}\nseconds: {unit: s, better: lower}\n"


@pytest.mark.parametrize(
    ("metrics", "digits"), [(["accuracy"], 2), ({"accuracy": None}, 2), ({"accuracy": {"digits": 1}}, 1), ({"accuracy": {}}, 2)]
)
def test_a_table_takes_its_metrics_from_the_shared_ones(tree, metrics, digits):
    (tree / "_shared" / "metrics.yaml").write_text(METRICS)
    path = tree / "automatic" / "glue_base.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"metrics": metrics, "claims": [], "plots": []}))
    spec = tables.load_table("automatic", "glue_base")
    assert {name: (m.unit, m.says, m.digits) for name, m in spec.metrics.items()} == {"accuracy": ("%", "right", digits)}


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (["acuracy"], r"glue_base\.yaml: metrics: 'acuracy' is not in .*metrics\.yaml(.|\n)*did you mean 'accuracy'"),
        ([{"accuracy": {}}], "metrics: .* is not in"),
        ({"acuracy": {}}, r"glue_base\.yaml: metrics\.acuracy\.unit: Field required"),
        ("accuracy", "metrics: .*dictionary"),
    ],
)
def test_a_wrong_metric_is_one_error_that_names_the_file(tree, metrics, says):
    (tree / "_shared" / "metrics.yaml").write_text(METRICS)
    path = tree / "automatic" / "glue_base.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"metrics": metrics}))
    with pytest.raises(DpbenchError, match=says):
        tables.load_table("automatic", "glue_base")


def test_a_list_at_a_tier_names_values_of_the_table(tree):
    path = tree / "automatic" / "glue_base.yaml"
    values = yaml.safe_load(path.read_text())
    values["tiers"]["laptop"] = {"rows": {"method": ["abadi"], "epsilon": [3]}, "cells": [{}]}
    values.pop("cells", None)
    path.write_text(yaml.safe_dump(values))
    axes = tier_axes(tables.load_table("automatic", "glue_base"), "laptop")
    assert axes["method"] == {"abadi": values["rows"]["method"]["abadi"]}
    assert list(axes["epsilon"]) == ["3"]


def test_merge_is_deep_and_null_wins():
    assert merge({"a": {"b": 1, "c": 2}, "d": {"e": 1}}, {"a": {"b": 3}, "d": None}) == {"a": {"b": 3, "c": 2}, "d": None}


def test_the_name_does_not_depend_on_the_order_of_keys():
    assert run_id({"a": 1, "b": [1, 2]}) == run_id({"b": [1, 2], "a": 1})


def test_naming_runs_does_not_import_torch():
    code = (
        "import sys; from dpbench.execution.study import study; from dpbench.spec.config import Config;"
        "[study(Config(tier=t)) for t in ('smoke', 'laptop', 'paper')]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_published_values_need_a_source(tree):
    path = tree / "automatic" / "published" / "glue_base.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].rsplit(",", 1)[0] + ","]) + "\n")
    with pytest.raises(DpbenchError, match="without a source"):
        tables.published(tables.load_table("automatic", "glue_base"))
    path.write_text(lines[0].replace("source", "sauce") + "\n")
    with pytest.raises(DpbenchError, match="column 'source' is missing"):
        tables.published(tables.load_table("automatic", "glue_base"))


def test_the_two_read_values_are_there():
    published_values = {
        (p.labels["method"], p.labels["epsilon"]): p.value for p in tables.published(tables.load_table("automatic", "glue_base"))
    }
    assert published_values == {("abadi", "3"): 91.86, ("auto_s", "3"): 92.32}
    assert tables.published(tables.load_table("flashdp", "batch_size")) == []


def test_every_plan_comes_from_this_tree():
    assert paths.benchmarks() == REPOSITORY / "benchmarks"
    assert all(isinstance(spec, TableSpec) for spec in tables.all_tables())


OVERRIDES = [{"where": {"layer": "projection_768x768", "tokens": ["128"]}, "settings": {"batch_size": 3, "rounds": 9}}]


def test_settings_of_single_cells_reach_no_others(tree):
    """A tier's replace the table's; an axis measured inside one run cannot tell cells apart."""
    path = tree / "flashdp" / "kernel_traffic.yaml"
    values = yaml.safe_load(path.read_text())
    values["overrides"] = OVERRIDES
    values["tiers"]["overnight"] = {"overrides": []}
    path.write_text(yaml.safe_dump(values))
    spec = tables.load_table("flashdp", "kernel_traffic")
    all_settings = [run.config["settings"] for run in expand(spec, "laptop", local).runs.values()]
    cell_settings = [s for s in all_settings if (s["inputs"], s["outputs"], s["tokens"]) == (768, 768, 128)]
    assert [(s["batch_size"], s["rounds"]) for s in cell_settings] == [(3, 9)]
    assert {s["batch_size"] for s in all_settings if s not in cell_settings} == {values["settings"]["batch_size"]}
    assert all(run.config["settings"]["batch_size"] != 3 for run in expand(spec, "overnight", local).runs.values())
    values["overrides"] = [{"where": {"engine": "fused"}, "settings": {"batch_size": 3}}]
    path.write_text(yaml.safe_dump(values))
    tables._load.cache_clear()
    with pytest.raises(DpbenchError, match="overrides: 'engine' is not one of layer, tokens"):
        tables.load_table("flashdp", "kernel_traffic")
