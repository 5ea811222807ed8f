"""What every test starts from: no network, no data or models of this machine, a cache of its own, few threads."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Workers side by side have a core each."""

sys.path.insert(0, str(Path(__file__).parent / "support"))  # helpers that tests of several folders share
pytest.register_assert_rewrite("kernel_oracles")

# Before any test module is imported: libraries read these once, when they are.
for _variable in ("DPBENCH_DATA", "DPBENCH_MODELS", "DPBENCH_ROOT", "TRITON_INTERPRET"):
    os.environ.pop(_variable, None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin keep the cores from other workers: minutes for seconds
if os.environ.get("DPBENCH_TEST_INTERPRETER") == "1":  # tests/kernels/interpreted, in a process of their own
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all workers of a session: a calibration costs seconds."""
    patch = pytest.MonkeyPatch()
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared-cache"
    patch.setenv("DPBENCH_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def coarse_grid() -> Iterator[None]:
    """Epsilon on a grid step of 1e-3 instead of 1e-4: a tenth of the time, and an epsilon that is at most 1e-3 a step too high.

    For modules that train under a budget; tests/privacy looks at the fine grid.
    """
    from dpbench.privacy import accounting

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "_INTERVAL", 1e-3)
        accounting._spent.cache_clear()
        yield
    accounting._spent.cache_clear()


@pytest.fixture(autouse=True)
def _environment_is_put_back() -> Iterator[None]:
    """Naming the runs sets DPBENCH_DATA and DPBENCH_MODELS for good; a test must not leave them to the next."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _few_threads_and_one_seed() -> None:
    """A test draws the same numbers whatever ran before it. Only where torch is there already: importing it costs seconds."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        torch.manual_seed(0)
        if torch.get_num_threads() > THREADS:
            torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def as_parent() -> Callable[..., Path]:
    """`parents.as_parent`: turns a folder with files into that of a finished run."""
    import parents

    return parents.as_parent


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freshly allocated float buffers hold NaN, so that reading one unwritten shows."""
    import torch

    def poison(allocate: Callable[..., Any]) -> Callable[..., Any]:
        def poisoned(*args: Any, **kwargs: Any) -> Any:
            out = allocate(*args, **kwargs)
            real = out.is_floating_point() or out.is_complex()
            return out.fill_(math.nan) if real and out.device.type != "meta" else out

        return poisoned

    with torch.device("cpu"):  # torch notes once, by identity, which functions a device context changes: the real ones
        torch.empty(0)
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poison(getattr(torch.Tensor, name)))
