"""Collected only where the kernels are interpreted: see `tests/kernels/test_interpreted.py`."""

import os
import sys
from pathlib import Path

for _folder in (Path(__file__).parent, Path(__file__).parents[1]):
    sys.path.insert(0, str(_folder))


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:numpy|triton")  # NaN is what some tests are about


if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
