"""Validate with pydantic, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

import reprlib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dpbench.errors import DpbenchError, nearest


class Strict(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def omitted(default: Any = None, **options: Any) -> Any:
    """Return a field of a settings model that is left out of a run's name at its default, so that older runs keep their names.

    Args:
        options: as of pydantic's `Field`.
    """
    return Field(default, exclude_if=lambda value: value == default, **options)


M = TypeVar("M", bound=BaseModel)
_SHOWN = 20  # faults in one message
_WIDEST = 80  # characters of a value or key in a message


def _model_in(annotation: Any) -> Any:
    """Return the first model inside an annotation such as `list[Claim]` or `Tier | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((model for arg in getattr(annotation, "__args__", ()) if (model := _model_in(arg)) is not None), None)


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields that are valid in place of the last part of `location`, as far as annotations tell."""
    current: Any = model
    for part in location[:-1]:
        fields = getattr(current, "model_fields", {})
        if part in fields:  # else an index or a key inside the value of the field
            current = _model_in(fields[part].annotation)
    return sorted(getattr(current, "model_fields", {}))


def parse(model: type[M], value: Any, where: str, hint: str = "correct the keys named above", strict: bool | None = None) -> M:
    """Validate `value` and return it as a `model`.

    Args:
        where: the start of each line of the error.
        hint: the hint of the error if no key is unknown.
        strict: refuse values of another type, such as a number written as a text.

    Raises:
        DpbenchError: one line per fault, each with `where`, the key and, for an unknown key, the nearest valid one.
    """
    try:
        return model.model_validate(value, strict=strict)
    except ValidationError as error:
        lines, key_hints = [], []
        faults = error.errors(include_url=False)
        for fault in faults[:_SHOWN]:
            key = short(".".join(str(part) for part in fault["loc"]) or "(top)")
            if fault["type"] == "extra_forbidden":
                lines.append(f"{where}: unknown key {key!r}")
                key_hints.append(nearest(short(str(fault["loc"][-1])), _fields_at(model, fault["loc"])))
            else:
                value_text = "" if fault["type"] == "missing" else _bounded.repr(fault["input"])
                suffix = f" (got {value_text})" if value_text and len(value_text) <= _WIDEST else ""
                lines.append(f"{where}: {key}: {fault['msg']}{suffix}")
        if len(faults) > _SHOWN:
            lines.append(f"{where}: and {len(faults) - _SHOWN} more")
        raise DpbenchError("\n".join(lines), "; ".join(key_hints) or hint) from error


def short(text: str) -> str:
    """Return a text of unknown length, shortened for use inside a message."""
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


class _Bounded(reprlib.Repr):
    """A `repr` that reads only a few parts of a value: the value of a key may have any size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, _WIDEST, _WIDEST

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else f"a whole number of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:_WIDEST])


_bounded = _Bounded()
