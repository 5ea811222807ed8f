"""Class numbers and yes-or-no attributes: which rows have a label, and whether the file numbers the classes as we do."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpbench.data import tabular
from dpbench.data.remarks import remark, row_name
from dpbench.errors import DpbenchError

NONE = -1
"""No label: in entire test splits, and in rows on which annotators did not agree (785 of SNLI's train split)."""


def labelled(where: str, labels: Sequence[int], classes: Sequence[str]) -> list[int]:
    """Return the positions of the rows that have a label: all but those of -1, as the documentation of the datasets says.

    Returns:
        Positions in ascending order; empty where every row is -1.

    Raises:
        DpbenchError: a label is out of range; or -1 seems to be a class, because the other rows lack the first or the last
            class. The error names the row.
    """
    rows = []
    for row, label in enumerate(labels):
        if label == NONE:
            continue
        if not 0 <= label < len(classes):
            raise DpbenchError(f"{where}: label {label} in {row_name(row)} is out of range", _classes(classes))
        rows.append(row)
    if rows and len(rows) < len(labels):
        present = {labels[row] for row in rows}
        absent = [label for label in (0, len(classes) - 1) if label not in present]
        if absent:
            first = next(row for row, label in enumerate(labels) if label == NONE)
            what = f"{where}: label -1 in {len(labels) - len(rows)} of {len(labels)} rows, the first in {row_name(first)}, and "
            what += f"no row of class {absent[0]} ({classes[absent[0]]}): whether -1 is a class or no label cannot be told"
            raise DpbenchError(what, f"{_classes(classes)}; leave out the rows without a label")
    return rows


def _classes(classes: Sequence[str]) -> str:
    return f"labels must be 0 to {len(classes) - 1}: {', '.join(classes)}"


def no_labels(where: str) -> DpbenchError:
    """Return the error about a split in which every row is -1."""
    return DpbenchError(f"{where}: has no labels ({row_name(0)} is -1, as every other)", "use a labelled split")


def check_attribute(where: str, values: Sequence[int]) -> None:
    """Check the values of a yes-or-no attribute.

    Raises:
        DpbenchError: a value is neither 0 nor 1; the error names the row.
    """
    for row, value in enumerate(values):
        if value not in (0, 1):
            hint = "attributes are 0 (no) or 1 (yes)" + ("; write 0 where CelebA's own list has -1" if value == -1 else "")
            raise DpbenchError(f"{where}: {value} in {row_name(row)} is neither yes nor no", hint)


def check_names(path: Path, column: str, classes: Sequence[str]) -> None:
    """Compare the class names that the `datasets` library wrote into a file with ours.

    Names that are spelled in another way are not compared: only one that equals one of ours, or is the beginning of one, counts.

    Raises:
        DpbenchError: the file has another number of classes, or one of our names under another number.
    """
    names = _names(tabular.read_metadata(path, "huggingface"), column)
    if not names:
        return
    says = f"{path}: column {column!r} states {len(names)} classes ({', '.join(names[:20])})"
    if len(names) != len(classes):
        raise DpbenchError(f"{says}, not {len(classes)}", f"{_classes(classes)}; take the column or the file that has these")
    class_names = [_plain(name) for name in classes]
    for number, name in enumerate(names):
        expected = _class_number(_plain(name), class_names)
        if expected is not None and expected != number:
            what = f"{says}: {name!r} is {number} there, and {expected} here"
            raise DpbenchError(what, f"{_classes(classes)}; number the labels so")


def _names(metadata: bytes | None, column: str) -> list[str]:
    """Return the names of the classes in the metadata of `datasets`; none where they are absent or cannot be read."""
    try:
        stored: Any = json.loads(metadata or b"{}")
        names = stored["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _class_number(name: str, class_names: list[str]) -> int | None:
    """Return the number of the class that a name equals, or abbreviates by three letters or more (`HUM`)."""
    if name in class_names:
        return class_names.index(name)
    matches = [number for number, class_name in enumerate(class_names) if len(name) >= 3 and class_name.startswith(name)]
    return matches[0] if len(matches) == 1 else None


def remark_oddities(title: str, columns: dict[str, Any], classes: Sequence[str], unlabelled: int, rows: int) -> None:
    """Remark on rows without a label, on a single row or class, and on empty texts.

    Args:
        columns: the columns of the rows that are used.
        unlabelled: the number of rows in the file without a label.
        rows: the number of all rows in the file.
    """
    if unlabelled:
        remark(f"{title}: {unlabelled} of {rows} rows have no label (-1) and are left out")
    labels = columns.get("label", [])
    if len(labels) == 1:
        remark(f"{title}: one row alone is used; a number from it says little")
    elif labels and len(set(labels)) == 1 < len(classes):
        remark(f"{title}: all {len(labels)} rows that are used are of class {labels[0]} ({classes[labels[0]]})")
    for canonical, values in columns.items():
        if canonical.startswith("text") and (empty := sum(not text.strip() for text in values)):
            remark(f"{title}: {empty} of {len(values)} texts in {canonical} are empty")
