"""How much memory an operation takes beside what it returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, CorruptCheckpointError, Run
from checkpoint_store._filesystems.base import Entry, Page

from .harness import MIB
from .harness.memory import at_most

PAYLOAD = bytes(range(256)) * (32 * 4096)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = CheckpointStore(tmp_path / "root", durable=False).run("wf")
    run.write("task", PAYLOAD)
    return run


def test_a_large_file_is_read_into_one_copy_of_its_payload(run: Run) -> None:
    with at_most(len(PAYLOAD) + MIB):
        assert len(run.read("task")) == len(PAYLOAD)
    assert run.read("task") == PAYLOAD


def test_a_large_payload_is_written_without_a_copy(run: Run) -> None:
    with at_most(MIB):
        run.write("task", PAYLOAD)


def test_streams_keep_a_few_chunks_in_memory(run: Run) -> None:
    with at_most(8 * MIB), run.open("copy", "wb") as copy, run.open("task") as stream:
        while chunk := stream.read(MIB):
            copy.write(chunk)
    assert run.read("copy") == PAYLOAD


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:200],
        lambda data: data + b"\0",
        lambda data: data[: 5 * MIB] + b"!" + data[5 * MIB + 1 :],
        lambda data: data.replace(b'"task"', b'"tasl"'),
    ],
    ids=["last byte", "half", "all but the header", "longer", "one byte", "another task's"],
)
def test_damage_to_a_large_file_is_noticed(
    tmp_path: Path, run: Run, damage: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "root" / "wf" / f"task@{run.token}"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CorruptCheckpointError):
        run.read("task")


def test_workflows_of_a_list_in_order_are_named_in_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def listed(_: str, page: int | None) -> Page[Entry]:
        page = page or 0
        keys = (f"wf-{page:03}-{file:03}/.fingerprint" for file in range(1000))
        return Page([Entry(key) for key in keys], page + 1 if page < 59 else None)

    store = CheckpointStore("s3://bucket/root")
    filesystem: Any = store._filesystem
    monkeypatch.setattr(filesystem._engine, "list", listed)
    # A set of them would take 6 MiB.
    with at_most(2 * MIB):
        assert sum(1 for _ in store.workflows()) == 60_000
