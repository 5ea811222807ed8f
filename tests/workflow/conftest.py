"""Fixtures of the workflow tests."""

from __future__ import annotations

import pytest
from working_tree import Tree


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Nothing built in it yet; for tests that build nothing."""
    return Tree.copy(tmp_path_factory.mktemp("a tree"))
