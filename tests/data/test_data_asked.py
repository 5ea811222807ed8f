"""Datasets as prompts: their words, their local layout, and stand-ins whose answers can be worked out."""

from __future__ import annotations

import hashlib
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpbench import plugins
from dpbench.data import asked, registry
from dpbench.data.synthetic import stand_in
from dpbench.errors import DpbenchError
from dpbench.plugins.cards import rendered

ROWS = {
    "sst2": ({"sentence": ["a fine film "], "label": [1], "idx": [0]}, "a fine film It was", 1, ()),
    "boolq": (
        {"question": ["is snow cold"], "passage": ["Snow is cold."], "answer": [True]},
        "Snow is cold. Is snow cold?",
        1,
        (),
    ),
    "squad": (
        {
            "id": ["7"],
            "title": ["Snow"],
            "context": ["Snow is cold."],
            "question": [" What is cold?"],
            "answers": [{"text": ["Snow", "snow "], "answer_start": [0, 0]}],
        },
        "Title: Snow\nContext: Snow is cold.\nQuestion: What is cold?\nAnswer:",
        None,
        ("Snow", "snow"),
    ),
    "drop": (
        {
            "section_id": ["s"],
            "query_id": ["q"],
            "passage": ["A scored 3, B 4."],
            "question": ["Who scored?"],
            "answers_spans": [{"spans": ["A", "B"], "types": ["span", "span"]}],
        },
        "Passage: A scored 3, B 4.\nQuestion: Who scored?\nAnswer:",
        None,
        ("A", "B"),
    ),
}
FOLDERS = {"sst2": "glue_sst2"}


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Write a dataset's rows as a local folder, and resolve it."""

    def write(name, columns):
        folder = tmp_path / FOLDERS.get(name, name)
        folder.mkdir()
        for split in ("train", "validation"):
            pq.write_table(pa.table(columns), folder / f"{split}.parquet")
        monkeypatch.setenv("DPBENCH_DATA", str(tmp_path))
        return registry.resolve(name, "local")

    return write


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hub_becomes_a_prompt(name, local):
    columns, prompt, label, answers = ROWS[name]
    source = local(name, columns)
    assert registry.check(name, source) == {"train": 1, "validation": 1}
    assert asked.load(name, "validation", source) == [asked.Asked(prompt, label, answers)]


def test_a_question_mark_stands_once():
    template = plugins.get("dataset", "boolq").extra["completion_prompt"]
    rows = [{"text": "P.", "text_pair": question} for question in ("is it so?", "is it so", "is it so ? ")]
    assert {rendered(template, row) for row in rows} == {"P. Is it so?"}


@pytest.mark.parametrize("name", ROWS)
def test_stand_ins_have_prompts_and_no_row_twice(name):
    source = registry.resolve(name, "embedded")
    rows = [row for split in ("train", "validation") for row in asked.load(name, split, source)]
    assert len(set(rows)) == len(rows) > 2_000
    assert all(row.prompt and not row.prompt.endswith(" ") for row in rows)
    assert all((row.label is None) == bool(row.answers) for row in rows)


@pytest.mark.parametrize("split", stand_in("readings").splits)
def test_what_is_read_stands_where_the_stand_in_says(split):
    columns = stand_in("readings").generate(split)
    for context, marked in zip(columns["text_context"], columns["answers"], strict=True):
        (text,), (start,) = marked["text"], marked["answer_start"]
        assert context[start : start + len(text)] == text


def test_what_is_counted_can_be_worked_out():
    columns = stand_in("tallies").generate("validation")
    kinds = set()
    for passage, question, marked in zip(columns["text_passage"], columns["text_question"], columns["answers"], strict=True):
        (first, one), (second, other) = ((who, int(n)) for who, n in re.findall(r"([a-z ]+?) had (\d+) ", passage))
        second = second.removeprefix(" ").strip()
        if "in all" in question:
            expected_answer = str(one + other)
        elif "more" in question and question.startswith("How"):
            expected_answer = str(abs(one - other))
        elif question.startswith("Who"):
            expected_answer = first if one > other else second
        else:
            expected_answer = str(one)
            assert question.endswith(f"with {first}?")
        kinds.add(question.split()[0] + question.split()[-1])
        assert marked["spans"] == [expected_answer]
    assert len(kinds) > 3


def test_doubts_are_balanced_and_say_what_the_passage_says():
    columns = stand_in("doubts").generate("validation")
    assert 0.45 < sum(columns["label"]) / len(columns["label"]) < 0.55
    right = 0
    for passage, question, label in zip(columns["text"], columns["text_pair"], columns["label"], strict=True):
        value = question.split(" that ")[0].removeprefix("was it ") if question.startswith("was it") else question.split()[-1]
        right += (value in passage) == bool(label)
    assert right / len(columns["label"]) > 0.85  # the sentence aside may hold the value too


PINNED = {
    ("doubts", "train"): "d0b10e9bb0dd3858eeb96f92d3edda382694bf7e8ec2b50622171a902d170b91",
    ("doubts", "validation"): "23c049947ce4e4877fc441b97a2171d39d4db7b2e065849391fdadff670f9324",
    ("readings", "train"): "9b0332cde3a3427bc5561e7c362ca8deb0417f37472f735a9af2d018cce7a03a",
    ("readings", "validation"): "6b26aeaffb26258f462f47b66d4a42d9c26ff12e03f47a2bcbee49de3092bb61",
    ("tallies", "train"): "6ac61d97100e0543c1c91dc1c60314c05a7ff3daff4eac7400f4af48d63a8c80",
    ("tallies", "validation"): "6253a4fd9ea4c295ed8391161d46c7a888b0246a92aa0593a80fc3a956910917",
}


@pytest.mark.parametrize(("name", "split"), PINNED)
def test_same_bytes_everywhere(name, split):
    """A change here must raise the stand-in's version, for it makes old records stale."""
    text = json.dumps(stand_in(name).generate(split), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == PINNED[name, split]


@pytest.mark.parametrize(
    ("name", "answers", "says"),
    [
        (
            "squad",
            [{"text": [], "answer_start": []}],
            r"squad, split 'train' \(.*train\.parquet\): row 1 \(row 0 counted from 0\): no answer",
        ),
        (
            "squad",
            [{"text": [" "], "answer_start": [0]}],
            r"squad, split 'train' \(.*train\.parquet\): row 1 \(row 0 counted from 0\): no answer",
        ),
        ("squad", [{"texts": ["x"]}], r"row 1 \(row 0 counted from 0\): column 'answers' holds no list 'text'"),
        ("squad", ["x"], r"row 1 \(row 0 counted from 0\): column 'answers' holds no list 'text'"),
        ("squad", [{"text": "x"}], r"row 1 \(row 0 counted from 0\): column 'answers' holds no list 'text'"),
        (
            "drop",
            [{"spans": [None], "types": ["span"]}],
            r"row 1 \(row 0 counted from 0\): column 'answers_spans' holds no list 'spans'",
        ),
    ],
)
def test_a_row_without_answers_is_named(name, answers, says, local):
    column = "answers" if name == "squad" else "answers_spans"
    source = local(name, ROWS[name][0] | {column: answers})
    with pytest.raises(DpbenchError, match=says):
        asked.load(name, "train", source)


@pytest.mark.parametrize(
    ("label_words", "says"),
    [
        ({"no": " No"}, "label_words of boolq name no"),
        ({"no": " No", "yes": " Yes", "maybe": " Maybe"}, "name no, yes, maybe"),
        ({"no": " No", "yes": " "}, "those of yes are empty"),
        ({"no": " Yes", "yes": " Yes"}, "two classes have the same"),
    ],
)
def test_label_words_that_do_not_serve_are_named(label_words, says):
    with pytest.raises(DpbenchError, match=says):
        asked.label_words("boolq", label_words)


def test_label_words_come_in_the_order_of_the_classes():
    assert asked.label_words("sst2") == [" terrible", " great"]
    assert asked.label_words("boolq", {"yes": " true", "no": " false"}) == [" false", " true"]


def test_a_dataset_without_prompts_is_refused():
    with pytest.raises(DpbenchError, match="dataset wikitext2 has no prompts") as caught:
        asked.require("wikitext2")
    assert all(name in caught.value.hint for name in ROWS)
