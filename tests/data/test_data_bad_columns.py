"""Columns as users' files have them: the right values, or one error with file, column and row, counted from 1."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pyarrow as pa
import pytest

from dpbench.data import registry
from dpbench.data.remarks import DataWarning, collected
from dpbench.errors import DpbenchError

TEXT, LABEL = ["good", "bad", "fine", "poor"], [1, 0, 1, 0]
GOOD = {"sentence": TEXT, "label": LABEL}


def loaded(name="sst2", split="train", limit=None):
    return registry.load(name, split, registry.resolve(name, "local"), limit).columns


def refused(name="sst2", split="train"):
    """The one error of loading a split, which says a hint."""
    source = registry.resolve(name, "local")
    with pytest.raises(DpbenchError) as caught:
        registry.load(name, split, source)
    assert caught.value.hint
    return caught.value


def assert_matches(pattern, text):
    assert re.search(pattern, text), (pattern, text)


def not_utf8(values, kind=pa.string):
    """A column that says it is text, of bytes."""
    data = b"".join(values)
    ends = np.cumsum([0, *map(len, values)])
    offsets = pa.array(ends, pa.int64() if kind is pa.large_string else pa.int32()).buffers()[1]
    return pa.Array.from_buffers(kind(), len(values), [None, offsets, pa.py_buffer(data)])


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()], ids=str)
def test_labels_of_every_integer_type(put, kind):
    put("sst2", train={"sentence": TEXT, "label": pa.array(LABEL, kind)})
    assert loaded() == {"text": TEXT, "label": LABEL}


def test_labels_that_pandas_keeps_as_categories_of_integers(put):
    put("sst2", train={"sentence": TEXT, "label": pa.array(LABEL).dictionary_encode()})
    assert loaded()["label"] == LABEL


def test_labels_of_yes_and_no(put):
    put("sst2", train={"sentence": TEXT, "label": [True, False, True, False]})
    labels = loaded()["label"]
    assert labels == LABEL
    assert all(type(label) is int for label in labels)


BAD_LABELS = {
    "floats": ([1.0, 0.0, 1.0, 0.0], "holds double, not class numbers", r"cast\('int64'\)"),
    "half floats": (pa.array(np.float16([1, 0, 1, 0])), "holds halffloat, not class numbers", "integers"),
    "NaN": ([1.0, float("nan"), 1.0, 0.0], "holds double", "integers"),
    "words": (["positive", "negative"] * 2, "holds string, not class numbers", "integers"),
    "numbers as text": (["1", "0"] * 2, "holds string, not class numbers", "integers"),
    "categories of text": (pa.array(["1", "0"] * 2).dictionary_encode(), "holds dictionary", "integers"),
    "decimals": (pa.array(LABEL, pa.decimal128(5, 0)), r"holds decimal128\(5, 0\)", "integers"),
    "lists": ([[1], [0], [1], [0]], "holds list<", "integers"),
    "structs": ([{"label": 1}] * 4, "holds struct<", "integers"),
    "dates": (pa.array(LABEL, pa.date32()), "holds date32", "integers"),
    "times": (pa.array(LABEL, pa.timestamp("us")), "holds timestamp", "integers"),
    "nothing at all": (pa.nulls(4), "holds null, not class numbers", "integers"),
    "bytes": ([b"1", b"0"] * 2, "holds binary, not class numbers", "integers"),
    "one missing": ([1, None, 1, 0], r"has 1 missing values, the first in row 2 \(row 1 counted from 0\)", "drop"),
    "all missing": (pa.nulls(4, pa.int64()), "has 4 missing values, the first in row 1 ", "drop"),
    "too large": ([1, 0, 2, 0], r"label 2 in row 3 \(row 2 counted from 0\) is out of range", "0 to 1: negative, positive"),
    "too small": ([1, 0, -2, 0], "label -2 in row 3 ", "0 to 1"),
    "far too large": ([1, 0, 10**15, 0], "label 1000000000000000 in row 3 ", "0 to 1"),
    "beyond int64": (
        pa.array([0, 2**63, 1, 0], pa.uint64()),
        "label 9223372036854775808 in row 2 .* is beyond 64 bits",
        "integers",
    ),
    "none": ([-1] * 4, "has no labels", "labelled split"),
    "-1 and 1": ([1, -1, 1, -1], r"label -1 in 2 of 4 rows, the first in row 2 .*no row of class 0 \(negative\)", "0 to 1"),
    "-1 and 0": ([0, -1, 0, -1], r"no row of class 1 \(positive\): whether -1 is a class", "leave out the rows without"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_named(case, put):
    values, what, hint = BAD_LABELS[case]
    file = put("sst2", others=GOOD, train={"sentence": TEXT, "label": values})
    error = refused()
    assert str(file) in error.what
    assert "label" in error.what
    assert_matches(what, error.what)
    assert_matches(hint, error.hint)


@pytest.mark.parametrize("case", ["too large", "one missing", "words", "beyond int64", "-1 and 1", "none"])
def test_bad_labels_of_a_later_split_are_told_at_once(case, put):
    """What is evaluated on is read last; nobody should train for hours and hear of it then."""
    values, what, _ = BAD_LABELS[case]
    file = put("sst2", others=GOOD, validation={"sentence": TEXT, "label": values})
    error = refused()
    assert str(file) in error.what
    assert_matches(what, error.what)
    with pytest.raises(DpbenchError) as checked:
        registry.check("sst2", registry.resolve("sst2"))
    assert checked.value.what == error.what


def test_a_test_split_may_be_without_labels_until_it_is_used(put):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, 784, dtype=np.uint8).tobytes() for _ in range(10)]
    put("mnist", train={"image": pixels, "label": list(range(10))}, test={"image": pixels, "label": [-1] * 10})
    assert len(loaded("mnist")["label"]) == 10
    assert registry.check("mnist", registry.resolve("mnist")) == {"train": 10, "test": 10}
    assert "has no labels" in refused("mnist", "test").what


SNLI = {"premise": ["a", "b", "c", "d", "e"], "hypothesis": ["v", "w", "x", "y", "z"], "label": [0, -1, 2, -1, 1]}


def test_rows_without_a_gold_label_are_left_out_and_counted(put):
    put("snli", train=SNLI)
    with collected() as remarks:
        rows = loaded("snli")
    assert rows == {"text": ["a", "c", "e"], "text_pair": ["v", "x", "z"], "label": [0, 2, 1]}
    assert remarks == ["dataset snli, split 'train': 2 of 5 rows have no label (-1) and are left out"]
    with collected():
        assert loaded("snli", limit=2)["text"] == ["a", "c"]  # of labelled rows
    assert registry.check("snli", registry.resolve("snli")) == {"train": 3, "validation": 3}


def test_rows_after_one_left_out_keep_their_number(put):
    good = np.zeros(784, np.uint8).tobytes()
    labels = [0, -1, *range(1, 10)]
    put("mnist", others={"image": [good] * 10, "label": list(range(10))}, train={"image": [good] * 10 + [b"x"], "label": labels})
    with collected():
        assert "row 11 (row 10 counted from 0) holds 1 bytes" in refused("mnist").what


ODD = {
    "one class": ({"sentence": TEXT, "label": [1] * 4}, "all 4 rows that are used are of class 1 (positive)"),
    "one row": ({"sentence": ["a"], "label": [1]}, "one row alone is used"),
    "empty texts": ({"sentence": ["a", "", " \n", "b"], "label": LABEL}, "2 of 4 texts in text are empty"),
}


@pytest.mark.parametrize("case", ODD)
def test_data_that_say_little_are_remarked_on(case, put):
    columns, remark = ODD[case]
    put("sst2", others=GOOD, train=columns)
    with pytest.warns(DataWarning) as caught:
        loaded()
    assert [remark in str(one.message) for one in caught] == [True]
    with collected() as remarks:
        loaded()
        loaded()
    assert len(remarks) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded(split="validation")


def with_names(columns, column, names):
    """A table as the `datasets` library writes it, with the names of its classes."""
    feature = {"names": names, "_type": "ClassLabel"} if names is not None else {"dtype": "int64", "_type": "Value"}
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": {column: feature}}})})


TREC = {"text": ["a"] * 6, "label": [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize(
    ("name", "columns", "names", "message"),
    [
        ("sst2", GOOD, ["positive", "negative"], r"'positive' is 0 there, and 1 here"),
        ("sst2", GOOD, ["Positive ", "unknown"], r"'Positive ' is 0 there, and 1 here"),
        ("sst2", GOOD, ["negative", "neutral", "positive"], r"states 3 classes \(negative, neutral, positive\), not 2"),
        ("snli", SNLI, ["contradiction", "neutral", "entailment"], "'contradiction' is 0 there, and 2 here"),
        ("trec", TREC, ["DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC"], "'DESC' is 0 there, and 2 here"),
    ],
)
def test_names_of_classes_that_contradict_ours_are_refused(name, columns, names, message, put):
    file = put(name, train=with_names(columns, "label", names))
    error = refused(name)
    assert_matches(message, error.what)
    assert str(file) in error.what
    assert "labels must be 0 to" in error.hint


@pytest.mark.parametrize(
    ("name", "columns", "names"),
    [
        ("sst2", GOOD, ["Negative", "POSITIVE"]),
        ("sst2", GOOD, ["0", "1"]),
        ("sst2", GOOD, None),
        ("sst2", GOOD, [1, 2]),
        ("trec", TREC, ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]),
    ],
)
def test_names_of_classes_that_agree_or_say_nothing_are_taken(name, columns, names, put):
    put(name, train=with_names(columns, "label", names))
    with collected():
        assert loaded(name)["label"] == columns["label"]


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"info": 3}'])
def test_metadata_that_cannot_be_read_say_nothing(text, put):
    put("sst2", train=pa.table(GOOD).replace_schema_metadata({b"huggingface": text}))
    assert loaded()["label"] == LABEL


ODD_TEXTS = ["", "   ", "a\r\nb", "\ufeffmark", "nul\x00inside", "x" * 200_000, "é\u0301\u202e😀", "tab\tquote\"'"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()], ids=str)
def test_odd_texts_come_through_as_they_are(kind, put):
    put("sst2", others=GOOD, train={"sentence": pa.array(ODD_TEXTS, kind), "label": [0, 1] * 4})
    with collected():
        assert loaded() == {"text": ODD_TEXTS, "label": [0, 1] * 4}


def test_column_order_extra_columns_and_duplicates_are_fine(put):
    table = pa.table({"idx": [0, 1, 2, 3] * 2, "label": LABEL * 2, "more": [None] * 8, "sentence": TEXT * 2})
    put("sst2", others=GOOD, train=table)
    assert loaded() == {"text": TEXT * 2, "label": LABEL * 2}


def test_a_text_of_many_pieces_keeps_its_order(put):
    texts = [str(number) for number in range(10_000)]
    put("sst2", others=GOOD, train={"sentence": texts, "label": [0, 1] * 5_000})
    assert loaded()["text"] == texts
    assert loaded(limit=3)["text"] == texts[:3]


BAD_TEXTS = {
    "categories": (pa.array(TEXT).dictionary_encode(), "'sentence' holds dictionary<.*>, not text", r"cast\('string'\)"),
    "string views": (pa.array(TEXT, pa.string_view()), "'sentence' holds string_view, not text", r"cast\('string'\)"),
    "bytes": ([text.encode() for text in TEXT], "'sentence' holds binary, not text", "strings"),
    "lists of words": ([[text] for text in TEXT], "'sentence' holds list<", "strings"),
    "structs": ([{"text": text} for text in TEXT], "'sentence' holds struct<", "strings"),
    "numbers": ([1, 2, 3, 4], "'sentence' holds int64", "strings"),
    "nothing": (pa.nulls(4), "'sentence' holds null", "strings"),
    "one missing": (["a", None, "b", None], "'sentence' has 2 missing values, the first in row 2 ", "drop those rows"),
    "UTF-16": (not_utf8([b"a", b"b", b"\xff\xfea\0", b"c"]), "'sentence': row 3 .* is not UTF-8 .byte 0xff at 0", "UTF-8"),
    "Latin-1": (not_utf8([b"a", "café".encode("latin-1"), b"b", b"c"]), "row 2 .* is not UTF-8 .byte 0xe9 at 3", "UTF-8"),
    "cut in a character": (not_utf8([b"a", b"b", b"c", "é".encode()[:1]]), "row 4 .* is not UTF-8", "UTF-8"),
    "a lone surrogate": (not_utf8([b"\xed\xa0\x80", b"b", b"c", b"d"]), "row 1 .* is not UTF-8", "UTF-8"),
    "Latin-1, large": (not_utf8([b"a", b"\xe9", b"b", b"c"], pa.large_string), "row 2 .* is not UTF-8", "UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_bad_texts_are_named(case, put):
    values, what, hint = BAD_TEXTS[case]
    file = put("sst2", others=GOOD, train={"sentence": values, "label": LABEL})
    error = refused()
    assert str(file) in error.what
    assert_matches(what, error.what)
    assert_matches(hint, error.hint)


def test_a_bad_text_far_down_is_named_by_its_row_in_the_file(put):
    values = [b"a"] * 5_000
    values[4_321] = b"\xff"
    put("sst2", others=GOOD, train={"sentence": not_utf8(values), "label": [0, 1] * 2_500})
    assert "row 4322 (row 4321 counted from 0) is not UTF-8" in refused().what


BAD_NAMES = {
    "a mark before it": ({"\ufeffsentence": TEXT, "label": LABEL}, r"its columns: \\ufeffsentence, label", r"\\ufeffsentence"),
    "capitals": (
        {"Sentence": TEXT, "Label": LABEL},
        "no column 'sentence'; its columns: Sentence, Label",
        "did you mean 'Sentence'",
    ),
    "another name": ({"text": TEXT, "label": LABEL}, "no column 'sentence'; its columns: text, label", "known: label, text"),
    "an end of line in it": ({"sentence\n": TEXT, "label": LABEL}, r"its columns: sentence\\n, label", r"sentence\\n"),
    "no label": ({"sentence": TEXT}, "no column 'label'", "known: sentence"),
    "pandas' index alone": ({"__index_level_0__": LABEL}, "no column 'sentence'", "__index_level_0__"),
    "too many": ({f"c{i}": [0] for i in range(500)} | {"sentences": ["a"]}, "and 471 more", "did you mean 'sentences'"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_column_of_another_name_is_told_with_the_nearest(case, put):
    columns, what, hint = BAD_NAMES[case]
    file = put("sst2", others=GOOD, train=columns)
    error = refused()
    assert str(file) in error.what
    assert_matches(what, error.what)
    assert_matches(hint, error.hint)
    assert len(str(error)) < 2_000


@pytest.mark.parametrize("column", ["sentence", "label"])
def test_a_column_that_stands_twice_is_refused(column, put):
    arrays = {"sentence": pa.array(TEXT), "label": pa.array(LABEL)}
    table = pa.Table.from_arrays([*arrays.values(), arrays[column]], names=[*arrays, column])
    file = put("sst2", others=GOOD, train=table)
    assert refused().what == f"{file}: column {column!r} stands twice"


def test_another_column_that_stands_twice_does_not_matter(put):
    table = pa.Table.from_arrays(
        [pa.array(TEXT), pa.array(LABEL), pa.array(LABEL), pa.array(TEXT)], names=["sentence", "label", "x", "x"]
    )
    put("sst2", others=GOOD, train=table)
    assert loaded() == {"text": TEXT, "label": LABEL}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("value", "says"), [(-1, "write 0 where CelebA's own list has -1"), (2, "0 .no. or 1 .yes.")])
def test_attributes_are_yes_or_no(value, says, split, put):
    from dpbench import plugins

    columns = plugins.get("dataset", "celeba_multilabel").extra["columns"]
    pixels = np.zeros((64, 64, 3), np.uint8).tobytes()
    good = {column: [1, 0, 1] for column in columns.values()} | {"image": [pixels] * 3}
    file = put("celeba_multilabel", others=good, **{split: good | {"Bald": [0, 1, value]}})
    error = refused("celeba_multilabel")
    assert f"{file}), Bald: {value} in row 3 (row 2 counted from 0) is neither yes nor no" in error.what
    assert_matches(says, error.hint)
