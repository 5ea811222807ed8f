"""Rows of table-to-text, summary and question-answering datasets in the forms that are published: right, or named."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest

from dpbench import plugins
from dpbench.data import asked, described, registry, triples
from dpbench.data.remarks import collected
from dpbench.errors import DpbenchError

FIELD = ("Aarhus Airport", "cityServed", "Aarhus, Denmark")
E2E = {"meaning_representation": ["name[A], area[riverside]", "name[B]"], "human_reference": ["A.", "B."]}
DART = {
    "tripleset": [[["a", "B", "c"]], [["d", "E", "f"]]],
    "annotations": [{"source": ["x"], "text": ["A."]}, {"source": ["x", "y"], "text": ["B.", "C."]}],
}
WEB_NLG = {"input": [["a | b | c"], ["d | e | f"]], "target": ["A.", "B."], "references": [["A."], []]}
SAMSUM = {"dialogue": ["A: hi\r\nB: ho", "C: hm"], "summary": ["They greet.", "C wonders."]}
SQUAD = {
    "title": ["t"] * 2,
    "context": ["c"] * 2,
    "question": ["q?"] * 2,
    "answers": [{"text": ["x"], "answer_start": [0]}, {"text": ["y", "z"], "answer_start": [0, 1]}],
}
DROP = {"passage": ["p"] * 2, "question": ["q?"] * 2, "answers_spans": [{"spans": ["1"], "types": ["number"]}] * 2}
ROWS = {"e2e_nlg": E2E, "dart": DART, "web_nlg": WEB_NLG, "samsum": SAMSUM, "squad": SQUAD, "drop": DROP}
READERS = {name: asked if name in ("squad", "drop") else described for name in ROWS}


def loaded(name):
    return READERS[name].load(name, "train", registry.resolve(name, "local"))


@pytest.mark.parametrize("name", ROWS)
def test_good_rows_are_read(name, put):
    put(name, train=ROWS[name])
    with collected() as remarks:
        assert len(loaded(name)) == 2
    assert remarks == []


def test_dart_s_own_json_is_read_as_the_form_of_datasets(put):
    put("dart", train=DART)
    expected = loaded("dart")
    dart_json = DART | {
        "annotations": [[{"source": "x", "text": "A."}], [{"source": "x", "text": "B."}, {"source": "y", "text": "C."}]]
    }
    put("dart", train=dart_json)
    assert loaded("dart") == expected
    assert expected[1].texts == ("B.", "C.")


def test_squad_s_own_json_is_read_as_the_form_of_datasets(put):
    put("squad", train=SQUAD)
    expected = loaded("squad")
    answers = [[{"text": "x", "answer_start": 0}], [{"text": "y", "answer_start": 0}, {"text": "z", "answer_start": 1}]]
    put("squad", train=SQUAD | {"answers": answers})
    assert loaded("squad") == expected
    assert expected[1].answers == ("y", "z")


@pytest.mark.parametrize(
    "entry",
    [
        'Aarhus_Airport | cityServed | "Aarhus, Denmark"',
        ["Aarhus_Airport", "cityServed", "Aarhus, Denmark"],
        {"subject": "Aarhus_Airport", "property": "cityServed", "object": "Aarhus, Denmark"},
        {"object": "Aarhus, Denmark", "predicate": "cityServed", "subject": "Aarhus Airport"},
    ],
)
def test_every_published_form_of_a_triple(entry):
    assert triples.triples("input", [entry]) == (FIELD,)


BAD_TRIPLES = {
    "two parts": (["a | b"], "has 2 parts, not 3"),
    "one part": (["a"], "has 1 part, not 3"),
    "an empty text": ([""], "has 1 part, not 3"),
    "no spaces at the marks": (["a|b|c"], "has 1 part, not 3"),
    "commas": (["(a, b, c)"], "has 1 part, not 3"),
    "no subject": ([" | b | c"], "has 2 parts|empty subject"),
    "no relation": (["a |  | c"], "has an empty relation"),
    "no object": (["a | b | "], "has an empty object"),
    "quotes of nothing": (['a | b | ""'], "has an empty object"),
    "underlines alone": (["_ | b | c"], "has an empty subject"),
    "a list of two": ([["a", "b"]], "has 2 parts, not 3"),
    "a list of four": ([["a", "b", "c", "d"]], "has 4 parts, not 3"),
    "a list of one": ([["a | b | c"]], "has 1 part, not 3"),
    "an empty list": ([[]], "has 0 parts, not 3"),
    "a missing part": ([["a", None, "c"]], "is no triple of texts"),
    "a missing triple": ([None], "is no triple of texts"),
    "a number": ([["a", "b", 3]], "is no triple of texts"),
    "a number alone": ([3], "is no triple of texts"),
    "one level too deep": ([[["a", "b", "c"]]], "is no triple of texts"),
    "no list": ("a | b | c", "not a list of triples"),
    "nothing": (None, "not a list of triples"),
    "a struct about it": ({"mtriple_set": [["a | b | c"]]}, "not a list of triples"),
    "other names": ([{"subj": "a", "rel": "b", "obj": "c"}], "has the parts subj, rel, obj"),
    "a name twice": ([{"subject": "a", "relation": "b", "property": "b", "object": "c"}], "has the parts"),
    "a struct of nothing": ([{}], "has the parts none"),
    "a struct with a gap": ([{"subject": "a", "relation": None, "object": "c"}], "is no triple of texts"),
}


@pytest.mark.parametrize("case", BAD_TRIPLES)
def test_bad_triples_are_refused(case):
    entries, what = BAD_TRIPLES[case]
    with pytest.raises(DpbenchError, match=what) as caught:
        triples.triples("input", entries)
    assert "column 'input'" in caught.value.what
    assert caught.value.hint


BAD_SLOTS = {
    "not closed": ("name[A], area[riverside", "is not `slot"),
    "not opened": ("name[A], riverside]", "is not `slot"),
    "nested": ("name[The [old] Mill]", "is not `slot"),
    "escaped": (r"name[The \[old\] Mill]", "is not `slot"),
    "closed twice": ("name[A]]", "is not `slot"),
    "no comma": ("name[A] area[riverside]", "is not `slot"),
    "no slot": ("[A]", "is not `slot"),
    "text about it": ("name[A] is a pub", "is not `slot"),
    "the form of GPT-2": ("name : A | area : riverside", "is not `slot"),
    "JSON": ('{"name": "A"}', "is not `slot"),
    "comma alone": (",", "is not `slot"),
    "two commas": ("name[A],, area[riverside]", "is not `slot|unknown slot"),
    "another slot": ("name[A], colour[red]", "unknown slot 'colour'"),
    "capitals": ("Name[A]", "unknown slot 'Name'"),
    "a slot twice": ("name[A], name[B]", "slot 'name' stands twice"),
    "no value": ("name[A], near[]", "slot 'near' has no value"),
    "a blank value": ("name[ ]", "slot 'name' has no value"),
}


@pytest.mark.parametrize("case", BAD_SLOTS)
def test_bad_slots_are_refused(case):
    table, what = BAD_SLOTS[case]
    with pytest.raises(DpbenchError, match=what) as caught:
        triples.slots("meaning_representation", table, plugins.get("dataset", "e2e_nlg").extra["slots"])
    assert "column 'meaning_representation'" in caught.value.what
    assert caught.value.hint


def test_slots_keep_their_order_and_what_stands_in_a_value():
    known = plugins.get("dataset", "e2e_nlg").extra["slots"]
    table = " name[Cocum, the 2nd] ,area[city centre],  customer rating[3 out of 5]"
    expected = (("name", "Cocum, the 2nd"), ("area", "city centre"), ("customer rating", "3 out of 5"))
    assert triples.slots("m", table, known) == expected
    assert triples.slots("m", "  ", known) == ()
    assert triples.slots("m", "name[A],", known) == (("name", "A"),)


BAD_ROWS = {
    "E2E, open bracket": ("e2e_nlg", {"meaning_representation": ["name[A]", "name[B"]}, "is not `slot"),
    "E2E, empty": ("e2e_nlg", {"meaning_representation": ["name[A]", ""]}, "an input without fields"),
    "E2E, no reference": ("e2e_nlg", {"human_reference": ["A.", " "]}, "an input without texts"),
    "DART, two parts": ("dart", {"tripleset": [[["a", "b", "c"]], [["a", "b"]]]}, "has 2 parts"),
    "DART, no triples": ("dart", {"tripleset": [[["a", "b", "c"]], []]}, "an input without fields"),
    "DART, no text": ("dart", {"annotations": [{"source": ["x"], "text": ["A."]}, {"source": [], "text": []}]}, "without texts"),
    "DART, text missing": ("dart", {"annotations": [{"text": ["A."]}, {"text": [None]}]}, "holds no list 'text' of texts"),
    "DART, texts missing": ("dart", {"annotations": [{"text": ["A."]}, {"text": None}]}, "holds no list 'text' of texts"),
    "DART, no annotation": ("dart", {"annotations": [[{"text": "A."}], [None]]}, "holds no list 'text' of texts"),
    "WebNLG, two parts": ("web_nlg", {"input": [["a | b | c"], ["a | b"]]}, "has 2 parts"),
    "WebNLG, triple missing": ("web_nlg", {"input": [["a | b | c"], [None]]}, "is no triple of texts"),
    "WebNLG, no triples": ("web_nlg", {"input": [["a | b | c"], []]}, "an input without fields"),
    "WebNLG, text missing": ("web_nlg", {"references": [["A."], [None]]}, "holds no list of texts"),
    "WebNLG, no text": ("web_nlg", {"target": ["A.", ""], "references": [["A."], []]}, "an input without texts"),
    "SAMSum, no summary": ("samsum", {"summary": ["A.", "\n"]}, "an input without texts"),
    "SQuAD 2, no answer": ("squad", {"answers": [{"text": ["x"]}, {"text": []}]}, "no answer"),
    "SQuAD, blank answer": ("squad", {"answers": [{"text": ["x"]}, {"text": [" "]}]}, "no answer"),
    "SQuAD, answer missing": ("squad", {"answers": [{"text": ["x"]}, {"text": [None]}]}, "holds no list 'text' of texts"),
    "DROP, span missing": ("drop", {"answers_spans": [{"spans": ["1"]}, {"spans": None}]}, "holds no list 'spans' of texts"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_with_its_file(case, put):
    name, change, what = BAD_ROWS[case]
    file = put(name, others=ROWS[name], train=ROWS[name] | change)
    with pytest.raises(DpbenchError) as caught:
        loaded(name)
    assert f"dataset {name}, split 'train' ({file}): row 2 (row 1 counted from 0): " in caught.value.what
    assert re.search(what, caught.value.what)
    assert caught.value.hint


BAD_COLUMNS = {
    "DART, renamed in every row": (
        "dart",
        {"annotations": [{"source": ["x"], "txt": ["A."]}] * 2},
        "row 1 .*holds no list 'text'",
    ),
    "DART, texts alone": ("dart", {"annotations": [["A."], ["B."]]}, "row 1 .*holds no list 'text'"),
    "DART, one text": ("dart", {"annotations": ["A.", "B."]}, "row 1 .*holds no list 'text'"),
    "DART, triples as JSON text": ("dart", {"tripleset": ['[["a", "b", "c"]]'] * 2}, "row 1 .*not a list of triples"),
    "DART, numbers": ("dart", {"tripleset": [[[1, 2, 3]]] * 2}, "row 1 .*is no triple of texts"),
    "DART, missing": (
        "dart",
        {"annotations": pa.array([None, {"text": ["B."]}])},
        "'annotations' has 1 missing values, the first in row 1",
    ),
    "WebNLG, one text": ("web_nlg", {"input": ["a | b | c"] * 2}, "row 1 .*not a list of triples"),
    "WebNLG as in XML": ("web_nlg", {"input": [{"mtriple_set": [["a | b | c"]]}] * 2}, "row 1 .*not a list of triples"),
    "WebNLG, nested": ("web_nlg", {"input": [[["a | b | c"]]] * 2}, "row 1 .*has 1 part"),
    "WebNLG, references as text": ("web_nlg", {"references": ["A.", "B."]}, "row 1 .*holds no list of texts"),
    "WebNLG, references missing": (
        "web_nlg",
        {"references": pa.array([["A."], None])},
        "'references' has 1 missing values, the first in row 2",
    ),
    "E2E, slots as a struct": (
        "e2e_nlg",
        {"meaning_representation": [{"name": "A"}] * 2},
        "holds struct<name: string>, not text",
    ),
    "E2E, references as lists": ("e2e_nlg", {"human_reference": [["A."], ["B."]]}, "holds list<.*>, not text"),
    "SAMSum, turns as lists": ("samsum", {"dialogue": [["A: hi"], ["B: ho"]]}, "holds list<.*>, not text"),
    "SQuAD, answers as texts": ("squad", {"answers": ["x", "y"]}, "row 1 .*holds no list 'text'"),
    "SQuAD, one text in a struct": ("squad", {"answers": [{"text": "x"}] * 2}, "row 1 .*holds no list 'text'"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_column_of_another_form_is_named(case, put):
    name, change, what = BAD_COLUMNS[case]
    file = put(name, others=ROWS[name], train=ROWS[name] | change)
    with pytest.raises(DpbenchError, match=what) as caught:
        loaded(name)
    assert str(file) in caught.value.what


@pytest.mark.parametrize("name", ROWS)
def test_a_renamed_column_is_told_with_the_columns_there(name, put):
    first, *others = ROWS[name]
    put(name, others=ROWS[name], train={f"{first}_2": ROWS[name][first]} | {key: ROWS[name][key] for key in others})
    with pytest.raises(DpbenchError, match=f"no column '{first}'; its columns: {first}_2, ") as caught:
        loaded(name)
    assert f"did you mean '{first}_2'" in caught.value.hint


def test_texts_inside_a_list_that_are_not_utf8_are_named(put):
    bad = pa.Array.from_buffers(pa.string(), 2, [None, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfe")])
    references = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), bad)
    put("web_nlg", others=WEB_NLG, train=pa.table(WEB_NLG | {"references": references}))
    with pytest.raises(DpbenchError, match=r"column 'references': row 2 \(row 1 counted from 0\) is not UTF-8"):
        loaded("web_nlg")


def test_an_empty_chat_is_remarked_on(put):
    put("samsum", others=SAMSUM, train=SAMSUM | {"dialogue": ["A: hi", ""]})
    with collected() as remarks:
        assert len(loaded("samsum")) == 2
    assert [line.split(": ", 1)[1] for line in remarks] == ["1 of 2 inputs are empty"]


def test_a_plug_in_that_fails_or_drops_rows_is_named():
    with pytest.raises(DpbenchError, match=r"here: row 2 \(row 1 counted from 0\) cannot be read \(ZeroDivisionError"):
        triples.by_row("here", {"x": [1, 0, 2]}, lambda columns: [1 / x for x in columns["x"]])
    with pytest.raises(DpbenchError, match="here: 1 items were made of 3 rows"):
        triples.by_row("here", {"x": [1, 0, 2]}, lambda columns: [1])
