"""What of a plug-in is in a run's name: its version where it is as locked, its content too where it is not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from dpbench import plugins
from dpbench.errors import DpbenchError
from dpbench.execution.runner import read_config
from dpbench.plugins import identity
from dpbench.spec.expand import config_of, run_id

ENGINE = '''
"""An engine of a stranger."""
from dpbench.methods.engines import fused

PLUGIN = {"kind": "engine", "name": "mine", "version": 3, "summary": "of a stranger", "private": True, "scopes": ["per_layer"]}


class Engine(fused.Engine):
    """It clips."""

    name = "mine"
    limit = 0.5  # of what it does
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder(source) -> the plug-in of a file with that source, in a folder of its own."""
    count = iter(range(100))

    def plug(source):
        path = tmp_path / f"plugins{next(count)}"
        path.mkdir()
        (path / "mine.py").write_text(source, encoding="utf-8")
        monkeypatch.setenv(plugins.VARIABLE, str(path))
        return plugins.get("engine", "mine")

    return plug


@pytest.fixture
def own_lock(tmp_path, monkeypatch):
    """The package's lock, in a copy that a test may change: own_lock(key, version=..., content=...)."""
    monkeypatch.setattr(identity, "LOCK", tmp_path / "plugins.lock")

    def forget():
        identity.locked.cache_clear()
        identity._identity.cache_clear()

    def change(key=None, **values):
        entries = dict(before)
        if key is not None:
            entries[key] = replace(entries[key], file="", **values)
        identity.write_lock(entries)

    before = dict(identity.present())
    change()
    yield change
    monkeypatch.undo()
    forget()


def test_every_plugin_and_shared_module_is_as_locked():
    """Fails for whoever edited one and did not say what that does to numbers: the message says which of two things to do."""
    findings = "\n".join(f"{key} {text}" for key, text in identity.stale().items())
    assert not findings, f'{findings}\npython -m dpbench plugins --lock KIND:NAME ... --why "why the numbers stay"'


def test_a_plugin_as_locked_gives_its_version_alone(own_lock):
    versions = config_of("kernel_bench", {})["versions"]
    assert versions["job:kernel_bench"] == plugins.get("job", "kernel_bench").version
    assert all(isinstance(version, int) for version in versions.values())
    assert identity.unlocked(versions) == []


def test_an_edited_plugin_renames_its_runs(own_lock):
    before, version = config_of("kernel_bench", {}), plugins.get("job", "kernel_bench").version
    own_lock("job:kernel_bench", content="0" * 12)
    after = config_of("kernel_bench", {})
    assert after["versions"]["job:kernel_bench"] == f"{version}+{identity.content_of(plugins.get('job', 'kernel_bench').path)}"
    assert run_id(after) != run_id(before)
    assert identity.unlocked(after["versions"]) == [f"job:kernel_bench {after['versions']['job:kernel_bench']}"]
    with pytest.raises(DpbenchError, match=rf"made for job:kernel_bench version {version}, this dpbench has {version}\+"):
        read_config(json.dumps(before))


def test_a_plugin_outside_the_package_always_gives_its_content(folder):
    plugin = folder(ENGINE)
    assert plugin.outside
    assert identity.identity(plugin) == f"3+{identity.content_of(plugin.path)}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limit = 0.5", "limit = 0.25"),
        ("limit = 0.5", "limit = 0.5\n    other = 1"),
        ('"scopes": ["per_layer"]', '"scopes": ["per_layer", "per_tensor"]'),
        ("fused.Engine", "object"),
    ],
)
def test_another_content_is_another_identity(folder, old, new):
    assert identity.identity(folder(ENGINE)) != identity.identity(folder(ENGINE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""An engine of a stranger."""', '"""Another sentence about it."""'),
        ('    """It clips."""\n', ""),
        ("  # of what it does", ""),
        ("of a stranger", "of somebody"),
        ("limit = 0.5", "limit = (0.5)"),
        ("\n\n\n", "\n\n\n\n# a remark\n"),
        ("\n", "\r\n"),
    ],
)
def test_prose_and_layout_are_no_content(folder, old, new):
    assert identity.identity(folder(ENGINE)) == identity.identity(folder(ENGINE.replace(old, new)))


def test_an_edit_needs_a_reason_and_a_raised_version_none(own_lock):
    own_lock("engine:fused", content="0" * 12)
    assert set(identity.stale()) == {"engine:fused"}
    assert "raise its version" in identity.stale()["engine:fused"]
    with pytest.raises(DpbenchError, match="engine:fused was edited") as caught:
        identity.lock(["engine:fused"])
    assert "--why" in caught.value.hint
    assert identity.lock(["engine:fused"], "a loop was unrolled") == ["engine:fused"]
    assert identity.locked()["engine:fused"].why == "a loop was unrolled"
    assert identity.stale() == {}
    version = plugins.get("engine", "fused").version
    own_lock("engine:fused", version=version - 1, content="0" * 12)
    assert identity.lock() == ["engine:fused"]
    assert identity.locked()["engine:fused"].version == version
    own_lock("engine:fused", version=version + 1)
    with pytest.raises(DpbenchError, match="a version is never lowered"):
        identity.lock()


def test_a_changed_shared_module_is_named_without_new_identity(own_lock):
    own_lock("core:methods", content="0" * 12)
    assert "every plug-in whose numbers change" in identity.stale()["core:methods"]
    assert isinstance(identity.identity(plugins.get("engine", "fused")), int)


def test_new_and_removed_plugins_are_found(own_lock):
    entries = dict(identity.locked())
    entries["engine:gone"] = identity.Locked(1, "0" * 12)
    del entries["engine:fused"]
    identity.write_lock(entries)
    assert identity.stale() == {"engine:fused": "is new: lock it", "engine:gone": "is locked but not there: lock again"}
    assert identity.identity(plugins.get("engine", "fused")) != plugins.get("engine", "fused").version
    assert identity.lock() == ["engine:fused", "engine:gone"]
    assert identity.stale() == {}
    with pytest.raises(DpbenchError, match="unknown plug-in 'engine:fuse'"):
        identity.lock(["engine:fuse"])


@pytest.mark.parametrize("text", ["", "[]", '{"engine:fused": 1}', '{"engine:fused": {"version": 1}}', "\x00"])
def test_a_lock_that_is_none_is_one_error(own_lock, text):
    identity.LOCK.write_text(text, encoding="utf-8")
    identity.locked.cache_clear()
    with pytest.raises(DpbenchError, match=r"plugins\.lock: cannot be read"):
        identity.locked()


def test_the_command_lists_what_is_not_locked(folder, tmp_path):
    plugin = folder(ENGINE)
    done = subprocess.run([sys.executable, "-m", "dpbench", "plugins"], capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("engine:mine ")]
    assert line.split(maxsplit=2)[1:] == [
        identity.identity(plugin),
        f"{plugin.path}, in no lock: its content is part of the name of its runs",
    ]
    assert done.returncode == (1 if identity.stale() else 0)
