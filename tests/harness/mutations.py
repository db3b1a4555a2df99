"""Removes one guard of the package at a time, and shows that a test notices.

    python -m tests.harness.mutations [NAME ...]

Each mutation is applied to a copy of the package, and the tests named with it are run against that
copy. A mutation that they survive is a guard that nothing checks, and the exit status is then 1.
`test_mutations.py` checks that each of them still applies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from . import ROOT


class Mutation(NamedTuple):
    file: str
    changes: tuple[tuple[str, str], ...]
    tests: str
    only: str = ""


def one(file: str, old: str, new: str, tests: str, only: str = "") -> Mutation:
    return Mutation(file, ((old, new),), tests, only)


PROTOCOL, RECORD, FRAME, RUN = "_protocol.py", "_record.py", "_frame.py", "_run.py"
POLICY, TASKS = "_policy.py", "_tasks.py"
LOCAL, LOCKS, S3 = "_filesystems/local.py", "_filesystems/locks.py", "_filesystems/s3.py"
DISK, ENGINE = "_filesystems/disk.py", "_filesystems/s3_engine.py"
S3_ERRORS, TRANSFERS = "_filesystems/s3_errors.py", "_filesystems/s3_transfers.py"
CRASHES, STREAMS = "protocol/test_crashes.py", "promises/test_streams.py"
FRAME_STREAMS = "formats/test_frame_streams.py"
LOCAL_TESTS, LOCAL_WRITES = "local/test_local_filesystem.py", "local/test_local_writes.py"
LOCAL_DISKS = "local/test_local_disks.py"
S3_TESTS, S3_CONDITIONS = "s3/test_s3_filesystem.py", "s3/test_s3_conditions.py"
RECORDS, TASK_TESTS = "formats/test_record.py", "protocol/test_tasks.py"
PARTIAL_RESETS = "promises/test_partial_resets.py"
PARTIAL_REUSE = "promises/test_partial_reuse.py"
S3_STREAMS, S3_SERVERS = "s3/test_s3_streams.py", "s3/test_s3_servers.py"

DETACH = "    yield from call(about, Filesystem.detach, _folder(workflow_id), RECORD, is_ours)\n"
"""The line with which a clear begins."""

MUTATIONS = {
    "a lost reply is not recognised by its nonce": one(
        PROTOCOL, "sent.get(found.nonce)", "{}.get(found.nonce)", CRASHES, "reply_was_lost"
    ),
    "a reset keeps its token": one(
        RECORD,
        "        token=secrets.token_hex(8),\n        base=None,",
        '        token="0123456789abcdef",\n        base=None,',
        CRASHES,
        "overtaken and memory",
    ),
    "the decision is that of the first look": one(
        PROTOCOL,
        "        record, decision = transition(found)\n",
        "        _, record, decision = next(iter(sent.values()), (0, *transition(found)))\n",
        CRASHES,
        "overtaken and memory",
    ),
    "the record is read before the list": Mutation(
        PROTOCOL,
        (
            (
                "    removed = 0\n",
                "    removed = 0\n    early = yield from read_record(workflow_id)\n",
            ),
            (
                "        record = yield from read_record(workflow_id)\n",
                "        record = early\n",
            ),
        ),
        CRASHES,
        "overtaken and memory",
    ),
    "a clear deletes the record last": Mutation(
        PROTOCOL,
        (
            (DETACH, "    removed = yield from collect(workflow_id, progress, cleared=True)\n"),
            (
                "    return (yield from collect(workflow_id, progress, cleared=True))\n",
                DETACH + "    return removed\n",
            ),
        ),
        "promises/test_nobody_elses.py",
        "clear and memory",
    ),
    "collecting deletes without a record": one(
        PROTOCOL, "record is None and not cleared", "False", CRASHES, "without_a_record"
    ),
    "collecting deletes the base": one(
        RECORD,
        "tokens if self.base is None else {*tokens, self.base}",
        "tokens",
        "promises/test_nothing_lost.py",
        "memory",
    ),
    "partial deletes are not raised": one(
        PROTOCOL, "    if failures:\n", "    if False:\n", "promises/test_never_silent.py", "memory"
    ),
    "the second question about conditions is not asked": one(
        PROTOCOL,
        "accepted and filesystem.conditional_writes is None",
        "False",
        S3_CONDITIONS,
        "ignores_conditions and ministack",
    ),
    "a mixture counts as the inputs": one(
        "_policy.py",
        "    if record.base is not None:\n        reason",
        "    if False:\n        reason",
        "protocol/test_policy.py",
    ),
    "the checksum of a record is not compared": one(
        RECORD,
        'parsed.pop("checksum", None) != _checksum(parsed)',
        'not parsed.pop("checksum", None)',
        "formats/test_record.py",
        "bit",
    ),
    "a record may be of any size": one(
        RECORD,
        "if len(data) > MAX_RECORD_BYTES:\n            raise ValueError",
        "if False:\n            raise ValueError",
        "formats/test_record.py",
    ),
    "a record may be another workflow's": one(
        RECORD, "if record.workflow != workflow:", "if False:", "formats/test_record.py"
    ),
    "a key may occur twice": one(
        "_json.py", "if len(parsed) != len(pairs):", "if False:", "formats/test_frame.py", "hostile"
    ),
    "the checksum of a checkpoint is not compared": one(
        FRAME, "if trailer != self.trailer():", "if False:", "formats/test_frame.py", "bit"
    ),
    "a checkpoint may be another's": one(
        FRAME,
        "    _check_identity(header, expected)\n    return",
        "    return",
        "formats/test_frame.py",
        "another_checkpoint",
    ),
    "a header may be of any size": one(
        FRAME,
        "    head = file[:MAX_HEADER_BYTES]\n",
        "    head = file[:]\n",
        "formats/test_frame.py",
        "hostile",
    ),
    "a failed block publishes what it has": one(
        FRAME,
        "        if kind is not None:\n",
        "        if False:\n",
        FRAME_STREAMS,
        "error_in_the",
    ),
    "a failed write is not final": one(
        FRAME, '            self._lose("a write failed")\n', "", FRAME_STREAMS, "failed_write"
    ),
    "the newer checkpoint is deleted first": one(
        "_checkpoints.py",
        "for header in reversed(headers):",
        "for header in headers:",
        CRASHES,
        "older_value_back",
    ),
    "the serializer of a file is not compared": one(
        "_serializer.py",
        "if self.name not in (header.serializer, _today(header.serializer)):",
        "if False:",
        "formats/test_serializer.py",
        "serializer",
    ),
    "a spawned worker's main module is another": one(
        "_modules.py",
        'MAIN = ("__main__", "__mp_main__")',
        'MAIN = ("__main__",)',
        "formats/test_serializer.py",
        "spawn",
    ),
    "a module that runs is only a script": one(
        "_modules.py", "spec is None", "True", "formats/test_serializer.py", "spawn"
    ),
    "an object without a name goes by its class": one(
        "_serializer.py",
        "if not _is_defined_by(kind, function, implementation):",
        "if False:",
        "formats/test_serializer.py",
        "nameless or name_of_its_own",
    ),
    "a workflow is named as often as the list returns to it": one(
        S3,
        ' if seen.is_new(f"{folder}/")',
        "",
        S3_TESTS,
        "pieces",
    ),
    "pruning clears what a newer version has written": one(
        "_store.py",
        "except UnsupportedFormatError as error:\n",
        "except ZeroDivisionError as error:\n",
        "promises/test_retention.py",
        "newer",
    ),
    "what came in order is forgotten": one(
        S3,
        'set(zlib.decompress(self._compressed).decode().split("\\n"))',
        "set()",
        S3_TESTS,
        "pieces",
    ),
    "an ARN ends at its first slash": one(
        S3,
        'arn[0] if arn else path.partition("/")[0]',
        'path.partition("/")[0]',
        "filesystems/test_urls.py",
        "arn",
    ),
    "a file is not synced": one(
        LOCAL, "            os.fsync(self._descriptor)\n", "            pass\n", LOCAL_WRITES
    ),
    "a folder is not synced": one(
        LOCAL, "                os.fsync(descriptor)\n", "                pass\n", LOCAL_WRITES
    ),
    "a swap does not compare": one(
        LOCAL,
        "        if current != old:",
        "        if False:",
        CRASHES,
        "overtaken and local",
    ),
    "a swap takes no lock": one(
        LOCAL,
        'return self._locked(key.partition("/")[0], lambda: self._swap(key, old, data))',
        "return self._swap(key, old, data)",
        "promises/test_processes.py",
        "exactly_one_wins and local",
    ),
    "a record is created by rename": one(
        LOCAL,
        "        self._place = link if create else os.replace\n",
        "        self._place = os.replace\n",
        LOCAL_WRITES,
        "past_the_lock",
    ),
    "a failed link replaces what is there": one(
        DISK,
        "isinstance(error, FileExistsError) or os.path.lexists(path)",
        "isinstance(error, FileExistsError)",
        LOCAL_WRITES,
        "whatever_the_error",
    ),
    "a link of its own counts as another's": one(
        DISK, "st_nlink == 2", "st_nlink == 0", LOCAL_WRITES, "reply_was_lost"
    ),
    "a thread waits for its own lock": one(
        LOCKS, "    if mine in _at_work:\n", "    if False:\n", "local/test_locks.py"
    ),
    "a forked child holds its parent's locks": one(
        LOCKS,
        "after_in_child=_at_work.clear",
        "after_in_child=_at_work.copy",
        "local/test_locks.py",
    ),
    "what an interrupt left is held for ever": one(
        LOCKS, "            _at_work.discard(mine)\n", "", "local/test_locks.py"
    ),
    "an interrupted release is not made up for": one(
        LOCKS,
        "            lock.release(force=True)  # An",
        "            # An",
        "local/test_locks.py",
    ),
    "each case has a lock of its own": one(
        LOCKS, "folder.lower()", "folder", LOCAL_TESTS, "lock_of_a_workflow"
    ),
    "a swap in memory lets its own thread in": one(
        "_filesystems/memory.py", "    if _swapping:\n", "    if False:\n", "local/test_locks.py"
    ),
    "a mount's caveat is ignored": one(
        "_store.py", "None if self._filesystem.caveat else", "", "local/test_mounts.py"
    ),
    "a mount's caveat is not told": one(
        PROTOCOL, "elif filesystem.caveat:", "elif False:", "local/test_mounts.py"
    ),
    "FUSE counts as a local disk": one(
        "_filesystems/mounts.py", ' or kind.startswith("fuse.")', "", "local/test_mounts.py"
    ),
    "a sweep takes no lock": one(
        DISK,
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        LOCAL_TESTS,
        "temporary or writer",
    ),
    "links are followed": one(
        LOCAL,
        '{folder}"\n            refuse_link(path)\n',
        '{folder}"\n',
        "local/test_local_faults.py",
        "symbolic",
    ),
    "a folder that folds case merges names": one(
        LOCAL,
        "if self._folds_case and os.path.lexists(path)",
        "if False and os.path.lexists(path)",
        LOCAL_DISKS,
        "folds_case",
    ),
    "denied counts as missing": one(
        S3_ERRORS,
        'if code == "NoSuchKey" and operation',
        'if code in ("NoSuchKey", "AccessDenied") and operation',
        S3_TESTS,
        "ministack",
    ),
    "errors within a reply to deletes are ignored": one(
        ENGINE, 'for error in reply.get("Errors", ())', "for error in ()", S3_TESTS, "ministack"
    ),
    "a refused swap counts as done": one(
        S3,
        "        return not refused\n",
        "        return True\n",
        S3_CONDITIONS,
        "swap and ministack",
    ),
    "a reply without an ETag is a version": one(
        S3, "        if not stored.etag:", "        if False:", "s3/test_s3_faults.py", "malformed"
    ),
    "an abandoned upload is not aborted": one(
        TRANSFERS,
        '"abort_multipart_upload", Key=self._key',
        '"list_parts", Key=self._key',
        S3_STREAMS,
        "ministack",
    ),
    "requests go on for ever": one(
        ENGINE, '"total_max_attempts": 5', '"total_max_attempts": 9', S3_CONDITIONS, "busy"
    ),
    "a redirect is followed without an end": one(
        ENGINE,
        '["redirected"] = True',
        '["redirected"] = False',
        S3_SERVERS,
        "PermanentRedirect-give",
    ),
    "an exception that arose before a stream counts as one since": one(
        "_handling.py", "error if _clauses(sys._getframe()) > clauses else None", "error", STREAMS
    ),
    "an exception that is raised again is not noticed": one(
        "_handling.py", "error if _clauses(sys._getframe()) > clauses else None", "None", STREAMS
    ),
    "a clause that has not begun counts": one(
        "_handling.py", "                is_within = False", "                pass", STREAMS
    ),
    "a stream that is closed in an except block is published": one(
        FRAME,
        "(error := self._opened.arisen()) is not None",
        "(error := self._opened.arisen()) is not None and False",
        STREAMS,
    ),
    "what is handled around a stream's own block counts": one(
        FRAME, "        self._opened = Moment()\n        return", "        return", STREAMS
    ),
    "a wrapper's finalizer publishes": one(
        FRAME, "def _dealloc_warn(self", "def dealloc_warn(self", STREAMS
    ),
    "a block that ends cleanly with nothing published is silent": one(
        FRAME, "elif self._lost or not self.closed:", "elif not self.closed:", STREAMS
    ),
    "an upload that is dropped stays": one(
        "_filesystems/base.py", "    __del__ = discard\n", "", STREAMS, "interrupted"
    ),
    "a spooled file is named after it was made": one(
        "_filesystems/generic.py",
        "        super().__init__()\n        self._descriptor = os.open(self._path, CREATE, 0o600)",
        "        self._descriptor = os.open(self._path, CREATE, 0o600)\n        super().__init__()",
        STREAMS,
        "interrupted",
    ),
    "an interrupt loses the id of an upload": one(
        TRANSFERS,
        "await asyncio.shield(self._beginning)",
        "await self._beginning",
        S3_SERVERS,
        "behind",
    ),
    "fsspec's own thread waits for what only it can receive": one(
        ENGINE,
        "        if running_loop() is not self.loop:\n            with suppress(OSError):",
        "        if True:\n            with suppress(OSError):",
        S3_SERVERS,
        "own_thread",
    ),
    "checksums of parts are not declared": one(
        ENGINE, 'declared["ChecksumAlgorithm"] = "CRC32"', "pass", S3_SERVERS, "checksum"
    ),
    "an ETag keeps its quotes": one(
        S3,
        'refused == "412"\n',
        'refused == "x"\n',
        S3_SERVERS,
        "bare",
    ),
    "a bare ETag is tried whatever changed": one(
        S3, "and await self._is_still(engine, key, old)", "", S3_SERVERS, "bare"
    ),
    "a 429 is not tried again": one(
        ENGINE, "if http.status_code == 429:", "if False:", S3_SERVERS, "429"
    ),
    "Retry-After is ignored": one(ENGINE, "attempts >= most:", "attempts >= 0:", S3_SERVERS, "429"),
    "expired credentials are not looked for anew": one(
        ENGINE, 'if answer_of(error)[1] != "ExpiredToken":', "if True:", S3_SERVERS, "expired"
    ),
    "a body is sent again from where it ended": one(
        ENGINE, '            parameters["Body"].seek(0)\n', "            pass\n", S3_SERVERS, "anew"
    ),
    "a server that refuses for ever is called contention": one(
        PROTOCOL, "len(versions) == 1", "len(versions) == 0", S3_SERVERS, "for_ever"
    ),
    "large bodies are read in a thread": one(
        TRANSFERS, "class Body:", "class Body(__import__('io').RawIOBase):", S3_SERVERS, "at_exit"
    ),
    "a token may stand twice in a record": one(
        RECORD, "if len(record.live) < ", "if False and len(record.live) < ", RECORDS, "twice"
    ),
    "keys of a base need no base": one(
        RECORD, "if base_tasks and record.base is None:", "if False:", RECORDS, "twice"
    ),
    "what is under a key is garbage": one(
        RECORD,
        "*self.tasks.values(), *self.base_tasks",
        "*self.base_tasks",
        PARTIAL_RESETS,
        "memory",
    ),
    "what is under a key of the base is garbage": one(
        RECORD,
        "*self.tasks.values(), *self.base_tasks.values()",
        "*self.tasks.values()",
        PARTIAL_REUSE,
        "memory",
    ),
    "a reset keeps what a reuse has mixed": one(
        RECORD,
        "return self.tasks if self.base is None else self.base_tasks",
        "return {**self.base_tasks, **self.tasks}",
        RECORDS,
        "mixture",
    ),
    "a reset keeps tokens by the names of tasks": one(
        POLICY,
        "kept = found.pure if isinstance(found, Record) else {}",
        "kept = dict(zip(keys, found.pure.values())) if isinstance(found, Record) else {}",
        PARTIAL_RESETS,
        "memory",
    ),
    "a reuse reads another version": one(
        POLICY,
        "older = {} if record.base is None else given.keys_of(record.inputs)",
        "older = dict(zip(given.tasks, record.base_tasks))",
        PARTIAL_REUSE,
        "memory",
    ),
    "what is declared makes room": one(
        RECORD, "if key in needed", "if key not in needed", RECORDS, "room"
    ),
    "the version is not in the key": one(
        TASKS, '"version": task.version,', '"version": None,', TASK_TESTS, "key"
    ),
    "what a task comes after is not in its key": one(
        TASKS,
        "keys[other] for other in task.after}",
        "0 for other in task.after}",
        TASK_TESTS,
        "key",
    ),
    "an ignored input may be used": one(
        TASKS, "if used in ignore:", "if False:", TASK_TESTS, "refused"
    ),
    "the first of the dependents goes first": one(
        TASKS, "reversed(list(after))", "list(after)", TASK_TESTS, "dependents"
    ),
    "a key may stand in both": one(
        RECORD, "if tasks.keys() & base_tasks.keys():", "if False:", RECORDS, "twice"
    ),
    "anything may be a key": one(
        RECORD, " or not all(map(_DIGEST.fullmatch, tokens))", "", RECORDS, "hostile and key"
    ),
    "keys are added without a new nonce": one(
        RECORD,
        "tasks={**record.tasks, **new}, nonce=secrets.token_hex(16), updated",
        "tasks={**record.tasks, **new}, updated",
        RECORDS,
        "nonce",
    ),
    "keys are forgotten where others are added": one(
        RECORD, "tasks={**record.tasks, **new}", "tasks=new", RECORDS, "stay"
    ),
    "a reuse writes under the token of the base": one(
        POLICY,
        'all_tokens = tokens[key], record.base_tasks.get(pair[1] or "")',
        'all_tokens = record.base_tasks.get(pair[1] or ""), tokens[key]',
        PARTIAL_REUSE,
        "memory",
    ),
    "tasks of a mixture are opened without its inputs": one(
        POLICY,
        "found.inputs is None or found.base is not None:",
        "found.inputs is None:",
        PARTIAL_RESETS,
        "not_known and memory",
    ),
    "tasks may come after one another in a circle": one(
        TASKS, "for name in order.static_order()}", "for name in tasks}", TASK_TESTS, "refused"
    ),
    "a task may use an input that is not there": one(
        TASKS, "if used not in inputs:", "if False:", TASK_TESTS, "refused"
    ),
    "a task that does not say what it uses uses nothing": one(
        TASKS, "inputs.keys() if task.uses is None", "() if task.uses is None", TASK_TESTS, "uses"
    ),
    "more keys than a record holds are noticed late": one(
        "_resume.py",
        "    encode_record(new_record(workflow_id, current, digests, given.keys.values()))\n",
        "",
        TASK_TESTS,
        "more_than",
    ),
    "a record with tasks is of version 1": one(
        RECORD, '"checkpoint_store": 2, **inputs', "**inputs", RECORDS, "version"
    ),
}


def mutated(mutation: Mutation) -> str:
    """The text of the file without the guard, which must stand there exactly once."""
    text = (ROOT / "checkpoint_store" / mutation.file).read_text()
    for old, new in mutation.changes:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.file} has {text.count(old)} times {old!r}")
        text = text.replace(old, new)
    return text


def survives(mutation: Mutation, folder: Path) -> bool:
    for part in ("checkpoint_store", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "checkpoint_store" / mutation.file).write_text(mutated(mutation))
    cache = ROOT / ".pytest_cache"
    command = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{mutation.tests}"]
    command += ["-o", f"cache_dir={cache}", "-k", mutation.only or "test"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        raise RuntimeError(run.stdout[-2_000:] + run.stderr[-2_000:])
    return run.returncode == 0


def main(names: list[str]) -> int:
    alive = []
    for name in names or MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            survived = survives(MUTATIONS[name], Path(folder))
        print("SURVIVED" if survived else "noticed ", name, flush=True)  # noqa: T201
        if survived:
            alive.append(name)
    print(f"{len(names or MUTATIONS) - len(alive)} noticed, {len(alive)} survived")  # noqa: T201
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
