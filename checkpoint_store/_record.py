"""The record: the one file of a workflow that changes."""

from __future__ import annotations

import json
import re
import reprlib
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import xxhash

from . import _json
from ._names import fold_alike, is_token
from .errors import CorruptRecordError, FingerprintError, InvalidNameError

VERSION = 1
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
    """

    workflow: str
    fingerprint: str | None
    token: str
    base: str | None
    nonce: str
    inputs: Mapping[str, str] | None
    created: str
    updated: str


def new_record(
    workflow: str, fingerprint: str | None, inputs: Mapping[str, str] | None = None
) -> Record:
    """The record of a new generation."""
    now = _now()
    return Record(
        workflow=workflow,
        fingerprint=fingerprint,
        token=secrets.token_hex(8),
        base=None,
        nonce=secrets.token_hex(16),
        inputs=inputs,
        created=now,
        updated=now,
    )


def overlay(record: Record) -> Record:
    """The next version of `record`: a new generation, whose base is the present one."""
    return record._replace(
        token=secrets.token_hex(8),
        base=record.token,
        nonce=secrets.token_hex(16),
        updated=_now(),
    )


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
    """The record as readable JSON with a checksum. It has no digests if they make it too large."""
    fields: dict[str, object] = {
        "checkpoint_store": VERSION,
        "workflow": record.workflow,
        "fingerprint": record.fingerprint,
        "token": record.token,
        "base": record.base,
        "nonce": record.nonce,
        "created": record.created,
        "updated": record.updated,
    }
    if record.inputs is not None:
        data = _seal({**fields, "inputs": dict(record.inputs)})
        if len(data) <= MAX_RECORD_BYTES:
            return data
    return _seal(fields)


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


def _digests(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if type(value) is not dict or not all(
        type(digest) is str and _DIGEST.fullmatch(digest) for digest in value.values()
    ):
        raise ValueError("'inputs' are not digests")
    return value
