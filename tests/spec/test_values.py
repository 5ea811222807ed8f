"""Values that somebody has read off a document: finite numbers, each cell once, or one error with file and line."""

from __future__ import annotations

import pytest

from dpbench.errors import DpbenchError
from dpbench.spec.values import read_values

HEAD = "method,metric,value,unit,spread,source\n"
NEEDED = ["method", "metric", "value", "unit", "source"]


@pytest.mark.parametrize(
    "number", ["nan", "inf", "-inf", "infinity", "1e999", "1_000", "0x10", "1,5", "1.5 %", " 1.5", "١", "--1", "1e", "NaN"]
)
@pytest.mark.parametrize("column", ["value", "spread"])
def test_what_only_python_takes_for_a_number_is_refused(tmp_path, number, column):
    values = {"value": "1", "spread": ""} | {column: f'"{number}"'}
    path = tmp_path / "t.csv"
    path.write_text(f"{HEAD}a,acc,90,%,,p\nb,acc,{values['value']},%,{values['spread']},p\n", encoding="utf-8")
    with pytest.raises(DpbenchError, match=rf"t\.csv: line 3: {column}: .* is not a number"):
        read_values(path, NEEDED)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "line 1: column 'method' is missing"),
        ("method,metric,vlaue,unit,source\n", "line 1: column 'value' is missing"),
        ("method;metric;value;unit;source\n", "line 1: column 'method' is missing"),
        ("method,metric,value,unit,source,value\n", "line 1: column 6, 'value', occurs twice"),
        ("method,metric,value,unit,source,\n", "line 1: column 6, '', is no name"),
        ("method,metric,value,unit,source, note\n", "line 1: column 6, ' note', is no name"),
        (HEAD + "a,acc,90,%,p\n", "line 2: 5 fields for 6 columns"),
        (HEAD + "a,acc,90,%,,p\nb,acc,90,%,,p, Table 2\n", "line 3: 7 fields for 6 columns"),
        (HEAD + "a,acc,90,%,,\n", "line 2: a value without a source"),
        (HEAD + "a,acc,90,%,,  \n", "line 2: a value without a source"),
        (HEAD + "a,acc,,%,,p\n", "line 2: neither value nor note"),
        (HEAD + "a,acc,90,%,-1,p\n", "line 2: spread -1"),
        (HEAD + "a,acc,90,%,,p\nb,acc,90,%,,p\n\na,acc,91,%,,q\n", "line 5: the same cell as line 2"),
        (HEAD + 'a,acc,90,%,,"p\n', "line 2: not CSV"),
        (HEAD + 'a,acc,90,%,,"p"x\n', "line 2: not CSV"),
        (HEAD + "a,acc,90,%,," + "p" * 200_000 + "\n", "line 2: not CSV"),
        (HEAD.encode() + b"a,acc,90,%,,\xe9\n", "line 2 is not UTF-8"),
        (b"\xef\xbb\xbf" + HEAD.encode(), "line 1 starts with a byte-order mark"),
        (HEAD.encode("utf-16"), "line 1 starts with a byte-order mark"),
    ],
)
def test_a_file_that_is_not_taken_names_the_line(tmp_path, content, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DpbenchError, match=says) as caught:
        read_values(path, NEEDED)
    assert caught.value.what.startswith(f"{path}: line ")


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(DpbenchError, match=r"t\.csv: a folder, not a file"):
        read_values(tmp_path / "t.csv", NEEDED)


def test_numbers_as_documents_print_them_are_taken(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes((HEAD + "a,acc,-1.50,%,.5,p\r\nb,acc,+3e-2,%,,p\r\n\r\nc,acc,7.,%,0,p\r\n").encode())
    _, lines = read_values(path, NEEDED)
    assert [(line.value, line.spread) for line in lines] == [(-1.5, 0.5), (0.03, None), (7.0, 0.0)]
    assert lines[0].row["source"] == "p"
