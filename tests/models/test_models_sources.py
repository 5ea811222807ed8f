"""Where models come from, and what is refused."""

import json
import sys
import types

import pytest

from dpbench import paths, plugins
from dpbench.data import digests
from dpbench.errors import DpbenchError
from dpbench.models import registry, sources

PACKAGE = plugins.get("model", "minilm").extra["package"]
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def folder_of_files(folder):
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_MODELS", str(tmp_path / "models"))
    return folder_of_files(tmp_path / "models" / "all-MiniLM-L6-v2")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The optional package with files of our own, instead of the installed one if there is one."""
    above = tmp_path / "site" / PACKAGE["module"]
    folder = folder_of_files(above / PACKAGE["folder"])
    (above / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return folder


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(sources, "_package_folder", lambda plugin: None)


@pytest.mark.parametrize("name", plugins.discover("model"))
def test_every_model_declares_what_the_registry_reads(name):
    extra = plugins.get("model", name).extra
    assert extra["family"] in ("bert", "roberta", "gpt2", "llama", "opt", "image", "image_features")
    assert ("architecture" in extra) != ("sizes" in extra)
    assert isinstance(extra["pretrained"], bool)
    assert extra["licence"]
    if extra["pretrained"]:
        pinned = extra["hub"]["revision"]
        assert len(pinned) == 40 if pinned is not None else extra["hub"]["why"]
        assert extra["folder"]
    source = registry.resolve(name, "scratch")
    assert source.synthetic == extra.get("synthetic", extra["pretrained"])


def test_auto_takes_local_then_hub_then_package_then_scratch(local, monkeypatch, tmp_path):
    resolved = registry.resolve("minilm")
    assert (resolved.kind, set(resolved.files)) == ("local", {"model.safetensors"})
    monkeypatch.delenv("DPBENCH_MODELS")
    spec = plugins.get("model", "minilm").extra["hub"]
    folder_of_files(tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / spec["revision"])
    resolved = registry.resolve("minilm")
    assert (resolved.kind, resolved.revision) == ("hub", spec["revision"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(local))
    monkeypatch.setattr(sources, "_package_folder", lambda plugin: local)
    with pytest.raises(DpbenchError, match="is known to hold"):
        registry.resolve("minilm")
    monkeypatch.setattr(sources, "_package_folder", lambda plugin: None)
    resolved = registry.resolve("minilm")
    assert (resolved.kind, resolved.synthetic) == ("scratch", True)


@pytest.mark.parametrize(
    ("kind", "reason"), [("local", "DPBENCH_MODELS is not set"), ("hub", "HF_HUB_OFFLINE"), ("package", "is not installed")]
)
@pytest.mark.usefixtures("no_package")
def test_a_kind_asked_for_by_name_never_falls_back(kind, reason):
    with pytest.raises(DpbenchError, match=reason):
        registry.resolve("minilm", kind)


def test_from_scratch_families_have_no_other_kind():
    assert not registry.resolve("gpt2").synthetic
    with pytest.raises(DpbenchError, match="no place on the hub"):
        registry.resolve("gpt2", "hub")


def test_unknown_names_say_the_nearest():
    with pytest.raises(DpbenchError, match="did you mean 'roberta_base'"):
        registry.resolve("roberta-base")
    with pytest.raises(DpbenchError, match="known: auto, hub"):
        registry.resolve("minilm", "embedded")


def test_missing_folder_and_half_a_model_are_errors(local, monkeypatch):
    (local / "tokenizer.json").unlink()
    with pytest.raises(DpbenchError, match=r"tokenizer\.json: missing"):
        registry.resolve("minilm")
    monkeypatch.setenv("DPBENCH_MODELS", str(local / "nowhere"))
    with pytest.raises(DpbenchError, match="no such folder"):
        registry.resolve("minilm")


def test_a_damaged_package_is_an_error_and_is_never_imported(package):
    with pytest.raises(DpbenchError, match="is known to hold 53aa5117"):
        registry.resolve("minilm")
    (package / "model.safetensors").unlink()
    with pytest.raises(DpbenchError, match=r"model\.safetensors: missing"):
        registry.resolve("minilm", "package")
    assert PACKAGE["module"] not in sys.modules


def test_changed_weights_are_refused(local):
    source = registry.resolve("minilm")
    (local / "model.safetensors").write_text("{ }")
    with pytest.raises(DpbenchError, match="changed since the runs were named"):
        registry.encoder("minilm", source)


def test_equal_weights_are_one_identity_and_hub_ones_are_checked(local, monkeypatch, tmp_path):
    plugin = plugins.get("model", "minilm")
    here = registry.resolve("minilm")
    pinned = plugin.extra["hub"]
    monkeypatch.setitem(plugin.extra, "sha256", here.files["model.safetensors"])
    folder = folder_of_files(
        tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2" / "snapshots" / pinned["revision"]
    )
    (folder / "model.safetensors").write_bytes((local / "model.safetensors").read_bytes())
    there = registry.resolve("minilm", "hub")
    assert (there.kind, there.identity) == ("hub", here.identity)
    assert sources.file_of(plugin, there, "model.safetensors") == folder / "model.safetensors"
    (folder / "model.safetensors").write_text("{ }")
    with pytest.raises(DpbenchError, match=f"{here.files['model.safetensors']} is known of this revision"):
        sources.file_of(plugin, there, "model.safetensors")
    assert not (folder / "model.safetensors").exists()  # so that the next run fetches it again


def test_where_has_a_line_a_kind(local):
    assert [line.split(":")[0] for line in registry.where("minilm")] == ["local", "hub", "package", "scratch"]


@pytest.mark.parametrize("left", [None, "{broken", "[]", '{"a": 1}'])
def test_digests_are_kept_and_a_damaged_store_is_tolerated(local, monkeypatch, left):
    store = paths.cache() / "digests.json"
    if left is not None:
        store.parent.mkdir(parents=True)
        store.write_text(left)
    path = local / "model.safetensors"
    first = digests.digest(path, persist=True)
    assert first in json.loads(store.read_text()).values()
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "sha256_file", lambda _: pytest.fail("read again"))
    assert digests.digest(path, persist=True) == first


def test_a_cache_that_cannot_be_written_only_costs_time(local, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path / "file"))
    assert len(digests.digest(local / "model.safetensors", persist=True)) == 64


def test_a_module_that_is_no_package_counts_as_not_installed(monkeypatch):
    module = types.ModuleType(PACKAGE["module"])
    module.__spec__ = types.SimpleNamespace(submodule_search_locations=None)
    monkeypatch.setitem(sys.modules, PACKAGE["module"], module)
    assert registry.resolve("minilm").kind == "scratch"
