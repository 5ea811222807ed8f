"""Settings of simulated steps, small enough to be run as well."""

from __future__ import annotations

from typing import Any

from dpbench.measure import throughput
from dpbench.simulate.step import Setting


def setting(engine: str, **changes: Any) -> Setting:
    """Return the setting of one step, with the mechanism that its timing has."""
    values = {"size": "tiny", "tokens": 64, "batch_size": 4, "device": "cpu"} | changes
    timing = throughput.Settings(size=values["size"], tokens=values["tokens"], batch_size=values["batch_size"], methods=[engine])
    return Setting(engine=engine, mechanism=timing.mechanism(engine), **values)
