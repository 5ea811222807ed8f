"""A few of the trials of `kill_at_random.py`; all of them take half an hour (CONTRIBUTING.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_at_random import prove
from yard import Faults

pytestmark = pytest.mark.workflow


def test_nothing_is_lost_half_written_wrong_or_hanging(tmp_path: Path) -> None:
    counts, faults = prove(tmp_path, random_count=5, chosen_count=99, pair_count=2, seed=0)
    assert counts["chosen"] >= 20
    assert faults == Faults()
