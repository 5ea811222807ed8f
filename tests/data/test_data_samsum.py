"""SAMSum: its layout, and the stand-in whose summaries say what was agreed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from dpbench.data import described, registry


def test_a_dialogue_is_the_one_field_of_an_input(tmp_path, monkeypatch):
    folder = tmp_path / "samsum"
    folder.mkdir()
    columns = {"id": ["1", "2"], "dialogue": ["A: hi\r\nB: hello", "C: no"], "summary": ["A greets B.", "C refuses."]}
    for split in ("train", "validation", "test"):
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    monkeypatch.setenv("DPBENCH_DATA", str(tmp_path))
    source = registry.resolve("samsum", "local")
    assert registry.check("samsum", source) == dict.fromkeys(("train", "validation", "test"), 2)
    first, second = described.load("samsum", "test", source)
    assert first.fields == (("dialogue", "A: hi\nB: hello"),)
    assert described.linear(second.fields) == "dialogue : C: no"
    assert second.texts == ("C refuses.",)


def test_the_stand_in_says_who_does_what_when():
    source = registry.resolve("samsum", "embedded")
    splits = [described.load("samsum", split, source) for split in ("train", "validation", "test")]
    dialogues = [row.fields[0][1] for rows in splits for row in rows]
    assert len(set(dialogues)) == len(dialogues)
    for row in splits[2]:
        dialogue, summary = row.fields[0][1], row.texts[0]
        speakers = {line.split(": ")[0] for line in dialogue.split("\n")}
        assert len(speakers) == 2
        assert all(name in summary for name in speakers)
        day = summary.split(" on ")[1].split(".")[0].split(",")[0]
        assert day in dialogue
