"""The record: the one file of a workflow that changes."""

from __future__ import annotations

import json
import re
import reprlib
import secrets
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import xxhash

from . import _json
from ._names import fold_alike, is_token
from .errors import CorruptRecordError, FingerprintError, InvalidNameError, InvalidTaskError

VERSION = 2
MAX_RECORD_BYTES = 64 * 1024
MAX_FINGERPRINT_BYTES = 1024

# json.dumps would make an encoder for each call.
_sorted_encoder = json.JSONEncoder(sort_keys=True)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Record(NamedTuple):
    """Which generation of checkpoints is the current one, and which inputs it was computed from.

    `token` names the generation. `base` names an older one, in which a run reads what it does not
    find in its own: a `reuse` with changed inputs makes such a record. It is a mixture and never
    counts as having any inputs. `nonce` is new in every version of the record, so that a writer
    whose reply was lost recognises its own version, and no two versions have the same hash.
    The times are for people; no decision depends on them.

    `tasks` has a token for each key of declared tasks, and `base_tasks` those of the base. The
    checkpoints of such a task are under the token of its key, in place of that of the generation.
    A key of the base that is not in `tasks` still has the same token. A token that has left the
    record never comes into it again.
    """

    workflow: str
    fingerprint: str | None
    token: str
    base: str | None
    nonce: str
    inputs: Mapping[str, str] | None
    created: str
    updated: str
    tasks: Mapping[str, str] = {}
    base_tasks: Mapping[str, str] = {}

    @property
    def live(self) -> frozenset[str]:
        """The tokens of all checkpoints that a run may still come to read."""
        tokens = {self.token, *self.tasks.values(), *self.base_tasks.values()}
        return frozenset(tokens if self.base is None else {*tokens, self.base})

    @property
    def pure(self) -> Mapping[str, str]:
        """The tokens under which a task with a key has no result of other inputs."""
        return self.tasks if self.base is None else self.base_tasks


def new_record(
    workflow: str,
    fingerprint: str | None,
    inputs: Mapping[str, str] | None = None,
    keys: Collection[str] = (),
    kept: Mapping[str, str] | None = None,
) -> Record:
    """The record of a new generation. A key that is in `kept` has the token that is there."""
    now = _now()
    return Record(
        workflow=workflow,
        fingerprint=fingerprint,
        token=secrets.token_hex(8),
        base=None,
        tasks={key: (kept or {}).get(key) or secrets.token_hex(8) for key in dict.fromkeys(keys)},
        nonce=secrets.token_hex(16),
        inputs=inputs,
        created=now,
        updated=now,
    )


def overlay(record: Record, keys: Collection[str] = (), read: Collection[str] = ()) -> Record:
    """The next version of `record`: a new generation, whose base is the present one.

    The keys that the base has keep their tokens. Those in `read` are still read there.
    """
    made = record._replace(
        token=secrets.token_hex(8),
        base=record.token,
        tasks={key: secrets.token_hex(8) for key in dict.fromkeys(keys) if key not in record.tasks},
        base_tasks=record.tasks,
        nonce=secrets.token_hex(16),
        updated=_now(),
    )
    return _fitting(made, {*keys, *read})


def with_keys(record: Record, keys: Collection[str], read: Collection[str] = ()) -> Record:
    """The next version of `record`, with a token for each of the keys, or itself if it has them."""
    known = {**record.base_tasks, **record.tasks}
    new = {key: secrets.token_hex(8) for key in dict.fromkeys(keys) if key not in known}
    if not new:
        return record
    made = record._replace(
        tasks={**record.tasks, **new}, nonce=secrets.token_hex(16), updated=_now()
    )
    return _fitting(made, {*keys, *read})


def _fitting(record: Record, needed: Collection[str]) -> Record:
    """The record, without the keys that are not needed if there is no room for all of them."""
    if _fits(record):
        return record
    tasks, base_tasks = (
        {key: token for key, token in tokens.items() if key in needed}
        for tokens in (record.tasks, record.base_tasks)
    )
    return record._replace(tasks=tasks, base_tasks=base_tasks)


def label(record: Record, fingerprint: str) -> Record:
    """The next version of a record without a fingerprint: its checkpoints get this one."""
    return record._replace(fingerprint=fingerprint, nonce=secrets.token_hex(16), updated=_now())


def check_fingerprint(fingerprint: str) -> str:
    """Returns `fingerprint` if it can be recorded, and raises `FingerprintError` if not."""
    if not isinstance(fingerprint, str):
        raise FingerprintError(
            f"an explicit fingerprint must be a str, not {type(fingerprint).__name__}: "
            "pass the value as inputs to have it fingerprinted"
        )
    size = len(fingerprint.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_FINGERPRINT_BYTES:
        raise FingerprintError(
            f"an explicit fingerprint must be 1 to {MAX_FINGERPRINT_BYTES} bytes, not {size}: "
            "pass a digest of it"
        )
    return str.__str__(fingerprint)


def encode_record(record: Record) -> bytes:
    """The record as readable JSON with a checksum.

    Without tasks, it has no digests of inputs if they make it too large, and is of version 1. With
    tasks it is of version 2, and `InvalidTaskError` if it is too large.
    """
    fields: dict[str, object] = {
        "checkpoint_store": 1,
        "workflow": record.workflow,
        "fingerprint": record.fingerprint,
        "token": record.token,
        "base": record.base,
        "nonce": record.nonce,
        "created": record.created,
        "updated": record.updated,
    }
    inputs = {} if record.inputs is None else {"inputs": dict(record.inputs)}
    if not (record.tasks or record.base_tasks):
        data = _seal({**fields, **inputs})
        return data if len(data) <= MAX_RECORD_BYTES else _seal(fields)
    tasks = {"tasks": dict(record.tasks), "base_tasks": dict(record.base_tasks)}
    data = _seal({**fields, "checkpoint_store": 2, **inputs, **tasks})
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidTaskError(
            f"the record of workflow {record.workflow!r} would take {len(data)} bytes of at most "
            f"{MAX_RECORD_BYTES}, with {len(record.inputs or ())} inputs and "
            f"{len(record.tasks) + len(record.base_tasks)} different keys of tasks: declare tasks "
            "alike, so that they share a key, or put inputs together under one name"
        )
    return data


def _fits(record: Record) -> bool:
    try:
        encode_record(record)
    except InvalidTaskError:
        return False
    return True


def decode_record(data: bytes, workflow: str) -> Record:
    """The record in `data`, which was read as the record of `workflow`.

    Raises `UnsupportedFormatError` for a newer format, `InvalidNameError` if a disk that does not
    tell upper from lower case has found another workflow's record, and `CorruptRecordError` for
    everything else.
    """
    try:
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"larger than {MAX_RECORD_BYTES} bytes")
        parsed = _json.parse_object(data)
        _json.check_version(parsed, VERSION, f"the record of workflow {workflow!r}")
        if parsed.pop("checksum", None) != _checksum(parsed):
            raise ValueError("its checksum does not match")
        record = Record(
            workflow=_json.string(parsed, "workflow"),
            fingerprint=_fingerprint(parsed),
            token=_token(parsed, "token"),
            base=None if parsed.get("base") is None else _token(parsed, "base"),
            nonce=_json.string(parsed, "nonce"),
            inputs=_digests(parsed.get("inputs")),
            created=_json.string(parsed, "created"),
            updated=_json.string(parsed, "updated"),
        )
        if parsed["checkpoint_store"] > 1:
            tasks, base_tasks = _tokens(parsed, "tasks"), _tokens(parsed, "base_tasks")
            record = record._replace(tasks=tasks, base_tasks=base_tasks)
            if base_tasks and record.base is None:
                raise ValueError("'base_tasks' without a base")
            if tasks.keys() & base_tasks.keys():
                raise ValueError("a key occurs twice")
            if len(record.live) < len(tasks) + len(base_tasks) + 1 + (record.base is not None):
                raise ValueError("a token occurs twice")
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(
            f"the record of workflow {workflow!r} is corrupt ({error}): resume with "
            'on_input_change="reset", or clear the workflow, to start over'
        ) from error
    if record.workflow != workflow:
        if fold_alike(record.workflow, workflow):
            raise InvalidNameError(
                f"workflow {workflow!r} would share its files with {record.workflow!r}, because "
                "this disk does not tell upper from lower case: choose another workflow id"
            )
        raise CorruptRecordError(
            f"the record of workflow {workflow!r} is that of {reprlib.repr(record.workflow)}, so "
            'files were moved: move them back, or resume with on_input_change="reset" to start over'
        )
    return record


def _seal(fields: dict[str, object]) -> bytes:
    return _json.encode({**fields, "checksum": _checksum(fields)}, indent=1)


def _checksum(fields: dict[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(_sorted_encoder.encode(fields).encode("ascii"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _fingerprint(parsed: dict[str, object]) -> str | None:
    fingerprint = _json.optional_string(parsed, "fingerprint")
    return None if fingerprint is None else check_fingerprint(fingerprint)


def _token(parsed: dict[str, object], key: str) -> str:
    token = _json.string(parsed, key)
    if not is_token(token):
        raise ValueError(f"{key!r} is not a token")
    return token


def _tokens(parsed: dict[str, object], field: str) -> dict[str, str]:
    """The tokens of keys of tasks."""
    tokens = parsed.get(field)
    if type(tokens) is not dict or not all(map(_DIGEST.fullmatch, tokens)):
        raise ValueError(f"{field!r} are not keys of tasks")
    return {key: _token(tokens, key) for key in tokens}


def _digests(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if type(value) is not dict or not all(
        type(digest) is str and _DIGEST.fullmatch(digest) for digest in value.values()
    ):
        raise ValueError("'inputs' are not digests")
    return value
