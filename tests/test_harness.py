"""Test modules share what is in `harness` and `conftest`, and nothing else.

A module that imports another cannot be moved, split or run without it, and a change of one test
then changes what another checks.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py"))


def imported(tree: ast.Module) -> Iterator[str]:
    """Every name that a module imports, in whole or from where, also in the scripts it runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\b(?:from|import) +(tests\.[\w.]+)", node.value)


def imported_tests(text: str) -> list[str]:
    """What it imports of the test modules that there are."""
    names = {name for name in imported(ast.parse(text)) if name}
    stems = {Path(module).stem for module in MODULES if "/test_" in f"/{module}"}
    return sorted(name for name in names if stems & set(name.split(".")))


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_a_test_module(module: str) -> None:
    assert imported_tests((TESTS / module).read_text("utf-8")) == []


# Not written out, or this module would be found to import it.
OTHER = "test_races"


@pytest.mark.parametrize(
    "text",
    [
        f"from . import servers, {OTHER}",
        f"from .. import {OTHER} as races",
        f"from .{OTHER} import race",
        f"from ..{OTHER} import race",
        f"from tests.{OTHER} import race",
        f"import tests.{OTHER}",
        f"def late():\n    from .integrations.{OTHER} import race",
        f"script = 'import os; from tests.{OTHER} import race'",
        f"script = f'import tests.{OTHER} as {{it}}'",
    ],
)
def test_an_import_of_a_test_module_is_seen_however_it_is_written(text: str) -> None:
    assert len(imported_tests(text)) == 1


def test_the_harness_is_looked_at_too() -> None:
    assert "harness/backends.py" in MODULES
    assert "integrations/test_prefect.py" in MODULES
