"""dpbench.execution.study and the schemas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from dpbench.cli import main
from dpbench.cli.verbs.authoring import schemas, write_template
from dpbench.errors import DpbenchError
from dpbench.execution import study as module
from dpbench.execution.study import config_of, resolver, study
from dpbench.spec.config import Config
from dpbench.spec.models import TIERS, Resources

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("overrides", "key", "expected"),
    [
        ({"papers": "dpzero"}, "papers", ["dpzero"]),
        ({"papers": "dpzero, flashdp"}, "papers", ["dpzero", "flashdp"]),
        ({"papers": "all"}, "papers", "all"),
        ({"tables": "dpzero/a,flashdp/b"}, "tables", ["dpzero/a", "flashdp/b"]),
        ({"seeds": 3}, "seeds", [3]),
        ({"seeds": "0,1"}, "seeds", [0, 1]),
        ({"seeds": ["0", "1"]}, "seeds", [0, 1]),
        ({"tier": None}, "tier", "laptop"),
    ],
)
def test_a_command_line_may_give_one_name_or_several(overrides: dict[str, object], key: str, expected: object) -> None:
    assert getattr(config_of(overrides), key) == expected


def test_the_config_in_the_repository_is_the_default() -> None:
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    assert set(values) == set(Config.model_fields)
    assert config_of(values) == Config()


def test_a_run_of_two_tables_exists_once_and_has_its_parents() -> None:
    tier_study = study(config_of({"tier": TIERS[0]}))
    assert tier_study.plans
    named = [run for plan in tier_study.plans.values() for run in plan.runs]
    assert set(tier_study.runs) == set(named)
    seen: set[str] = set()
    for name, run in tier_study.runs.items():
        assert run.id == name
        assert {parent.id for parent in run.parents.values()} <= seen
        seen.add(name)


def test_shared_runs_get_enough_for_both() -> None:
    one, other = Resources(threads=4, mem_mb=100, minutes=1, gpu=1), Resources(threads="all", mem_mb=50, minutes=9)
    assert module._largest(one, other) == module._largest(other, one) == Resources(threads="all", mem_mb=100, minutes=9, gpu=1)


def test_folders_of_the_config_yield_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPBENCH_MODELS", "theirs")
    resolver(Config(data_folder="ours", model_folder="ours"))
    assert os.environ["DPBENCH_MODELS"] == "theirs"
    assert os.environ["DPBENCH_DATA"].endswith("/ours")


def test_a_source_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    real = module.datasets.resolve
    monkeypatch.setattr(
        module.datasets, "resolve", lambda name, source_name: calls.append((name, source_name)) or real(name, source_name)
    )
    resolve = resolver(Config(sources={"sst2": "embedded"}))
    assert resolve("dataset", "sst2") is resolve("dataset", "sst2")
    assert calls == [("sst2", "embedded")]


@pytest.mark.parametrize(("tier", "source_name"), [("smoke", "embedded"), ("laptop", "auto")])
def test_the_smoke_tier_is_the_same_everywhere(tier: str, source_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = module.datasets.resolve
    monkeypatch.setattr(
        module.datasets, "resolve", lambda name, source_name: calls.append(source_name) or real(name, source_name)
    )
    resolver(Config(tier=tier))("dataset", "sst2")
    assert calls == [source_name]


def test_the_smoke_tier_reads_datasets_without_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins").mkdir()
    write_template("dataset", "reviews", tmp_path / "plugins")
    (tmp_path / "reviews").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "reviews" / f"{split}.csv").write_text("text,label\na,1\nb,0\n")
    monkeypatch.setenv("DPBENCH_PLUGINS", str(tmp_path / "plugins"))
    monkeypatch.setenv("DPBENCH_DATA", str(tmp_path))
    assert resolver(Config(tier="smoke"))("dataset", "reviews").kind == "local"


def test_a_source_for_nothing_is_an_error() -> None:
    with pytest.raises(DpbenchError, match=r"unknown dataset or model 'sts2'\s+hint: did you mean 'sst2'"):
        resolver(Config(sources={"sts2": "embedded"}))


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"tier": "smokey"}, "smokey", "did you mean 'smoke'?"),
        ({"papers": "flashpd"}, "flashpd", "did you mean 'flashdp'?"),
        ({"papers": ["automatic", "flashpd"]}, "flashpd", "did you mean 'flashdp'?"),
        ({"tables": "flashpd/nothing"}, "flashpd", "did you mean 'flashdp'?"),
        ({"tables": "flashdp"}, "flashdp", "write PAPER/TABLE"),
        ({"teir": "smoke"}, "teir", "did you mean 'tier'?"),
        ({"sources": {"stt2": "embedded"}}, "stt2", "did you mean 'sst2'?"),
        ({"sources": {"sst2": "elsewhere"}}, "elsewhere", "sources.sst2"),
        ({"seeds": "one"}, "one", "seeds"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(values: dict[str, object], wrong: str, nearest: str) -> None:
    with pytest.raises(DpbenchError) as caught:
        study(config_of(values))
    assert f"'{wrong}'" in str(caught.value)
    assert nearest in str(caught.value)


def test_naming_all_runs_imports_no_torch() -> None:
    code = "import sys; from dpbench.execution.study import *; study(config_of({})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_schemas_are_those_of_the_models(tmp_path: Path) -> None:
    folder = ROOT / "workflow" / "schemas"
    assert {p.name: p.read_text(encoding="utf-8") for p in folder.iterdir()} == schemas(), "write them again: dpbench schema"
    assert main(["schema", "--out", str(tmp_path)]) == 0
    assert {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == schemas()


def test_schemas_hold_the_files_of_the_repository() -> None:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(config, json.loads(schemas()["config.schema.json"]))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"colour": 1}, json.loads(schemas()["config.schema.json"]))
