"""What the tests share, and what is run from the command line beside them.

No module here is a test, and none imports one; test modules import from here and never from each
other. So the checks stand in one place, and what they are made with in another.
"""

import pkgutil
from pathlib import Path

import pytest

import checkpoint_store

ROOT = Path(__file__).parents[2]
"""The folder that `tests` is in, whether it is a checkout or a copy that is tested elsewhere."""

PACKAGE = Path(checkpoint_store.__file__).parent
"""The folder of the package that is tested, which need not be the one beside the tests."""

MIB = 1024**2

# pytest shows the values in a failed assertion of these modules, too.
pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
