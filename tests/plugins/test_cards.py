"""Cards: datasets and models in YAML; a wrong one is one error that names file, key and a hint."""

from __future__ import annotations

import re

import pytest
import yaml
from example_cards import REVIEWS

from dpbench import plugins
from dpbench.cli.verbs.authoring import write_template
from dpbench.errors import DpbenchError
from dpbench.execution import warm
from dpbench.models import registry
from dpbench.plugins import identity
from dpbench.plugins.cards import rendered

DATASET = f"# A comment.\n{REVIEWS}"
MODEL = """\
kind: model
name: small_bert
version: 1
summary: a small BERT
family: bert
pretrained: false
architecture: {vocab_size: 512, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, layer_norm_eps: 1.0e-12}
licence: MIT
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder(card, name) writes a card into a new folder of plug-ins and returns its file."""
    count = iter(range(100))

    def write(card, name="card.yaml"):
        path = tmp_path / f"plugins{next(count)}"
        path.mkdir()
        (path / name).write_bytes(card.encode() if isinstance(card, str) else card)
        monkeypatch.setenv(plugins.VARIABLE, str(path))
        return path / name

    return write


def test_a_card_in_a_folder_is_a_plugin_like_any_other(folder):
    path = folder(DATASET)
    plugin = plugins.get("dataset", "reviews")
    assert (plugin.version, plugin.path, plugin.outside, plugin.is_card) == (1, path, True, True)
    assert plugin.extra["columns"] == {"text": "review", "label": "stars"}
    assert "sst2" in plugins.discover("dataset")
    assert not plugins.get("dataset", "sst2").outside
    folder(MODEL)
    assert plugins.get("model", "small_bert").extra["architecture"]["layer_norm_eps"] == 1e-12
    assert "reviews" not in plugins.discover("dataset")


def test_a_card_has_no_code(folder):
    folder(DATASET)
    plugin = plugins.get("dataset", "reviews")
    assert plugin.function("prompts") is None
    with pytest.raises(DpbenchError, match=r"card\.yaml: a card has no code"):
        plugin.load()


def test_content_decides_the_identity_of_a_card_prose_does_not(folder):
    def named(card):
        folder(card)
        return identity.identity(plugins.get("dataset", "reviews"))

    first = named(DATASET)
    assert first == f"1+{first.partition('+')[2]}"
    assert first == named(DATASET.replace("# A comment.\n", "").replace("text: review", "text: 'review'"))
    assert first == named(DATASET.replace("reviews of shops", "other words"))
    assert first != named(DATASET.replace("[bad, good]", "[good, bad]"))
    assert first != named(DATASET.replace("{text: review, label: stars}", "{label: stars, text: review}"))
    assert named(DATASET.replace("version: 1", "version: 2")) == first.replace("1+", "2+", 1)


def test_another_yaml_file_beside_a_card_is_no_plugin(folder):
    path = folder(DATASET)
    (path.parent / "table.yaml").write_text("paper: mine\ntable: first\n")
    (path.parent / "notes.yaml").write_text("- a list\n")
    (path.parent / "compose.yaml").write_text("version: 3\nservices: {}\n")
    assert "reviews" in plugins.discover("dataset")


def without(key, card=DATASET):
    return yaml.safe_dump({k: v for k, v in yaml.safe_load(card).items() if k != key}, sort_keys=False)


def changed(card=DATASET, **values):
    return yaml.safe_dump(yaml.safe_load(card) | values, sort_keys=False)


IMAGES = {"task": "image_classification", "columns": {"image": "i", "label": "l"}}
SIZE = dict.fromkeys(("layers", "width", "heads", "vocabulary", "context"), 2)
HUB = {"repo": "a/b", "revision": "0" * 40, "files": {"train": "t.parquet", "validation": "v.parquet"}}
QUESTIONS = {"task": "question_answering", "columns": {"text": "q", "answers": "a"}}
WRONG = {
    "syntax": ("kind: dataset\nname: [x\nversion: 1\n", r"malformed YAML at line 3", "correct that line"),
    "a key twice": (DATASET + "name: other\n", "the key 'name' occurs twice", "line"),
    "not UTF-8": (DATASET.encode() + b"# \xff\n", "line 13 is not UTF-8", "UTF-8"),
    "no kind": (without("kind"), "the card lacks kind", "kind, name, version and summary"),
    "no version": (without("version"), "the card lacks version", "kind, name, version and summary"),
    "version as text": (changed(version="1"), "version of the card is '1'", "number"),
    "version 0": (changed(version=0), "version of the card is 0", "above 0"),
    "a name that is a number": (changed(name=12), "name of the card is 12", "text"),
    "a name with a blank": (changed(name="my reviews"), "name: String should match pattern", "correct the keys"),
    "a kind that has no cards": (changed(kind="engine"), "a plug-in of kind engine is no card", "Python"),
    "no such kind": (changed(kind="data"), "unknown kind of plug-in 'data'", "known"),
    "an unknown key": (changed(colunms={}), "unknown key 'colunms'", "did you mean 'columns'"),
    "an unknown key inside": (changed(hub=HUB | {"revison": 1}), r"unknown key 'hub\.revison'", "did you mean 'revision'"),
    "no folder": (without("folder"), "folder: Field required", "correct the keys"),
    "no columns": (without("columns"), "columns: Field required", "correct the keys"),
    "columns as a list": (changed(columns=["text"]), "columns: Input should be a valid dict", "correct the keys"),
    "classes that YAML reads as booleans": (
        DATASET.replace("[bad, good]", "[no, yes]"),
        r"classes\.0: Input should be a valid string \(got False\)",
        "'yes', 'no' .* in quotes",
    ),
    "a number as text": (changed(rows={"train": "9"}), r"rows\.train: Input should be a valid integer", "correct the keys"),
    "no such task": (changed(task="classify"), "task: Input should be 'classification', 'image_classification'", "correct"),
    "no text": (changed(columns={"label": "stars"}), "columns lacks text: task classification needs text, label", "text: NAME"),
    "no classes": (without("classes"), "lacks classes, which a dataset of task classification needs", "add the key classes"),
    "no train": (changed(files={"test": "t.csv"}), "files lacks train", "call one of them train"),
    "a spreadsheet": (changed(files={"train": "t.xlsx"}), r"files\.train: 't\.xlsx' is no \.parquet, \.csv", "store the rows"),
    "images in CSV": (
        changed(**IMAGES, image={"channels": 1, "height": 8, "width": 8}),
        "cannot hold images",
        "Parquet",
    ),
    "images without a shape": (
        changed(**IMAGES, files={"train": "t.parquet"}),
        "lacks image",
        "add the key image",
    ),
    "a hub revision that is a branch": (
        changed(hub=HUB | {"revision": "main"}),
        r"hub\.revision: String should match",
        "correct",
    ),
    "no hub revision, no reason": (changed(hub=HUB | {"revision": None}), "hub lacks why", "pin a revision"),
    "a hub without a split": (changed(hub=HUB | {"files": {"train": "t.csv"}}), "hub.files lacks validation", "same splits"),
    "a split that is not there": (changed(may_lack=["tests"]), "may_lack: unknown split 'tests'", "known: train, validation"),
    "words of another class": (
        changed(label_phrases={"bad": ["poor"], "fine": ["nice"]}),
        "label_phrases names bad, fine",
        "its classes are bad, good",
    ),
    "label words without a prompt": (changed(label_words={"bad": " b", "good": " g"}), "lacks completion_prompt", "add the key"),
    "a prompt of a column that is not there": (
        changed(completion_prompt="{review} It was", label_words={"bad": " b", "good": " g"}),
        "completion_prompt: no column 'review'",
        "known: label, text",
    ),
    "a prompt with an open brace": (changed(completion_prompt="{text It was"), "completion_prompt: ", "braces"),
    "a prompt with an unknown format": (
        changed(completion_prompt="{text:upper} It was"),
        "text has the unknown format 'upper'",
        "known: strip, question",
    ),
    "a prompt that reads an attribute": (changed(completion_prompt="{text.__class__}"), "no column 'text.__class__'", "known"),
    "a masked prompt without its column": (
        changed(prompt={"template": "{texts} {mask}", "words": {"bad": "b", "good": "g"}}),
        "prompt.template: no column 'texts'",
        "did you mean 'text'",
    ),
    "questions without a prompt": (changed(**QUESTIONS), "lacks completion_prompt", "add the key completion_prompt"),
    "a model of a family with code": (changed(MODEL, family="image"), "family: Input should be 'bert'", "Python plug-in"),
    "a model with neither": (without("architecture", MODEL), "needs either architecture or sizes", "one model"),
    "a float that YAML reads as text": (
        MODEL.replace("1.0e-12", "1e-12"),
        r"architecture\.layer_norm_eps: '1e-12' is a text in YAML",
        r"1\.0e-5, not 1e-5",
    ),
    "a size without hidden": (
        changed(
            without("architecture", MODEL),
            family="llama",
            sizes={"s": SIZE},
        ),
        r"sizes\.s lacks hidden",
        "MLP",
    ),
    "a package without a sum": (
        changed(MODEL, package={"distribution": "d", "module": "m", "folder": "f"}),
        "package without sha256",
        "give the sha256",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_card_is_one_error_with_file_key_and_hint(case, folder):
    card, what, hint = WRONG[case]
    path = folder(card)
    with pytest.raises(DpbenchError, match=what) as caught:
        plugins.discover("dataset")
    assert str(path) in caught.value.what

    assert re.search(hint, caught.value.hint), caught.value.hint


def test_a_name_that_the_package_has_is_refused(folder):
    folder(DATASET.replace("name: reviews", "name: sst2"))
    with pytest.raises(DpbenchError, match="two datasets are called 'sst2'"):
        plugins.discover("dataset")


def test_templates():
    row = {"text": " a film ", "other": "is it"}
    assert rendered("{text}|{text:strip}|{other:question}|{{x}}", row) == " a film |a film|Is it?|{x}"


def test_the_warm_process_is_another_one_for_an_edited_card(folder):
    path = folder(DATASET)
    before = warm._key()
    path.write_text(DATASET + "# longer\n")
    assert warm._key() != before


def test_a_family_of_a_card_of_ones_own_is_built_by_its_size(folder):
    folder(changed(without("architecture", MODEL), name="my_gpt", family="gpt2", sizes={"my_size": SIZE}))
    assert registry.language_model_family("my_size") == "my_gpt"
    assert registry.language_model("my_size", meta=True).vocabulary == 2


def test_the_template_of_a_dataset_is_a_card_for_csv_files(tmp_path, monkeypatch):
    path = write_template("dataset", "reviews", tmp_path)
    assert path.suffix == ".yaml"
    assert all(len(line) <= 130 for line in path.read_text().splitlines())
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    assert plugins.get("dataset", "reviews").extra["files"]["train"] == "train.csv"
