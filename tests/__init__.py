"""The tests, of which `harness` holds what they share."""

import pytest

# Its assertions explain themselves, as those of the tests do.
pytest.register_assert_rewrite("tests.harness")
