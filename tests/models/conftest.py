"""No test here sees this machine's data, caches or network."""

import pytest


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    for name in ("DPBENCH_DATA", "DPBENCH_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
