"""What the tests share, and what is run from the command line beside them.

No module here is a test, and none imports one; test modules import from here and never from each
other. So whatever is checked stands in one place, and whatever it is checked with in another.
"""

import pkgutil

import pytest

# The assertions here explain themselves, as those of the tests do.
pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
