"""Contents of a row of a table-to-text file: triples, slots and texts, in the forms in which they are published.

The functions do not know the number of their row: `by_row` adds it to their errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from dpbench.data.remarks import row_name
from dpbench.errors import DpbenchError, nearest

LEAVE_OUT = "leave the row out of the file, or fetch the file again"

_SLOT = re.compile(r"\s*([^,\[\]]*)\[([^\[\]]*)\]\s*(?:,|$)")
_PARTS = ("subject", "relation", "object")
_RELATIONS = ("relation", "predicate", "property")

T = TypeVar("T")


def plain(text: str) -> str:
    """Return the name of an entity or relation as words: `Aarhus_Airport` -> `Aarhus Airport`."""
    return " ".join(text.strip().strip('"').replace("_", " ").split())


def triples(column: str, entries: Any) -> tuple[tuple[str, str, str], ...]:
    """Return the fields (subject, relation, object) of a row's triples.

    Args:
        entries: a list of triples. A triple is `a | b | c`, where everything after the second mark is the object, or a list of
            three texts, or a struct of `subject`, `relation` (or `predicate`, `property`) and `object`.

    Raises:
        DpbenchError: the entries have another form; a triple has fewer or more parts, or an empty one.
    """
    if not isinstance(entries, list):
        what = f"column {column!r} holds {_shown(entries)}, not a list of triples"
        raise DpbenchError(what, "give each row a list, each triple `subject | relation | object` or a list of three texts")
    return tuple(_triple(column, entry) for entry in entries)


def _triple(column: str, entry: Any) -> tuple[str, str, str]:
    parts: Any = entry
    if isinstance(entry, str):
        parts = entry.split(" | ", 2)
    elif isinstance(entry, Mapping):
        relations = [key for key in _RELATIONS if key in entry]
        if len(relations) != 1 or set(entry) != {"subject", *relations, "object"}:
            what = f"column {column!r}: a triple has the parts {', '.join(map(str, entry)) or 'none'}"
            raise DpbenchError(what, f"they must be {', '.join(_PARTS)}")
        parts = [entry["subject"], entry[relations[0]], entry["object"]]
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise DpbenchError(f"column {column!r}: {_shown(entry)} is no triple of texts", LEAVE_OUT)
    words = [plain(part) for part in parts]
    if len(words) != 3:
        what = f"column {column!r}: the triple {_shown(entry)} has {len(words)} part{'s' * (len(words) != 1)}, not 3"
        raise DpbenchError(what, f"a triple is `{' | '.join(_PARTS)}` or a list of three texts; {LEAVE_OUT}")
    for name, word in zip(_PARTS, words, strict=True):
        if not word:
            raise DpbenchError(f"column {column!r}: the triple {_shown(entry)} has an empty {name}", LEAVE_OUT)
    return words[0], words[1], words[2]


def slots(column: str, table: str, known_slots: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the fields (slot, value) of `name[The Mill], area[riverside]`, in the order of the row; none of a blank row.

    Raises:
        DpbenchError: the table has another form (a bracket is open, nested or escaped); a slot is unknown, twice there or has no
            value.
    """
    value_of_slot: dict[str, str] = {}
    place, names = 0, list(known_slots)
    while table[place:].strip():
        part = _SLOT.match(table, place)
        if part is None or not part[1].strip():
            what = (
                f"column {column!r}: {_shown(table)} is not `slot[value], slot[value]`, from {_shown(table[place : place + 40])}"
            )
            raise DpbenchError(what, f"close each bracket, and nest none; {LEAVE_OUT}")
        slot, value = part[1].strip(), part[2].strip()
        if slot not in names:
            raise DpbenchError(f"column {column!r}: unknown slot {slot!r} in {_shown(table)}", nearest(slot, names))
        if slot in value_of_slot or not value:
            reason = "stands twice" if slot in value_of_slot else "has no value"
            raise DpbenchError(f"column {column!r}: slot {slot!r} {reason} in {_shown(table)}", LEAVE_OUT)
        value_of_slot[slot] = value
        place = part.end()
    return tuple(value_of_slot.items())


def texts(column: str, value: Any, inside: str = "") -> tuple[str, ...]:
    """Return the texts of a row that has several.

    Args:
        inside: empty where the value is a list of texts. Else the key of the texts in a struct of lists, as the `datasets`
            library keeps several answers, or in a list of structs, as they are published in JSON.

    Raises:
        DpbenchError: the value has another form, or a text is missing.
    """
    values = value
    if inside and isinstance(value, Mapping):
        values = value.get(inside)
    elif inside and isinstance(value, list):
        values = [part.get(inside) if isinstance(part, Mapping) else None for part in value]
    if isinstance(values, list) and all(isinstance(text, str) for text in values):
        return tuple(values)
    expected = f"list {inside!r} of texts" if inside else "list of texts"
    raise DpbenchError(f"column {column!r} holds no {expected}, but {_shown(value)}", LEAVE_OUT)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def by_row(where: str, columns: Mapping[str, Sequence[Any]], convert: Callable[[Any], list[T]]) -> list[T]:
    """Return `convert(columns)`: one item a row.

    Raises:
        DpbenchError: the conversion fails; the error names the first row at which it does.
    """
    rows = len(next(iter(columns.values()), []))
    try:
        items = convert(columns)
    except Exception as error:
        for number in range(rows):
            try:
                convert({key: values[number : number + 1] for key, values in columns.items()})
            except DpbenchError as inner:
                raise DpbenchError(f"{where}: {row_name(number)}: {inner.what}", inner.hint) from error
            except Exception as inner:
                reason = f"{type(inner).__name__}: {inner}"
                raise DpbenchError(f"{where}: {row_name(number)} cannot be read ({reason})", LEAVE_OUT) from error
        raise
    if len(items) != rows:
        raise DpbenchError(f"{where}: {len(items)} items were made of {rows} rows", "mend the dataset's plug-in: one item a row")
    return items
