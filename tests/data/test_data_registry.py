"""Where datasets come from, and what is refused."""

import hashlib
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpbench import plugins
from dpbench.data import hub, registry
from dpbench.errors import DpbenchError

ROWS = {"sentence": ["a fine film", "a dull film"], "label": [1, 0], "idx": [0, 1]}


def write(folder, name="train.parquet", columns=None):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or ROWS), folder / name)
    return folder / name


@pytest.fixture
def sst2(tmp_path, monkeypatch):
    """A complete local SST-2 of two rows a split."""
    folder = tmp_path / "data" / "glue_sst2"
    for name in ("train.parquet", "validation.parquet"):
        write(folder, name)
    monkeypatch.setenv("DPBENCH_DATA", str(folder.parent))
    return folder


@pytest.fixture
def on_hub(tmp_path):
    """SST-2 in the cache of the hub, laid out as its client does."""
    spec = plugins.get("dataset", "sst2").extra["hub"]
    above = tmp_path / "hub" / "datasets--nyu-mll--glue"
    for name in spec["files"].values():
        path = above / "snapshots" / spec["revision"] / name
        write(path.parent, path.name)
    (above / "refs").mkdir()
    (above / "refs" / "main").write_text(spec["revision"])
    return spec


@pytest.mark.parametrize("name", plugins.discover("dataset"))
def test_every_dataset_of_the_package_has_a_stand_in(name):
    source = registry.resolve(name, "embedded")
    assert source.synthetic
    for split in plugins.get("dataset", name).extra["files"]:
        assert len(registry.load(name, split, source)) > 100


def test_auto_takes_local_then_hub_then_embedded(sst2, on_hub, monkeypatch):
    assert registry.resolve("sst2").kind == "local"
    monkeypatch.delenv("DPBENCH_DATA")
    resolved = registry.resolve("sst2")
    assert (resolved.kind, resolved.revision, resolved.files) == ("hub", on_hub["revision"], {})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(sst2))
    resolved = registry.resolve("sst2")
    assert (resolved.kind, resolved.revision, resolved.synthetic) == ("embedded", "v1", True)
    assert "synthetic" in resolved.says


def test_local_source_states_the_hash_of_each_file(sst2):
    source = registry.resolve("sst2", "local")
    for name in ("train.parquet", "validation.parquet"):
        assert source.files[name] == hashlib.sha256((sst2 / name).read_bytes()).hexdigest()
    assert not source.synthetic
    examples = registry.load("sst2", "train", source)
    assert examples.columns == {"text": ROWS["sentence"], "label": ROWS["label"]}
    assert len(examples) == 2


def test_hub_files_load_from_the_cache(on_hub):
    source = registry.resolve("sst2", "hub")
    assert registry.load("sst2", "validation", source).columns["label"] == [1, 0]
    assert registry.check("sst2", source) == {"train": 2, "validation": 2}


def test_hub_revision_must_be_the_pinned_one(on_hub):
    source = registry.resolve("sst2", "hub").model_copy(update={"revision": "0" * 40})
    with pytest.raises(DpbenchError, match="pinned"):
        registry.load("sst2", "train", source)


@pytest.mark.parametrize(("kind", "reason"), [("local", "DPBENCH_DATA is not set"), ("hub", "HF_HUB_OFFLINE is set")])
def test_a_kind_asked_for_by_name_never_falls_back(kind, reason):
    with pytest.raises(DpbenchError, match=reason):
        registry.resolve("sst2", kind)


def test_embedded_by_name_wins_over_local(sst2):
    assert registry.resolve("sst2", "embedded").kind == "embedded"


def test_unknown_names_say_the_nearest():
    with pytest.raises(DpbenchError, match="did you mean 'sst2'"):
        registry.resolve("sst-2")
    with pytest.raises(DpbenchError, match="did you mean 'embedded'"):
        registry.resolve("sst2", "embeded")
    with pytest.raises(DpbenchError, match="did you mean 'validation'"):
        registry.load("sst2", "valid", registry.resolve("sst2"))


def test_data_folder_that_does_not_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("DPBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DpbenchError, match="no such folder"):
        registry.resolve("sst2")
    assert any("no such folder" in line for line in registry.where("sst2"))


@pytest.mark.parametrize("source_name", ["auto", "local"])
def test_half_a_dataset_is_an_error(sst2, source_name):
    (sst2 / "validation.parquet").unlink()
    with pytest.raises(DpbenchError, match=r"validation\.parquet: missing"):
        registry.resolve("sst2", source_name)


def test_a_data_folder_without_this_dataset_falls_back(sst2):
    assert registry.resolve("wikitext2").kind == "embedded"
    with pytest.raises(DpbenchError, match="wikitext2 does not exist"):
        registry.resolve("wikitext2", "local")


def test_missing_column_names_file_column_and_the_columns_there(sst2):
    write(sst2, columns={"sentences": ["a"], "label": [1]})
    source = registry.resolve("sst2")
    for act in (lambda: registry.load("sst2", "train", source), lambda: registry.check("sst2", source)):
        with pytest.raises(DpbenchError, match=r"train\.parquet: no column 'sentence'; its columns: sentences, label") as caught:
            act()
        assert "did you mean 'sentences'" in caught.value.hint


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence": ["a"], "label": [-1]}, "split 'train'.*has no labels"),
        ({"sentence": ["a", "b"], "label": [0, 2]}, r"label 2 in row 2 \(row 1 counted from 0\) is out of range"),
        ({"sentence": ["a", None], "label": [0, 1]}, "'sentence' has 1 missing"),
        ({"sentence": ["a"], "label": ["positive"]}, "not class numbers"),
        ({"sentence": [3], "label": [1]}, "not text"),
        ({"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_bad_values_are_refused(sst2, columns, message):
    write(sst2, columns=columns)
    with pytest.raises(DpbenchError, match=message):
        registry.load("sst2", "train", registry.resolve("sst2"))


def test_a_file_that_is_no_parquet(sst2):
    (sst2 / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DpbenchError, match="not a readable Parquet file"):
        registry.check("sst2", registry.resolve("sst2"))


def test_a_changed_file_is_refused(sst2):
    source = registry.resolve("sst2")
    write(sst2, columns={"sentence": ["another"], "label": [1]})
    with pytest.raises(DpbenchError, match="changed since the runs were named"):
        registry.load("sst2", "train", source)


@pytest.mark.parametrize("place", ["root", "folder"])
def test_checksums_beside_the_data_are_held_to(sst2, place):
    good = {name: hashlib.sha256((sst2 / name).read_bytes()).hexdigest() for name in ("train.parquet", "validation.parquet")}
    listing, prefix = (sst2.parent / "SHA256SUMS", "glue_sst2/") if place == "root" else (sst2 / "SHA256SUMS", "")
    listing.write_text("".join(f"{sha}  {prefix}{name}\n" for name, sha in good.items()))
    assert registry.resolve("sst2").files == good
    listing.write_text(f"{'0' * 64} *{prefix}train.parquet\n")
    with pytest.raises(DpbenchError, match=f"expected {'0' * 64}, got {good['train.parquet']}"):
        registry.resolve("sst2")
    listing.write_text("nonsense\n")
    with pytest.raises(DpbenchError, match="line 1 is not"):
        registry.resolve("sst2")


def test_where_says_what_is_found_and_what_is_not(sst2):
    lines = registry.where("sst2")
    assert [line.split(":")[0] for line in lines] == list(registry.KINDS)
    assert "found" in lines[0]
    assert "found" not in lines[1]
    assert "found" in lines[2]


def test_hub_is_asked_once_and_never_when_offline(monkeypatch):
    asked = []

    def ask(url, answers):
        asked.append(url)
        answers.append(True)

    monkeypatch.setattr(hub, "_ask", ask)
    hub._probe.cache_clear()
    try:
        assert not hub.answers()
        assert asked == []
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert registry.resolve("sst2").kind == "hub"
        assert registry.resolve("wikitext2").kind == "hub"
        assert len(asked) == 1
    finally:
        hub._probe.cache_clear()


def test_a_hub_that_hangs_costs_no_more_than_the_probe(monkeypatch):
    import time

    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(hub, "_ask", lambda url, answers: time.sleep(1))
    hub._probe.cache_clear()
    try:
        start = time.perf_counter()
        assert not hub._probe("https://hub.invalid")
        assert time.perf_counter() - start < 0.8
    finally:
        hub._probe.cache_clear()


def test_resolving_loading_and_checking_never_import_torch():
    code = (
        "import sys; from dpbench.data import registry as d; from dpbench.models import registry as m;"
        "s = d.resolve('sst2', 'embedded'); d.load('sst2', 'validation', s); d.check('sst2', s); d.where('sst2');"
        "[m.resolve(n) for n in ('tiny_bert', 'gpt2', 'roberta_base', 'minilm')]; m.where('minilm');"
        "print([n for n in ('torch', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
