"""The record protocol: how the one mutable file of a workflow is read and changed, and in which
order files may be deleted.

These orders were found by an exhaustive search of all crashes and races. In particular:

- A record is created if there is none, or swapped against the version that was read. The reply does
  not tell who has won: the record is read again, and the nonce in it tells.
- To collect is to list a page, then to read the record, and then to delete what this record does
  not refer to. So a file is never deleted on the word of a record that is older than the file.
- To clear is to delete the record first. From then on all the files are garbage, whoever removes
  them.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any, TypeVar

from ._filesystems.base import Filesystem, Stored
from ._names import RECORD, encode_name, is_ours, parse_file_name
from ._policy import Found
from ._progress import Progress
from ._record import Record, decode_record, encode_record
from ._steps import Pause, Steps, call, gather
from .errors import ContentionError, CorruptRecordError, IncompleteClearError, StorageError

logger = logging.getLogger("checkpoint_store")

PAGES_AT_ONCE = 4
"""How many pages of files are deleted side by side, while as many more are listed."""

TRIES = 10
"""How often a change of a record is tried. A swap is refused only if another succeeded."""

T = TypeVar("T")
Transition = Callable[[Found], tuple[Record, T]]
"""Takes what was found of a record, and returns the record that is to be in force, and a decision.
To change nothing it returns the same object that was found."""


def read_record(workflow_id: str) -> Steps[Record | None]:
    """The record of a workflow, or None if there is none. A corrupt one is an error."""
    _, found = yield from read_version(workflow_id)
    if isinstance(found, CorruptRecordError):
        raise found
    return found


def change_record(
    filesystem: Filesystem, workflow_id: str, transition: Transition[T]
) -> Steps[tuple[Found, Record, T]]:
    """Replaces the record by what `transition` makes of it.

    Returns what was found, the record that is in force now, and the decision. If the record turns
    out to be another than the one that `transition` was given, it is called again. `filesystem` is
    here only for its flag `conditional_writes`, which may be set. The requests are yielded.
    """
    sent: dict[str, tuple[Found, Record, T]] = {}
    versions: set[Stored | None] = set()

    def mine(found: Found) -> tuple[Found, Record, T] | None:
        """What to return if this very version of the record was sent by these steps."""
        return sent.get(found.nonce) if isinstance(found, Record) else None

    for attempt in range(TRIES):
        stored, found = yield from read_version(workflow_id)
        if done := mine(found):
            return done  # That swap has taken effect, although it was refused.
        versions.add(stored)
        record, decision = transition(found)
        if record is found:
            return found, record, decision
        sent[record.nonce] = found, record, decision
        try:
            accepted = yield from _swap(stored, record)
            if accepted and filesystem.conditional_writes is None:
                # Does the storage honour conditions? It must refuse a second swap of the same
                # version. That proposes another record, because after a clear in between it is
                # rightly accepted, and the record that was cleared must not come back.
                for _ in range(2):
                    again, decision = transition(found)
                    sent[again.nonce] = found, again, decision
                    if not (yield from _swap(stored, again)):
                        break
                    record = again
                else:
                    filesystem.conditional_writes = False
        except Exception:
            # The swap may have taken effect, and only its reply was lost.
            _, found = yield from read_version(workflow_id)
            if done := mine(found):
                return done
            raise
        _warn_once(filesystem)
        if accepted:
            return sent[record.nonce]
        logger.debug("workflow %r: lost a race for its record (try %d)", workflow_id, attempt + 1)
        yield Pause(random.uniform(0, min(1.0, 0.01 * 2**attempt)))
    if len(versions) == 1:
        raise StorageError(
            f"the record of workflow {workflow_id!r} cannot be changed: the storage refused "
            f"{TRIES} conditional writes, although the record was still the one they named: take "
            "away the proxy that changes ETags or conditions, or choose a server that honours "
            "If-Match and If-None-Match (python -m checkpoint_store URL tries them)"
        )
    raise ContentionError(
        f"the record of workflow {workflow_id!r} changed {TRIES} times while this run tried to "
        "change it: find out which other runs resume the same workflow, and try again"
    )


def collect(workflow_id: str, progress: Progress, *, cleared: bool = False) -> Steps[int]:
    """Deletes the files of retired generations. Returns the number of checkpoints among them.

    If there is no record, nothing is deleted; but after a `clear`, everything is.
    """
    about = f"collecting workflow {workflow_id!r}"
    folder = _folder(workflow_id)
    removed = 0
    failures: dict[str, str] = {}

    def sweep(names: list[str]) -> Steps[tuple[list[str], dict[str, str]] | None]:
        files = [(name, parsed[1]) for name in names if (parsed := parse_file_name(name))]
        if not files:
            return [], {}
        # The record is read after the page was listed, so it is at least as new as each file on it.
        record = yield from read_record(workflow_id)
        if record is None and not cleared:
            return None
        live = frozenset[str]() if record is None else record.live
        return (
            yield from delete([f"{folder}/{name}" for name, token in files if token not in live])
        )

    def delete(keys: list[str]) -> Steps[tuple[list[str], dict[str, str]]]:
        return keys, (yield from call(about, Filesystem.delete, keys)) if keys else {}

    def count(keys: list[str], failed: dict[str, str]) -> int:
        failures.update(failed)
        gone = sum(key not in failed and _is_checkpoint(key) for key in keys)
        progress.advance(gone)
        return gone

    pages: list[list[str]] = []
    pages, more = yield from _list_ahead(about, folder, None)
    while pages:
        sweeps: list[Steps[Any]] = [sweep(page) for page in pages]
        ahead: list[Steps[Any]] = [] if more is None else [_list_ahead(about, folder, more)]
        outcomes = yield from gather([*sweeps, *ahead])
        pages, more = outcomes.pop() if ahead else ([], None)
        removed += sum(count(*outcome) for outcome in outcomes if outcome is not None)
        if None in outcomes:
            break
    else:
        is_last = False
        while not is_last:
            page = yield from call(about, Filesystem.list_leftovers, folder, more)
            removed += count(*(yield from delete(page.items)))
            more, is_last = page.more, page.more is None
    if failures:
        raise IncompleteClearError(
            f"workflow {workflow_id!r}: {len(failures)} files could not be deleted, such as "
            f"{next(iter(failures))} ({next(iter(failures.values()))}): correct that and repeat",
            failures=failures,
        )
    return removed


def clear(workflow_id: str, progress: Progress) -> Steps[int]:
    """Removes a workflow. Returns the number of checkpoint files that were deleted."""
    about = f"clearing workflow {workflow_id!r}"
    yield from call(about, Filesystem.detach, _folder(workflow_id), RECORD, is_ours)
    return (yield from collect(workflow_id, progress, cleared=True))


def read_version(workflow_id: str) -> Steps[tuple[Stored | None, Found]]:
    """The file of a record as a later swap needs it, and what was found in it."""
    about = f"the record of workflow {workflow_id!r}"
    try:
        stored = yield from call(about, Filesystem.read_small, _record_key(workflow_id))
    except FileNotFoundError:
        return None, None
    try:
        return stored, decode_record(stored.data, workflow_id)
    except CorruptRecordError as error:
        return stored, error


def _swap(stored: Stored | None, record: Record) -> Steps[bool]:
    about = f"the record of workflow {record.workflow!r}"
    key, data = _record_key(record.workflow), encode_record(record)
    return (yield from call(about, Filesystem.swap, key, stored, data))


def _list_ahead(about: str, folder: str, more: Any) -> Steps[tuple[list[list[str]], Any]]:
    """The names of the files on the next few pages, and the mark after which the list goes on."""
    pages: list[list[str]] = []
    while len(pages) < PAGES_AT_ONCE:
        page = yield from call(about, Filesystem.list_files, folder, more)
        pages.append([file.name for file in page.items])
        if (more := page.more) is None:
            break
    return pages, more


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
