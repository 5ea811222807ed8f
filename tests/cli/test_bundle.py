"""A bundle for a machine without a network."""

import subprocess

import pytest

from dpbench.cli import bundle as bundling
from dpbench.cli import main
from dpbench.cli.bundle import bundle, needed
from dpbench.errors import DpbenchError
from dpbench.spec.sources import Source


@pytest.fixture
def downloads(monkeypatch):
    """What pip was asked for, in place of asking it."""
    asked = []

    def run(words, **_):
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(bundling.subprocess, "run", run)
    return asked


def test_what_is_there_is_not_fetched_nor_what_only_it_needs():
    all_packages = needed(["opacus", "pydantic"], [], "3.12")
    assert {"opacus", "pydantic", "pydantic-core", "torch", "numpy"} <= set(all_packages)
    assert "+" not in all_packages["torch"]
    without = needed(["opacus", "pydantic"], ["torch", "NumPy"], "3.12")
    assert {"opacus", "pydantic", "pydantic-core"} <= set(without)
    assert not {"torch", "sympy", "numpy"} & set(without)


def test_a_package_that_is_not_here_is_named():
    with pytest.raises(DpbenchError, match="no-such-package is not installed here"):
        needed(["no_such_package"], [], "3.12")


def test_smoke_needs_wheels_alone(downloads, tmp_path):
    out = tmp_path / "bundle"
    lines = bundle("smoke", out, None, ["torch"], "3.12", "aarch64", half=False)
    assert any("dataset:sst2: nothing to take along" in line for line in lines)
    assert not list((out / "data").iterdir())
    assert "DPBENCH_DATA=$here/data" in (out / "activate.sh").read_text()
    asked = [words[-1].split("==")[0] for words in downloads]
    assert "dp-accounting" in asked
    assert "torch" not in asked
    assert all("manylinux_2_28_aarch64" in words and "3.12" in words for words in downloads)
    bundle("smoke", out, None, ["torch"], "3.12", "aarch64", half=False)  # its own folder is made anew


def test_a_folder_of_something_else_is_left_alone(downloads, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DpbenchError, match="is not empty and not a bundle"):
        bundle("smoke", tmp_path, None, [], "3.12", "x86_64", half=False)
    assert (tmp_path / "thesis.tex").exists()
    assert not downloads


def test_a_wheel_that_cannot_be_had_is_named(monkeypatch, tmp_path, capsys):
    def run(words, **_):
        return subprocess.CompletedProcess(words, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(bundling.subprocess, "run", run)
    words = ["bundle", "--tier", "smoke", "--out", str(tmp_path / "b"), "--python", "3.99"]
    assert main(words) == 2
    assert "for Python 3.99 on x86_64: ERROR: No matching distribution found" in capsys.readouterr().err


@pytest.mark.parametrize("half", [False, True])
def test_weights_and_data_lie_where_dpbench_looks_for_them(half, monkeypatch, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    model_folder = tmp_path / "model"
    model_folder.mkdir()
    save_file({"a": torch.ones(2), "ids": torch.arange(3)}, model_folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (model_folder / name).write_text("{}")
    (tmp_path / "rows.parquet").write_bytes(b"rows")
    monkeypatch.setattr(bundling, "file_of", lambda plugin, source, file: model_folder / file)
    monkeypatch.setattr(bundling.datasets, "path", lambda name, split, source: tmp_path / "rows.parquet")
    local = Source(kind="local", files={"x": "0"}, says="from a folder")
    out = tmp_path / "out"
    assert bundling._copy("model:minilm", local, out, half) == f"model:minilm: from a folder{', in fp16' if half else ''}"
    assert bundling._copy("dataset:sst2", local, out, half) == "dataset:sst2: from a folder"
    tensors = load_file(out / "models" / "all-MiniLM-L6-v2" / "model.safetensors")
    assert tensors["a"].dtype == (torch.float16 if half else torch.float32)
    assert tensors["ids"].dtype == torch.int64
    assert {p.name for p in (out / "data" / "glue_sst2").iterdir()} == {"train.parquet", "validation.parquet"}
