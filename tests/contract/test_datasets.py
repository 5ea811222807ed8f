"""Every dataset, by discovery: what it declares, and rows of each split from a source that is there.

Of a dataset of the package the rows are those of its stand-in; of one in a folder of plug-ins, those in the folder DPBENCH_DATA
that `python -m dpbench --plugins FOLDER test-plugin NAME` was started with.
"""

from __future__ import annotations

import os
import re

import pytest

from dpbench import plugins
from dpbench.data import asked, described, registry
from dpbench.data.remarks import collected
from dpbench.errors import DpbenchError

ROWS = 20


@pytest.mark.parametrize("name", plugins.discover("dataset"))
def test_a_dataset_declares_what_the_registry_reads(name):
    plugin = plugins.get("dataset", name)
    assert plugin.extra["folder"]
    assert set(plugin.extra["files"]) >= {"train"}
    assert plugin.extra["licence"]
    assert plugin.extra["citation"]
    if spec := plugin.extra.get("hub"):
        assert spec["why"] if spec["revision"] is None else re.fullmatch("[0-9a-f]{40}", spec["revision"])
        assert set(spec["files"]) == set(plugin.extra["files"])


def rows_of(name: str) -> None:
    """Read rows of each split as its task does."""
    plugin = plugins.get("dataset", name)
    source = registry.resolve(name, "auto" if plugin.outside else "embedded")
    with collected():
        registry.check(name, source)
        for split in plugin.extra["files"]:
            examples = registry.load(name, split, source, ROWS)
            assert len(examples) > 0
            attributes = registry.attributes(name)
            columns = [key for key in plugin.extra["columns"] if key not in attributes]
            assert list(examples.columns) == columns + (["labels"] if attributes else [])
            if plugin.extra["task"] in described.TASKS:
                assert described.load(name, split, source)
            if "label_words" in plugin.extra or plugin.extra["task"] == asked.ANSWERS:
                assert all(row.prompt and row.prompt[-1] != " " for row in asked.load(name, split, source))


@pytest.mark.parametrize("name", plugins.discover("dataset"))
def test_a_dataset_has_rows_of_its_task(name, monkeypatch):
    if (folder := os.environ.get("DPBENCH_TEST_DATA")) and plugins.get("dataset", name).outside:
        monkeypatch.setenv("DPBENCH_DATA", folder)
    fault = ""
    try:
        rows_of(name)
    except DpbenchError as error:
        fault = str(error)
    if fault:
        pytest.fail(f"{fault}\n  (test-plugin looks in the folder that DPBENCH_DATA names)", pytrace=False)
