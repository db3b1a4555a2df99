"""The record protocol: how the one mutable file of a workflow is read and changed, and in which
order files may be deleted.

An exhaustive search of the possible crashes and races chose these orders. In particular:

- A record is created if absent or swapped against the version that was read. The winner is never
  inferred from the reply: the record is read again, and the nonce in it tells.
- Collecting lists a page first, reads the record after it, and deletes only what that record no
  longer refers to. A file of a newer generation is thus never listed before its record is seen.
- Clearing deletes the record first. From then on every file is garbage, whoever removes it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from itertools import chain

from ._filesystems.base import Filesystem, Stored
from ._names import RECORD, encode_name, parse_file_name
from ._progress import Progress
from ._record import Record, decode_record, encode_record
from .errors import (
    ContentionError,
    CorruptRecordError,
    IncompleteClearError,
    StorageError,
    storage_errors,
)

logger = logging.getLogger("checkpoint_store")

PAGES_AT_ONCE = 4
"""While one page is deleted, which takes the longest, the next are listed."""

TRIES = 10
"""Swaps of one record before giving up. Each that fails means that somebody else's succeeded."""

Proposal = Callable[[Record | CorruptRecordError | None], Record | None]


def read_record(filesystem: Filesystem, workflow_id: str) -> Record | None:
    """The record of a workflow, or None if there is none. A corrupt one raises."""
    _, found = read_version(filesystem, workflow_id)
    if isinstance(found, CorruptRecordError):
        raise found
    return found


def change_record(filesystem: Filesystem, workflow_id: str, propose: Proposal) -> Record:
    """Replaces the record by the one that `propose` makes of it, and returns the record in force.

    `propose` returns None to keep the record. It is asked again whenever the record turns out to
    be another than the one it was shown.
    """
    mine: set[str] = set()
    versions: set[Stored | None] = set()
    failure: Exception | None = None
    for attempt in range(TRIES):
        stored, found = read_version(filesystem, workflow_id)
        if isinstance(found, Record) and found.nonce in mine:
            return found  # It had taken effect, and only the reply was lost.
        if failure is not None:
            raise failure
        versions.add(stored)
        proposed = propose(found)
        if proposed is None:
            assert isinstance(found, Record)
            return found
        try:
            accepted = _swap(filesystem, stored, proposed, mine)
            if accepted and filesystem.conditional_writes is None:
                # A second change of the same version must be refused. It is another proposal: a
                # clear in between rightly lets it pass, and what was cleared must not come back.
                for _ in range(2):
                    again = propose(found)
                    if again is None or not _swap(filesystem, stored, again, mine):
                        break
                    proposed = again
                else:
                    filesystem.conditional_writes = False
        except Exception as error:  # noqa: BLE001
            failure = error
            continue
        _warn_once(filesystem)
        if accepted:
            return proposed
        logger.debug("workflow %r: lost a race for its record (try %d)", workflow_id, attempt + 1)
        time.sleep(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
    if failure is None and len(versions) == 1:
        raise StorageError(
            f"the record of workflow {workflow_id!r} cannot be changed: the storage refused "
            f"{TRIES} conditional writes, although the record was still the one they named: take "
            "away the proxy that changes ETags or conditions, or choose a server that honours "
            "If-Match and If-None-Match (python -m checkpoint_store URL tries them)"
        )
    raise failure or ContentionError(
        f"the record of workflow {workflow_id!r} changed {TRIES} times while this run tried to "
        "change it: find out which other runs resume the same workflow, and try again"
    )


def collect(
    filesystem: Filesystem, workflow_id: str, progress: Progress, *, cleared: bool = False
) -> int:
    """Deletes the files of retired generations and returns the number of checkpoints among them.

    Without a record nothing is deleted, except that after a `clear` everything is.
    """
    folder = _folder(workflow_id)
    removed = 0
    failures: dict[str, str] = {}

    def sweep(names: list[str]) -> tuple[list[str], dict[str, str]] | None:
        files = [(name, parsed[1]) for name in names if (parsed := parse_file_name(name))]
        if not files:
            return [], {}
        # Read after the page was listed, it knows every generation of which a file is on it.
        record = read_record(filesystem, workflow_id)
        if record is None and not cleared:
            return None
        live = () if record is None else (record.token, record.base)
        return delete([f"{folder}/{name}" for name, token in files if token not in live])

    def delete(keys: list[str]) -> tuple[list[str], dict[str, str]]:
        return keys, filesystem.delete(keys) if keys else {}

    def outcomes() -> Iterator[tuple[list[str], dict[str, str]] | None]:
        with storage_errors(f"collecting workflow {workflow_id!r}"):
            for _, outcome in chain(
                filesystem.each(sweep, filesystem.pages(folder), at_most=PAGES_AT_ONCE),
                filesystem.each(delete, filesystem.leftovers(folder), at_most=1),
            ):
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome

    for outcome in outcomes():
        if outcome is None:
            break
        keys, failed = outcome
        gone = sum(key not in failed and _is_checkpoint(key) for key in keys)
        removed += gone
        failures.update(failed)
        progress.advance(gone)
    if failures:
        raise IncompleteClearError(
            f"workflow {workflow_id!r}: {len(failures)} files could not be deleted, such as "
            f"{next(iter(failures))} ({next(iter(failures.values()))}): correct that and repeat",
            failures=failures,
        )
    return removed


def clear(filesystem: Filesystem, workflow_id: str, progress: Progress) -> int:
    """Removes a workflow and returns the number of checkpoint files that went."""
    with storage_errors(f"clearing workflow {workflow_id!r}"):
        filesystem.detach(_folder(workflow_id), RECORD)
    return collect(filesystem, workflow_id, progress, cleared=True)


def read_version(
    filesystem: Filesystem, workflow_id: str
) -> tuple[Stored | None, Record | CorruptRecordError | None]:
    try:
        with storage_errors(f"the record of workflow {workflow_id!r}", missing_passes=True):
            stored = filesystem.read_small(_record_key(workflow_id))
    except FileNotFoundError:
        return None, None
    try:
        return stored, decode_record(stored.data, workflow_id)
    except CorruptRecordError as error:
        return stored, error


def _swap(filesystem: Filesystem, stored: Stored | None, proposed: Record, mine: set[str]) -> bool:
    mine.add(proposed.nonce)
    with storage_errors(f"the record of workflow {proposed.workflow!r}"):
        key = _record_key(proposed.workflow)
        return filesystem.swap(key, stored, encode_record(proposed))


def _folder(workflow_id: str) -> str:
    return encode_name(workflow_id, "workflow id")


def _record_key(workflow_id: str) -> str:
    return f"{_folder(workflow_id)}/{RECORD}"


def _is_checkpoint(key: str) -> bool:
    return parse_file_name(key.rpartition("/")[2]) is not None


def _warn_once(filesystem: Filesystem) -> None:
    if filesystem.warned:
        return
    if filesystem.conditional_writes is False:
        filesystem.warned = True
        logger.warning(
            "this storage has no conditional writes: results are safe only while a single process "
            "at a time resumes, resets or clears a workflow"
        )
    elif filesystem.caveat:
        filesystem.warned = True
        logger.warning(
            "%s: resume, reset or clear a workflow through one mount and on one host at a time",
            filesystem.caveat,
        )
