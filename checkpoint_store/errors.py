"""Every exception this library raises on purpose.

CheckpointStoreError
├── InvalidNameError, InvalidPolicyError, InvalidTaskError, InvalidURLError  (also ValueError)
├── FingerprintError  (also ValueError)
├── InputChangedError
├── CheckpointNotFoundError  (also KeyError)
├── CorruptCheckpointError, CorruptRecordError
├── UnsupportedFormatError
├── SerializationError
├── ContentionError
├── IncompleteClearError
└── StorageError  (also OSError)

They are grouped by what a handler would do. Each message states the fact, then the remedy. All of
them survive pickling with their attributes, so that a worker's error reaches its parent whole.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._changes import InputChange


class CheckpointStoreError(Exception):
    """Base of every error of this library."""

    def __str__(self) -> str:
        # The `__str__` of KeyError would show the repr of the message.
        return str(self.args[0]) if self.args else ""


class InvalidNameError(CheckpointStoreError, ValueError):
    """A workflow id or task name that cannot become a key: empty, too long, not a `str`, or one
    that would share a file with another name on a disk that folds case."""


class InvalidPolicyError(CheckpointStoreError, ValueError):
    """`on_input_change` is missing or not one of `"reuse"`, `"reset"`, `"raise"`."""


class InvalidTaskError(CheckpointStoreError, ValueError):
    """A declaration of tasks that names an unknown input or task, goes in a circle, or is too large
    for a record."""


class InvalidURLError(CheckpointStoreError, ValueError):
    """A URL that is not understood, or that would mean something else than it seems to."""


class FingerprintError(CheckpointStoreError, ValueError):
    """A value has no fingerprint that would be the same in the next process.

    `path` says where in the inputs it stands, `reason` why it was refused. Values are never echoed.
    """

    def __init__(self, message: str, *, path: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.reason = reason


class InputChangedError(CheckpointStoreError):
    """The stored checkpoints come from other inputs, and the policy is `"raise"`. Nothing was
    changed."""

    def __init__(
        self,
        message: str,
        *,
        workflow_id: str,
        stored: str | None,
        current: str,
        change: InputChange,
    ) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.stored = stored
        self.current = current
        self.change = change

    def __reduce__(self) -> tuple[Any, ...]:
        fields = ("workflow_id", "stored", "current", "change")
        make = partial(type(self), **{name: getattr(self, name) for name in fields})
        return make, self.args, self.__dict__


class CheckpointNotFoundError(CheckpointStoreError, KeyError):
    """There is no checkpoint of this task in this generation of the workflow."""


class CorruptCheckpointError(CheckpointStoreError):
    """A checkpoint file is truncated, altered, or belongs to another task, token or workflow."""


class CorruptRecordError(CheckpointStoreError):
    """A workflow's record cannot be read. It is never treated as absent."""


class UnsupportedFormatError(CheckpointStoreError):
    """A record or checkpoint file was written by a newer version of this library."""


class SerializationError(CheckpointStoreError):
    """The serializer failed (its own exception is the cause), or is not the one that wrote the
    checkpoint."""


class ContentionError(CheckpointStoreError):
    """The workflow's record kept changing, or stayed locked, for too long; or the call came from a
    signal handler that had interrupted another change of the same record."""


class IncompleteClearError(CheckpointStoreError):
    """Some files could not be deleted. `failures` maps each key to the reason the storage gave."""

    def __init__(self, message: str, *, failures: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})


class StorageError(CheckpointStoreError, OSError):
    """The filesystem raised an error. The message names the workflow and the task.

    The error of the filesystem is the cause, and its `errno`, if it had one, is kept.

    From `write_many` and `dump_many`, `failures` maps each task that was not written to the reason.
    """

    def __init__(
        self, message: str, *, errno: int | None = None, failures: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.errno = errno
        self.failures = dict(failures or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args, {**self.__dict__, "errno": self.errno}


_REMEDIES = {
    errno.EACCES: "name a folder that you may read and write, or change its permissions",
    errno.EPERM: "name a folder that you may read and write, or change its permissions",
    errno.EROFS: "name a folder that you may write to",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EISDIR: "move the folder away that is in its place",
    errno.ELOOP: "replace the symbolic link, which is not followed, by what it leads to",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.ECONNREFUSED: "check the host, the port and the network",
}


def storage_error(subject: object, error: BaseException) -> BaseException:
    """What a filesystem has raised, as a `StorageError` about `subject` whose cause it is.

    An error of this package is returned as it is, and so is an interrupt.
    """
    if not isinstance(error, Exception) or isinstance(error, CheckpointStoreError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    detail = str(error) or type(error).__name__
    remedy = _REMEDIES.get(number or 0)
    message = f"{subject}: {detail}"
    explained = StorageError(f"{message}: {remedy}" if remedy else message, errno=number)
    explained.__cause__ = error
    return explained


class storage_errors:  # noqa: N801 - a context manager, and a third of the time of a generator
    """Raises what a filesystem raises within the block as a `StorageError` about `subject`."""

    __slots__ = ("_subject",)

    def __init__(self, subject: object) -> None:
        self._subject = subject

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None and (explained := storage_error(self._subject, error)) is not error:
            raise explained
