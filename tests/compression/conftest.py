"""What stages do does not depend on the accountant's grid."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _coarse_grid(coarse_grid):
    """For every module of this folder."""
