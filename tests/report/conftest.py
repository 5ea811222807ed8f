"""A root of its own for every test, and a job that needs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_fakes

from dpbench import plugins


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setenv("DPBENCH_ROOT", str(tmp_path))
    monkeypatch.setattr(plugins, "get", report_fakes.fake_get)
    monkeypatch.setattr("dpbench.spec.expand.identity", lambda plugin: plugin.version)


PUBLISHED = """method,epsilon,task,model,metric,value,unit,spread,spread_kind,source
abadi,3,sst2,roberta_base,accuracy,91.86,%,,,"slides of <arXiv 2206.07136>"
auto_s,3,sst2,roberta_base,accuracy,92.32,%,,,"slides of <arXiv 2206.07136>"
"""


@pytest.fixture
def published(tmp_path: Path) -> None:
    """Two published values of `glue`."""
    folder = tmp_path / "benchmarks" / "automatic" / "published"
    folder.mkdir(parents=True)
    (folder / "glue_base.csv").write_text(PUBLISHED, encoding="utf-8")
