"""The readers of files: whatever a file holds, its value or one error that names file and line; little time, little memory."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dpbench.errors import DpbenchError
from dpbench.files import read_bytes, read_json, read_text, read_yaml
from dpbench.parsing import parse_json

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 13))
MERGE_BOMB = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 13))
CHAIN = "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(100))

JSON = [
    ("", "not a complete JSON file: line 1"),
    ('{"a": [1,\n2', "not a complete JSON file: line 2"),
    ("{} {}", "line 1, column 4: trailing characters"),
    ('{"a": 1,}', "line 1"),
    ("{'a': 1}", "line 1, column 2"),
    ('{"a": 1,\n"b": NaN}', "line 2, column 6: .* near 'NaN"),
    ("[1,\n-Infinity]", "line 2, column 2: .*, near 'Infinity"),
    ('["NaN",\n\nInfinity]', "line 3, column 1: .* near 'Infinity"),
    ('{\n"x": 1e999}', "line 2: the number 1e999 is too large"),
    ("[1,\n" + "9" * 5000 + "]", "line 2: a whole number of 5000 characters"),
    ('{"a": 1,\n"b": 2,\n"b": 3}', 'line 3, column 5: Detected duplicate key "b"'),
    ('{"a": {"c": 1, "c": 2}, "b": {"c": 3}}', 'duplicate key "c"'),
    ("[" * 10**5 + "]" * 10**5, "line 1, column 202: recursion limit"),
    ('{"a":' * 10**5 + "1" + "}" * 10**5, "recursion limit"),
    ("[\n" * 202 + "]" * 202, "recursion limit"),
    ('["a",\n"\\ud800"]', "line 2, column 8: .*hex escape"),
    ('{"\\udc00": 1}', "line 1, column 8: .*surrogate"),
    ('["a\nb"]', "control character"),
    ('{"a": "\x00"}', "control character"),
    (b'["a",\n"\xff"]', "line 2 is not UTF-8"),
    (b"\xef\xbb\xbf{}", "line 1 starts with a byte-order mark"),
    ("{}".encode("utf-16"), "line 1 starts with a byte-order mark"),
    (b" " * (9 << 20), "larger than the 8 MiB"),
    ("[" + "{}," * (2 << 20) + "0]", "more than 1000000 values"),
]
YAML = [
    (BOMB, "line 6, column .* more than 100000 values with its aliases"),
    (MERGE_BOMB, "line 6, column .* more than 100000 values with its aliases"),
    ("a: &a " + "x" * 400_000 + "\nb: [" + "*a, " * 1000 + "]", "line 2, column .* aliases"),
    (CHAIN, "line 64, column .* nested more than"),
    ("[" * 10**5 + "]" * 10**5, "nested more than"),
    ("{a: " * 10**5, "nested more than"),
    ("- " * 10**5, "nested more than"),
    ("\n".join(" " * i + "a:" for i in range(1000)), "line 65, .* nested more than"),
    ("a: &a [*a]", "line 1, column 8: .*is inside itself"),
    ("- &a x\n- &a y", "line 2, column 3: second occurrence"),
    ("a: *b", "line 1, column 4: found undefined alias"),
    ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' occurs twice"),
    ("1: a\n0x1: b", "line 2, column 1: the key '1' occurs twice"),
    ("x:\n  - {a: 1, a: 2}", "line 2, column 12: the key 'a' occurs twice"),
    ("? [a]\n: b", "a list or mapping is no key"),
    ("a: 1\nb: .nan", "line 2, column 4: .nan is not a finite number"),
    ("a: -.inf", "line 1, column 4: -.inf is not a finite number"),
    ("a: 1.0e+999", "is not a finite number"),
    ("a: 1\nb: " + "9" * 5000, "line 2, column 4: this is no int"),
    ("a: 2001-99-99", "line 1, column 4: this is no timestamp: '2001-99-99'"),
    ("a: !!bool maybe", "this is no bool: 'maybe'"),
    ("a: !!int abc", "this is no int: 'abc'"),
    ("a: !!timestamp x", "this is no timestamp: 'x'"),
    ("a: !!set [1]", "expected a mapping node"),
    ("a: !!omap 3", "expected a sequence"),
    ("a: {<<: 3}", "line 1, column 9"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("a:\n\tb: 1", "line 2, column 1: found character"),
    ("a: 1\nb: \x07", r"line 2: the character U\+0007"),
    ("a: 1\n---\nb: 2", "line 2, column 1: but found another document"),
    ("a: 'x", "line 1, .*unexpected end of stream"),
    ("%YAML 9.9\n--- a", "line 1, column 1"),
    (b"a: 1\nb: \xff", "line 2 is not UTF-8"),
    (b"\xef\xbb\xbfa: 1", "line 1 starts with a byte-order mark"),
    ("a: 1".encode("utf-16"), "line 1 starts with a byte-order mark"),
    (b"#" * (2 << 20), "larger than the 1 MiB"),
    ("[" + "0," * 400_000 + "]", "more than 100000 values"),
]


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "given"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("content", "says"), JSON)
def test_json_that_is_not_taken_names_file_and_line(tmp_path, content, says):
    path = written(tmp_path, content)
    with pytest.raises(DpbenchError, match=says) as caught:
        read_json(path)
    assert caught.value.what.startswith(f"{path}: ")
    assert "\n" not in caught.value.what
    assert len(caught.value.what) < 400
    assert caught.value.hint


@pytest.mark.parametrize(("content", "says"), YAML)
def test_yaml_that_is_not_taken_names_file_and_line(tmp_path, content, says):
    path = written(tmp_path, content)
    with pytest.raises(DpbenchError, match=says) as caught:
        read_yaml(path)
    assert caught.value.what.startswith(f"{path}: ")
    assert len(caught.value.what) < 400
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (
            '{"a": [1, 2.5, -3e-7, true, null, "\\ud83d\\ude00", "\\\\ud800"]}',
            {"a": [1, 2.5, -3e-7, True, None, "😀", "\\ud800"]},
        ),
        ('{"b": {"x": 1}, "c": {"x": 2}}', {"b": {"x": 1}, "c": {"x": 2}}),
        ("[" * 200 + "]" * 200, None),
        ('["NaN", "1e999", "-Infinity"]', ["NaN", "1e999", "-Infinity"]),
        ('["1e999", 1e308, "\\"1e999", 0.1e-999]', ["1e999", 1e308, '"1e999', 0.0]),
    ],
)
def test_sound_json_is_taken_as_it_is(tmp_path, content, value):
    read_value = read_json(written(tmp_path, content))
    assert value is None or read_value == value


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("", None),
        ("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}),
        ("a: [x, 1, 2.5e-3, true, null]\r\nb: 'ε'\r\n", {"a": ["x", 1, 2.5e-3, True, None], "b": "ε"}),
    ],
)
def test_sound_yaml_is_taken_as_it_is(tmp_path, content, value):
    assert read_yaml(written(tmp_path, content)) == value


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize("read", [read_bytes, read_text, read_json, read_yaml])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: None, "no such file"),
        (lambda p: p.mkdir(), "a folder, not a file"),
        (fifo, "a FIFO, not a file"),
        (unix_socket, "a socket or device, not a file"),
        (lambda p: p.symlink_to("/dev/zero"), "a socket or device, not a file"),
        (lambda p: p.symlink_to(p), "a link that leads to itself"),
        (lambda p: p.symlink_to(p.parent / "gone"), "no such file"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, monkeypatch, read, make, says):
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    make(Path("x"))
    with pytest.raises(DpbenchError, match=rf"^x: {says}"):
        read(Path("x"))


@pytest.mark.parametrize(
    ("path", "says"), [("x/y", "a part of this path is a file"), ("a" * 300, "File name too long"), ("a\0b", "null")]
)
def test_paths_that_lead_nowhere_are_named(tmp_path, path, says):
    (tmp_path / "x").write_text("")
    with pytest.raises(DpbenchError, match=says):
        read_text(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_no_permission_is_named(tmp_path):
    path = written(tmp_path, "x")
    path.chmod(0)
    with pytest.raises(DpbenchError, match="no permission to read"):
        read_text(path)


def test_an_option_is_named_as_a_file_is():
    with pytest.raises(DpbenchError, match=r"^--sources: not a complete JSON file: line 1"):
        parse_json("{", "--sources")


_EACH = """
import resource, sys
from pathlib import Path
from dpbench.errors import DpbenchError
from dpbench.files import read_json, read_yaml
for path in map(Path, sys.argv[1:]):
    for read in (read_json, read_yaml):
        try:
            read(path)
        except DpbenchError:
            pass
"""


def test_no_text_takes_much_memory_or_time(tmp_path):
    """All of the above by both readers, and the largest texts that are taken, in a process that may have 1 GiB and 60 s."""
    largest = ["[" + "[]," * (2 << 20) + "0]", "[" + '"",' * (2 << 20) + "0]", '"' + "\\u0041" * (1 << 20) + '"']
    largest += ["".join(f"- &a{i} x\n" for i in range(60_000)), "a: " + "[" * 1000]
    files = []
    for number, content in enumerate([*(c for c, _ in JSON), *(c for c, _ in YAML), *largest]):
        path = tmp_path / str(number)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        files.append(str(path))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    done = subprocess.run([sys.executable, "-c", _EACH, *files], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
