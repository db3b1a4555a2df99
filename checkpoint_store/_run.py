"""A handle on one generation of a workflow's checkpoints."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, cast, overload

from . import _checkpoints
from ._changes import listed
from ._filesystems.base import Contents, Data, Filesystem
from ._frame import FrameReader, FrameWriter, Header, decode_frame, encode_frame
from ._names import encode_name
from ._policy import Decision
from ._progress import Progress
from ._protocol import read_record
from ._serializer import Serializer
from ._steps import Steps, call, drive
from ._tasks import with_dependents
from .errors import CheckpointNotFoundError, InvalidTaskError, StorageError, storage_error

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run of a workflow: reads and writes the checkpoints of one generation.

    `resume` and `CheckpointStore.run` make it. Threads may share it and a pickle of it may be
    handed to workers, who then can never write into the generation of a later reset. The pickle
    holds the store's `storage_options`, credentials included.

    A checkpoint that is not there is `CheckpointNotFoundError`, one that is damaged
    `CorruptCheckpointError`, and every failure of the storage `StorageError`. A write that was
    interrupted leaves the checkpoint as it was before. Once another run has reset or cleared the
    workflow, this one still reads and writes its own files until they are collected, and nobody
    else sees them: `is_current` tells.

    workflow_id
        Which workflow it is.
    fingerprint
        That of the inputs of this run, or None if it has none.
    token
        The name of the generation.
    decision
        What `resume` decided, or None for a run without a policy.
    """

    workflow_id: str
    fingerprint: str | None
    token: str
    decision: Decision | None
    _base: str | None = field(repr=False)
    _filesystem: Filesystem = field(repr=False)
    _serializer: Serializer = field(repr=False)
    _declared: Mapping[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    """The tokens of the generations of each declared task, the newest first."""
    _after: Mapping[str, tuple[str, ...]] = field(repr=False, default_factory=dict)
    """For each declared task those that it comes after, which stand before it."""

    def __contains__(self, task: str) -> bool:
        """Whether the task has a checkpoint now; it is not read, so it may be damaged."""
        return self._drive(_checkpoints.contains(self._generations(task)))

    def tasks(self) -> set[str]:
        """The names of the tasks that have a checkpoint now."""
        return set(self._newest())

    def read(self, task: str) -> bytes:
        """The bytes of a checkpoint, verified."""
        return self._read(task)[1]

    def write(self, task: str, data: Data) -> None:
        """Stores bytes as the checkpoint of a task, replacing what it had. All or nothing."""
        header = self._header(task)
        self._write(header, _flat(header, data))

    def load(self, task: str) -> Any:
        """The object that was dumped. Another serializer than that of the store is an error."""
        header, payload = self._read(task)
        return self._serializer.loads(header, payload)

    def dump(self, task: str, value: T) -> T:
        """Stores an object through the serializer, and returns it as it was given.

        What `load` returns later is the serializer's work: `json` makes lists of tuples, and `str`
        keys of numbers.
        """
        self._write(*self._dumped(task, value))
        return value

    def delete(self, task: str, *, dependents: bool = False) -> None:
        """Removes a checkpoint. One that is not there is no error.

        A run that reuses older checkpoints removes the older one of the task, too. With
        `dependents`, the checkpoints of all tasks go that are declared to come after this one, the
        last first. So an interruption leaves none whose origin is gone, but for a power failure on
        a local disk, which may undo some of the deletes.
        """
        names = [task]
        if dependents:
            if task not in self._after:
                raise InvalidTaskError(
                    f"task {task!r} was not declared, so nobody knows what comes after it: resume "
                    "with tasks=, or delete the checkpoints by their names"
                )
            names = with_dependents(self._after, task)
        for name in names:
            self._drive(_checkpoints.delete(self._generations(name)))

    @overload
    def open(self, task: str, mode: Literal["rb"] = "rb") -> BinaryIO: ...
    @overload
    def open(self, task: str, mode: Literal["wb"]) -> FrameWriter: ...
    def open(self, task: str, mode: str = "rb") -> BinaryIO | FrameWriter:
        """A checkpoint as a binary stream, `"rb"` or `"wb"`, in bounded memory.

        Reading verifies at the end, before the last byte is handed out: who stops early has
        unverified bytes. What is written appears when the stream's own `with` block ends, or when
        `close` returns, and is discarded when the block raises, when the stream is dropped, and
        when it is closed while an exception is being handled that arose since it was opened, which
        is then raised again. For text, wrap it within a block of its own:

            with run.open("report", "wb") as stream, io.TextIOWrapper(stream, "utf-8") as text:
                ...

        Neither can seek: for a library that does, give it an `io.BytesIO` of what `read` returns,
        or a copy in a temporary file.
        """
        if mode == "wb":
            header = self._header(task)
            upload = self._drive(call(header, Filesystem.open_write, _checkpoints.key_of(header)))
            return FrameWriter(upload, header)
        if mode != "rb":
            raise ValueError(f"a checkpoint is opened as 'rb' or 'wb', not {mode!r}")
        first = _checkpoints.first(self._generations(task), Filesystem.open_read)
        header, source = self._drive(first)
        reader = FrameReader(source, header)
        return cast(BinaryIO, io.BufferedReader(reader, 1024 * 1024))

    def read_many(
        self, tasks: Iterable[str] | None = None, *, callback: Callback | None = None
    ) -> dict[str, bytes]:
        """The bytes of those checkpoints that are there, in the order asked; None asks for all.

        The first that cannot be read, or is damaged, raises. `callback` is told of the progress, as
        those of fsspec are: `TqdmCallback` shows a bar.
        """
        found = self._read_many(tasks, callback)
        return {task: payload for task, (_, payload) in found.items()}

    def load_many(
        self, tasks: Iterable[str] | None = None, *, callback: Callback | None = None
    ) -> dict[str, Any]:
        """The objects of those checkpoints that are there, as `read_many` reads them.

        One among them that was written as bytes is a `SerializationError`.
        """
        found = self._read_many(tasks, callback).items()
        return {task: self._serializer.loads(header, payload) for task, (header, payload) in found}

    def write_many(self, payloads: Mapping[str, Data], *, callback: Callback | None = None) -> None:
        """Stores bytes for several tasks at once.

        It is not one transaction: all are tried, and `StorageError` then names in `failures` those
        that were not written. `callback` is told of the progress.
        """
        headers = ((self._header(task), data) for task, data in _items(payloads))
        self._write_many([(header, _flat(header, data)) for header, data in headers], callback)

    def dump_many(self, values: Mapping[str, Any], *, callback: Callback | None = None) -> None:
        """Stores several objects as `write_many` does, or none of them if one cannot be dumped."""
        self._write_many([self._dumped(task, value) for task, value in _items(values)], callback)

    def is_current(self) -> bool:
        """Whether this generation still is the workflow's, or was reset or cleared meanwhile."""
        record = self._drive(read_record(self.workflow_id))
        return record is not None and record.token == self.token

    def _tokens(self, task: str) -> tuple[str, ...]:
        if task in self._declared:
            return self._declared[task]
        return (self.token,) if self._base is None else (self.token, self._base)

    def _header(self, task: str, token: str | None = None) -> Header:
        encode_name(task, "task name")
        token = token or self._tokens(task)[0]
        return Header(self.workflow_id, task, token, self.fingerprint)

    def _generations(self, task: str) -> list[Header]:
        own = self._header(task)
        return [own, *(own._replace(token=token) for token in self._tokens(task)[1:])]

    def _newest(self) -> dict[str, str]:
        return self._drive(_checkpoints.newest(self.workflow_id, self._tokens))

    def _read(self, task: str) -> tuple[Header, bytes]:
        return _decoded(*self._drive(_checkpoints.read(self._generations(task))))

    def _read_many(
        self, tasks: Iterable[str] | None, callback: Callback | None
    ) -> dict[str, tuple[Header, bytes]]:
        if isinstance(tasks, str | bytes):
            raise TypeError(f"tasks must be a collection of names, such as [{tasks!r}]")
        progress = Progress(callback)
        wanted = (
            {task: [self._header(task, token)] for task, token in self._newest().items()}
            if tasks is None
            else {task: self._generations(task) for task in tasks}
        )
        progress.expect(len(wanted))
        found: dict[str, tuple[Header, bytes]] = {}

        def keep(_: int, outcome: tuple[Header, Contents] | Exception) -> None:
            if not isinstance(outcome, Exception):
                header, file = outcome
                found[header.task] = _decoded(header, file)
            elif not isinstance(outcome, CheckpointNotFoundError):
                raise outcome
            progress.advance()

        self._drive(_checkpoints.read_many(wanted.values(), keep))
        return {task: found[task] for task in wanted if task in found}

    def _write(self, header: Header, data: Data) -> None:
        self._drive(_checkpoints.write(header, encode_frame(header, data)))

    def _write_many(self, items: Sequence[tuple[Header, Data]], callback: Callback | None) -> None:
        progress = Progress(callback)
        progress.expect(len(items))
        failed: dict[int, Exception] = {}

        def note(index: int, outcome: Exception | None) -> None:
            if outcome is not None:
                failed[index] = outcome
            progress.advance()

        files = ((header, encode_frame(header, data)) for header, data in items)
        self._drive(_checkpoints.write_many(files, note))
        if failed:
            reasons = {items[index][0].task: str(failed[index]) for index in sorted(failed)}
            raise StorageError(
                f"{len(failed)} of {len(items)} checkpoints of workflow {self.workflow_id!r} were "
                f"not written, so write these again: {listed(list(reasons))} "
                f"({next(iter(reasons.values()))})",
                failures=reasons,
            ) from failed[min(failed)]

    def _drive(self, steps: Steps[R]) -> R:
        return drive(self._filesystem, steps)

    def _dumped(self, task: str, value: object) -> tuple[Header, Data]:
        header = self._header(task)
        payload, text = self._serializer.dumps(value, header)
        return header._replace(serializer=self._serializer.name, text=text), _flat(header, payload)


def _items(mapping: Mapping[str, T]) -> Iterable[tuple[str, T]]:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"give a dict of tasks and what they have, not a {type(mapping).__name__}")
    return mapping.items()


def _decoded(header: Header, file: Contents) -> tuple[Header, bytes]:
    try:
        return decode_frame(file, header)
    except OSError as error:  # The payload of a large local file is read only now.
        raise storage_error(header, error) from error


def _flat(header: Header, data: Data) -> memoryview:
    """The bytes of a buffer, which is not copied. Anything else is a `TypeError`."""
    try:
        view = memoryview(data)
        # A shape with a zero cannot be cast.
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{header} takes bytes, which this {type(data).__name__} does not give ({error}): "
            "encode it (encode, tobytes), or dump it"
        ) from None
