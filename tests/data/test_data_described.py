"""Table-to-text datasets: their layouts, several references an input, and token ids made of public text alone."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpbench import plugins
from dpbench.data import coding, described, registry
from dpbench.data.described import Described
from dpbench.data.synthetic import stand_in
from dpbench.errors import DpbenchError

NAMES = [name for name, plugin in plugins.discover("dataset").items() if plugin.extra["task"] == described.TASK]
ROWS = {
    "e2e_nlg": {
        "meaning_representation": [
            *["name[The Mill], customer rating[5 out of 5], near[Old Oak]"] * 2,
            "name[X], area[riverside]",
        ],
        "human_reference": ["The Mill is near Old Oak.", "Rated 5 out of 5: The Mill.", "X is by the river."],
    },
    "web_nlg": {
        "input": [['Aarhus_Airport | cityServed | "Aarhus, Denmark"']] * 2 + [["A | b | c", "A | d | e | f"]],
        "target": ["Aarhus is served by it.", "It serves Aarhus.", "A b c."],
        "references": [["Aarhus is served by it.", "It serves Aarhus."], [], ["A b c."]],
    },
    "dart": {
        "tripleset": [[["Aarhus_Airport", "CITY_SERVED", "Aarhus, Denmark"]]] * 2 + [[["A", "B", "C"], ["A", "D", "E"]]],
        "annotations": [
            {"source": ["x", "x"], "text": ["Aarhus is served by it.", "It serves Aarhus."]},
            {"source": ["x"], "text": ["It serves Aarhus."]},
            {"source": ["x"], "text": ["A b c."]},
        ],
    },
}
FIELDS = {
    "e2e_nlg": (("name", "The Mill"), ("customer rating", "5 out of 5"), ("near", "Old Oak")),
    "web_nlg": (("Aarhus Airport", "cityServed", "Aarhus, Denmark"),),
    "dart": (("Aarhus Airport", "CITY SERVED", "Aarhus, Denmark"),),
}


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A local folder with a few rows of each dataset."""
    for name, columns in ROWS.items():
        plugin = plugins.get("dataset", name)
        folder = tmp_path / plugin.extra["folder"]
        folder.mkdir()
        for file in plugin.extra["files"].values():
            pq.write_table(pa.table(columns), folder / file)
    monkeypatch.setenv("DPBENCH_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_each_layout_become_fields_and_texts(name, local):
    source = registry.resolve(name, "local")
    assert registry.check(name, source) == dict.fromkeys(("train", "validation", "test"), 3)
    rows = described.load(name, "test", source)
    first, second = described.grouped(rows)
    assert first.fields == FIELDS[name]
    assert len(first.texts) == 2
    assert (len(second.fields), len(second.texts)) == (2, 1)
    assert {row.fields for row in described.one_text_each(rows)} == {first.fields, second.fields}
    assert all(len(row.texts) == 1 for row in described.one_text_each(rows))


def test_a_triple_keeps_what_stands_after_its_second_mark(local):
    last = described.load("web_nlg", "test", registry.resolve("web_nlg", "local"))[-1]
    assert last.fields == (("A", "b", "c"), ("A", "d", "e | f"))


@pytest.mark.parametrize("name", NAMES)
def test_the_stand_in_reads_as_the_dataset_does(name):
    source = registry.resolve(name, "embedded")
    splits = {split: described.grouped(described.load(name, split, source)) for split in ("train", "validation", "test")}
    inputs = [row.fields for rows in splits.values() for row in rows]
    assert len(set(inputs)) == len(inputs)
    assert max(len(row.texts) for row in splits["test"]) == 3
    assert {len(field) for fields in inputs for field in fields} == {2 if name == "e2e_nlg" else 3}


def test_the_stand_in_says_what_the_input_says():
    rows = described.load("e2e_nlg", "train", registry.resolve("e2e_nlg", "embedded"))
    names_present = [dict(row.fields)["name"] in row.texts[0] for row in rows]
    assert all(names_present)
    near = [dict(row.fields)["near"] in row.texts[0] for row in rows if "near" in dict(row.fields)]
    assert 0.85 < sum(near) / len(near) < 0.97  # one in twelve is left out
    assert set(dict(rows[0].fields)) <= set(plugins.get("dataset", "e2e_nlg").extra["slots"])
    assert not any("|" in row.texts[0] or "{" in row.texts[0] for row in rows)
    assert len(stand_in("restaurants").generate("train")["text"]) == stand_in("restaurants").splits["train"]


def test_a_copy_without_a_split_it_may_lack_is_none(local):
    (local / "dart" / "train.parquet").unlink()
    assert registry.resolve("dart").kind == "embedded"
    with pytest.raises(DpbenchError, match="has no train split"):
        registry.resolve("dart", "local")
    (local / "web_nlg" / "train.parquet").unlink()
    with pytest.raises(DpbenchError, match=r"train\.parquet: missing"):
        registry.resolve("web_nlg")


def test_another_kind_of_dataset_is_refused():
    with pytest.raises(DpbenchError, match=r"sst2 is for classification(.|\n)*e2e_nlg"):
        described.load("sst2", "train", registry.resolve("sst2", "embedded"))
    with pytest.raises(DpbenchError, match="without fields"):
        Described((), ("text",))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "e2e_nlg",
            {"human_reference": ["A.", "  ", "B."]},
            r"e2e_nlg, split 'test' \(.*test\.parquet\): row 2 \(row 1 counted from 0\): an input without texts",
        ),
        (
            "e2e_nlg",
            {"meaning_representation": ["name[X]", "", "name[Y]"]},
            r"row 2 \(row 1 counted from 0\): an input without fields",
        ),
        ("e2e_nlg", {"meaning_representation": ["name[X]", "name[Y]", None]}, r"'meaning_representation' has 1 missing values"),
        (
            "web_nlg",
            {"target": ["A.", "", "B."], "references": [["A."], [], ["B."]]},
            r"row 2 \(row 1 counted from 0\): an input without texts",
        ),
        (
            "dart",
            {"annotations": [{"source": ["x"], "text": text} for text in (["A."], ["B."], [""])]},
            r"row 3 \(row 2 counted from 0\): .*texts",
        ),
    ],
)
def test_a_row_that_cannot_be_read_is_named(name, change, says, local):
    """Before anything is trained: an input without references would else fail at its end, when it is scored."""
    file = local / plugins.get("dataset", name).extra["folder"] / "test.parquet"
    pq.write_table(pa.table(ROWS[name] | change), file)
    with pytest.raises(DpbenchError, match=says):
        described.load(name, "test", registry.resolve(name, "local"))


def test_blank_texts_beside_others_are_left_out():
    assert Described((("name", "X"),), ("A.", " ", "")).texts == ("A.",)


@pytest.fixture(scope="module")
def public():
    return registry.resolve("wikitext2", "embedded")


def tokens(text_coding, ids):
    return [text_coding._token[i] for i in ids]


def test_slots_are_one_token_and_names_are_put_back(public):
    text_coding = coding.Words("e2e_nlg", 300, public)
    fields = (("name", "The Mill"), ("food", "Fast food"), ("near", "Mill Lane"))
    assert tokens(text_coding, text_coding.prompt(fields)) == [
        "name=other",
        "eatType=none",
        "food=Fast food",
        "priceRange=none",
        "customer rating=none",
        "area=none",
        "familyFriendly=none",
        "near=other",
        "<sep>",
    ]
    text = "Near Mill Lane, the mill serves fast food (£20-25). It's family-friendly."
    ids = text_coding.target(fields, text)
    assert {"<0>", "<1>"} <= set(tokens(text_coding, ids))
    assert "mill" not in tokens(text_coding, ids)
    assert text_coding.text(fields, ids) == "Near Mill Lane, The Mill serves fast food (£20-25). It's family-friendly."
    assert text_coding.text((("name", "The Mill"),), ids).startswith("Near, The Mill")  # no such slot: nothing to put there


def test_triples_have_a_placeholder_for_every_entity(public):
    text_coding = coding.Words("web_nlg", 300, public)
    fields = (("Aarhus Airport", "cityServed", "Aarhus"), ("Aarhus", "country", "Denmark"))
    prompt = tokens(text_coding, text_coding.prompt(fields))
    assert prompt[0] == "<0>"
    assert prompt[-1] == "<sep>"
    assert prompt.count("<1>") == 2
    ids = text_coding.target(fields, "Aarhus Airport is in Aarhus, Denmark.")
    assert tokens(text_coding, ids)[0] == "<0>"  # the longer name first
    assert text_coding.text(fields, ids) == "Aarhus Airport is in Aarhus, Denmark."


@pytest.mark.parametrize("name", NAMES)
def test_the_words_do_not_depend_on_the_rows(name, public, local):
    """The vocabulary is the same whatever the private rows hold, and says nothing of them."""
    before = coding.Words(name, 300, public)
    for path in local.glob("*/*.parquet"):
        path.unlink()
    after = coding.Words(name, 300, public)
    assert before.sha256 == after.sha256
    assert before.vocabulary == after.vocabulary <= coding.most_words(name, 300)


def test_the_lists_of_words_cover_what_the_stand_in_says(public):
    """With words of the schema, of the list and no public ones, hardly a word of E2E's stand-in is unknown."""
    text_coding = coding.Words("e2e_nlg", 0, public)
    rows = described.load("e2e_nlg", "test", registry.resolve("e2e_nlg", "embedded"))
    said_tokens = [token for row in rows for token in tokens(text_coding, text_coding.target(row.fields, row.texts[0]))]
    assert said_tokens.count("<unk>") / len(said_tokens) < 0.01


def test_pieces_are_those_of_the_public_start(public):
    """The sha256 that language_model puts into its record for this text, vocabulary and split."""
    from dpbench.data.tokenizer import bpe
    from dpbench.tasks.language_modeling import task

    assert coding.PUBLIC_SPLIT == task._TOKENIZER_SPLIT
    text_coding = coding.coding("pieces", "e2e_nlg", 400, public)
    assert text_coding.sha256 == bpe("wikitext2", 400, public, "test")[1]
    fields = (("name", "The Mill"), ("near", "Mill Lane"))
    ids = text_coding.target(fields, "The Mill, near Mill Lane: £20.")
    assert ids.count(text_coding.eos) == 1
    assert text_coding.text(fields, [*ids, 5, 6]) == "The Mill, near Mill Lane: £20."
    assert text_coding.prompt(fields)[-1] == text_coding.eos


@pytest.mark.parametrize(("mark", "marks"), [("padding", {"pad": None}), ("end of a text", {"eos": 999}), ("end", {"eos": None})])
def test_a_tokenizer_without_a_mark_is_refused(mark, marks, public):
    from dpbench.data.tokenizer import bpe

    tokenizer, sha256 = bpe("wikitext2", 400, public, "test")
    known = {"pad": 0, "eos": 1} | marks
    with pytest.raises(DpbenchError, match=f"the tokenizer has .*{mark}"):
        coding.Pieces(tokenizer, 400, known["pad"], known["eos"], sha256)


def test_no_mark_of_an_input_is_ever_written(public):
    text_coding = coding.Words("e2e_nlg", 10, public)
    banned = {text_coding._token[i] for i in text_coding.banned}
    assert {"<pad>", "<sep>", "<unk>", "area=riverside"} <= banned
    assert not banned & {"<eos>", "<0>", "<1>", "the"}
    assert not [token for token in banned if re.fullmatch(r"\w+", token)]
