"""What a child reads of its parents is what their records say they left."""

from __future__ import annotations

import pytest

from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog

FILE = "model.safetensors"


@pytest.fixture
def context(tmp_path, as_parent):
    folder = tmp_path / "parent"
    (folder / "encoder").mkdir(parents=True)
    for name in (FILE, f"encoder/{FILE}"):
        (folder / name).write_bytes(b"weights" * 100)
    as_parent(folder, "language_modeling", [FILE, f"encoder/{FILE}"])
    (tmp_path / "own").mkdir()
    return Context(tmp_path / "own", 0, {}, StepLog(tmp_path / "own" / "steps.jsonl"), parents={"start": folder})


def test_an_artefact_is_the_file_that_the_record_names(context):
    assert context.artefact("start", FILE).read_bytes() == b"weights" * 100
    assert context.artefacts("start", [FILE, f"encoder/{FILE}"]) == context.parents["start"]


@pytest.mark.parametrize("name", [FILE, f"encoder/{FILE}"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.write_bytes(bytes(700)), "damaged or replaced"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "damaged or replaced"),
        (lambda p: p.write_bytes(b""), "damaged or replaced"),
        (lambda p: p.unlink(), "has not left"),
        (lambda p: (p.unlink(), p.mkdir()), "has not left"),
    ],
)
def test_a_changed_artefact_is_named_with_the_way_out(context, name, change, says):
    change(context.parents["start"] / name)
    for read in (lambda: context.artefact("start", name), lambda: context.artefacts("start", [FILE, f"encoder/{FILE}"])):
        with pytest.raises(DpbenchError, match=says) as caught:
            read()
        assert caught.value.what.startswith(f"{context.parents['start'] / name}: ")
        assert caught.value.hint == f"delete {context.parents['start']} and run the parent again"


def test_a_file_that_the_record_does_not_name_is_not_read(context):
    (context.parents["start"] / "other").write_text("x")
    with pytest.raises(DpbenchError, match="has not left other"):
        context.artefact("start", "other")


def test_a_parent_without_a_sound_record_is_named(context):
    path = context.parents["start"] / "record.json"
    path.write_text(path.read_text().replace(FILE, "x"))
    with pytest.raises(DpbenchError, match="does not fit its digest"):
        context.artefact("start", FILE)
    path.unlink()
    with pytest.raises(DpbenchError, match="no such record"):
        context.artefact("start", FILE)


def test_the_parent_must_be_the_run_that_was_asked_for(context):
    context.ids["start"] = "0" * 12
    with pytest.raises(DpbenchError, match=r"is the record of run .*, in the folder of run 000000000000"):
        context.artefact("start", FILE)
