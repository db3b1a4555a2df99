"""Processes that are killed at random lose nothing, and `kill_loop` would notice if they did."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from checkpoint_store import Run

from ..harness import ROOT
from ..harness.backends import RECORD, LocalBackend
from ..harness.buckets import Bucket
from ..harness.environment import needs_fork
from ..harness.kill_loop import WORKFLOWS, Journal, Label, Worker, payload
from ..harness.s3 import on_ministack

pytestmark = needs_fork

WORKFLOW, TASK = "wf", "t"


def kill(target: str, kills: int, *options: str) -> dict[str, int]:
    """Runs the loop in an interpreter of its own, because one with threads cannot fork."""
    command = [
        sys.executable,
        "-m",
        "tests.harness.kill_loop",
        target,
        "--kills",
        str(kills),
        *options,
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = re.findall(r"^ +([\d,]+)  (.+)$", done.stdout, re.MULTILINE)
    figures = {name: int(count.replace(",", "")) for count, name in found}
    assert figures["kills"] == kills
    assert figures.get("killed in: no operation", 0) < kills / 4
    assert figures["decision: reset"] > kills / 10
    assert figures["operation: clear"] > 0
    assert figures["writes owed and looked for"] > kills
    return figures


@pytest.mark.slow
def test_processes_killed_on_a_local_disk_keep_every_promise(tmp_path: Path) -> None:
    figures = kill(str(tmp_path / "disk"), 300)
    assert figures["stops"] > 0


@pytest.mark.slow
@on_ministack
def test_processes_killed_on_s3_keep_every_promise(bucket: Bucket) -> None:
    options = json.dumps(bucket.storage_options)
    kill(f"s3://{bucket.name}/some/root", 100, "--storage-options", options)


# What the loop would say if they did not.


@pytest.fixture
def backend(tmp_path: Path) -> LocalBackend:
    return LocalBackend(tmp_path)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def start(backend: LocalBackend, journal: Journal) -> Callable[[], Worker]:
    """Starts one process of the loop after the other, all of them in this one."""
    serials = itertools.count(1)

    def start() -> Worker:
        serial = next(serials)
        return Worker(backend.store(), journal, serial, random.Random(serial))

    return start


@pytest.fixture
def worker(start: Callable[[], Worker]) -> Worker:
    return start()


def begin(worker: Worker, inputs: str = "a", policy: str = "reset") -> Run:
    run = worker.resume(WORKFLOW, inputs, policy)
    assert run is not None
    return run


def found(journal: Journal) -> list[str]:
    journal.catch_up()
    return [kind for kind, _ in journal.violations]


HOW = pytest.mark.parametrize("how", ["read", "read a stream", "read many", "read all"])


@HOW
def test_what_was_written_is_no_violation(worker: Worker, journal: Journal, how: str) -> None:
    run = begin(worker)
    worker.read(run, "a", [TASK], how)
    worker.write(run, "a", [TASK])
    worker.write(run, "a", [TASK])
    worker.read(run, "a", [TASK], how)
    assert found(journal) == []
    assert journal.verified == {"found": 1, "owed": 1}


@HOW
def test_a_write_that_returned_and_is_not_found_is_lost(
    worker: Worker, journal: Journal, backend: LocalBackend, how: str
) -> None:
    run = begin(worker)
    worker.write(run, "a", [TASK])
    backend.remove(f"{WORKFLOW}/{TASK}@{run.token}")
    worker.read(run, "a", [TASK], how)
    assert found(journal) == ["lost"]


def test_a_write_that_a_reuse_does_not_find_in_either_generation_is_lost(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    older = begin(worker)
    worker.write(older, "a", [TASK])
    newer = begin(worker, "b", "reuse")
    worker.read(newer, None, [TASK], "read")
    assert found(journal) == []
    worker.write(newer, "b", [TASK])
    backend.remove(f"{WORKFLOW}/{TASK}@{newer.token}")
    worker.read(newer, None, [TASK], "read")
    assert found(journal) == ["lost"]
    backend.remove(f"{WORKFLOW}/{TASK}@{older.token}")
    worker.read(newer, None, [TASK], "read")
    assert found(journal) == ["lost", "lost"]


def test_a_write_that_another_reset_or_cleared_is_not_lost(
    start: Callable[[], Worker], journal: Journal
) -> None:
    worker, other = start(), start()
    for undo in (lambda: begin(other, "b"), lambda: other.store.clear(WORKFLOW)):
        run = begin(worker)
        worker.write(run, "a", [TASK])
        undo()
        worker.read(run, "a", [TASK], "read")
    assert found(journal) == []
    assert journal.done["is_current"] == 2


def test_a_value_that_a_later_write_had_replaced_is_lost(
    start: Callable[[], Worker], journal: Journal
) -> None:
    worker = start()
    run = begin(worker)
    worker.write(run, "a", [TASK])
    first = run.read(TASK)
    start().write(run, "a", [TASK])
    run.write(TASK, first)
    worker.read(run, "a", [TASK], "read")
    assert found(journal) == ["lost"]


@pytest.mark.parametrize("late", [False, True])
def test_a_write_whose_process_was_killed_is_owed_by_nobody(
    start: Callable[[], Worker], journal: Journal, *, late: bool
) -> None:
    worker, dead = start(), start()
    run = begin(worker)
    label = Label(WORKFLOW, run.token, TASK, "a", dead.serial, 1, 0)
    journal.append("begin", dead.serial, 1, "write", WORKFLOW, run.token, [TASK])
    journal.append("dead", dead.serial, late)
    worker.read(run, "a", [TASK], "read")
    worker.write(run, "a", [TASK])
    assert found(journal) == []
    run.write(TASK, payload(label))  # On S3 the request may arrive as late as this.
    worker.read(run, "a", [TASK], "read")
    assert found(journal) == ([] if late else ["lost"])


def test_what_other_inputs_made_is_stale_unless_it_is_reused(
    worker: Worker, journal: Journal
) -> None:
    run = begin(worker)
    worker.write(run, "a", [TASK])
    worker.read(run, None, [TASK], "read")
    assert found(journal) == []
    worker.read(run, "b", [TASK], "read")
    assert found(journal) == ["stale"]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"token": "0123456789abcdef"}, "stale"),
        ({"task": "t1"}, "another's"),
        ({"workflow": "wf-1"}, "another's"),
    ],
)
def test_a_value_from_elsewhere_is_noticed(
    worker: Worker, journal: Journal, changes: dict[str, str], kind: str
) -> None:
    run = begin(worker)
    label = Label(WORKFLOW, run.token, TASK, "a", 1, 1, 100)
    run.write(TASK, payload(label._replace(**changes)))
    worker.read(run, "a", [TASK], "read")
    assert found(journal) == [kind]


def test_a_value_that_is_not_whole_is_torn_whether_the_library_notices_or_not(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    run = begin(worker)
    run.write(TASK, payload(Label(WORKFLOW, run.token, TASK, "a", 1, 1, 100))[:-1])
    worker.read(run, "a", [TASK], "read")
    key = f"{WORKFLOW}/{TASK}@{run.token}"
    backend.put(key, backend.files()[key][:-1])
    worker.read(run, "a", [TASK], "read")
    assert found(journal) == ["torn", "torn"]


@pytest.mark.parametrize("policy", ["reset", "reuse", "raise"])
def test_a_torn_record_is_noticed_under_every_policy(
    worker: Worker, journal: Journal, backend: LocalBackend, policy: str
) -> None:
    begin(worker)
    backend.put(f"{WORKFLOW}/{RECORD}", b"{")
    worker.resume(WORKFLOW, "a", policy)
    assert found(journal) == ["torn"]


@pytest.mark.parametrize("leave", ["reset", "clear"])
def test_a_generation_that_comes_back_is_noticed(
    start: Callable[[], Worker], journal: Journal, backend: LocalBackend, leave: str
) -> None:
    worker, other = start(), start()
    begin(worker)
    record = backend.files()[f"{WORKFLOW}/{RECORD}"]
    if leave == "reset":
        begin(other, "b")
    else:
        other.perform("clear", WORKFLOW, lambda: other.store.clear(WORKFLOW))
    assert found(journal) == []
    backend.put(f"{WORKFLOW}/{RECORD}", record)
    begin(worker)
    assert found(journal) == ["undone"]


def test_an_error_that_should_not_occur_is_foreign(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    worker.resume(WORKFLOW, "a", "raise")
    worker.resume(WORKFLOW, "b", "raise")
    assert found(journal) == []
    assert journal.done["refused"] == 1
    Path(backend.url, "wf-1").write_bytes(b"a file in place of a folder")
    worker.resume("wf-1", "a", "reset")
    assert found(journal) == ["foreign"]


def test_a_line_that_a_kill_cut_short_is_passed_over(worker: Worker, journal: Journal) -> None:
    os.write(journal._file, b'\n["end", 1')
    begin(worker)
    assert found(journal) == []
    assert journal.done == {"resume reset": 1}
    assert set(journal.sightings) == set(WORKFLOWS)
