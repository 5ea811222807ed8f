import pytest

pytest.register_assert_rewrite("clipping_checks")
