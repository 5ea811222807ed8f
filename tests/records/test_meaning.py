"""A record is taken only if all of it means something: each fault, its digest right, is one error that names file and key."""

from __future__ import annotations

import copy
import json
import math

import pytest
from example_records import FAULTS, METRIC, put, record, sound, text_of

from dpbench.errors import DpbenchError
from dpbench.records.schema import Record
from dpbench.records.store import read_record, record_from, record_text, write_record


def drop(key: str, last: str):
    def change(values: dict) -> None:
        for part in key.split("."):
            values = values[part]
        del values[last]

    return change


def test_the_sound_record_is_taken(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text_of(sound()))
    sound_record = read_record(path)
    assert write_record(sound_record, tmp_path / "again").read_text() == record_text(sound_record)
    assert read_record(tmp_path / "again" / "record.json") == sound_record


@pytest.mark.parametrize(("key", "value", "says"), FAULTS)
def test_a_value_that_means_nothing_is_refused_by_its_key(tmp_path, key, value, says):
    values = sound()
    put(key, value)(values)
    text = text_of(values, renamed=key != "run")
    if key == "digest":
        text = json.dumps(values | {"digest": value})
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DpbenchError, match=says) as caught:
        read_record(path)
    assert caught.value.what.startswith(f"{path}: ")
    assert len(caught.value.what) < 1000
    assert caught.value.hint


@pytest.mark.parametrize(
    ("above", "key"), [("config", "seed"), ("config", "parents"), ("privacy", "delta"), ("environment", "cpu"), ("metrics", 0)]
)
def test_what_is_missing_is_named(tmp_path, above, key):
    values = sound()
    if above == "metrics":
        del values["metrics"][0]["unit"]
    else:
        drop(above, key)(values)
    (tmp_path / "record.json").write_text(text_of(values))
    with pytest.raises(DpbenchError, match=f"{above}.*{'unit' if above == 'metrics' else key}"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("value", [None, [], "x", 3, [{}]])
def test_what_is_no_record_at_all_is_named(tmp_path, value):
    (tmp_path / "record.json").write_text(json.dumps(value))
    with pytest.raises(DpbenchError, match=r"record\.json: schema version None"):
        read_record(tmp_path / "record.json")


def numbers(values: object, key: str = ""):
    """Dotted keys of all numbers in a value."""
    if isinstance(values, dict):
        for name, value in values.items():
            yield from numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from numbers(value, f"{key}.{place}")
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield key


def test_no_number_can_be_edited_by_hand(tmp_path):
    """Each number of a record in turn, changed by one part in a thousand, or by one: never taken."""
    sound_values = json.loads(text_of(sound()))
    keys = list(numbers(sound_values))
    assert len(keys) > 20
    for key in keys:
        values = copy.deepcopy(sound_values)
        part = values
        for name in key.split("."):
            part, last, above = part[int(name) if isinstance(part, list) else name], name, part
        above[int(last) if isinstance(above, list) else last] = part * 1.001 if isinstance(part, float) else part + 1
        with pytest.raises(DpbenchError):
            record_from(values, "x")


def test_the_digest_is_of_values_and_not_of_how_they_are_written(tmp_path):
    values = json.loads(text_of(sound()))
    (tmp_path / "record.json").write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert read_record(tmp_path / "record.json").digest == values["digest"]


def test_a_record_of_another_run_is_refused_in_this_folder(tmp_path):
    path = write_record(record(), tmp_path / ("0" * 12))
    with pytest.raises(DpbenchError, match=f"is the record of run {record().run}, in the folder of run 000000000000"):
        read_record(path, path.parent.name)


def test_a_record_without_a_digest_is_refused(tmp_path):
    values = record().model_dump(mode="json")
    del values["digest"]
    path = tmp_path / "record.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DpbenchError, match="no digest") as caught:
        read_record(path)
    assert "run again" in caught.value.hint


def test_what_is_made_here_is_held_to_the_same():
    with pytest.raises(ValueError, match="occurs 2 times"):
        record(metrics=[METRIC, METRIC])
    with pytest.raises(ValueError, match="facts: holds a number that is not finite"):
        record(facts={"own": [{"x": math.nan}]})


def test_a_changed_copy_is_written_with_a_digest_of_its_own(tmp_path):
    changed = record().model_copy(update={"warnings": ["w"]})
    assert read_record(write_record(changed, tmp_path)).warnings == ["w"]
    assert Record.model_validate(record().model_dump(mode="json")) == record()
