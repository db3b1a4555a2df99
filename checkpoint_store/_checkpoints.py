"""Reading, writing and listing the checkpoint files of a generation, and of the base behind it.

These steps move files and do not look into them; the caller encodes and decodes. A task may have a
file in each of several generations: the headers of those files are given together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from ._filesystems.base import Contents, Data, Filesystem
from ._frame import Header, has_header
from ._names import encode_name, file_name, parse_file_name
from ._steps import Call, Each, Steps, call, list_all
from .errors import CheckpointNotFoundError, StorageError

P = ParamSpec("P")
R = TypeVar("R")

Generations = Sequence[Header]
"""The headers of the files that a task may have, that of the newest generation first."""


def key_of(header: Header) -> str:
    """The key of the file with this header."""
    folder = encode_name(header.workflow, "workflow id")
    return f"{folder}/{file_name(encode_name(header.task, 'task name'), header.token)}"


def contains(headers: Generations) -> Steps[bool]:
    """Whether at least one of these files exists."""
    for header in headers:
        if (yield from call(header, Filesystem.contains, key_of(header))):
            return True
    return False


def read(headers: Generations) -> Steps[tuple[Header, Contents]]:
    """Reads the first of these files that exists. If none does, `CheckpointNotFoundError`."""
    return first(headers, Filesystem.read, has_header)


def first(
    headers: Generations, verb: Callable[Concatenate[Any, str, P], R],
    *arguments: P.args, **_: P.kwargs,
) -> Steps[tuple[Header, R]]:  # fmt: skip
    """Calls a verb for file after file until one exists. Returns its header and the reply."""
    for header in headers:
        try:
            reply: R = yield Call(header, verb.__name__, (key_of(header), *arguments))
            return header, reply
        except FileNotFoundError:
            continue
    raise CheckpointNotFoundError(
        f"there is no {headers[0]} in generation {headers[0].token}: compute it and dump it (if "
        "this run had it, another has reset or cleared the workflow since: see is_current)"
    )


def write(header: Header, parts: Sequence[Data]) -> Steps[None]:
    """Stores one file."""
    return call(header, Filesystem.write, key_of(header), parts)


def delete(headers: Generations) -> Steps[None]:
    """Deletes all of these files. One that is not there is no error."""
    # The oldest goes first. If only the newest one were gone, an older one would be found again.
    for header in reversed(headers):
        failures = yield from call(header, Filesystem.delete, [key_of(header)])
        for reason in failures.values():
            raise StorageError(f"{header}: it could not be deleted: {reason}")


def newest(workflow_id: str, tokens_of: Callable[[str], Sequence[str]]) -> Steps[dict[str, str]]:
    """The tasks that have a file in one of their generations, each with the newest one's token.

    `tokens_of` gives those of a task, the newest first.
    """
    about = f"listing workflow {workflow_id!r}"
    folder = encode_name(workflow_id, "workflow id")
    found: dict[str, str] = {}
    for file in (yield from list_all(about, Filesystem.list_files, folder)):
        task, token = parse_file_name(file.name) or ("", "")
        tokens = tokens_of(task)
        if token in tokens and (
            task not in found or tokens.index(token) < tokens.index(found[task])
        ):
            found[task] = token
    return found


def read_many(
    wanted: Iterable[Generations],
    done: Callable[[int, tuple[Header, Contents] | Exception], object],
) -> Steps[None]:
    """Reads the newest file of each of several tasks, side by side."""
    yield Each(map(read, wanted), done)


def write_many(
    files: Iterable[tuple[Header, Sequence[Data]]], done: Callable[[int, Exception | None], object]
) -> Steps[None]:
    """Stores several files, side by side."""
    yield Each((write(header, parts) for header, parts in files), done)
