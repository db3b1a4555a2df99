"""What becomes of a stream that is being written, however it ends and whatever wraps it.

A `with` of its own that ends cleanly publishes, and so does a `close()` outside of any exception
that arose since the stream was opened. Everything else discards, and none of it is silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import functools
import gc
import gzip
import itertools
import subprocess
import sys
import tarfile
import textwrap
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest

from checkpoint_store import CheckpointStore, Run, StorageError, resume
from checkpoint_store._frame import FrameWriter

from ..harness import backends
from ..harness.wrappers import LEFT, WRAPPERS, as_text, leave_arrow

numbers = itertools.count()


@pytest.fixture(params=["memory", "local", "generic"])
def run(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Run]:
    backend = backends.make_backend(request.param, tmp_path, request)
    yield resume(backend.store(), "wf", {"day": 1}, on_input_change="raise")
    if isinstance(backend, backends.MemoryBackend):
        backend.forget()


@pytest.fixture
def memory_run() -> Run:
    store = CheckpointStore(f"memory://streams-{next(numbers)}")
    return resume(store, "wf", {"day": 1}, on_input_change="raise")


class Boom(Exception):  # noqa: N818 - it is no error of anybody's
    pass


# Where a stream is opened, wrapped and closed: in no clause, or in one that handles an exception.


def nowhere(work: Callable[[], None]) -> None:
    work()


def in_except(work: Callable[[], None]) -> None:
    try:
        raise Boom("handled")
    except Boom:
        work()


def in_finally(work: Callable[[], None]) -> None:
    with contextlib.suppress(Boom):
        try:
            raise Boom("passing")
        finally:
            work()


def in_nested_except(work: Callable[[], None]) -> None:
    try:
        raise KeyError("outer")
    except KeyError:
        try:
            raise Boom("inner")
        except Boom:
            work()


def in_a_generator(work: Callable[[], None]) -> None:
    def generator() -> Iterator[None]:
        yield
        work()

    def advance() -> None:
        list(generator())

    in_except(advance)


def in_a_coroutine(work: Callable[[], None]) -> None:
    async def helper() -> None:
        await asyncio.sleep(0)
        work()

    async def main() -> None:
        try:
            await asyncio.sleep(0)
            raise Boom("handled")
        except Boom:
            await helper()

    asyncio.run(main())


def in_a_thread(work: Callable[[], None]) -> None:
    raised: list[BaseException] = []

    def target() -> None:
        try:
            in_except(work)
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


PLACES = [
    nowhere,
    in_except,
    in_finally,
    in_nested_except,
    in_a_generator,
    in_a_coroutine,
    in_a_thread,
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_whose_block_ends_cleanly_publishes(
    memory_run: Run, wrap: Callable[[FrameWriter], Any], place: Callable[..., None]
) -> None:
    def work() -> None:
        with wrap(memory_run.open("x", "wb")) as stream:
            stream.write("whole")

    place(work)
    assert memory_run.read("x") == b"whole"


def raise_another() -> None:
    raise Boom("mine")


def raise_the_same() -> None:
    raise sys.exception() or Boom("mine")


def raise_interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [raise_another, raise_the_same, raise_interrupt])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_whose_block_raises_discards_and_passes_the_exception_on(
    memory_run: Run,
    wrap: Callable[[FrameWriter], Any],
    place: Callable[..., None],
    fail: Callable[[], None],
) -> None:
    seen: list[BaseException] = []

    def work() -> None:
        with wrap(memory_run.open("x", "wb")) as stream:
            stream.write("half")
            try:
                fail()
            except BaseException as error:
                seen.append(error)
                raise

    passed = None
    try:
        place(work)
    except BaseException as error:  # noqa: BLE001
        passed = error
    if passed is not None or place is not in_finally:  # Which swallows what is of its own kind.
        assert passed is seen[0]
    assert memory_run.tasks() == set()
    assert len([note for note in seen[0].__notes__ if "was discarded" in note]) == 1


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_bare_raise_in_the_except_block_in_which_it_was_opened_discards(
    memory_run: Run, wrap: Callable[[FrameWriter], Any]
) -> None:
    # Nothing of the exception itself changes then: not the object and not its traceback.
    with pytest.raises(Boom):  # noqa: PT012
        try:
            raise Boom
        except Boom:
            with wrap(memory_run.open("x", "wb")) as stream:
                stream.write("half")
                raise
    assert memory_run.tasks() == set()


def test_a_bare_raise_through_a_finally_that_closes_discards(memory_run: Run) -> None:
    with pytest.raises(Boom):  # noqa: PT012
        try:
            raise Boom
        except Boom:
            writer = memory_run.open("x", "wb")
            try:
                writer.write(b"half")
                raise
            finally:
                writer.close()
    assert memory_run.tasks() == set()


def test_a_close_in_the_body_of_an_inner_try_publishes(memory_run: Run) -> None:
    try:
        raise Boom
    except Boom:
        writer = memory_run.open("x", "wb")
        try:
            writer.close()
        finally:
            gc.collect()
    assert memory_run.read("x") == b""


def test_a_close_after_the_inner_exception_was_handled_publishes(memory_run: Run) -> None:
    try:
        raise KeyError("outer")
    except KeyError:
        try:
            raise Boom
        except Boom:
            writer = memory_run.open("x", "wb")
        writer.close()
    assert memory_run.read("x") == b""


def test_the_outer_exception_raised_again_discards_what_was_opened_below_an_inner_one(
    memory_run: Run,
) -> None:
    with pytest.raises(KeyError, match="outer"):  # noqa: PT012
        try:
            raise KeyError("outer")
        except KeyError:
            try:
                raise Boom
            except Boom:
                writer = memory_run.open("x", "wb")
            with contextlib.closing(writer):
                raise
    assert memory_run.tasks() == set()


# Closed where an exception is handled that arose since


def close_directly(writer: FrameWriter) -> None:
    writer.close()


def close_in_a_callback(writer: FrameWriter) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(writer.close)


def close_in_a_generator(writer: FrameWriter) -> None:
    def generator() -> Iterator[None]:
        yield
        writer.close()

    list(generator())


def close_in_a_coroutine(writer: FrameWriter) -> None:
    async def helper() -> None:
        await asyncio.sleep(0)
        writer.close()

    async def main() -> None:
        try:
            raise Boom("arisen")
        except Boom:
            await helper()

    asyncio.run(main())


@pytest.mark.parametrize(
    "close", [close_directly, close_in_a_callback, close_in_a_generator, close_in_a_coroutine]
)
def test_a_close_in_an_except_block_raises_what_is_handled_there(
    memory_run: Run, close: Callable[[FrameWriter], None]
) -> None:
    writer = memory_run.open("x", "wb")
    with pytest.raises(Boom, match="arisen") as caught:  # noqa: PT012
        try:
            writer.write(b"half")
            raise Boom("arisen")
        except Boom:
            close(writer)
    (note,) = caught.value.__notes__
    assert note.startswith("checkpoint 'x' of workflow 'wf' was discarded, because its stream")
    assert "with block of its own" in note
    assert memory_run.tasks() == set()
    assert writer.closed
    writer.close()


def test_a_block_of_its_own_decides_whatever_is_handled_around_it(run: Run) -> None:
    writer = run.open("x", "wb")
    try:
        raise Boom
    except Boom:
        with writer, as_text(writer) as text:
            text.write("whole")
    assert run.read("x") == b"whole"


def test_a_block_of_its_own_that_ends_cleanly_raises_if_nothing_was_published(run: Run) -> None:
    with pytest.raises(StorageError, match=r"'x'.*was not written, because it was closed"):  # noqa: PT012, SIM117
        with run.open("x", "wb") as writer:
            with contextlib.suppress(Boom), as_text(writer) as text:
                text.write("half")
                raise Boom
    assert run.tasks() == set()


def test_what_was_given_up_on_purpose_is_no_error_at_the_end_of_the_block(run: Run) -> None:
    with run.open("x", "wb") as writer:
        writer.write(b"half")
        writer.discard()
    assert run.tasks() == set()


def drop_at_once(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    leave(run.open("x", "wb"))


def drop_in_a_cycle(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    cycle: list[Any] = [leave(run.open("x", "wb"))]
    cycle.append(cycle)


def drop_after_an_exception(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    def fail() -> None:
        left = leave(run.open("x", "wb"))
        raise Boom(id(left))

    with contextlib.suppress(Boom):
        fail()


def drop_with_a_generator(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    def generator() -> Iterator[Any]:
        left = leave(run.open("x", "wb"))
        yield
        yield left

    next(generator())


def drop_with_a_thread(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    thread = threading.Thread(target=drop_after_an_exception, args=(leave, run))
    thread.start()
    thread.join()


def drop_in_an_except_block(leave: Callable[[FrameWriter], Any], run: Run) -> None:
    in_except(lambda: drop_at_once(leave, run))


@pytest.mark.parametrize(
    "drop",
    [
        drop_at_once,
        drop_in_a_cycle,
        drop_after_an_exception,
        drop_with_a_generator,
        drop_with_a_thread,
        drop_in_an_except_block,
    ],
)
@pytest.mark.parametrize("leave", LEFT)
def test_what_is_dropped_without_being_closed_is_discarded_with_a_warning(
    memory_run: Run, leave: Callable[[FrameWriter], Any], drop: Callable[..., None]
) -> None:
    if leave is leave_arrow:
        pytest.importorskip("pyarrow")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drop(leave, memory_run)
        gc.collect()
    messages = [str(warning.message) for warning in caught if "checkpoint" in str(warning.message)]
    assert messages == ["checkpoint 'x' of workflow 'wf' was not closed: discarded"]
    assert memory_run.tasks() == set()


def test_a_wrapper_that_is_dropped_within_the_block_of_the_stream_is_an_error(run: Run) -> None:
    with pytest.raises(StorageError, match="was not written, because it, or what wraps it"):  # noqa: PT012, SIM117
        with pytest.warns(ResourceWarning, match="not closed: discarded"):
            with run.open("x", "wb") as writer:
                as_text(writer).write("whole, for all that anybody knows")
    assert run.tasks() == set()


@pytest.mark.parametrize("leave", ["leave_text", "leave_stacked", "leave_gzip"])
def test_what_is_open_when_the_interpreter_ends_is_discarded(tmp_path: Any, leave: str) -> None:
    script = textwrap.dedent(f"""
        import sys
        from checkpoint_store import CheckpointStore
        from tests.harness.wrappers import {leave}
        left = {leave}(CheckpointStore({str(tmp_path)!r}).run("wf").open("x", "wb"))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "wf").iterdir()] == [".fingerprint"]
    assert list((tmp_path / ".tmp").iterdir()) == []


# Libraries that write into a stream they are given


def with_gzip(stream: Any) -> None:
    with gzip.GzipFile(fileobj=stream, mode="wb") as compressed:
        compressed.write(b"x")


def with_zip(stream: Any) -> None:
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "x")


def with_tar(stream: Any) -> None:
    with tarfile.open(fileobj=stream, mode="w|gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def with_pandas_csv(stream: Any) -> None:
    pytest.importorskip("pandas").DataFrame({"a": [1]}).to_csv(stream)


def with_pandas_parquet(stream: Any) -> None:
    pytest.importorskip("pandas").DataFrame({"a": [1]}).to_parquet(stream)


def with_pyarrow(stream: Any) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), stream)


def with_polars(stream: Any) -> None:
    pytest.importorskip("polars").DataFrame({"a": [1]}).write_csv(stream)


LIBRARIES = [
    with_gzip,
    with_zip,
    with_tar,
    with_pandas_csv,
    with_pandas_parquet,
    with_pyarrow,
    with_polars,
]


@pytest.mark.parametrize("place", [nowhere, in_except, in_finally])
@pytest.mark.parametrize("use", LIBRARIES)
def test_a_library_writes_into_a_stream_with_a_block_of_its_own(
    memory_run: Run, use: Callable[[Any], None], place: Callable[..., None]
) -> None:
    def work() -> None:
        with memory_run.open("x", "wb") as stream:
            use(stream)

    place(work)
    assert len(memory_run.read("x")) > 0


@pytest.mark.parametrize("place", [nowhere, in_except, in_finally])
@pytest.mark.parametrize("use", LIBRARIES)
def test_a_library_whose_block_raises_leaves_nothing(
    memory_run: Run, use: Callable[[Any], None], place: Callable[..., None]
) -> None:
    def work() -> None:
        with memory_run.open("x", "wb") as stream:
            use(stream)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        place(work)
    assert memory_run.tasks() == set()


# Interrupted anywhere


class Interrupt(BaseException):
    pass


@functools.cache
def ends_of_with(code: CodeType) -> frozenset[int]:
    """Where a `with` block has ended and its `__exit__` is about to be called.

    CPython handles no signal there, since a lock would stay locked.
    """
    found = list(dis.get_instructions(code))
    nones = [each.opname == "LOAD_CONST" and each.argval is None for each in found]
    return frozenset(
        each.offset
        for index, each in enumerate(found)
        if any(nones[start : start + 3] == [True] * 3 for start in range(index, index + 3))
    )


def interrupted_at(step: int, work: Callable[[], None]) -> bool:
    """Whether `work` was interrupted at its `step`th line or call of this package."""
    left = step

    def trace(frame: Any, event: str, argument: object) -> Any:  # noqa: ARG001
        nonlocal left
        if "checkpoint_store" not in frame.f_code.co_filename or event == "exception":
            return trace if "checkpoint_store" in frame.f_code.co_filename else None
        if frame.f_code.co_name in (
            "__del__",
            "_dealloc_warn",
            "discard",
            "_discard",
            "_close",
            "_lose",
            "finish",
        ):
            return None  # An interrupt there cannot be told from one in any finalizer.
        if event == "line" and frame.f_lasti in ends_of_with(frame.f_code):
            return trace
        left -= 1
        if left == 0:
            sys.settrace(None)
            raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        work()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_a_stream_that_is_interrupted_at_any_step_leaves_nothing_behind(
    run: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))

    def work() -> None:
        with run.open("x", "wb") as stream:
            stream.write(b"some")
            stream.write(b"more")

    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    run.write("x", b"before")
    gc.collect()
    gc.freeze()  # Or each collection below would look at all that the tests have made.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for step in itertools.count(1):
            if not interrupted_at(step, work):
                break
            gc.collect()
            assert run.read("x") in (b"before", b"somemore")
            assert list(spool.iterdir()) == []
            temporary = tmp_path / "root" / ".tmp"
            assert not temporary.exists() or list(temporary.iterdir()) == []
        gc.unfreeze()
        gc.collect()
    assert step > 40
    assert unraisable == []
    # Nor does a lock stay locked.
    other = threading.Thread(target=run.write, args=("x", b"after"), daemon=True)
    other.start()
    other.join(60)
    assert run.read("x") == b"after"
