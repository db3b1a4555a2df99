"""What is stored: the names and the format of the files, and which serializer made their content.

The files are looked at by another way than the code under test, on every kind of storage.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import types
from typing import Any

import pytest
import xxhash

from checkpoint_store import (
    CheckpointStore,
    InputChange,
    Run,
    SerializationError,
    fingerprint,
    plan,
    resume,
)

from ..harness import backends
from ..harness.backends import RECORD
from ..harness.contract import INPUTS, key_of

# Keys and files


def test_a_workflow_is_one_flat_folder_of_readable_names(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    run = resume(store, "day/1", INPUTS, on_input_change="reset")
    for task in ("load", "a/b", "a.b", ".x.y.", "x@1", "100%", "é", "Load"):
        if task in backend.distinct(["load", "Load"]) or task.casefold() != "load":
            run.write(task, b"")
    names = {key.removeprefix("day%2F1/").removesuffix(f"@{run.token}") for key in backend.files()}
    expected = {RECORD, "a%2Fb", "a.b", "%2Ex.y%2E", "x%401", "100%25", "%C3%A9"}
    assert expected | set(backend.distinct(["load", "Load"])) == names


def test_a_file_is_header_line_payload_length_and_checksum(
    backend: backends.Backend, run: Run
) -> None:
    run.write("task", b"pay\nload")
    data = backend.files()[key_of(run, "task")]
    header, _, rest = data.partition(b"\n")
    parsed = json.loads(header)
    assert parsed["checkpoint_store"] == 1
    assert ("wf", "task", run.token) == (parsed["workflow"], parsed["task"], parsed["token"])
    assert fingerprint(INPUTS) == parsed["inputs"]
    sealed = header + b"\n" + b"pay\nload" + struct.pack(">Q", 8)
    assert b"pay\nload" + struct.pack(">Q", 8) + xxhash.xxh3_128_digest(sealed) == rest


def test_a_streamed_file_and_a_written_one_have_the_same_format(
    backend: backends.Backend, run: Run
) -> None:
    def without_time(task: str) -> bytes:
        data = backend.files()[key_of(run, task)]
        return re.sub(rb'"created": "[^"]*"|"task": "[^"]*"', b"", data[:-16])

    run.write("whole", b"data")
    with run.open("stream", "wb") as stream:
        stream.write(b"da")
        stream.write(b"ta")
    assert without_time("whole") == without_time("stream")


def test_the_record_is_small_readable_json(backend: backends.Backend, run: Run) -> None:
    parsed = json.loads(backend.files()[f"wf/{RECORD}"])
    assert parsed["checkpoint_store"] == 1
    assert ("wf", run.token, None) == (parsed["workflow"], parsed["token"], parsed["base"])
    assert fingerprint(INPUTS) == parsed["fingerprint"]
    assert {"day", "limit"} == set(parsed["inputs"])
    assert parsed["nonce"]


def test_no_input_is_stored_but_its_digest(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    run = resume(store, "wf", {"password": "canary-5309"}, on_input_change="raise")
    run.write("task", b"data")
    assert b"canary" not in b"".join(backend.files().values())


def test_the_record_leaves_out_too_many_digests(
    backend: backends.Backend, store: CheckpointStore
) -> None:
    many = {f"input-{number}": number for number in range(2000)}
    run = resume(store, "wf", many, on_input_change="raise")
    assert len(backend.files()[f"wf/{RECORD}"]) <= 64 * 1024
    assert run.token == resume(store, "wf", many, on_input_change="raise").token
    change = plan(store, "wf", {**many, "input-0": 1}, on_input_change="raise").change
    assert InputChange((), (), (), "the fingerprint differs") == change


def test_only_what_happened_is_in_the_storage(backend: backends.Backend, run: Run) -> None:
    run.write("task", b"data")
    run.dump("task", 1)
    with run.open("task", "wb") as stream:
        stream.write(b"data")
    run.write_many({"task": b"1", "task2": b"2"})
    assert {f"wf/{RECORD}", key_of(run, "task"), key_of(run, "task2")} == backend.files().keys()
    assert backend.unfinished_uploads() == []


# Serializers


class Shouting:
    """Dumps to bytes, by an object and not a module."""

    def dumps(self, value: object) -> bytes:
        return str(value).upper().encode()

    def loads(self, data: bytes) -> str:
        assert type(data) is bytes
        return data.decode()


def test_json_is_the_default_serializer(run: Run) -> None:
    value = {"a": [1, 2.5, None, "é"]}
    assert run.dump("task", value) is value
    assert value == run.load("task")
    assert json.dumps(value).encode() == run.read("task")


def named(**functions: Any) -> Any:
    return types.SimpleNamespace(__name__="named", **functions)


@pytest.mark.parametrize(
    ("serializer", "value", "loaded"),
    [
        (pickle, {("a", 1): {2, 3}}, {("a", 1): {2, 3}}),
        (Shouting(), "quiet", "QUIET"),
        (named(dumps=repr, loads=eval), (1, 2), (1, 2)),
        (named(dumps=bytearray, loads=bytes), b"x", b"x"),
    ],
    ids=["pickle", "object", "text", "bytearray"],
)
def test_the_caller_chooses_the_serializer(
    backend: backends.Backend, serializer: Any, value: object, loaded: object
) -> None:
    with backend.store(serializer=serializer) as store:
        run = store.run("wf")
        assert run.dump("task", value) is value
        assert loaded == run.load("task")
        run.dump_many({"a": value, "b": value})
        assert run.load_many() == {"task": loaded, "a": loaded, "b": loaded}


def test_a_checkpoint_of_another_serializer_is_an_error(
    backend: backends.Backend, run: Run
) -> None:
    run.dump("task", "value")
    with backend.store(serializer=pickle) as store:
        other = store.run("wf")
        for call in (lambda: other.load("task"), lambda: other.load_many(["task"])):
            with pytest.raises(SerializationError, match=r"'task'.*json.*pickle"):
                call()
        assert other.read("task") == b'"value"'
        other.dump("pickled", "value")
    with pytest.raises(SerializationError, match=r"'pickled'.*pickle.*json"):
        run.load("pickled")


def test_written_bytes_are_no_dumped_object(run: Run) -> None:
    run.write("task", b"1")
    with pytest.raises(SerializationError, match=r"'task'.*written as bytes"):
        run.load("task")


def test_a_value_that_cannot_be_dumped_is_not_written(backend: backends.Backend, run: Run) -> None:
    run.dump("task", "old")
    before = backend.files()
    circle: list[Any] = []
    circle.append(circle)
    for value, cause in ((object(), TypeError), (circle, ValueError)):
        with pytest.raises(SerializationError, match="'task' of workflow 'wf'") as caught:
            run.dump("task", value)
        assert isinstance(caught.value.__cause__, cause)
        with pytest.raises(SerializationError, match="'b' of workflow 'wf'"):
            run.dump_many({"a": 1, "b": value})
    assert before == backend.files()


def test_what_a_serializer_raises_or_makes_is_an_error_of_ours(backend: backends.Backend) -> None:
    def fail(_: object) -> Any:
        raise RuntimeError("no luck")

    with backend.store(serializer=named(dumps=str, loads=fail)) as store:
        run = store.run("wf")
        run.dump("task", 1)
        with pytest.raises(SerializationError, match=r"'task'.*no luck") as caught:
            run.load("task")
        assert isinstance(caught.value.__cause__, RuntimeError)
    with backend.store(serializer=named(dumps=len, loads=fail)) as store:
        run = store.run("wf")
        with pytest.raises(SerializationError, match=r"'task'.*int"):
            run.dump("task", "value")


@pytest.mark.parametrize("serializer", [None, object(), types.SimpleNamespace(dumps=str)])
def test_a_serializer_needs_both_functions(backend: backends.Backend, serializer: Any) -> None:
    with pytest.raises(TypeError, match=r"dumps and loads"):
        backend.store(serializer=serializer)
