"""Pydantic, with errors that name the file, the key and the nearest valid key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dpbench.errors import DpbenchError, nearest


class Strict(BaseModel):
    """A model that refuses unknown keys and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


def _model_in(annotation: Any) -> Any:
    """The first model inside an annotation such as `list[Claim]` or `Tier | None`."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((found for arg in getattr(annotation, "__args__", ()) if (found := _model_in(arg)) is not None), None)


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields valid beside the last part of `location`, as far as the annotations tell."""
    current: Any = model
    for part in location[:-1]:
        fields = getattr(current, "model_fields", {})
        if part in fields:  # else an index or a key inside what the field holds
            current = _model_in(fields[part].annotation)
    return sorted(getattr(current, "model_fields", {}))


def parse(model: type[M], value: Any, where: str) -> M:
    """Validate `value`.

    Raises:
        DpbenchError: one line per fault, each with `where`, the key and, for an unknown key, the nearest valid one.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines, ways = [], []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"]) or "(top)"
            if fault["type"] == "extra_forbidden":
                lines.append(f"{where}: unknown key {key!r}")
                ways.append(nearest(str(fault["loc"][-1]), _fields_at(model, fault["loc"])))
            else:
                shown = repr(fault["input"])
                given = "" if fault["type"] == "missing" or len(shown) > 80 else f" (got {shown})"
                lines.append(f"{where}: {key}: {fault['msg']}{given}")
        raise DpbenchError("\n".join(lines), "; ".join(ways) or "correct the keys named above") from error


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        DpbenchError: the file is missing, or is not YAML; names the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise DpbenchError(f"{path}: no such file", "see the folder's listing for the names there are") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DpbenchError(f"{path}: malformed YAML{line}: {problem}", "mend that line") from error


class _Loader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice: YAML keeps the last silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
