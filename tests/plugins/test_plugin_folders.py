"""Plug-ins in folders of DPBENCH_PLUGINS: found, loaded alone, used by jobs; each wrong file is one error that names it."""

from __future__ import annotations

import os
import sys

import pytest

from dpbench import plugins
from dpbench.cli import main
from dpbench.errors import DpbenchError
from dpbench.execution import warm

FUNCTION = '''
"""Half of everything."""
PLUGIN = {"kind": "function", "name": "half", "version": 1, "summary": "half of the bound"}
COUNT = []


def factor(norms, bound, gamma):
    return 0.5 * (bound / (norms + bound))


def clipped(norms, bound):
    return norms > bound
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """folder({"a.py": source, ...}) is what DPBENCH_PLUGINS names."""

    def named(files):
        for name, source in files.items():
            data = source.encode() if isinstance(source, str) else source
            (tmp_path / name).write_bytes(data)
        monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
        return tmp_path

    return named


def test_a_plugin_in_a_folder_is_found_beside_the_packages_own(folder):
    before = set(plugins.discover("function"))
    path = folder({"half.py": FUNCTION, "notes.txt": "no Python", "helper.py": "x = 1\n"})
    assert set(plugins.discover("function")) == before | {"half"}
    plugin = plugins.get("function", "half")
    assert (plugin.version, plugin.path, plugin.outside) == (1, path / "half.py", True)
    assert not plugins.get("function", "abadi").outside


def test_without_the_variable_it_is_gone(folder, monkeypatch):
    folder({"half.py": FUNCTION})
    assert "half" in plugins.discover("function")
    monkeypatch.delenv(plugins.VARIABLE)
    assert "half" not in plugins.discover("function")
    monkeypatch.setenv(plugins.VARIABLE, "")
    assert "half" not in plugins.discover("function")


def test_a_module_is_loaded_once_under_a_name_of_its_own(folder):
    """Its folder is not on the path: a plug-in called like a library hides nothing."""
    path = folder({"json.py": FUNCTION})
    module = plugins.get("function", "half").load()
    assert plugins.get("function", "half").load() is module
    assert module.__name__ in sys.modules
    assert module.__name__.startswith("_dpbench_plugin_")
    assert str(path) not in sys.path
    import json

    assert hasattr(json, "dumps")


def test_several_folders_are_named_as_in_path(folder, tmp_path, monkeypatch):
    first, second = tmp_path / "a b", tmp_path / "ü"
    for path, name in ((first, "half"), (second, "third")):
        path.mkdir()
        (path / "own.py").write_text(FUNCTION.replace('"half"', f'"{name}"'), encoding="utf-8")
    monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join(map(str, (first, second, first))))
    assert {"half", "third"} <= set(plugins.discover("function"))
    modules = [plugins.get("function", name).load() for name in ("half", "third")]
    assert modules[0] is not modules[1]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("PLUGIN = {\n", r"bad\.py, line 1: '\{' was never closed"),
        ("x = 1\n  y = 2\n", r"bad\.py, line 2: unexpected indent"),
        ("PLUGIN = dict(kind='engine')\n", "PLUGIN is not a literal"),
        ("PLUGIN = [1, 2]\n", "PLUGIN is not a literal"),
        (b"PLUGIN = '\xff\xfe'\n", r"bad\.py"),
        (b"\x00\x00", r"bad\.py"),
        ("PLUGIN = {}\n", "PLUGIN lacks kind"),
        (FUNCTION.replace('"version": 1, ', ""), "PLUGIN lacks version"),
        (FUNCTION.replace('"version": 1', '"version": "1"'), "version of PLUGIN is '1'"),
        (FUNCTION.replace('"version": 1', '"version": 0'), "version of PLUGIN is 0"),
        (FUNCTION.replace('"version": 1', '"version": -2'), "version of PLUGIN is -2"),
        (FUNCTION.replace('"version": 1', '"version": True'), "version of PLUGIN is True"),
        (FUNCTION.replace('"name": "half"', '"name": None'), "name of PLUGIN is None"),
        (FUNCTION.replace('"function"', '"funktion"'), "unknown kind of plug-in 'funktion'"),
        (FUNCTION.replace('"half"', '"abadi"'), "two functions are called 'abadi'"),
        ('PLUGIN = {"kind": "engine", "name": "e", "version": 1, "summary": "s"}\n', "PLUGIN lacks private"),
    ],
)
def test_a_wrong_declaration_is_one_error_that_names_the_file(folder, source, says):
    folder({"bad.py": source})
    with pytest.raises(DpbenchError, match=says) as caught:
        plugins.discover("function")
    assert "bad.py" in caught.value.what


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (FUNCTION + "\nraise ValueError('no')\n", r"cannot be imported \(ValueError: no\)"),
        (FUNCTION + "\nimport a_package_that_is_not_there\n", r"cannot be imported \(ModuleNotFoundError"),
        (FUNCTION + "\nfrom . import helper\n", r"cannot be imported \(ImportError"),
        (FUNCTION.replace("def factor", "def faktor"), "defines no factor"),
    ],
)
def test_an_unusable_module_is_one_error_that_names_the_file(folder, source, says):
    folder({"bad.py": source})
    for _ in range(2):
        with pytest.raises(DpbenchError, match=says) as caught:
            plugins.get("function", "half").load()
        assert "bad.py" in caught.value.what


def test_the_contract_tests_do_not_start_without_what_a_kind_needs(folder, capsys):
    folder({"bad.py": FUNCTION.replace("def factor", "def faktor")})
    assert main(["test-plugin", "half"]) == 2
    assert "defines no factor" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(DpbenchError, match=r"DPBENCH_PLUGINS: .*nowhere is not a folder"):
        plugins.discover("function")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(DpbenchError, match="is not a folder"):
        plugins.get("function", "abadi")


def test_the_warm_process_is_another_one_for_other_plugins(folder):
    """It may have imported them: another folder, or an edited file, is another process."""
    without = warm._key()
    path = folder({"half.py": FUNCTION})
    with_it = warm._key()
    (path / "half.py").write_text(FUNCTION + "\n# longer\n")
    assert len({without, with_it, warm._key()}) == 3
