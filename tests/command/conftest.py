"""What every test of the command leaves as it was, and what makes it quicker."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store._command import check


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    handlers = logging.getLogger("checkpoint_store").handlers[:]
    yield
    assert logging.getLogger("checkpoint_store").handlers == handlers


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer races in this process, where it matters what is said of a storage.

    A command in a process of its own makes them all.
    """
    monkeypatch.setattr(check, "RACES", 10)
    monkeypatch.setattr(check, "UPDATES", 3)


@pytest.fixture
def untouched_memory() -> Iterator[None]:
    """Fsspec's memory, of the whole process, must be the same afterwards."""
    before = dict(MemoryFileSystem.store), set(MemoryFileSystem.pseudo_dirs)
    yield
    assert before == (dict(MemoryFileSystem.store), set(MemoryFileSystem.pseudo_dirs))
