import pytest

pytest.register_assert_rewrite("zeroth_checks")
