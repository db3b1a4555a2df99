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

from checkpoint_store._record import decode_record, encode_record

from ..harness import ROOT
from ..harness.backends import RECORD, LocalBackend
from ..harness.buckets import Bucket
from ..harness.environment import needs_fork
from ..harness.kill_loop import MIXED, WORKFLOWS, Handle, Journal, Label, Worker, payload
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
    assert figures["decision: reset, keeping tasks"] > kills / 30
    assert figures["of these, kept by a reset"] > 0
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


def begin(
    worker: Worker, inputs: str = "aa", policy: str = "reset", version: str | None = None
) -> Handle:
    handle = worker.resume(WORKFLOW, inputs, policy, version)
    assert handle is not None
    return handle


def found(journal: Journal) -> list[str]:
    journal.catch_up()
    return [kind for kind, _ in journal.violations]


HOW = pytest.mark.parametrize("how", ["read", "read a stream", "read many", "read all"])


@HOW
def test_what_was_written_is_no_violation(worker: Worker, journal: Journal, how: str) -> None:
    handle = begin(worker)
    worker.read(handle, [TASK], how)
    worker.write(handle, [TASK])
    worker.write(handle, [TASK])
    worker.read(handle, [TASK], how)
    assert found(journal) == []
    assert journal.verified == {"found": 1, "owed": 1, "kept": 0}


@HOW
def test_a_write_that_returned_and_is_not_found_is_lost(
    worker: Worker, journal: Journal, backend: LocalBackend, how: str
) -> None:
    handle = begin(worker)
    worker.write(handle, [TASK])
    backend.remove(f"{WORKFLOW}/{TASK}@{handle.run.token}")
    worker.read(handle, [TASK], how)
    assert found(journal) == ["lost"]


@pytest.mark.parametrize("version", [None, "1"])
def test_a_write_that_a_reuse_does_not_find_in_either_generation_is_lost(
    worker: Worker, journal: Journal, backend: LocalBackend, version: str | None
) -> None:
    older = begin(worker, version=version)
    worker.write(older, [TASK])
    newer = begin(worker, "ba", "reuse", version)
    worker.read(newer, [TASK], "read")
    assert found(journal) == []
    worker.write(newer, [TASK])
    backend.remove(f"{WORKFLOW}/{TASK}@{newer.tokens(TASK)[0]}")
    worker.read(newer, [TASK], "read")
    assert found(journal) == ["lost"]
    backend.remove(f"{WORKFLOW}/{TASK}@{older.tokens(TASK)[0]}")
    worker.read(newer, [TASK], "read")
    assert found(journal) == ["lost", "lost"]


def test_a_write_that_another_reset_or_cleared_is_not_lost(
    start: Callable[[], Worker], journal: Journal
) -> None:
    worker, other = start(), start()
    for undo in (lambda: begin(other, "ba"), lambda: other.store.clear(WORKFLOW)):
        handle = begin(worker)
        worker.write(handle, [TASK])
        undo()
        looks = journal.done["look"]
        worker.read(handle, [TASK], "read")
        assert found(journal) == []
        assert journal.done["look"] > looks


def test_a_write_that_a_reset_keeps_is_lost_if_it_is_not_found(
    start: Callable[[], Worker], journal: Journal, backend: LocalBackend
) -> None:
    worker = start()
    older = begin(worker, version="1")
    worker.write(older, [TASK])
    newer = begin(start(), "ab", version="1")
    assert older.run.token != newer.run.token
    worker.read(newer, [TASK], "read")
    assert found(journal) == []
    assert journal.verified == {"found": 1, "owed": 1, "kept": 1}
    backend.remove(f"{WORKFLOW}/{TASK}@{newer.tokens(TASK)[0]}")
    worker.read(newer, [TASK], "read")
    worker.read(older, [TASK], "read")
    assert found(journal) == ["lost", "lost"]


def test_a_value_that_a_later_write_had_replaced_is_lost(
    start: Callable[[], Worker], journal: Journal
) -> None:
    worker = start()
    handle = begin(worker)
    worker.write(handle, [TASK])
    first = handle.run.read(TASK)
    start().write(handle, [TASK])
    handle.run.write(TASK, first)
    worker.read(handle, [TASK], "read")
    assert found(journal) == ["lost"]


@pytest.mark.parametrize("late", [False, True])
def test_a_write_whose_process_was_killed_is_owed_by_nobody(
    start: Callable[[], Worker], journal: Journal, *, late: bool
) -> None:
    worker, dead = start(), start()
    handle = begin(worker)
    label = Label(WORKFLOW, handle.run.token, TASK, "aa", dead.serial, 1, 0)
    journal.append("begin", dead.serial, 1, "write", WORKFLOW, {TASK: handle.run.token})
    journal.append("dead", dead.serial, late)
    worker.read(handle, [TASK], "read")
    worker.write(handle, [TASK])
    assert found(journal) == []
    handle.run.write(TASK, payload(label))  # On S3 the request may arrive as late as this.
    worker.read(handle, [TASK], "read")
    assert found(journal) == ([] if late else ["lost"])


def test_what_other_inputs_made_is_stale_unless_it_is_reused(
    worker: Worker, journal: Journal
) -> None:
    worker.write(begin(worker), [TASK])
    reused = begin(worker, "ba", "reuse")
    worker.read(reused, [TASK], "read")
    assert found(journal) == []
    worker.read(reused._replace(strict=True), [TASK], "read")
    assert found(journal) == ["stale"]


@pytest.mark.parametrize("inputs", ["ba? in version 1", "a? in version 2", "aa", MIXED])
def test_what_a_declaration_does_not_cover_is_stale(
    worker: Worker, journal: Journal, inputs: str
) -> None:
    handle = begin(worker, version="1")
    token = handle.tokens(TASK)[0]
    assert token != handle.run.token
    for told, kinds in (("a? in version 1", []), (inputs, ["stale"])):
        handle.run.write(TASK, payload(Label(WORKFLOW, token, TASK, told, 1, 1, 100)))
        worker.read(handle, [TASK], "read")
        assert found(journal) == kinds


def test_what_another_version_made_is_stale_even_if_it_is_reused(
    worker: Worker, journal: Journal
) -> None:
    older = begin(worker, version="1")
    worker.write(older, [TASK])
    reused = begin(worker, "ba", "reuse", "1")
    worker.read(reused, [TASK], "read")
    assert found(journal) == []
    worker.read(reused._replace(version="2"), [TASK], "read")
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
    handle = begin(worker)
    label = Label(WORKFLOW, handle.run.token, TASK, "aa", 1, 1, 100)
    handle.run.write(TASK, payload(label._replace(**changes)))
    worker.read(handle, [TASK], "read")
    assert found(journal) == [kind]


def test_a_value_that_is_not_whole_is_torn_whether_the_library_notices_or_not(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    handle = begin(worker)
    token = handle.run.token
    handle.run.write(TASK, payload(Label(WORKFLOW, token, TASK, "aa", 1, 1, 100))[:-1])
    worker.read(handle, [TASK], "read")
    key = f"{WORKFLOW}/{TASK}@{token}"
    backend.put(key, backend.files()[key][:-1])
    worker.read(handle, [TASK], "read")
    assert found(journal) == ["torn", "torn"]


@pytest.mark.parametrize("policy", ["reset", "reuse", "raise"])
def test_a_torn_record_is_noticed_under_every_policy(
    worker: Worker, journal: Journal, backend: LocalBackend, policy: str
) -> None:
    begin(worker)
    backend.put(f"{WORKFLOW}/{RECORD}", b"{")
    worker.resume(WORKFLOW, "aa", policy)
    assert found(journal) == ["torn"]


@pytest.mark.parametrize("leave", ["reset", "clear"])
def test_a_generation_that_comes_back_is_noticed(
    start: Callable[[], Worker], journal: Journal, backend: LocalBackend, leave: str
) -> None:
    worker, other = start(), start()
    begin(worker)
    record = backend.files()[f"{WORKFLOW}/{RECORD}"]
    if leave == "reset":
        begin(other, "ba")
    else:
        other.perform("clear", WORKFLOW, lambda: other.store.clear(WORKFLOW))
    assert found(journal) == []
    backend.put(f"{WORKFLOW}/{RECORD}", record)
    begin(worker)
    assert found(journal) == ["undone"]


def test_a_token_of_a_task_may_outlive_a_reset_and_does_not_come_back_after_one(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    record = f"{WORKFLOW}/{RECORD}"
    first = begin(worker, "aa", version="1")
    kept = begin(worker, "ab", version="1")
    assert first.tokens(TASK) == kept.tokens(TASK)
    before = json.loads(backend.files()[record])["tasks"]
    begin(worker, "ba", version="1")
    begin(worker, "ab", version="1")
    assert found(journal) == []
    now = decode_record(backend.files()[record], WORKFLOW)
    assert now.tasks.keys() == before.keys()
    backend.put(record, encode_record(now._replace(tasks=before)))
    begin(worker, "ab", version="1")
    assert found(journal) == ["undone"]


def test_an_error_that_should_not_occur_is_foreign(
    worker: Worker, journal: Journal, backend: LocalBackend
) -> None:
    worker.resume(WORKFLOW, "aa", "raise")
    worker.resume(WORKFLOW, "ba", "raise")
    assert found(journal) == []
    assert journal.done["refused"] == 1
    Path(backend.url, "wf-1").write_bytes(b"a file in place of a folder")
    worker.resume("wf-1", "aa", "reset")
    assert found(journal) == ["foreign"]


def test_a_line_that_a_kill_cut_short_is_passed_over(worker: Worker, journal: Journal) -> None:
    os.write(journal._file, b'\n["end", 1')
    begin(worker)
    assert found(journal) == []
    assert journal.done == {"resume reset": 1, "look": 1}
    assert set(journal.sightings) == set(WORKFLOWS)
