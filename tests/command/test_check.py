"""How the check goes about it: each row by itself, over two processes, and within its time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import CheckpointStore
from checkpoint_store._command import check as _check
from checkpoint_store._command import races as _races
from checkpoint_store._command.check import Finding, check
from checkpoint_store._command.command import main
from checkpoint_store._command.races import Team
from checkpoint_store._command.report import Report
from checkpoint_store._filesystems import memory
from checkpoint_store._filesystems.base import Stored
from checkpoint_store._filesystems.local import LocalFilesystem

from ..harness.buckets import Bucket
from ..harness.command import CANARY, CONDITIONAL, UNCONDITIONAL, failed, marks, s3_arguments
from ..harness.s3 import on_ministack
from ..harness.servers import Proxy, Request, Response, error

NEED_A_RECORD = UNCONDITIONAL - {"durable publish"}
THEIRS = set(range(_races.THREADS // 2, _races.THREADS))
"""The contestants in the second process."""


def is_conditional(request: Request) -> bool:
    return bool({name.lower() for name in request.headers} & {"if-match", "if-none-match"})


def findings(place: Path | str, **arguments: Any) -> dict[str, Finding]:
    options = arguments.pop("options", None)
    with (
        CheckpointStore(place, storage_options=options) as store,
        CheckpointStore(place, storage_options=options) as other,
        closing(check(store, other, options, **arguments)) as found,
    ):
        return {finding.promise: finding for finding in found}


# A row that fails, or a demonstration, stops no other


@on_ministack
def test_a_server_that_rejects_conditions_has_a_line_for_each_promise(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def reject(request: Request) -> Response | None:
        return error(501, "NotImplemented") if is_conditional(request) else None

    proxy.on_request = reject
    assert main(s3_arguments(bucket, proxy.endpoint)) == 1

    output, errors = capsys.readouterr()
    assert errors == ""
    assert set(marks(output)) == CONDITIONAL | UNCONDITIONAL
    assert failed(output) == CONDITIONAL | NEED_A_RECORD
    (told,) = re.findall("^  The demonstration FAILED: .*$", output, re.MULTILINE)
    assert "S3 answered 501 NotImplemented" in told
    assert "choose a server that has If-None-Match and If-Match" in told
    assert re.search("missing is missing  no workflow can begin: S3 answered 501", output)
    assert output.count("the same as: missing is missing") == len(NEED_A_RECORD) - 1
    assert re.search("exclusive create +S3 answered 501 NotImplemented", output)
    assert output.count("the same as: exclusive create") == len(CONDITIONAL) - 1
    assert "No workflow can begin here" in output
    assert "The demonstration failed here" in output
    assert "Every promise" not in output
    assert bucket.keys() == []


@on_ministack
def test_a_bucket_that_takes_conditional_writes_alone_is_examined(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def enforce(request: Request) -> Response | None:
        plain = request.method == "PUT" and not is_conditional(request)
        return error(403, "AccessDenied") if plain else None

    proxy.on_request = enforce
    assert main(s3_arguments(bucket, proxy.endpoint)) == 1

    output = capsys.readouterr().out
    assert {"read after write", "whole reads"} <= failed(output)
    assert failed(output) & (CONDITIONAL | {"missing is missing"}) == set()
    assert bucket.keys() == []


@on_ministack
def test_a_bucket_that_takes_no_write_at_all_is_unreachable(
    bucket: Bucket, proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forbid(request: Request) -> Response | None:
        return error(403, "AccessDenied") if request.method == "PUT" else None

    proxy.on_request = forbid
    assert main(s3_arguments(bucket, proxy.endpoint)) == 2

    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert "S3 answered 403 AccessDenied" in errors


def test_a_demonstration_that_fails_spoils_the_verdict_and_no_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionResetError("the server hung up")

    monkeypatch.setattr("checkpoint_store._command.demo.extract", fail)

    assert main(["memory://demonstration"]) == 1

    output = capsys.readouterr().out
    assert "The demonstration FAILED: the demonstration: the server hung up" in output
    assert failed(output) == set()
    assert "Every promise" not in output


def test_what_no_row_can_try_has_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caveat = property(lambda _: "this is a network mount: other hosts were not tried")
    monkeypatch.setattr(LocalFilesystem, "caveat", caveat)

    assert main([str(tmp_path)]) == 0

    output = capsys.readouterr().out
    assert marks(output)["other mounts, hosts"] == "--"
    assert "this is a network mount: other hosts were not tried" in output
    assert "Every promise that can be tried here is kept." in output


# Two processes, and a connection for each contestant


def test_both_processes_take_part_in_a_hundred_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A slow machine makes them, too.
    monkeypatch.setattr("checkpoint_store._command.check.SECONDS", 600.0)
    found = findings(tmp_path)

    for promise in ("exclusive create", "compare-and-swap"):
        assert found[promise].detail == (
            "100 rounds, 8 threads in 2 processes: one winner each (lock)"
        )
    assert found["no lost update"].detail == (
        "96 updates by 8 threads in 2 processes: none was lost"
    )
    created = [path.read_bytes() for path in (tmp_path / "create").glob("race-*")]
    assert len(created) == 100
    winners = {int(data.split()[-1]) for data in created}
    assert winners & THEIRS
    assert winners - THEIRS
    updates = (tmp_path / "swap" / "updates").read_bytes().split()[1:]
    assert {int(update.split(b"-")[0]) for update in updates} == set(range(8))


def test_the_second_process_is_told_nothing_on_its_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[tuple[Sequence[str], Mapping[str, Any]]] = []

    class Spy(subprocess.Popen):
        def __init__(self, command: Sequence[str], **options: Any) -> None:
            started.append((command, options))
            super().__init__(command, **options)

    monkeypatch.setattr(subprocess, "Popen", Spy)
    options = {"secret": CANARY}
    with Team("s3://bucket/place", options, second=True):
        pass

    ((command, given),) = started
    assert command == [sys.executable, "-c", _races._START]
    assert CANARY not in repr(given)
    assert "place" not in repr(given)
    assert "env" not in given


def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from checkpoint_store._command.command import main\n"
        "print('begin', flush=True)\n"
        f"main([{str(tmp_path / 'place')!r}])\n"
    )

    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    assert done.stderr == ""
    assert done.stdout.count("begin") == 1
    assert done.stdout.count(" 8 threads in 2 processes: ") == 3


@on_ministack
def test_each_contestant_on_s3_has_a_connection_of_its_own(bucket: Bucket, proxy: Proxy) -> None:
    with Team(f"s3://{bucket.name}/root", bucket.options(proxy.endpoint), second=True) as team:
        team.gather()
        assert proxy.connections == 8
        assert team.swap("create/one", None, 0).count(True) == 1
        assert team._crew
        assert len({id(each._engine) for each in team._crew._connections}) == 4


def test_memory_is_raced_for_by_threads_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory://threads"]) == 0

    assert capsys.readouterr().out.count(" 8 threads in 1 process: ") == 3


def test_a_second_process_that_does_not_start_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_check, "RACES", 3)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))

    found = findings(tmp_path)

    for promise in CONDITIONAL:
        assert found[promise].kept
        assert " 8 threads in 1 process: " in found[promise].detail
        assert "; a second process did not start: " in found[promise].detail


def test_a_second_process_that_cannot_connect_is_done_without() -> None:
    class Conditional(MemoryFileSystem):
        protocol = "onlyhere"
        store: dict[str, Any] = {}  # noqa: RUF012
        pseudo_dirs = [""]  # noqa: RUF012

    fsspec.register_implementation("onlyhere", Conditional, clobber=True)

    with Team("onlyhere://folder", {}, second=True) as team:
        assert len(team.swap("create/one", None, 0)) == 8
        assert str(team) == "8 threads in 1 process"
        assert team.note.startswith("the second process failed: 'onlyhere://folder' has a protocol")


def test_a_second_process_that_ends_in_a_race_is_done_without(tmp_path: Path) -> None:
    with Team(str(tmp_path), {}, second=True) as team:
        assert team.swap("create/one", None, 0).count(True) == 1
        assert team._second
        process = team._second._process
        process.kill()
        process.wait()

        results = team.swap("create/two", None, 0)

        assert results[:4].count(True) == 1
        assert results[4:] == [None] * 4
        assert str(team) == "4 threads in 1 process"
        assert team.note.startswith("the second process failed: it ended with status ")
        assert team.update("create/two", 1, 5.0) == [1] * 4


def test_a_second_process_that_is_something_else_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_races, "_START", "import time; print('hi', flush=True); time.sleep(600)")

    with Team(str(tmp_path), {}, second=True) as team:
        assert team.swap("create/one", None, 0).count(True) == 1
        assert team.note.startswith("the second process failed: it ended with status ")


def test_a_second_process_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_races, "_START", "import time; time.sleep(600)")
    monkeypatch.setattr(_races, "_PATIENCE", 0.1)
    monkeypatch.setattr(_races, "_FAREWELL", 0.1)

    with Team(str(tmp_path), {}, second=True) as team:
        assert team._second
        process = team._second._process
        assert team.swap("create/one", None, 0).count(True) == 1
        assert team.note == "the second process failed: it did not answer within 0 s"

    assert process.returncode is not None


def test_the_second_process_has_ended_before_the_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    at_removal: list[int | None] = []
    popen, rmtree = subprocess.Popen, shutil.rmtree

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        return started[-1]

    def remove(path: str) -> None:
        at_removal.extend(process.returncode for process in started)
        rmtree(path)

    def interrupt(_report: object, _finding: Finding) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(shutil, "rmtree", remove)
    monkeypatch.setattr(Report, "find", interrupt)

    assert main([str(tmp_path)]) == 130

    assert at_removal == [0]
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_in_a_race_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    swap = memory.MemoryFilesystem.swap

    def refuse(self, key, old, data):
        if b" by " in data or b"-" in data:
            raise PermissionError("not in a race")
        return swap(self, key, old, data)

    monkeypatch.setattr(memory.MemoryFilesystem, "swap", refuse)
    monkeypatch.setattr(_check, "SECONDS", 0)

    found = findings("memory://refused")
    MemoryFileSystem().rm("/refused", recursive=True)

    assert found["exclusive create"].detail == "not in a race"
    assert found["compare-and-swap"].detail == "not in a race"
    assert found["no lost update"].detail == "each update was refused for 0 s"


# Within its time


@on_ministack
def test_a_slow_server_is_asked_for_fewer_rounds(
    bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the clock of this test 25 requests take as long as a row may."""
    monkeypatch.setattr(_check, "SECONDS", 0.25)
    asked: dict[str, int] = {}
    details: dict[str, str] = {}
    options = bucket.options(proxy.endpoint)
    with (
        CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as store,
        CheckpointStore(f"s3://{bucket.name}/root", storage_options=options) as other,
        closing(check(store, other, options, clock=lambda: 0.01 * len(proxy.requests))) as found,
    ):
        for finding in found:
            asked[finding.promise] = len(proxy.take())
            details[finding.promise] = finding.detail
            assert finding.kept is not False

    assert re.match("[1-4] of 100 rounds within 0.25 s, 8 threads", details["exclusive create"])
    assert re.match("[1-4] of 100 rounds within 0.25 s, 8 threads", details["compare-and-swap"])
    assert re.match(r"\d+ of 10 deleted files within 0.25 s", details["list after delete"])
    assert re.match(r"\d+ reads beside \d+ writes within 0.25 s", details["whole reads"])
    # Those of a last round, and of what comes before the first, are added. The others have
    # nothing but a single round.
    many = {name: count for name, count in asked.items() if count > 25 + 20}
    assert set(many) <= {"sibling-safe clear", "no lost update"}


def test_a_row_that_is_late_has_made_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_check, "SECONDS", 0)

    details = {name: finding.detail for name, finding in findings("memory://late").items()}
    MemoryFileSystem().rm("/late", recursive=True)

    assert details["read after write"].startswith("1 of 10 versions within 0 s: ")
    assert details["list after write"].startswith("1 of 10 new files within 0 s: ")
    assert details["list after delete"].startswith("1 of 10 deleted files within 0 s: ")
    assert details["exclusive create"].startswith("1 of 100 rounds within 0 s, 8 threads")
    assert details["compare-and-swap"].startswith("1 of 100 rounds within 0 s, 8 threads")
    assert re.match("[1-8] of 96 updates within 0 s by 8 threads", details["no lost update"])
    reads, writes = map(int, re.findall(r"(\d+) (?:reads|writes)", details["whole reads"]))
    assert reads >= 1
    assert writes >= 2


@pytest.mark.parametrize("slow", ["read", "write"])
def test_neither_readers_nor_writers_run_away_from_the_others(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_check, "AHEAD", 2)
    calls = {"read": 0, "write": 0}

    def counting(name):
        primitive = getattr(memory.MemoryFilesystem, name)

        def call(self, key, *arguments):
            if key.startswith("whole/task@"):
                calls[name] += 1
                time.sleep(0.05 if name == slow else 0)
            return primitive(self, key, *arguments)

        return call

    for name in calls:
        monkeypatch.setattr(memory.MemoryFilesystem, name, counting(name))

    assert findings("memory://apart")["whole reads"].kept
    MemoryFileSystem().rm("/apart", recursive=True)

    limit = _check.AHEAD * (_check.READS + 1) + 1
    assert _check.READS <= calls["read"] <= limit
    assert _check.READS <= calls["write"] <= limit


@pytest.mark.parametrize(("accepted", "made"), [(True, 1), (False, 0)])
def test_who_is_late_updates_no_more(*, accepted: bool, made: int) -> None:
    class Counting:
        tries = 0

        def read_small(self, _key: str) -> Stored:
            return Stored(b"begin ")

        def swap(self, *_: object) -> bool:
            self.tries += 1
            return accepted

    filesystem: Any = Counting()

    assert _races._update(filesystem, 0, key="key", updates=12, seconds=0) == made
    assert filesystem.tries == 1


def test_all_contestants_begin_at_once() -> None:
    """Each waits for all the others: one that was made to wait for another's end would break it."""
    together = threading.Barrier(_races.THREADS, timeout=30)

    def meet(*_: object) -> int:
        return together.wait()

    _races._JOBS["meet"] = meet
    try:
        with Team("memory://together", {}, second=False) as team:
            assert sorted(team._race("meet")) == list(range(_races.THREADS))
    finally:
        del _races._JOBS["meet"]
