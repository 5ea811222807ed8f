"""Datasets in CSV, tab-separated text and JSON lines: the right values, or one error with file, column and row."""

from __future__ import annotations

import gzip
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_cards import COLUMNS, REVIEWS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpbench import plugins
from dpbench.data import asked, described, registry
from dpbench.data.remarks import collected
from dpbench.errors import DpbenchError

GOOD = {
    ".csv": b"review,stars\nfine,1\npoor,0\n",
    ".tsv": b"review\tstars\nfine, yes\t1\npoor\t0\n",
    ".jsonl": b'{"review": "fine", "stars": 1}\n{"review": "poor", "stars": 0}\n',
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """write(train, suffix) writes card and files, and returns the file of the train split."""
    count = iter(range(1000))

    def written(train, suffix=".csv", validation=None, card=REVIEWS, columns=COLUMNS):
        folder = tmp_path / f"case{next(count)}"
        (folder / "cards").mkdir(parents=True)
        (folder / "data" / "reviews").mkdir(parents=True)
        (folder / "cards" / "reviews.yaml").write_text(card.replace(".csv", suffix).replace(COLUMNS, columns))
        monkeypatch.setenv(plugins.VARIABLE, str(folder / "cards"))
        monkeypatch.setenv("DPBENCH_DATA", str(folder / "data"))
        for split, content in (("train", train), ("validation", GOOD[suffix] if validation is None else validation)):
            (folder / "data" / "reviews" / f"{split}{suffix}").write_bytes(content)
        return folder / "data" / "reviews" / f"train{suffix}"

    return written


def loaded(split="train", limit=None):
    with collected():
        return registry.load("reviews", split, registry.resolve("reviews", "local"), limit).columns


@pytest.mark.parametrize("suffix", GOOD)
def test_rows_of_each_kind_are_read(suffix, write):
    write(GOOD[suffix], suffix)
    assert loaded() == {"text": ["fine, yes" if suffix == ".tsv" else "fine", "poor"], "label": [1, 0]}
    assert loaded(limit=1)["label"] == [1]
    assert registry.check("reviews", registry.resolve("reviews")) == {"train": 2, "validation": 2}


TAKEN = {
    "quotes, separators and ends of lines": (b'review,stars\n"a, ""b""\nc",1\n', ['a, "b"\nc'], [1]),
    "an empty text in quotes": (b'review,stars\n"",1\n', [""], [1]),
    "a byte-order mark": (b"\xef\xbb\xbfreview,stars\nfine,1\n", ["fine"], [1]),
    "ends of lines of Windows": (b"review,stars\r\nfine,1\r\n", ["fine"], [1]),
    "no end of the last line": (b"review,stars\nfine,1", ["fine"], [1]),
    "empty lines": (b"review,stars\n\nfine,1\n\n\n", ["fine"], [1]),
    "other columns, in another order": (b"id,stars,review,\n7,0,fine,x\n8,1,poor,\n", ["fine", "poor"], [0, 1]),
    "texts that look like numbers": (b"review,stars\n007,1\n1e5,0\n", ["007", "1e5"], [1, 0]),
    "texts that look like dates": (b"review,stars\n2024-01-01,1\n", ["2024-01-01"], [1]),
    "texts that look missing": (b"review,stars\nNA,1\nnull,0\n", ["NA", "null"], [1, 0]),
    "yes and no": (b"review,stars\na,true\nb,False\n", ["a", "b"], [1, 0]),
    "blanks around a label": (b"review,stars\na, 1 \n", ["a"], [1]),
    "rows without a label": (b"review,stars\na,1\nb,-1\nc,0\n", ["a", "c"], [1, 0]),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_a_csv_may_hold(case, write):
    content, texts, labels = TAKEN[case]
    write(content)
    assert loaded() == {"text": texts, "label": labels}


def test_a_text_of_many_pieces_keeps_its_order(write):
    lines = "".join(f'"{"x" * (n % 50)} {n}",{n % 2}\n' for n in range(20_000))
    write(f"review,stars\n{lines}".encode())
    assert [int(text.split()[-1]) for text in loaded()["text"]] == list(range(20_000))


BAD = {
    "a missing column": (b"text,stars\na,1\n", "no column 'review'; its columns: text, stars", "known: stars, text"),
    "a column twice": (b"review,stars,stars\na,1,0\n", "column 'stars' stands twice", "keep one"),
    "a missing text": (b"review,stars\na,1\n,0\n", "column 'review' has 1 missing values, the first in row 2 ", 'written as ""'),
    "a missing label": (b"review,stars\na,1\nb,\nc,\n", "column 'stars' has 2 missing values, the first in row 2 ", "drop"),
    "a label that is a name": (
        b"review,stars\na,1\nb,good\n",
        "'stars': 'good' in row 2 .* is no class number",
        "integers from 0",
    ),
    "a label that is a fraction": (b"review,stars\na,1.0\n", "'1.0' in row 1 .* is no class number", "integers from 0"),
    "a label out of range": (b"review,stars\na,1\nb,0\nc,2\n", "label 2 in row 3 .* is out of range", "0 to 1: bad, good"),
    "a label beyond 64 bits": (b"review,stars\na,9999999999999999999\n", "in row 1 .* is beyond 64 bits", "integers"),
    "a label of 50 digits": (b"review,stars\na," + b"9" * 50 + b"\n", "in row 1 .* is no class number", "integers"),
    "no label at all": (b"review,stars\na,-1\nb,-1\n", "has no labels", "labelled split"),
    "text that is not UTF-8": (b"review,stars\na,1\ncaf\xe9,0\n", r"'review': row 2 .* is not UTF-8 .byte 0xe9 at 3", "UTF-8"),
    "a label that is not UTF-8": (b"review,stars\na,\xff\n", "in row 1 .* is no class number", "integers"),
    "a name that is not UTF-8": (b"caf\xe9,stars\na,1\n", "names of the columns are not UTF-8", "UTF-8"),
    "a longer line": (b"review,stars\na,1\nb,0\nc,d,1\n", "row 3 .* has 3 fields, and the header 2", 'in "quotes"'),
    "a longer line that is not UTF-8": (b"review,stars\na,1\n\xe9,d,1\n", "row 2 .* has 3 fields", 'in "quotes"'),
    "a shorter line": (b"review,stars\na,1\nb\n", "row 2 .* has 1 fields, and the header 2", 'in "quotes"'),
    "a longer line after a text of two lines": (b'review,stars\n"a\nb",1\nc,d,1\n', "row 2 .* has 3 fields", "quotes"),
    "a quote that is left open": (b'review,stars\na,1\n"b,0\nc,1\n', "row 2 .* has 1 fields", "a quote inside it twice"),
    "no rows": (b"review,stars\n", "no rows", "fetch"),
    "nothing": (b"", "it is an empty file", "fetch"),
    "an end of line alone": (b"\n", "not a readable file of CSV", "quotes"),
    "semicolons": (b"review;stars\na;1\n", "its columns are separated by ';', not by ','", "commas"),
    "tabs": (b"review\tstars\na\t1\n", r"separated by '\\t', not by ','", "commas"),
    "UTF-16": ("review,stars\na,1\n".encode("utf-16"), "text in UTF-16, not CSV", "UTF-8"),
    "zeros": (bytes(100), "a file of zero bytes", "fetch"),
    "gzip": (gzip.compress(GOOD[".csv"]), "it is a gzip archive", "gunzip"),
    "a spreadsheet": (b"PK\x03\x04" + bytes(40), "it is a zip archive", "unpack"),
    "an HTML page": (b"<!DOCTYPE html><html>404", "it is an HTML page, not CSV", "fetch"),
    "JSON lines": (GOOD[".jsonl"], "it is JSON lines, not CSV", r"suffix \.jsonl"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_bad_csv_is_one_error_with_file_column_and_row(case, split, write):
    """A fault in another split is told before the first is read, except in texts, which are read last."""
    content, what, hint = BAD[case]
    file = write(content) if split == "train" else write(GOOD[".csv"], validation=content)
    file = file.with_name(f"{split}.csv")
    with pytest.raises(DpbenchError, match=what) as caught:
        loaded("train")
    assert str(file) in caught.value.what
    assert re.search(hint, caught.value.hint), caught.value.hint
    assert len(caught.value.what.splitlines()) == 1


JSON = {
    "a missing key": (
        b'{"review": "a", "stars": 1}\n{"stars": 0}\n',
        "'review' has 1 missing values, the first in row 2 ",
        "drop",
    ),
    "null": (
        b'{"review": "a", "stars": null}\n{"review": "b", "stars": 0}\n',
        "'stars' has 1 missing values, the first in row 1 ",
        "",
    ),
    "a key of no row": (b'{"text": "a", "stars": 1}\n', "no column 'review'; its columns: text, stars", "known"),
    "a label that is a text": (b'{"review": "a", "stars": "1"}\n', "'stars' holds string, not class numbers", "integers from 0"),
    "a label that is a fraction": (b'{"review": "a", "stars": 0.5}\n', "'stars' holds double, not class numbers", "integers"),
    "a text that is a number": (b'{"review": 3, "stars": 1}\n', "'review' holds int64, not text", "strings"),
    "a label out of range": (b'{"review": "a", "stars": 7}\n', "label 7 in row 1 ", "0 to 1"),
    "another type in a row": (
        b'{"review": "a", "stars": 1}\n{"review": "b", "stars": "0"}\n',
        "row 2 .*changed from number",
        "one object",
    ),
    "a line that is cut": (
        b'{"review": "a", "stars": 1}\n{"review": "b", \n',
        "row 2 .* is not JSON lines of one form",
        "one object",
    ),
    "a line that is no object": (b'{"review": "a", "stars": 1}\n[1]\n', "row 2 .* is not JSON lines", "one object"),
    "a key twice": (b'{"review": "a", "stars": 1, "stars": 0}\n', "row 1 .*specified twice", "one object"),
    "one list": (b'[{"review": "a", "stars": 1}]\n', "it is one JSON list, not JSON lines", "one object a line"),
    "CSV": (GOOD[".csv"], "it is text, not JSON lines", r"suffix \.csv"),
    "not UTF-8": (b'{"review": "caf\xe9", "stars": 1}\n', "'review': row 1 .* is not UTF-8", "UTF-8"),
    "nothing": (b"", "it is an empty file", "fetch"),
    "empty lines alone": (b"\n\n", "no rows", "fetch"),
}


@pytest.mark.parametrize("case", JSON)
def test_bad_json_lines_are_one_error_with_file_column_and_row(case, write):
    content, what, hint = JSON[case]
    file = write(content, ".jsonl")
    with pytest.raises(DpbenchError, match=what) as caught:
        loaded()
    assert str(file) in caught.value.what
    assert re.search(hint, caught.value.hint), caught.value.hint


def test_texts_of_json_that_look_like_dates_stay_texts(write):
    write(b'{"review": "2024-01-01", "stars": true}\n{"review": "2024-01-02", "stars": false}\n', ".jsonl")
    assert loaded() == {"text": ["2024-01-01", "2024-01-02"], "label": [1, 0]}


def test_a_parquet_file_under_another_suffix_is_told(write):
    buffer = io.BytesIO()
    pq.write_table(pa.table({"review": ["a"], "stars": [1]}), buffer)
    write(buffer.getvalue())
    with pytest.raises(DpbenchError, match="it is a Parquet file") as caught:
        loaded()
    assert "suffix .parquet" in caught.value.hint


@pytest.mark.parametrize(("there", "hint"), [("train.parquet", "name it in `files`"), ("train.jsonl", "name it in `files`")])
def test_a_file_that_is_there_in_another_form_is_named(there, hint, write):
    file = write(GOOD[".csv"])
    file.rename(file.with_name(there))
    with pytest.raises(DpbenchError, match=r"train\.csv: missing") as caught:
        registry.resolve("reviews", "local")
    assert there in caught.value.hint
    assert hint in caught.value.hint


QUESTIONS = REVIEWS.replace(
    "task: classification\nclasses: [bad, good]", 'task: question_answering\ncompletion_prompt: "Q: {text_q}\\nA:"'
)
TABLES = REVIEWS.replace("task: classification\nclasses: [bad, good]", "task: table_to_text")


def test_questions_of_a_csv_have_their_answers(write):
    card = QUESTIONS
    content = b"q,a\nHow many?,three\nWho?,me\n"
    write(content, validation=content, card=card, columns="{text_q: q, answers: a}")
    rows = asked.load("reviews", "train", registry.resolve("reviews"))
    assert rows[0] == asked.Asked("Q: How many?\nA:", answers=("three",))


def test_lists_of_answers_are_json_lines(write):
    content = b'{"q": "Who?", "a": ["me", "I"]}\n'
    write(content, ".jsonl", validation=content, card=QUESTIONS, columns="{text_q: q, answers: a}")
    assert asked.load("reviews", "train", registry.resolve("reviews"))[0].answers == ("me", "I")


def test_tables_of_json_lines(write):
    content = b'{"t": [["A_b", "is", "c"]], "s": "A b is c."}\n'
    write(content, ".jsonl", validation=content, card=TABLES, columns="{triples: t, text: s}")
    row = described.load("reviews", "train", registry.resolve("reviews"))[0]
    assert (row.fields, row.texts) == ((("A b", "is", "c"),), ("A b is c.",))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(rows=st.lists(st.tuples(texts, st.integers(0, 1)), min_size=1, max_size=5), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_text_comes_through_as_it_is(rows, suffix, write):
    quote = '"'
    lines = [f'"{text.replace(quote, quote * 2)}",{label}' for text, label in rows]
    content = "\n".join(["review,stars", *lines, ""])
    if suffix == ".jsonl":
        content = "".join(json.dumps({"review": text, "stars": label}, ensure_ascii=False) + "\n" for text, label in rows)
    write(content.encode(), suffix)
    assert loaded() == {"text": [text for text, _ in rows], "label": [label for _, label in rows]}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    content=st.binary(max_size=60),
    head=st.sampled_from([b"", b"review,stars\n", b'{"review":']),
    suffix=st.sampled_from(list(GOOD)),
)
def test_bytes_of_any_kind_are_rows_or_one_error(content, head, suffix, write):
    file = write(head + content, suffix)
    rows, refusal = None, None
    try:
        rows = loaded()
    except DpbenchError as error:
        refusal = error
    assert (refusal is None and set(rows["label"]) <= {0, 1}) or (str(file) in refusal.what and refusal.hint)
