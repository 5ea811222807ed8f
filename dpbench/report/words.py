"""Write sources, environments, numbers and settings as one line for people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dpbench.records.schema import Environment
from dpbench.spec.sources import Source

EMPTY = "–"
MARKS = {
    "†": "synthetic data or weights",
    "‡": "simulated, not measured",
    "*": "epsilon is nominal: see the reasons given with it",
}
_KINDS = {
    "local": "local folder",
    "hub": "Hugging Face hub",
    "package": "installed package",
    "embedded": "embedded stand-in",
    "scratch": "from scratch",
}


def source_line(name: str, source: Source) -> str:
    """Return a source in words: `dataset sst2: local folder, real`; generated data is called `synthetic`."""
    kind, _, plain = name.partition(":")
    parts = [_KINDS[source.kind] + (f" at {source.revision[:12]}" if source.revision else "")]
    if source.synthetic:
        parts.append("synthetic")
    elif source.kind == "scratch":
        parts.append("random initial weights")
    else:
        parts.append("real")
    says = f" ({source.says})" if source.says else ""
    return f"{kind} {plain}: {', '.join(parts)}{says}"


def environment_line(environment: Environment) -> str:
    """Return the hardware and the versions that affect numbers, in one line."""
    packages = environment.packages
    versions = [f"{name} {packages[name]}" for name in ("torch", "triton", "opacus") if name in packages]
    commit = "no commit"
    if environment.commit:
        commit = f"commit {environment.commit[:10]}{' with changes' if environment.dirty else ''}"
    hardware = [
        environment.cpu,
        f"{environment.cores} cores",
        f"{environment.memory_gib:.0f} GiB",
        f"{environment.threads} threads",
    ]
    if environment.device_name and environment.device_name != environment.cpu:
        hardware.insert(0, environment.device_name)
    return f"{', '.join(hardware)}; Python {environment.python}, {', '.join(versions) or 'no torch'}; {commit}"


def number(value: float, digits: int) -> str:
    """Return `value` with `digits` decimals; a rounded negative zero loses its sign."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and float(text) == 0 else text


def heading(metric: str, unit: str, between: str = " ") -> str:
    """Return the name of a metric with its unit: `peak memory (MiB)`."""
    return metric.replace("_", " ") + (f"{between}({unit})" if unit else "")


def short(value: float | None, significant: int = 4) -> str:
    """Return a number for prose; a dash for None."""
    if value is None:
        return EMPTY
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.{significant}g}"


def label_text(axis: str, value: str) -> str:
    """Return an axis value as it is printed in a table: `ε = 3`, `batch size 8`; a name is printed without its axis."""
    if axis == "epsilon":
        return f"ε = {'∞' if value == 'inf' else value}"
    try:
        float(value)
    except ValueError:
        return value
    return f"{axis.replace('_', ' ')} {value}"


def spell(labels: dict[str, str]) -> str:
    """Return labels as one phrase."""
    return ", ".join(label_text(axis, value) for axis, value in labels.items())


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with dotted keys."""
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def whose(key: str, origin: dict[str, str]) -> str:
    """Return the origin of a setting: that of its key, else that of the mapping it is in."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (owner := origin.get(".".join(parts[:end]))) is not None:
            return owner
    return "not stated"
