"""Columns of any type, in any order and number: what is loaded is what the file holds, or there is one error of our own."""

from __future__ import annotations

import contextlib
import decimal
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpbench import plugins
from dpbench.data import asked, described, registry, tabular
from dpbench.data.remarks import collected
from dpbench.errors import DpbenchError

ROWS = 3
SLOW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)

texts = st.text(max_size=6) | st.sampled_from(["a | b | c", "name[A]", "name[A", "a | b", "", "\ufeff", "1"])
numbers = st.sampled_from([-1, 0, 1, 2, 127])
SIMPLE = {
    "integers": (pa.int64(), numbers),
    "bytes of integers": (pa.int8(), numbers),
    "large integers": (pa.uint64(), st.sampled_from([0, 1, 2**63, 2**64 - 1])),
    "yes and no": (pa.bool_(), st.booleans()),
    "floats": (pa.float64(), st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf")])),
    "texts": (pa.string(), texts),
    "large texts": (pa.large_string(), texts),
    "views": (pa.string_view(), texts),
    "bytes": (pa.binary(), st.binary(max_size=6) | st.just(bytes(784))),
    "fixed bytes": (pa.binary(784), st.just(bytes(784))),
    "decimals": (pa.decimal128(5, 1), st.just(decimal.Decimal("1.0"))),
    "times": (pa.timestamp("ns"), numbers),
    "days": (pa.date32(), numbers),
    "durations": (pa.duration("us"), numbers),
    "nothing": (pa.null(), st.none()),
}


@st.composite
def typed(draw, depth=2):
    """(type, strategy of values) of a column."""
    kinds = ["simple"] * 3 + (["list", "struct", "dictionary", "map"] if depth else [])
    match draw(st.sampled_from(kinds)):
        case "list":
            kind, values = draw(typed(depth - 1))
            return pa.list_(kind), st.lists(values, max_size=3)
        case "struct":
            names = draw(st.sampled_from([["bytes", "path"], ["text", "source"], ["subject", "relation", "object"], ["spans"]]))
            fields = [draw(typed(depth - 1)) for _ in names]
            kind = pa.struct([(name, field[0]) for name, field in zip(names, fields, strict=True)])
            return kind, st.fixed_dictionaries({name: field[1] for name, field in zip(names, fields, strict=True)})
        case "map":
            kind, values = draw(typed(0))
            return pa.map_(pa.string(), kind), st.lists(st.tuples(st.text(max_size=3), values), max_size=2)
        case "dictionary":
            return pa.dictionary(pa.int32(), pa.string()), texts
    return SIMPLE[draw(st.sampled_from(sorted(SIMPLE)))]


@st.composite
def columns_of(draw, usual):
    """A table whose columns are the usual ones, some of another type, name, number or with missing values."""
    arrays, names = [], []
    for name, kind, values in usual:
        if draw(st.integers(0, 5)) == 0:
            kind, values = draw(typed())
        entries = draw(st.lists(values, min_size=ROWS, max_size=ROWS))
        if draw(st.integers(0, 9)) == 0:
            entries[draw(st.integers(0, ROWS - 1))] = None
        try:
            array = pa.array(entries, kind)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            array = pa.nulls(ROWS)
        arrays.append(array)
        names.append(name if draw(st.integers(0, 19)) else draw(st.sampled_from([name.upper(), f"{name}s", "\ufeff" + name, ""])))
        if not draw(st.integers(0, 19)):
            arrays.append(array)
            names.append(name)
    order = draw(st.permutations(range(len(names))))
    return pa.Table.from_arrays([arrays[at] for at in order], names=[names[at] for at in order])


def loaded(put, name, table, by):
    """What is loaded, None where it is refused in our own words."""
    try:
        file = put(name, train=table)
    except (pa.ArrowException, OSError):
        return None, None  # no such file can be written
    loaded_table, refusal = None, None
    try:
        with collected():
            loaded_table = by.load(name, "train", registry.resolve(name, "local"))
    except DpbenchError as error:
        refusal = error
    if refusal is not None:
        assert refusal.hint
        assert str(file.parent) in refusal.what
        assert len(refusal.what.splitlines()) == 1
    return file, loaded_table


SST2 = [("sentence", pa.string(), texts), ("label", pa.int64(), st.sampled_from([0, 1, 1, 0, -1]))]


@SLOW
@given(table=columns_of(SST2))
def test_texts_and_labels(table, put):
    file, loaded_table = loaded(put, "sst2", table, registry)
    if loaded_table is None:
        return
    stored = pq.read_table(file)
    rows = list(zip(stored["sentence"].to_pylist(), stored["label"].to_pylist(), strict=True))
    expected = [(text, int(label)) for text, label in rows if label != -1]
    assert list(zip(loaded_table.columns["text"], loaded_table.columns["label"], strict=True)) == expected
    assert expected
    assert {label for _, label in expected} <= {0, 1}


MNIST = [
    ("image", pa.binary(), st.just(bytes(784)) | st.binary(min_size=784, max_size=784)),
    ("label", pa.int8(), st.integers(0, 9)),
]


@SLOW
@given(table=columns_of(MNIST))
def test_images(table, put):
    file, loaded_table = loaded(put, "mnist", table, registry)
    if loaded_table is None:
        return
    stored = pq.read_table(file)["image"].to_pylist()
    raw = [value["bytes"] if isinstance(value, dict) else value for value in stored]
    assert [image.tobytes() for image in loaded_table.columns["image"]] == raw
    assert loaded_table.columns["image"].dtype == np.uint8


words = st.sampled_from(["A.", "b c", "d_e", '"f"', "g | h", "[i]", "j,"])


def mostly(usual, rare=texts):
    """One in thirty is rare."""
    return st.integers(0, 29).flatmap(lambda number: rare if number == 0 else usual)


MOSTLY_WORDS = mostly(words)
SOME = st.lists(MOSTLY_WORDS, min_size=1, max_size=2)
TRIPLE = st.lists(MOSTLY_WORDS, min_size=3, max_size=3)
LINE = mostly(st.just("A_b | c | d | e") | st.tuples(words, words, words).map(" | ".join))
TABLE = mostly(st.sampled_from(["name[A]", "name[B, C], area[riverside]"]))
DART = [
    ("tripleset", pa.list_(pa.list_(pa.string())), st.lists(TRIPLE, min_size=1, max_size=2)),
    ("annotations", pa.struct([("text", pa.list_(pa.string()))]), st.fixed_dictionaries({"text": SOME})),
]
WEB_NLG = [
    ("input", pa.list_(pa.string()), st.lists(LINE, min_size=1, max_size=2)),
    ("target", pa.string(), MOSTLY_WORDS),
    ("references", pa.list_(pa.string()), st.lists(MOSTLY_WORDS, max_size=2)),
]
E2E = [("meaning_representation", pa.string(), TABLE), ("human_reference", pa.string(), MOSTLY_WORDS)]


def as_stored(name, stored):
    """Fields of each row, read from the table in another way than the product reads them."""

    def words_of(part):
        return " ".join(re.sub(r'^"+|"+$', "", part.strip()).replace("_", " ").split())

    if name == "dart":
        return [tuple(tuple(map(words_of, triple)) for triple in row) for row in stored["tripleset"].to_pylist()]
    if name == "web_nlg":
        parts = [
            [re.fullmatch(r"(.*?) \| (.*?) \| (.*)", line, re.DOTALL).groups() for line in row]
            for row in stored["input"].to_pylist()
        ]
        return [tuple(tuple(map(words_of, triple)) for triple in row) for row in parts]
    if name == "samsum":
        return [(("dialogue", text.replace("\r\n", "\n")),) for text in stored["dialogue"].to_pylist()]
    return [
        tuple((slot.strip(), value.strip()) for slot, value in re.findall(r"([^,\[\]]+)\[([^\]]*)\]", text))
        for text in stored["meaning_representation"].to_pylist()
    ]


SAMSUM = [("dialogue", pa.string(), texts), ("summary", pa.string(), MOSTLY_WORDS)]


@pytest.mark.parametrize(("name", "usual"), [("dart", DART), ("web_nlg", WEB_NLG), ("e2e_nlg", E2E), ("samsum", SAMSUM)])
@SLOW
@given(data=st.data())
def test_rows_that_are_described(name, usual, data, put):
    file, loaded_table = loaded(put, name, data.draw(columns_of(usual)), described)
    if loaded_table is None:
        return
    assert [row.fields for row in loaded_table] == as_stored(name, pq.read_table(file))
    assert all(row.texts and all(text.strip() for text in row.texts) for row in loaded_table)
    if name in ("dart", "web_nlg"):
        assert all(len(field) == 3 and all(part.strip() for part in field) for row in loaded_table for field in row.fields)


SQUAD = [(name, pa.string(), texts) for name in ("title", "context", "question")]
SQUAD += [("answers", pa.struct([("text", pa.list_(pa.string()))]), st.fixed_dictionaries({"text": SOME}))]


@SLOW
@given(table=columns_of(SQUAD))
def test_rows_that_are_asked(table, put):
    _, loaded_table = loaded(put, "squad", table, asked)
    for row in loaded_table or []:
        assert row.prompt.endswith("Answer:")
        assert row.answers
        assert all(answer.strip() for answer in row.answers)


@SLOW
@given(
    data=st.binary(max_size=200), head=st.sampled_from([b"", b"PAR1", b"{", b"a,b\n", b"\x1f\x8b", b"<html"]), tail=st.booleans()
)
def test_bytes_of_any_kind(data, head, tail, tmp_path):
    file = tmp_path / "train.parquet"
    file.write_bytes(head + data + (b"PAR1" if tail else b""))
    with pytest.raises(DpbenchError, match=r"train\.parquet: not a readable Parquet file"):
        tabular.check(file, {"text": "sentence"})


@SLOW
@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF", b"GIF89a"]))
def test_images_of_any_bytes(data, head):
    from dpbench.data import images

    shape = plugins.get("dataset", "mnist").extra["image"]
    with contextlib.suppress(DpbenchError):
        decoded = images.decode([head + data], shape, "here")
        assert decoded.shape == (1, 1, 28, 28)
