"""The Triton kernels in Triton's interpreter: `interpreted/`, in processes apart, as the interpreter is chosen once a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "interpreted"
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton here")
@pytest.mark.parametrize("linear", [True, False])
def test_in_the_interpreter(linear):
    """By hand: DPBENCH_TEST_INTERPRETER=1 python -m pytest tests/kernels/interpreted."""
    files = [str(path) for path in sorted(HERE.glob("test_*.py")) if (path.stem == "test_triton_linear") == linear]  # two halves
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"DPBENCH_TEST_INTERPRETER": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
