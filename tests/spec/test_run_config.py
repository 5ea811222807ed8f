"""A run's config.json that somebody gives, and config files: each fault is one error that names file, line or key."""

from __future__ import annotations

import json

import pytest

from dpbench.errors import DpbenchError
from dpbench.execution.runner import read_config
from dpbench.execution.study import study_at
from dpbench.files import read_yaml
from dpbench.spec.config import check_files, config_from


@pytest.fixture(scope="module")
def sound():
    """Configs as dpbench writes them: (without sources, with sources and a parent)."""
    plain = next(iter(study_at("smoke", ["dpzero/quadratic"], "test").runs.values())).config
    runs = study_at("laptop", ["automatic/glue_base"], "test").runs.values()
    return plain, next(run.config for run in runs if run.parents)


CHANGES = [
    (lambda c: c.update(job="quadratik"), "unknown job 'quadratik'"),
    (lambda c: c.update(job=3), "job"),
    (lambda c: c.update(job="../x"), "job"),
    (lambda c: c.pop("seed"), "seed"),
    (lambda c: c.update(colour=1), "unknown key 'colour'"),
    (lambda c: c.update(seed=-1), "seed"),
    (lambda c: c.update(seed=2**70), "seed"),
    (lambda c: c.update(seed="0"), "seed"),
    (lambda c: c.update(seed=True), "seed"),
    (lambda c: c.update(seed=0.5), "seed"),
    (lambda c: c.update(settings=[]), "settings"),
    (lambda c: c.update(settings=None), "settings"),
    (lambda c: c["settings"].update(colour=1), "settings: unknown key 'colour'"),
    (lambda c: c.update(versions={}), "versions: job:quadratic is missing"),
    (lambda c: c.update(versions=[]), "versions"),
    (lambda c: c.update(versions={"quadratic": 1}), "versions"),
    (lambda c: c["versions"].update({"job:quadratic": 99}), "version 99, this dpbench has"),
    (lambda c: c["versions"].update({"planet:mars": 1}), "versions: unknown kind of plug-in 'planet'"),
    (lambda c: c["versions"].update({"engine:warp": 1}), "unknown engine 'warp'"),
    (lambda c: c.update(sources=3), "sources"),
    (lambda c: c["sources"].update({"dataset:sst2": {"kind": "hub", "revision": "x"}}), "sources: dataset:sst2 is not used"),
    (lambda c: c["sources"].update({"sst2": {"kind": "hub", "revision": "x"}}), "sources"),
    (lambda c: c["sources"].update({"dataset:sst2": {}}), "sources.dataset:sst2: .*give `files`"),
    (lambda c: c["sources"].update({"dataset:sst2": {"files": {"x": "y"}}}), "sources.dataset:sst2.files"),
    (lambda c: c.update(parents=["a"]), "parents"),
    (lambda c: c["parents"].update({"start": "../../../etc"}), "parents.start"),
    (lambda c: c["parents"].update({"start": "0" * 12}), "parents: start is not used"),
]


@pytest.mark.parametrize(("change", "says"), CHANGES)
def test_a_changed_config_names_file_and_key(tmp_path, sound, change, says):
    config = json.loads(json.dumps(sound[0]))
    change(config)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(DpbenchError, match=says) as caught:
        read_config(str(path))
    assert caught.value.what.startswith(f"{path}: ")
    with pytest.raises(DpbenchError, match=says):
        read_config(json.dumps(config))


@pytest.mark.parametrize("key", ["sources", "parents"])
def test_what_the_settings_name_must_be_there(sound, key):
    config = json.loads(json.dumps(sound[1]))
    gone = sorted(config[key])[0]
    del config[key][gone]
    with pytest.raises(DpbenchError, match=f"config: {key}: {gone} is missing"):
        read_config(json.dumps(config))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a complete JSON file"),
        (b"[]", "valid dictionary"),
        (b'"x"', "valid dictionary"),
        (b'{"job": "quadratic"', "not a complete JSON file"),
        (b'{"job": "quadratic",\n"job": "text_classification"}', 'line 2, .* duplicate key "job"'),
        (b'{"seed": NaN}', "line 1, column 10: .* near 'NaN"),
        (b"\xff\xfe{", "byte-order mark"),
        (b"{\xff", "line 1 is not UTF-8"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "5000 characters"),
    ],
)
def test_what_is_no_config_names_the_file(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DpbenchError, match=says) as caught:
        read_config(str(path))
    assert caught.value.what.startswith(f"{path}: ")


def test_a_folder_and_a_path_that_is_not_there_are_named(tmp_path):
    with pytest.raises(DpbenchError, match="a folder, not a file"):
        read_config(str(tmp_path))
    with pytest.raises(DpbenchError, match="no such file"):
        read_config(str(tmp_path / "none.json"))


def test_configs_as_they_are_written_are_taken(sound):
    for config in sound:
        assert read_config(json.dumps(config)) == config


FILES = [
    (b"", "empty, not a mapping of keys"),
    (b"# nothing\n", "empty, not a mapping of keys"),
    (b"- tier\n", "a list, not a mapping"),
    (b"smoke\n", "a str, not a mapping"),
    (b"1: smoke\n", "the key 1 is not a text"),
    (b"tier: smoke\ntier: paper\n", "line 2, column 1: the key 'tier' occurs twice"),
    (b"tier:\tsmoke\n\tpapers: all\n", "line 2"),
    (b"tier: sm\xf6ke\n", "line 1 is not UTF-8"),
    (b"\xef\xbb\xbftier: smoke\n", "byte-order mark"),
    (b"tier: [smoke\n", "line 2"),
    (b"seeds: [" + b"9" * 5000 + b"]\n", "this is no int"),
]


@pytest.mark.parametrize(("content", "says"), FILES)
def test_a_config_file_is_read_as_tables_are(tmp_path, content, says):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(DpbenchError, match=says) as caught:
        check_files(path)
    assert caught.value.what.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("tier: huge\n", "unknown tier 'huge'"),
        ("teir: smoke\n", "unknown key 'teir'"),
        ("seeds: [-1]\n", "seeds"),
        ("seeds: [4294967296]\n", "seeds"),
        ("- x\n", "valid dictionary"),
        ("tier: {a: [" + "1, " * 5000 + "]}\n", "tier: Input should be a valid string"),
    ],
)
def test_a_value_that_cannot_be_names_the_key_in_a_short_message(tmp_path, content, says):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(DpbenchError, match=says) as caught:
        config_from(read_yaml(path), str(path))
    assert len(caught.value.what) < 400


def test_json_config_files_are_read_as_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"tier": "smoke",\n"tier": "paper"}')
    with pytest.raises(DpbenchError, match=r'line 2, .* duplicate key "tier"'):
        check_files(path)
    path.write_text('{\n\t"tier": "smoke"}')
    check_files(path)


def test_a_root_without_tables_is_named_and_not_the_paper(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(DpbenchError, match="nowhere/benchmarks: holds no table") as caught:
        study_at("smoke", ["dpzero/quadratic"], "test")
    assert "DPBENCH_ROOT" in caught.value.hint


def test_a_local_file_that_changed_is_named_and_not_the_hub(sound, monkeypatch):
    from dpbench.data import registry
    from dpbench.execution import runner
    from dpbench.spec.sources import Source

    def resolve(name, kind):
        if kind == "local":
            return Source(kind="local", files={"train.parquet": "b" * 64, "test.parquet": "c" * 64})
        raise DpbenchError(f"dataset {name}: not in the hub's cache")

    monkeypatch.setattr(registry, "resolve", resolve)
    then = {"dataset:sst2": {"files": {"train.parquet": "a" * 64, "test.parquet": "c" * 64}}}
    with pytest.raises(DpbenchError, match=r"dataset:sst2 .*\(local: train\.parquet changed since\)"):
        runner._sources({"sources": then})
