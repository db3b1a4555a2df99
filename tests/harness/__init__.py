"""What the tests share, and what is run from the command line beside them.

No module here is a test, and none imports one; test modules import from here and never from each
other. So whatever is checked stands in one place, and whatever it is checked with in another.
"""

import pkgutil
from pathlib import Path

import pytest

import checkpoint_store

ROOT = Path(__file__).parents[2]
"""The folder that has `tests` in it: of a checkout, or of a copy that is tested elsewhere."""

PACKAGE = Path(checkpoint_store.__file__).parent
"""The package as it was imported, which need not be the one beside the tests."""

MIB = 1024**2

# The assertions here explain themselves, as those of the tests do.
pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
