"""Parse JSON and YAML texts from untrusted sources: return their value, or raise one error that names the line.

No text, whatever its content, makes this module compute for long, take far more memory than its own size, or recurse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import jiter
import yaml

from dpbench.errors import DpbenchError

DEPTH = 64
"""Most levels of a YAML value. JSON has 200, a limit of its parser."""
PARTS = 1_000_000
"""Most values of a JSON text."""
_YAML_PARTS = 100_000  # values, each alias counted as the value that it refers to
_DIGITS = 100  # of an integer: Python itself refuses to convert more than 4,300
_NOT_IN_YAML = re.compile("[^\\t\\n\\r\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufefe\\uff00-\\ufffd\\U00010000-\\U0010ffff]")
_PLACE = re.compile(r"(.*) at line (\d+) column (\d+)", re.DOTALL)
_HUGE = re.compile(rf"(?:^|[\[:,\s])-?[0-9](?:[0-9]{{{_DIGITS - 1}}}|[0-9.]*[eE]\+?[0-9]{{3}})")
"""It occurs in every text with a number that is too large, and in few others."""
_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|(-?[0-9]+(?:[.][0-9]+)?(?:[eE][+-]?[0-9]+)?)')
"""A number, or a string, which may hold what looks like a number."""


def parse_json(text: str, where: str, hint: str = "") -> Any:
    """Return the value of a JSON text: finite numbers, each key once, Unicode strings, at most `PARTS` values.

    Args:
        where: the start of every message: the file, or the option with the text.

    Raises:
        DpbenchError: not JSON, or one of these conditions is not met; names the line.
    """
    hint = hint or "correct that line"
    if text.count(",") + text.count("{") > PARTS:
        raise DpbenchError(f"{where}: more than {PARTS} values", hint)
    if _HUGE.search(text):
        _check_numbers(text, where, hint)
    try:
        return jiter.from_json(text.encode(), allow_inf_nan=False, cache_mode="none", catch_duplicate_keys=True)
    except ValueError as error:
        what = str(error)[:200]
        if place := _PLACE.fullmatch(str(error)):
            line, column = int(place[2]), int(place[3])
            what = f"line {line}, column {column}: {place[1][:200]}"
            if near := text.split("\n", line)[line - 1][max(column - 1, 0) :][:20]:
                what += f", near {near!r}"
        raise DpbenchError(f"{where}: not a complete JSON file: {what}", hint) from error


def _check_numbers(text: str, where: str, hint: str) -> None:
    """Refuse integers of many digits, and numbers beyond the range of a float, which the parser would return as infinity."""
    for match in _NUMBER.finditer(text):
        number, what = match[1] or "0", ""
        if len(number) > _DIGITS and number.lstrip("-").isdigit():
            what = f"a whole number of {len(number)} characters"
        elif math.isinf(float(number)):
            what = f"the number {number[:40]} is too large"
        if what:
            line = text.count("\n", 0, match.start()) + 1
            raise DpbenchError(f"{where}: line {line}: {what}", hint)


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
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DpbenchError(f"{where}: malformed YAML{place}: {problem}", hint) from error


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
                raise _fault(event, f"nested more than {DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size, height = opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes and any(event.anchor == name for name, _, _ in opened):
                raise _fault(event, f"*{event.anchor} is inside itself")
            alias = event.anchor or ""
            size, height = sizes.get(alias, 1), depths.get(alias, 0)  # an unknown one is refused by the composer
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
            raise _fault(event, f"more than {_YAML_PARTS} values with its aliases written out")
        if len(opened) + height > DEPTH:
            raise _fault(event, f"nested more than {DEPTH} levels deep")


def _fault(event: yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]  # a mark of libyaml


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
