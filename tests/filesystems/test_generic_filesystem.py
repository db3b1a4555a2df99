"""Filesystems that fsspec knows and this library does not.

The promises are tested on SFTP, as one that is remote, where they are tested on every kind.
"""

from __future__ import annotations

import errno
import pickle
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from checkpoint_store import (
    CheckpointStore,
    IncompleteClearError,
    InvalidURLError,
    StorageError,
    resume,
)
from checkpoint_store._filesystems.base import Entry, Page

from ..harness.backends import RECORD, GenericBackend, PlainFileSystem
from ..harness.contract import INPUTS, OTHER_INPUTS


class FlatFileSystem(MemoryFileSystem):
    """Like an object store: folders are prefixes, and only the bucket can be missing.

    Its listings are cached, as those of most remote filesystems are.
    """

    protocol = "flat"
    cachable = True
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    buckets = ("bucket",)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return "/" + str(path).removeprefix("flat://").strip("/")

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:  # noqa: FBT001, FBT002
        entries = self.dircache[path] if path in self.dircache else super().ls(path, detail=True)
        self.dircache[path] = entries
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> Any:
        cached = self._ls_from_cache(path)
        return cached[0] if cached else super().info(path)

    def invalidate_cache(self, path: str | None = None) -> None:
        if path is None:
            self.dircache.clear()
        else:
            self.dircache.pop(path, None)
        super().invalidate_cache(path)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        if path.strip("/").partition("/")[0] not in self.buckets:
            raise FileNotFoundError(errno.ENOENT, "no such bucket", path)
        super().pipe_file(path, bytes(value), mode, **kwargs)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:  # type: ignore[override]
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:  # noqa: FBT001, FBT002
        assert not create_parents
        assert path.count("/") > 1, "that is the bucket"

    def _never(self, *arguments: object, **_: object) -> NoReturn:
        raise AssertionError(f"called with {arguments}: it expands globs or hides errors")

    # What expands globs, hides errors or makes buckets.
    rm = cat = get = put = copy = mv = glob = expand_path = exists = makedirs = mkdirs = _never


fsspec.register_implementation("flat", FlatFileSystem, clobber=True)


@pytest.fixture
def flat() -> Iterator[CheckpointStore]:
    FlatFileSystem.store.clear()
    with CheckpointStore("flat://bucket/root") as store:
        yield store
    FlatFileSystem.store.clear()


@pytest.fixture
def plain(tmp_path: Path) -> GenericBackend:
    return GenericBackend(tmp_path)


# Which calls are made


def test_a_whole_life_needs_literal_calls_only(flat: CheckpointStore) -> None:
    run = resume(flat, "wf", INPUTS, on_input_change="raise")
    run.write_many({"a*": b"1", "b": b"2", "[c]": b"3"})
    with run.open("stream", "wb") as stream:
        stream.write(b"data")
    with run.open("stream") as stream:
        assert stream.read() == b"data"
    assert "b" in run
    assert "c" not in run
    assert run.read_many() == {"a*": b"1", "b": b"2", "[c]": b"3", "stream": b"data"}
    run.delete("a*")
    assert run.tasks() == {"b", "[c]", "stream"}
    resume(flat, "wf", OTHER_INPUTS, on_input_change="reset").write("b", b"4")
    assert list(flat.workflows()) == ["wf"]
    assert flat.collect("wf") == 0
    assert flat.clear("wf") == 1
    assert FlatFileSystem.store == {}


def test_a_missing_bucket_is_not_made(flat: CheckpointStore) -> None:
    with CheckpointStore("flat://other/root") as store:
        with pytest.raises(StorageError, match=r"'wf'.*cannot be created"):
            resume(store, "wf", INPUTS, on_input_change="raise")
        run = resume(flat, "wf", INPUTS, on_input_change="raise")
        run.write("task", b"data")
    assert all(path.startswith("/bucket/root/wf/") for path in FlatFileSystem.store)


def test_a_listing_is_never_remembered(flat: CheckpointStore) -> None:
    run = resume(flat, "wf", INPUTS, on_input_change="raise")
    assert run.tasks() == set()
    FlatFileSystem().pipe_file(f"/bucket/root/wf/task@{run.token}", b"data")
    FlatFileSystem().pipe_file(f"/bucket/root/wf2/task@{run.token}", b"data")
    assert "task" in run
    assert run.tasks() == {"task"}
    assert sorted(flat.workflows()) == ["wf", "wf2"]
    del FlatFileSystem.store[f"/bucket/root/wf/task@{run.token}"]
    assert "task" not in run
    assert run.tasks() == set()


def test_folders_are_made_one_at_a_time_and_only_where_they_are_missing(
    plain: GenericBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    mkdir = PlainFileSystem.mkdir

    def record(self: Any, path: str, create_parents: bool = True) -> None:  # noqa: FBT001, FBT002
        assert not create_parents
        mkdir(self, path, create_parents)
        made.append(path)

    monkeypatch.setattr(PlainFileSystem, "mkdir", record)
    with CheckpointStore(f"{plain.url}/a/b") as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.write("task", b"data")
        with run.open("stream", "wb") as stream:
            stream.write(b"data")
    root = plain.root.as_posix()
    assert [root, f"{root}/a", f"{root}/a/b", f"{root}/a/b/wf"] == made


def test_a_folder_that_went_away_is_made_again(plain: GenericBackend) -> None:
    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        for key in plain.files():
            plain.remove(key)
        (plain.root / "wf").rmdir()
        plain.root.rmdir()
        run.write("task", b"data")
        assert run.read("task") == b"data"


def test_a_folder_named_like_a_checkpoint_is_none(plain: GenericBackend) -> None:
    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        (plain.root / "wf" / f"task@{run.token}").mkdir()
        assert "task" not in run
        assert run.tasks() == set()
        with pytest.raises(StorageError, match="'task'"):
            run.read("task")


# The instance


def test_the_instance_is_nobody_elses(plain: GenericBackend) -> None:
    with plain.store() as store, plain.store() as other:
        store.run("wf")
        other.run("wf")
        instances = {id(store._filesystem._fs), id(other._filesystem._fs)}
        assert len(instances | {id(fsspec.filesystem("plain"))}) == 3
        assert id(store._filesystem._fs) in instances


def test_a_pickle_holds_no_instance(plain: GenericBackend) -> None:
    with plain.store() as store:
        store.run("wf")
        assert b"PlainFileSystem" not in pickle.dumps(store)


class OptionsFileSystem(PlainFileSystem):
    protocol = "options"
    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, **options: Any) -> None:
        self.made.append(options)
        super().__init__()

    @staticmethod
    def _get_kwargs_from_urls(url: str) -> dict[str, Any]:
        return {"host": url.split("/")[2], "port": 1}

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        text = str(path)
        return "/" + text.split("/", 3)[3] if text.startswith("options://") else text


def test_options_come_from_the_url_and_the_caller(tmp_path: Path) -> None:
    fsspec.register_implementation("options", OptionsFileSystem, clobber=True)
    options = {"port": 2, "password": "canary"}
    with CheckpointStore(f"options://server{tmp_path}/root", storage_options=options) as store:
        assert OptionsFileSystem.made == []
        store.run("wf")
    assert OptionsFileSystem.made == [{"host": "server", "port": 2, "password": "canary"}]
    assert "canary" not in repr(store)
    assert (tmp_path / "root" / "wf" / RECORD).exists()


class ConcurrentFileSystem(PlainFileSystem):
    protocol = "concurrent"
    async_impl = True


def test_only_an_asynchronous_filesystem_is_asked_concurrently(plain: GenericBackend) -> None:
    fsspec.register_implementation("concurrent", ConcurrentFileSystem, clobber=True)
    assert plain.store(max_concurrency=7)._filesystem.max_concurrency == 1
    url = plain.url.replace("plain", "concurrent")
    assert CheckpointStore(url, max_concurrency=7)._filesystem.max_concurrency == 7


# Errors


def test_what_the_filesystem_raises_keeps_its_errno(
    plain: GenericBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        monkeypatch.setattr(PlainFileSystem, "pipe_file", full)
        monkeypatch.setattr(PlainFileSystem, "put_file", full)
        stream = run.open("task", "wb")
        stream.write(b"data")
        for call in (lambda: run.write("task", b""), stream.close):
            with pytest.raises(StorageError, match=r"'task' of workflow 'wf'.*No space") as caught:
                call()
            assert caught.value.errno == errno.ENOSPC
    assert [f"wf/{RECORD}"] == list(plain.files())


def test_a_file_that_cannot_be_deleted_is_named(
    plain: GenericBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    rm_file = PlainFileSystem.rm_file

    def refuse(self: Any, path: str) -> None:
        if "/b@" in path:
            raise PermissionError(errno.EACCES, "Permission denied")
        rm_file(self, path)

    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.write_many({"a": b"1", "b": b"2", "c": b"3"})
        with monkeypatch.context() as patch:
            patch.setattr(PlainFileSystem, "rm_file", refuse)
            with pytest.raises(StorageError, match=r"'b'.*Permission denied"):
                run.delete("b")
            with pytest.raises(IncompleteClearError, match="Permission denied") as caught:
                store.clear("wf")
        assert [f"wf/b@{run.token}"] == list(caught.value.failures)
        assert [f"wf/b@{run.token}"] == list(plain.files())
        assert store.clear("wf") == 1


def test_a_record_that_cannot_be_deleted_stops_a_clear(
    plain: GenericBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        run.write("task", b"data")
        before = plain.files()
        monkeypatch.setattr(PlainFileSystem, "rm_file", refuse)
        with pytest.raises(StorageError, match=r"'wf'.*Permission denied"):
            store.clear("wf")
        assert before == plain.files()


@pytest.mark.parametrize(
    "url",
    [
        "nosuchprotocol://a/b",
        "simplecache://a/b",
        "filecache://a/b",
        "blockcache://a/b",
        "cached://a/b",
        "simplecache::plain://a/b",
        "plain://a/b::memory://c",
        "plain://user@host/a",
        "plain://user:canary@host/a",
        "plain://a//b",
        "plain://a/../b",
        "plain://a/./b",
        "plain://a/b?c=d",
        "plain://a/b#c",
        "plain://a/b\nc",
        "plain:a/b",
    ],
)
def test_a_doubtful_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        CheckpointStore(url)
    assert isinstance(caught.value, ValueError)
    assert "canary" not in str(caught.value)


# Streams are collected in a temporary file


def test_a_stream_leaves_no_temporary_file(
    plain: GenericBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def temporary() -> list[Path]:
        return list((tmp_path / "temporary").iterdir())

    def raise_within() -> None:
        with run.open("task", "wb") as stream:
            stream.write(b"data")
            raise ZeroDivisionError

    with plain.store() as store:
        run = resume(store, "wf", INPUTS, on_input_change="raise")
        with run.open("task", "wb") as stream:
            stream.write(b"data")
            assert len(temporary()) == 1
        assert temporary() == []
        with pytest.raises(ZeroDivisionError):
            raise_within()
        assert temporary() == []
        stream = run.open("task", "wb")
        with pytest.warns(ResourceWarning):
            del stream
        assert temporary() == []


def test_everything_is_removed_although_a_page_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(f"memory://{secrets.token_hex(8)}")
    store.run("wf").write("task", b"data")
    list_files = store._filesystem.list_files

    def halting(folder: str, more: object = None) -> Page[Entry]:
        return Page([], "go on") if more is None else list_files(folder)

    monkeypatch.setattr(store._filesystem, "list_files", halting)
    store._filesystem.remove_all()
    assert list(store.workflows()) == []
