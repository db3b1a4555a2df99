"""The store: where checkpoints are, and what can be done with whole workflows."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

from . import _protocol
from ._description import Description, describe, last_written
from ._filesystems import Filesystem, Location, connect, text_of
from ._filesystems.base import Page, pages
from ._names import decode_name, is_ours
from ._policy import Decision, labelled, opened, tokens_of
from ._progress import Progress
from ._record import Record, check_fingerprint
from ._run import Run
from ._serializer import Serializer
from ._steps import Steps, call, drive
from ._tasks import NOTHING, Declared, Task
from .errors import UnsupportedFormatError

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

R = TypeVar("R")

logger = logging.getLogger("checkpoint_store")


class CheckpointStore:
    """Checkpoints of workflows under one URL.

    It is cheap to make, does nothing until it is asked, and may be shared by threads, forked
    children and, as a pickle, by other processes (but `memory://` is the memory of one process, of
    which a forked child has a copy). The pickle holds `storage_options`, credentials included;
    `repr` never shows them. Its calls block: within an event loop, go through `asyncio.to_thread`.

    url
        A folder (`str` or path), or a URL: `file://`, `memory://`, `s3://` or any other that
        fsspec knows, also as a `UPath`. Anything doubtful is `InvalidURLError`. The ARN of an S3
        access point takes the place of the bucket; through one of several regions, which are copied
        to each other later, conditional writes hold only among writers that reach the same region.
    serializer
        Anything with `dumps` and `loads`. The default is `json`, because loading a `pickle` runs
        whatever code it contains: choose that only where you trust all who may write there. Its
        name goes into each file, and only a serializer of that name loads it: the `__name__` of a
        module, a class or an object, or else the class of the object, if that defines `dumps` and
        `loads`. An object of which they are attributes, as of a `SimpleNamespace`, must be given a
        `__name__`, and so should be those of one class that do not understand each other.
    durable
        Whether a write to a local disk returns only once it would survive a power failure.
    max_concurrency
        How many requests `read_many` and its like have in flight on remote storage.
    storage_options
        Options for the fsspec filesystem, as in pandas. They win over those of a `UPath`.
    """

    def __init__(
        self,
        url: Location,
        *,
        serializer: Any = json,
        durable: bool = True,
        max_concurrency: int = 32,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(max_concurrency, int) or max_concurrency < 1:
            raise ValueError(
                f"max_concurrency must be an int of at least 1, not {max_concurrency!r}"
            )
        self._filesystem = connect(
            url, storage_options, durable=durable, max_concurrency=max_concurrency
        )
        self._serializer = Serializer(serializer)
        self.url = text_of(url)

    def __repr__(self) -> str:
        return f"CheckpointStore({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections of this process. The store stays usable and would open others.

        Do it after the last call: what is at work on S3, such as an open stream, is a
        `StorageError` then.
        """
        self._filesystem.close()

    @property
    def conditional_writes(self) -> bool | None:
        """Whether the storage refuses to overwrite a record that somebody else has changed.

        Without that, results are safe only while a single process at a time resumes, resets or
        clears a workflow. None while unknown: S3 is asked at the first change of a record, and
        `python -m checkpoint_store URL` asks thoroughly. It stays None in a folder on a network or
        FUSE filesystem: whether other hosts and mounts see its locks cannot be found out from here,
        so results are safe only while a workflow is changed through a single mount at a time.
        """
        return None if self._filesystem.caveat else self._filesystem.conditional_writes

    def read_fingerprint(self, workflow_id: str) -> str | None:
        """The recorded fingerprint, or None if the workflow has no record or none in it.

        After a `reuse` with other inputs it is still the one from before that. To learn whether
        checkpoints come from these inputs, give the fingerprint to `run`, which refuses a mixture.
        """
        record = self._drive(_protocol.read_record(workflow_id))
        return None if record is None else record.fingerprint

    def write_fingerprint(self, workflow_id: str, fingerprint: str) -> None:
        """Says which inputs the checkpoints are from.

        A workflow without a record gets one. One whose record has no fingerprint gets this one for
        what is there. The same fingerprint changes nothing. Another, or any for a workflow that an
        earlier `reuse` has mixed, begins a new generation: checkpoints of other inputs are not
        carried over.
        """
        check_fingerprint(fingerprint)
        self._drive(
            _protocol.change_record(
                self._filesystem,
                workflow_id,
                lambda found: labelled(found, workflow_id, fingerprint),
            )
        )

    def run(
        self,
        workflow_id: str,
        *,
        fingerprint: str | None = None,
        tasks: Mapping[str, Task] | None = None,
    ) -> Run:
        """The current generation of a workflow, for runners with a policy of their own.

        A workflow without a record gets one. With `fingerprint`, a workflow whose checkpoints come
        from other inputs is `InputChangedError`. Do not call it in each worker of a resumed
        workflow: hand them the run, so that a late one cannot write into the next generation. Of a
        workflow that an earlier `reuse` has mixed, the run reads the mixture without a fingerprint.

        `tasks` are declared as in `resume`, and use the inputs that the record has: a workflow
        whose inputs are not recorded, or mixed, is `InvalidTaskError`.
        """
        if fingerprint is not None:
            check_fingerprint(fingerprint)
        _, record, given = self._drive(
            _protocol.change_record(
                self._filesystem,
                workflow_id,
                lambda found: opened(found, workflow_id, fingerprint, tasks or {}),
            )
        )
        return self._bind(record, None if record.base else record.fingerprint, None, given)

    def clear(self, workflow_id: str, *, callback: Callback | None = None) -> int:
        """Removes a workflow, its record first, and returns the number of checkpoint files gone.

        Interrupted anywhere, it can be called again. It writes nothing, so a full disk is no
        obstacle. Another workflow is never touched, whatever its name. Files that could not be
        deleted are `IncompleteClearError`; they are out of reach all the same. `callback`, one of
        fsspec's such as `TqdmCallback`, is told of the files that went.
        """
        return self._drive(_protocol.clear(workflow_id, Progress(callback)))

    def collect(self, workflow_id: str, *, callback: Callback | None = None) -> int:
        """Deletes the files of generations that a reset retired, and returns how many went.

        A reset does it by itself; this is for what it left behind when it was interrupted, or what
        late workers wrote since. Files that any run may still come to read are kept. Without a
        record, that is all of them: `clear` deletes what was written after a clear. On a local disk
        the unfinished files of killed processes go, too, and are not counted.
        """
        return self._drive(_protocol.collect(workflow_id, Progress(callback)))

    def workflows(self) -> Iterator[str]:
        """The ids of all workflows of which there is a file, lazily and in no order.

        That includes what an interrupted `clear` left behind. Other people's files do not count.
        Memory stays small, except where S3 lists files in no order (directory buckets and some
        servers do): there it takes about 100 bytes for each workflow.
        """
        about = f"listing {self!r}"

        def page(more: Any) -> Page[str]:
            return self._drive(call(about, Filesystem.list_folders, is_ours, more))

        for folders in pages(page):
            yield from filter(None, map(decode_name, folders))

    def describe(self, workflow_id: str) -> Description:
        """What there is of a workflow: number, size and age of its files. Print it."""
        return self._drive(describe(workflow_id))

    def prune(
        self, older_than: timedelta, *, dry_run: bool = False, callback: Callback | None = None
    ) -> list[str]:
        """Clears every workflow whose newest file was written longer ago than `older_than`.

        It returns their ids; with `dry_run` they are only named. A workflow goes whole or not at
        all, and is looked at again just before. One that a newer version of this library has
        written is kept, with a warning. This is a tool for operators: it compares the storage's
        clock with that of this machine, and cannot know of a run that is about to write, so choose
        an age that no run reaches. `callback` is told of the workflows that were seen.
        """
        if not isinstance(older_than, timedelta):
            raise TypeError(f"older_than must be a timedelta, not {older_than!r}")
        if older_than < timedelta():
            raise ValueError(f"older_than must not be negative, as {older_than!r} is")
        progress = Progress(callback)

        def is_old(workflow_id: str) -> bool:
            written = self._drive(last_written(workflow_id))
            if written is None or datetime.now(UTC) - written <= older_than:
                return False
            try:
                self._drive(_protocol.read_version(workflow_id))
            except UnsupportedFormatError as error:
                # Its newest files may be of a kind that this version does not know.
                logger.warning("workflow %r is not pruned: %s", workflow_id, error)
                return False
            return True

        workflow_ids = list(self.workflows())
        progress.expect(len(workflow_ids))
        old = []
        for workflow_id in workflow_ids:
            if is_old(workflow_id):
                old.append(workflow_id)
            progress.advance()
        if dry_run:
            return old
        pruned = []
        for workflow_id in old:
            if is_old(workflow_id):  # To delete the others may have taken long.
                self.clear(workflow_id)
                pruned.append(workflow_id)
        return pruned

    def _drive(self, steps: Steps[R]) -> R:
        return drive(self._filesystem, steps)

    def _bind(
        self,
        record: Record,
        fingerprint: str | None,
        decision: Decision | None,
        given: Declared = NOTHING,
    ) -> Run:
        return Run(
            record.workflow,
            fingerprint,
            record.token,
            decision,
            record.base,
            self._filesystem,
            self._serializer,
            tokens_of(given, record),
            {name: tuple(task.after) for name, task in given.tasks.items()},
        )
