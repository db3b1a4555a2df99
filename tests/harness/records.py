"""Records of a hostile writer, who can make everything fit together."""

from __future__ import annotations

import json
from collections.abc import Mapping

import xxhash


def sealed(fields: Mapping[str, object]) -> bytes:
    """A record with these fields and the checksum that belongs to them."""
    checksum = xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())
    return json.dumps({**fields, "checksum": checksum}, indent=1).encode() + b"\n"
