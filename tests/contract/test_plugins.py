"""Every plug-in, by discovery: whoever adds one gets these tests without writing any.

What engines, functions, scopes and zeroth-order methods compute is held to the oracle in `methods/engines/test_parity.py`,
`privacy/clipping/test_discovered.py` and `methods/zeroth/test_discovered_zeroth.py`, by discovery too. Of a plug-in outside the
package `python -m dpbench --plugins FOLDER test-plugin NAME` runs them all.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dpbench import methods, plugins
from dpbench.errors import DpbenchError
from dpbench.methods import engines
from dpbench.methods.engines.base import Handle
from dpbench.privacy.clipping.adaptive import Adaptive
from dpbench.privacy.mechanism import Clipping, Mechanism, Sampling
from dpbench.spec.expand import Uses

REPOSITORY = Path(__file__).resolve().parents[2]
EVERY = [pytest.param(kind, name, id=f"{kind}-{name}") for kind in plugins.FOLDERS for name in plugins.discover(kind)]


def names(kind):
    return list(plugins.discover(kind))


def there(kind):
    """Names of plug-ins; one whose package is not installed is skipped, and says so."""
    for name, plugin in plugins.discover(kind).items():
        yield pytest.param(name, marks=pytest.mark.skipif(plugin.missing is not None, reason=str(plugin.missing)))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_declarations(kind, name):
    plugin = plugins.get(kind, name)
    assert plugin.version >= 1
    assert plugin.summary
    assert plugin.summary[-1] != "."
    if plugin.is_card:
        return  # its keys were checked when it was found
    module = plugin.load()
    assert module.__doc__
    assert module.PLUGIN["name"] == name


def test_jobs_do_not_import_torch():
    code = (
        "import sys; from dpbench import plugins; [plugins.get('job', n).load() for n in plugins.discover('job')];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", names("job"))
def test_jobs_keep_their_contract(name):
    job = plugins.get("job", name).load()
    assert job.Settings.model_config["extra"] == "forbid"
    assert list(inspect.signature(job.run).parameters) == ["settings", "context"]
    assert list(inspect.signature(job.check).parameters) == ["settings", "sources"]
    assert inspect.signature(job.uses).return_annotation in (Uses, "Uses")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).train()


def losses(net, batch):
    return nn.functional.cross_entropy(net(batch["x"]), batch["y"], reduction="none")


BATCH = {"x": torch.randn(5, 4), "y": torch.randint(0, 3, (5,))}


def devices(scope):
    return 2 if "devices" in plugins.get("scope", scope).extra.get("needs", ()) else None


@pytest.mark.parametrize("name", there("engine"))
def test_engines_keep_their_contract(name):
    plugin = plugins.get("engine", name)
    for scope in plugin.extra["scopes"] or [None]:
        clipping = Clipping(scope=scope, bound=0.2, devices=devices(scope)) if scope else None
        net = model()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        plan = Mechanism(Sampling("poisson", 50, 5.0), 3, clipping, 1.0 if scope else 0.0)
        handle = engines.attach(name, net, optimizer, plan)
        assert isinstance(handle, Handle)
        assert handle.unprotected == []
        assert handle.name == name
        for _ in range(2):
            batch_losses = handle.backward(losses, BATCH)
            assert batch_losses.shape == (5,)
            assert not batch_losses.requires_grad
            optimizer.step()
            optimizer.zero_grad()
        assert handle.steps == 2
        assert any(not torch.equal(before[k], v) for k, v in net.state_dict().items())
        spent = handle.epsilon()
        assert (spent is None) == (scope is None)
        assert handle.clipped_fraction is not None
        handle.detach()


@pytest.mark.parametrize("name", there("engine"))
def test_engines_train(name):
    """Without noise and with a bound that never bites, ten steps lower the loss of a fixed batch."""
    scopes = plugins.get("engine", name).extra["scopes"]
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    clipping = Clipping(scope=scopes[0], bound=1e3) if scopes else None
    handle = engines.attach(name, net, optimizer, Mechanism(Sampling("poisson", 50, 5.0), 20, clipping))
    with torch.no_grad():  # a forward pass outside the engine would confuse Opacus' hooks
        first = float(losses(net, BATCH).mean())
    for _ in range(10):
        handle.backward(losses, BATCH)
        optimizer.step()
        optimizer.zero_grad()
    handle.detach()
    assert float(losses(net, BATCH).detach().mean()) < first - 0.1


@pytest.mark.parametrize("name", there("engine"))
def test_engines_do_adaptive_thresholds_or_refuse_them(name):
    plugin = plugins.get("engine", name)
    for scope in plugin.extra["scopes"]:
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        clipping = Clipping(scope=scope, bound=0.2, devices=devices(scope), adaptive=Adaptive(0.5))
        plan = Mechanism(Sampling("poisson", 50, 5.0), 3, clipping, 1.0)
        if not plugin.extra.get("adaptive"):
            with pytest.raises(DpbenchError, match="does not do adaptive thresholds") as caught:
                engines.attach(name, net, optimizer, plan)
            assert "bookkeeping" in caught.value.hint
            continue
        handle = engines.attach(name, net, optimizer, plan)
        before = list(handle.bounds)
        handle.backward(losses, BATCH)
        assert handle.bounds == before
        optimizer.step()
        assert all(a != b for a, b in zip(handle.bounds, before, strict=True))
        assert handle.thresholds.trajectory == [before, handle.bounds]
        handle.detach()


@pytest.mark.parametrize("name", names("published_engine"))
def test_published_engines_are_exempt_and_say_why(name):
    """No test of engines holds them, for they must fail: tests/methods/engines/test_published.py shows that they do."""
    plugin = plugins.get("published_engine", name)
    assert plugin.extra["private"] is False
    assert plugin.extra["deviations"]
    assert name not in plugins.discover("engine")
    net = model()
    plan = Mechanism(Sampling("poisson", 50, 5.0), 3, Clipping(scope=plugin.extra["scopes"][0]), 1.0)
    handle = methods.attach(name, net, torch.optim.SGD(net.parameters(), lr=0.1), plan)
    assert handle.epsilon() is None
    handle.detach()


def test_a_file_without_a_literal_declaration_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bad.py"
    path.write_text("PLUGIN = dict(kind='engine', name=compute())\n")
    with pytest.raises(DpbenchError, match="not a literal"):
        plugins._declaration(path)


def test_files_stay_short():
    counts = {p: len(p.read_text().splitlines()) for p in (REPOSITORY / "dpbench").rglob("*.py")}
    assert {p.name: n for p, n in counts.items() if n > 400} == {}
