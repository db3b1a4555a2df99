"""The guards that `harness.mutations` removes are where it looks for them."""

from __future__ import annotations

import pytest

from .harness import ROOT
from .harness.mutations import MUTATIONS, mutated

pytestmark = pytest.mark.skipif(
    not (ROOT / "checkpoint_store").exists(), reason="needs the package's source beside the tests"
)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_still_applies_and_names_its_tests(name: str) -> None:
    mutation = MUTATIONS[name]
    compile(mutated(mutation), mutation.file, "exec")
    assert (ROOT / "tests" / mutation.tests).exists()


def test_there_are_enough_of_them() -> None:
    assert len(MUTATIONS) >= 20
