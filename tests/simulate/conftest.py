import warnings

import pytest


@pytest.fixture(autouse=True)
def _quiet():
    """Opacus and Opake warn of things that do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
