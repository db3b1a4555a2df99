"""A checkpoint file: one header line, the payload, and a trailer that seals both.

    {"checkpoint_store": 1, "workflow": …, "task": …, "token": …, …}\\n    at most 16 KiB
    payload, exactly as given
    payload length (8 bytes, big endian) and xxh3-128 of all that precedes the checksum (16 bytes)

The checksum guards against accidents, not adversaries. One pass writes a file, one pass reads it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import warnings
import weakref
from collections.abc import Buffer
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, Protocol

import xxhash

from . import _json
from .errors import CorruptCheckpointError, InvalidNameError, StorageError, UnsupportedFormatError
