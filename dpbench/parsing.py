"""Parse JSON and YAML texts from untrusted sources: return their value, or raise one error that names the line.

No text, whatever its content, makes this module compute for long, take far more memory than its own size, or recurse.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from dpbench.errors import DpbenchError

DEPTH = 64
"""Most levels of a JSON or YAML value."""
PARTS = 1_000_000
"""Most numbers and mappings of a JSON value."""
_YAML_PARTS = 100_000  # values, each alias counted as the value that it refers to
_DIGITS = 100  # of an integer: Python itself refuses to convert more than 4,300
_NOT_IN_YAML = re.compile("[^\\t\\n\\r\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd\\U00010000-\\U0010ffff]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HALVES = re.compile(r"\\[^u]|(\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|(\\u[dD][89a-fA-F]..)")
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|NaN|-?Infinity')


def parse_json(text: str, where: str, hint: str = "") -> Any:
    """Return the value of a JSON text: finite numbers, each key once, Unicode strings, at most `DEPTH` levels and `PARTS` parts.

    Args:
        where: the start of every message: the file, or the option with the text.

    Raises:
        DpbenchError: not JSON, or one of these conditions is not met; names the line.
    """
    count = _Count()

    def integer(digits: str) -> int:
        count.add()
        if len(digits) > _DIGITS:
            raise _Refused(f"a whole number of {len(digits)} characters", digits)
        return int(digits)

    def fraction(digits: str) -> float:
        count.add()
        value = float(digits)
        if not math.isfinite(value):
            raise _Refused(f"the number {digits[:40]} is too large", digits)
        return value

    def constant(name: str) -> float:
        raise _Refused(f"{name} is not a number that JSON has", name)

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        count.add()
        by_key = dict(pairs)
        if len(by_key) < len(pairs):
            seen: set[str] = set()
            repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _Refused(f"the key {repeated[:80]!r} occurs twice", json.dumps(repeated))
        return by_key

    hint = hint or "correct that line"
    try:
        value = json.loads(
            text, parse_int=integer, parse_float=fraction, parse_constant=constant, object_pairs_hook=mapping, strict=True
        )
        _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except _Refused as error:
        line = _line_of(text, error.token)
        raise DpbenchError(f"{where}: {f'line {line}: ' if line else ''}{error}", hint) from error
    except json.JSONDecodeError as error:
        raise DpbenchError(
            f"{where}: not a complete JSON file: line {error.lineno}, column {error.colno}: {error.msg}", hint
        ) from error
    except RecursionError as error:
        raise DpbenchError(f"{where}: nested more than {DEPTH} levels deep", hint) from error
    except UnicodeEncodeError as error:
        line = _line_of(text, None)
        raise DpbenchError(
            f"{where}: {f'line {line}: ' if line else ''}half of a surrogate pair is no character", hint
        ) from error
    return value


def parse_yaml(text: str, where: str, hint: str = "") -> Any:
    """Return the value of a YAML text of one document: plain types, finite numbers, each key once, limited depth and aliases.

    Args:
        where: the start of every message: the file.

    Raises:
        DpbenchError: not YAML, or one of these conditions is not met; names the line.
    """
    hint = hint or "correct that line"
    if (control := _NOT_IN_YAML.search(text)) is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise DpbenchError(f"{where}: malformed YAML at line {line}: the character U+{ord(control[0]):04X} is not allowed", hint)
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DpbenchError(f"{where}: malformed YAML{line}: {problem}", hint) from error


class _Refused(Exception):
    """JSON that is well formed but refused. token: the text to search for to find the line."""

    def __init__(self, problem: str, token: str) -> None:
        super().__init__(problem)
        self.token = token


class _Count:
    """A counter of the numbers and mappings of one JSON text; strings and lists are bounded by its size."""

    def __init__(self) -> None:
        self.parts = 0

    def add(self) -> None:
        self.parts += 1
        if self.parts > PARTS:
            raise _Refused(f"more than {PARTS} numbers and mappings", "")


def _check_depth(value: Any) -> None:
    """Raise RecursionError for too many levels, as the parser itself does at a depth that depends on its caller."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        level = [part for item in level for part in (item.values() if type(item) is dict else item) if type(part) in (dict, list)]
        if not level:
            return
    raise RecursionError


def _line_of(text: str, token: str | None) -> int | None:
    """Return the line of the first number or constant `token`, of the second key `token`, or (None) of half a surrogate pair."""
    if token == "":
        return None
    if token is None:
        start = next((m.start(2) for m in _HALVES.finditer(text) if m[2]), None)
    elif token.startswith('"'):
        places = [m.start() for m in re.finditer(re.escape(token) + r"\s*:", text)]
        start = places[1] if len(places) == 2 else None  # with more of them it is not known which one is the repetition
    else:
        start = next((m.start() for m in _TOKENS.finditer(text) if m[0] == token), None)
    return None if start is None else text.count("\n", 0, start) + 1


def _check_events(text: str) -> None:
    """Check the depth and size of a YAML text with its aliases written out, before anything is built from it.

    libyaml composes nested nodes by recursion in C, without a limit, and an alias takes three bytes whatever its value is.
    """
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    opened: list[tuple[str | None, int, int]] = []  # (anchor, size so far, height so far) of each open collection
    for event in yaml.parse(text, Loader=_Loader):
        anchor, size, height = getattr(event, "anchor", None), 1, 0
        if isinstance(event, yaml.CollectionStartEvent):
            opened.append((anchor, 1, 1))
            if anchor is not None:
                sizes.pop(anchor, None)
            if len(opened) > DEPTH:
                raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} levels deep", problem_mark=event.start_mark)
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size, height = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes and any(event.anchor == name for name, _, _ in opened):
                raise yaml.MarkedYAMLError(problem=f"*{event.anchor} is inside itself", problem_mark=event.start_mark)
            size, height = sizes.get(event.anchor, 1), depths.get(event.anchor, 0)  # an unknown one is refused by the composer
            anchor = None
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // 64
        else:
            continue
        if anchor is not None:
            sizes[anchor], depths[anchor] = size, height
        if opened:
            name, outer_size, level = opened[-1]
            opened[-1] = (name, outer_size + size, max(level, height + 1))
        if size > _YAML_PARTS or (opened and opened[-1][1] > _YAML_PARTS):
            problem = f"more than {_YAML_PARTS} values with its aliases written out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if len(opened) + height > DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {DEPTH} levels deep", problem_mark=event.start_mark)


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """A loader of plain types; it refuses numbers that are not finite, and repeated keys, of which YAML would keep the last."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML's constructors let through what int, float, date and their regular expressions raise
            kind = str(node.tag).rpartition(":")[2]
            problem = f"this is no {kind}: {str(node.value)[:40]!r}" if isinstance(node.value, str) else f"this is no {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, f"{node.value[:40]} is not a finite number", node.start_mark)
        return value

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping is no key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(key)[:80]!r} occurs twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
