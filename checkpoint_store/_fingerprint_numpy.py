"""What stands for numpy's arrays and scalars in the tree of a fingerprint.

A scalar is `{"!npscalar": [dtype, sha256 hex of the bytes]}`, an array `{"!ndarray": [dtype, shape,
sha256 hex of the bytes in C order]}`, an array of objects `{"!ndobject": [shape, items]}`, and a
structured one `{"!ndfields": [shape, [[name, array], …]]}`, where padding does not count. Bytes
differ for -0.0 and 0.0, and for two kinds of NaN. A subclass of an array (masked array, matrix,
memmap) is refused.

numpy is never imported here: if a value of its types has arrived, `sys.modules` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from ._fingerprint_refusal import RefusedError, step_of

CHUNK_BYTES = 1 << 20


def rule_of(kind: type) -> Callable[[Any, Any, int], Any] | None:
    """The rule of a type of numpy, or None for any other type."""
    if not _is_numpy(kind):
        return None
    return _array if kind.__name__ == "ndarray" else _scalar


def _is_numpy(kind: type) -> bool:
    numpy: Any = sys.modules.get("numpy")
    # numpy lacks these while it is being imported.
    arrays, scalars = getattr(numpy, "ndarray", None), getattr(numpy, "generic", ())
    return kind is arrays or (issubclass(kind, scalars) and kind.__module__ == "numpy")


def _array(walk: Any, array: Any, depth: int) -> object:
    shape, names = list(array.shape), array.dtype.names
    if names is not None:
        trees = walk.trees(
            [array[name] for name in names], lambda i: step_of(names[i]), array, depth
        )
        return {"!ndfields": [shape, [list(pair) for pair in zip(names, trees, strict=True)]]}
    if array.dtype.kind == "O":
        items = array.reshape(-1).tolist()
        return {"!ndobject": [shape, walk.trees(items, lambda i: f".flat[{i}]", array, depth)]}
    dtype = _portable(array.dtype)
    return {"!ndarray": [dtype.str, shape, _array_digest(array, dtype)]}


def _scalar(_walk: Any, value: Any, _depth: int) -> object:
    dtype = _portable(value.dtype)
    array = sys.modules["numpy"].asarray(value)
    # An empty string becomes an array of one character, which is cut off.
    data = array.astype(array.dtype.newbyteorder("<")).tobytes()[: dtype.itemsize]
    return {"!npscalar": [dtype.str, sha256(data).hexdigest()]}


def _portable(dtype: Any) -> Any:
    """The little-endian form of a numpy dtype whose bytes mean the same on every machine."""
    if dtype.kind not in "biufcmMSU" or dtype.char in "gG" or dtype.type.__module__ != "numpy":
        raise RefusedError(f"unsupported numpy dtype {dtype.name}", "convert it with astype")
    return dtype.newbyteorder("<")


def _array_digest(array: Any, dtype: Any) -> str:
    """The digest of the bytes in C order and of this dtype, without a copy of the whole."""
    if array.nbytes == 0:
        return sha256().hexdigest()
    if array.flags.c_contiguous and array.dtype == dtype:
        return sha256(array.reshape(-1).view("u1")).hexdigest()
    digest = sha256()
    for chunk in sys.modules["numpy"].nditer(
        array,
        ["external_loop", "buffered"],
        [["readonly", "contig"]],
        op_dtypes=[dtype],
        order="C",
        casting="equiv",
        buffersize=max(1, CHUNK_BYTES // dtype.itemsize),
    ):
        digest.update(chunk.view("u1"))
    return digest.hexdigest()
