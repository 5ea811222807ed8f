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


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Write a local dataset, `put("sst2", train=columns)`; a split is columns, a table or bytes. The other splits hold `others`.

    Returns the file of the first split.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dpbench import plugins

    above = tmp_path / "data here é"
    monkeypatch.setenv("DPBENCH_DATA", str(above))

    def write(name, others=None, **splits):
        plugin = plugins.get("dataset", name)
        folder = above / plugin.extra["folder"]
        folder.mkdir(parents=True, exist_ok=True)
        for split, file in plugin.extra["files"].items():
            content = splits.get(split, others)
            if content is None:
                content = next(iter(splits.values()))
            if isinstance(content, bytes):
                (folder / file).write_bytes(content)
            else:
                pq.write_table(content if isinstance(content, pa.Table) else pa.table(content), folder / file)
        return folder / plugin.extra["files"][next(iter(splits), "train")]

    return write
