"""Report what is installed, where data and models are found, which devices there are, and what each tier would take."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dpbench import plugins
from dpbench.cli.duration import duration, recorded_seconds
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution import environment
from dpbench.execution.study import study
from dpbench.kernels.linear import native
from dpbench.models import registry as models
from dpbench.plugins.identity import identity
from dpbench.privacy import gaussian
from dpbench.spec.config import Config
from dpbench.spec.models import TIERS


def report() -> str:
    """Return the report as text; nothing that is missing makes it fail."""
    return "\n".join([*_installed(), "", *_devices(), "", *_sources(), "", *_engines(), "", *_plugins(), "", *_tiers()])


def _installed() -> Iterator[str]:
    here = environment.describe()
    yield f"dpbench on Python {here.python}, {here.platform}"
    for name in environment.PACKAGES:
        yield f"  {name:14} {here.packages.get(name, 'not installed')}"


def _devices() -> Iterator[str]:
    import torch

    here = environment.describe()
    yield "Devices"
    yield f"  cpu            {here.cpu}, {here.cores} cores, {here.memory_gib} GiB"
    noise = "compiled" if gaussian.compiled() is not None else "by numpy, half as fast (no C compiler was found, or it failed)"
    yield f"  cpu noise      {noise}"
    yield f"  cpu kernels    {native.unavailable() or 'compiled'}"
    if not torch.cuda.is_available():
        yield "  cuda           none (the gpu and paper tiers need one)"
    yield f"  triton         {_triton()}"
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield f"  cuda:{index}         {torch.cuda.get_device_name(index)}, {memory:.0f} GiB"


def _triton() -> str:
    """Say whether the Triton kernels can run here."""
    import torch

    from dpbench.kernels import launch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = launch.unavailable(device)
    if reason is not None:
        return f"its kernels cannot run here ({reason}); torch's are used"
    return "its kernels run in the interpreter, for tests" if launch.interpreting() else "its kernels run here (kernels: auto)"


def _sources() -> Iterator[str]:
    for kind, registry, variable in (("dataset", datasets, "DPBENCH_DATA"), ("model", models, "DPBENCH_MODELS")):
        yield f"{kind.capitalize()}s ({variable} is {'set' if os.environ.get(variable) else 'not set'})"
        for name in plugins.discover(kind):
            try:
                chosen = registry.resolve(name).says
            except DpbenchError as error:
                chosen = f"error: {error.what}"
            yield f"  {name}: {chosen}"
            for line in registry.where(name):
                yield f"    {line}"


def _engines() -> Iterator[str]:
    yield "Engines"
    for name, plugin in plugins.discover("engine").items():
        yield f"  {name:14} {plugin.summary}{f' (skipped: {plugin.missing})' if plugin.missing else ''}"


def _plugins() -> Iterator[str]:
    """Yield the number of locked plug-ins and a line on each other one: its content is part of the name of its runs."""
    yield f"Plug-ins ({plugins.VARIABLE} is {'set' if os.environ.get(plugins.VARIABLE) else 'not set'})"
    identities = [(plugin, identity(plugin)) for plugin in plugins.discover_all()]
    yield f"  {sum(isinstance(value, int) for _, value in identities)} as locked"
    for plugin, value in identities:
        if not isinstance(value, int):
            yield f"  {plugin.key} {value}: {plugin.path}"


def _tiers() -> Iterator[str]:
    yield "Tiers"
    seconds = recorded_seconds()
    for tier in TIERS:
        selected = study(Config(tier=tier))
        gpu = ", needs a GPU" if any(run.resources.gpu for run in selected.runs.values()) else ""
        time_text = duration(selected.runs.values(), seconds, environment.cores())
        yield f"  {tier:14} {len(selected.plans)} tables, {len(selected.runs)} runs, {time_text}{gpu}"
