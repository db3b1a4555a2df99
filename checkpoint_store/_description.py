"""A summary of a workflow's files, for a person to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ._filesystems.base import Entry, Filesystem
from ._names import encode_name, is_ours, parse_file_name
from ._protocol import read_record
from ._steps import Steps, list_all
from .errors import StorageError


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """A task's checkpoint, as `CheckpointStore.describe` found it.

    size
        Bytes of its file, which has a header and a trailer besides the checkpoint.
    written
        When it was written, by the storage's clock. None if the storage does not tell.
    since
        When the first of all checkpoints was written that have the same origin: of tasks that are
        declared alike, from the same version and inputs, or of those that are not declared, in its
        generation. A reset that keeps the task leaves this as it was.
    """

    size: int
    written: datetime | None
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Description:
    """A workflow's files, as `CheckpointStore.describe` found them. Its `str` is one line.

    fingerprint
        The recorded fingerprint. None if there is no record, or no fingerprint in it.
    mixed
        Whether an earlier `reuse` has mixed results of other inputs into these.
    live
        The tasks that have a checkpoint, by their names. Where a task has several, of two versions
        or of a run that reuses older ones, it is the one that was written last.
    retired
        How many checkpoint files are of generations that a reset has retired, which `collect`
        deletes. Without a record these are all files, which `clear` deletes.
    size
        Bytes of the checkpoints and the record. Unfinished files of killed processes do not count.
    oldest, newest
        When the first and the last of the files were written, by the storage's clock. None if there
        are no files, or if the storage does not tell.
    """

    workflow_id: str
    fingerprint: str | None
    mixed: bool
    live: Mapping[str, TaskDescription] = field(hash=False)
    retired: int
    size: int
    oldest: datetime | None
    newest: datetime | None

    @property
    def tasks(self) -> int:
        """How many tasks have a checkpoint."""
        return len(self.live)

    def __str__(self) -> str:
        if not self.size:
            return f"{self.workflow_id}: nothing"
        retired = f" and {self.retired} retired" if self.retired else ""
        written = (
            f", written {self.oldest:%Y-%m-%d %H:%M:%S} to {self.newest:%Y-%m-%d %H:%M:%S} UTC"
            if self.oldest and self.newest
            else ""
        )
        plural = "" if self.tasks == 1 else "s"
        mixed = " mixed with other inputs" if self.mixed else ""
        return (
            f"{self.workflow_id}: {self.tasks} checkpoint{plural}{retired}, {self.size:,} bytes"
            f"{written}, fingerprint {self.fingerprint}{mixed}"
        )


def describe(workflow_id: str) -> Steps[Description]:
    files = yield from _files(workflow_id)
    record = yield from read_record(workflow_id)
    tokens = frozenset[str]() if record is None else record.live
    # The last written of a task comes last, and stays.
    files.sort(key=lambda file: file.written or 0)
    since: dict[str, datetime | None] = {}
    live: dict[str, TaskDescription] = {}
    retired = 0
    for file in files:
        if parsed := parse_file_name(file.name):
            task, token = parsed
            written = _when(file.written)
            if token in tokens:
                live[task] = TaskDescription(file.size, written, since.setdefault(token, written))
            else:
                retired += 1
    times = [written for file in files if (written := _when(file.written))]
    return Description(
        workflow_id=workflow_id,
        fingerprint=None if record is None else record.fingerprint,
        mixed=record is not None and record.base is not None,
        live=dict(sorted(live.items())),
        retired=retired,
        size=sum(file.size for file in files),
        oldest=min(times, default=None),
        newest=max(times, default=None),
    )


def last_written(workflow_id: str) -> Steps[datetime | None]:
    """When the newest file of a workflow was written, by the storage's clock, if there is one."""
    newest = None
    for file in (yield from _files(workflow_id)):
        if file.written is None:
            raise StorageError(
                f"workflow {workflow_id!r}: this storage does not tell when a file was written, so "
                "its age is unknown: clear workflows by their names"
            )
        newest = max(newest or file.written, file.written)
    return _when(newest)


def _files(workflow_id: str) -> Steps[list[Entry]]:
    """The record and the checkpoints in a workflow's folder. Foreign files are left out."""
    about = f"listing workflow {workflow_id!r}"
    folder = encode_name(workflow_id, "workflow id")
    files = yield from list_all(about, Filesystem.list_files, folder, True)  # noqa: FBT003
    return [file for file in files if is_ours(file.name)]


def _when(written: float | None) -> datetime | None:
    return None if written is None else datetime.fromtimestamp(written, UTC)
