"""A store in a folder of its own, and what performs operations on one while the disk fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint_store import CheckpointStore, Run, resume

from ..harness.contract import INPUTS
from ..harness.local_faults import Forker, Templates


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[CheckpointStore]:
    with CheckpointStore(root) as store:
        yield store


@pytest.fixture
def run(store: CheckpointStore) -> Run:
    return resume(store, "wf", INPUTS, on_input_change="raise")


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with tempfile.TemporaryFile() as errors:
        made = Forker(errors)
        yield made
        made.close()
        # No warning of Python, no log record that nobody handles, no exception in a destructor.
        assert made.printed() == ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where to put roots: in memory if possible, where a sync takes no time."""
    if os.access("/dev/shm", os.W_OK):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as made:
            yield Path(made)
    else:
        yield tmp_path_factory.mktemp("roots")


@pytest.fixture(scope="module")
def templates(folder: Path) -> Templates:
    return Templates(folder)
