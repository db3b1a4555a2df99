"""Tables and columns of pandas, polars and pyarrow by what they say, not by how they hold it.

- A table of pyarrow or polars (equal by choice: they share a data model) is `{"!table": [rows,
  [[name, column], …]]}`, one of pandas `{"!frame": [index, index of the columns, [column, …]]}`.
- A column is an array of pyarrow, `{"!column": column}`; a Series, `{"!series": [name, column]}`,
  with the index as a third in pandas; or an Index, `{"!index": index}`.
- An index is `[[name, column], …]`, one for each level.
- A column is `[type, rows, validity, …]`. The type has Arrow's name. The validity is null where
  nothing is missing, else the digest of a bitmap, least significant bit first. Then follow:
  - of a fixed width: the digest of the values, little-endian, 0 where missing; bool as a bitmap;
  - `string`, `binary`: the digests of the lengths (uint32, 0 where missing) and of the bytes;
  - `list`, `map`: the digest of the lengths, the column of the items;
  - `fixed_size_list[n]`: the column of the items, without those of missing lists;
  - `struct`: `[[name, column], …]`, in which whatever a missing struct has is missing.
- Without a validity: `["null", rows]`; `["object", rows, items]`; `["range", rows]`, a level of an
  index that counts from 0 in int64; `["interval[closed]", rows, left, right]`; `["dictionary",
  rows, column]`, decoded; `["categorical", rows, ordered, digest of int32 codes, column of the
  categories]`, where -1 is missing. Arrow's dictionaries and a Categorical of polars, whose order
  is an accident, are the former, a Categorical of pandas and an Enum of polars the latter.
- In pandas NaT is missing, and NaN among numpy's floats is a value. Objects of nothing but str,
  and None, NaN or NA for what is missing, are a `string`.

Metadata, `attrs` and `freq` do not count. No more than one column is copied at a time. With less
than pandas 2.0, polars 1.0 or pyarrow 14, which are enough, some columns are refused.

The libraries are never imported here: `sys.modules` has them where their values have arrived.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from datetime import timezone
from hashlib import sha256
from importlib import import_module
from types import NoneType
from typing import Any

from ._fingerprint_refusal import RefusedError, step_of

_Rule = Callable[[Any, Any, int], Any]

PIECE_ROWS = 1 << 16
"""Hashed at a time: a multiple of eight, so that the bitmaps of the pieces make one."""

_FIXED = re.compile(
    r"bool|u?int(8|16|32|64|128)|float(16|32|64)|complex(64|128)|date32\[day\]|date64\[ms\]"
    r"|(time32|time64|duration)\[(s|ms|us|ns)\]|timestamp\[(s|ms|us|ns)(, tz=.+)?\]"
    r"|decimal(32|64|128|256)\(\d+, -?\d+\)|fixed_size_binary\[[1-9]\d*\]"
)
_REMEDY = "convert it, or pass a digest of it"
_ARROW = {"halffloat": "float16", "float": "float32", "double": "float64"}
_ARROW |= dict.fromkeys(["large_string", "string_view"], "string")
_ARROW |= dict.fromkeys(["large_binary", "binary_view"], "binary")
_ARROW |= dict.fromkeys(["large_list", "list_view", "large_list_view"], "list")
_POLARS = {
    "boolean": "bool",
    "date": "date32[day]",
    "time": "time64[ns]",
    "datetime": "timestamp[{0.time_unit}]",
    "duration": "duration[{0.time_unit}]",
    "decimal": "decimal128({0.precision}, {0.scale})",
    "array": "fixed_size_list[{0.size}]",
}
_CODES = dict(zip(["int8", "int16", "int32", "int64"], "bhiq", strict=True))
_CODES |= {f"u{name}": code.upper() for name, code in _CODES.items()}
_CODES |= {"float16": "e", "float32": "f", "float64": "d"}


def rule_of(kind: type) -> _Rule | None:
    """The rule of a type that one of the libraries defines; others' subclasses have none."""
    library = _root(kind)
    for name, rule in _RULES.get(library, {}).items():
        # While a library is being imported, it does not have these yet.
        if issubclass(kind, getattr(sys.modules.get(library), name, ())):
            return rule
    return None


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _digest(read: Callable[[Any], Any], column: Any) -> str:
    """The digest of the bytes that `read` returns for the column, piece by piece."""
    digest = sha256()
    for start in range(0, len(column), PIECE_ROWS):
        digest.update(read(column[start : start + PIECE_ROWS]))
    return digest.hexdigest()


def _named(walk: Any, names: Any, columns: list[Any], of: object, depth: int, rule: _Rule) -> Any:
    trees = walk.trees(columns, lambda i: step_of(names[i]), of, depth, rule)
    return [list(pair) for pair in zip(names, trees, strict=True)]


def _lengths(items: Any) -> bytes:
    return struct.pack(f"<{len(items)}I", *map(len, items))


def _checked(rule: _Rule) -> _Rule:
    def checked(walk: Any, column: Any, depth: int) -> Any:
        try:
            return rule(walk, column, depth)
        except (RefusedError, RecursionError):
            raise
        except Exception as error:
            raise RefusedError(f"reading it raised {type(error).__name__}", _REMEDY) from error

    return checked


def _unsupported(kind: object) -> RefusedError:
    return RefusedError(f"unsupported column type {kind}", _REMEDY)


# pandas


def _pandas_frame(walk: Any, frame: Any, depth: int) -> object:
    axes, columns = [frame.index, frame.columns], [frame.iloc[:, i] for i in range(frame.shape[1])]
    trees = walk.trees(axes, (".index", ".columns").__getitem__, frame, depth, _levels)
    pairs = _named(walk, frame.columns, columns, frame, depth, _pandas_column)
    return {"!frame": [*trees, [tree for _, tree in pairs]]}


def _pandas_series(walk: Any, series: Any, depth: int) -> object:
    [name] = walk.trees([series.name], lambda _: ".name", series, depth)
    [index] = walk.trees([series.index], lambda _: ".index", series, depth, _levels)
    return {"!series": [name, _pandas_column(walk, series, depth), index]}


def _pandas_index(walk: Any, index: Any, depth: int) -> object:
    return {"!index": _levels(walk, index, depth)}


def _levels(walk: Any, index: Any, depth: int) -> list[list[Any]]:
    levels = [index.get_level_values(i) for i in range(index.nlevels)]
    names = walk.trees(list(index.names), lambda i: f".names[{i}]", index, depth)
    trees = walk.trees(levels, lambda i: f".levels[{i}]", levels, depth, _level)
    return [list(pair) for pair in zip(names, trees, strict=True)]


def _level(walk: Any, level: Any, depth: int) -> object:
    if level.dtype == "int64" and level.equals(sys.modules["pandas"].RangeIndex(len(level))):
        return ["range", len(level)]
    return _pandas_column(walk, level, depth)


@_checked
def _pandas_column(walk: Any, column: Any, depth: int) -> object:
    pandas, numpy = sys.modules["pandas"], sys.modules["numpy"]
    kind, rows = column.dtype, len(column)
    array, plain = column.array, isinstance(kind, numpy.dtype)
    if not plain and _root(type(kind)) != "pandas":
        raise _unsupported(kind)
    if str(getattr(kind, "storage", "")).startswith("pyarrow"):
        return _arrow_column(walk, array.__arrow_array__(), depth)
    if isinstance(kind, pandas.IntervalDtype):
        sides = [_pandas_column(walk, side, depth) for side in (array.left, array.right)]
        return [f"interval[{kind.closed}]", rows, *sides]
    if isinstance(kind, pandas.CategoricalDtype):
        codes = sha256(array.codes.astype("<i4")).hexdigest()
        categories = _pandas_column(walk, array.categories, depth)
        return ["categorical", rows, bool(kind.ordered), codes, categories]

    # NaN among the floats of numpy is a value.
    missing = array.isna() if not plain or kind.kind in "OmM" else numpy.zeros(rows, bool)
    gaps = missing.any()
    if isinstance(kind, pandas.StringDtype) or kind == "object":
        name, values = "string", column.to_numpy(object)
    elif isinstance(kind, pandas.DatetimeTZDtype) or (plain and kind.kind in "mM"):
        name = {"M": "timestamp", "m": "duration"}[kind.kind]
        zone = "" if plain else f", tz={_zone(kind.tz)}"
        name, values = f"{name}[{array.unit}{zone}]", array.asi8
        values = numpy.where(missing, 0, values) if gaps else values
    elif plain:
        name, values = kind.name, column.to_numpy()
    elif hasattr(kind, "numpy_dtype"):
        name, values = kind.numpy_dtype.name, array.to_numpy(kind.numpy_dtype, na_value=0)
    else:
        raise _unsupported(kind)

    def pack(part: Any) -> Any:
        return numpy.packbits(part, bitorder="little")

    def read(part: Any) -> Any:
        return numpy.ascontiguousarray(part, part.dtype.newbyteorder("<"))

    validity = _digest(pack, ~missing) if gaps else None
    if name != "string":
        if not _FIXED.fullmatch(name):
            raise _unsupported(kind)
        return [name, rows, validity, _digest(pack if name == "bool" else read, values)]
    texts = numpy.where(missing, "", values) if gaps else values
    others = set(map(type, values[missing])) - {NoneType, float, type(pandas.NA)}
    if plain and (missing.all() or others or set(map(type, texts)) != {str}):
        return ["object", rows, walk.trees(values.tolist(), lambda i: f".iloc[{i}]", column, depth)]
    lengths = _digest(
        lambda part: _lengths(part if "".join(part).isascii() else list(map(_utf8, part))), texts
    )
    return [name, rows, validity, lengths, _digest(lambda part: _utf8("".join(part)), texts)]


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _zone(zone: Any) -> str:
    if _root(type(zone)) in ("datetime", "zoneinfo", "pytz", "dateutil"):
        if name := getattr(zone, "key", None) or getattr(zone, "zone", None):
            return str(name)
        if (offset := zone.utcoffset(None)) is not None:
            return str(timezone(offset)).removeprefix("UTC") or "UTC"
    raise _unsupported(f"with a time zone of type {type(zone).__name__}")


# pyarrow


def _arrow_table(walk: Any, table: Any, depth: int) -> object:
    names, columns = table.schema.names, table.columns
    return {"!table": [table.num_rows, _named(walk, names, columns, table, depth, _arrow_column)]}


def _arrow_array(walk: Any, array: Any, depth: int) -> object:
    return {"!column": _arrow_column(walk, array, depth)}


@_checked
def _arrow_column(walk: Any, column: Any, depth: int) -> object:
    pyarrow, compute = sys.modules["pyarrow"], import_module("pyarrow.compute")
    if isinstance(column, pyarrow.Array):
        column = pyarrow.chunked_array([column])
    kind, rows, name = column.type, len(column), str(column.type)
    name = _ARROW.get(name, name)
    family = re.split(r"\W", name, maxsplit=1)[0]
    family = _ARROW.get(family, family)
    if family == "null":
        return [family, rows]
    if family == "dictionary" and not kind.ordered:
        return [family, rows, _arrow_column(walk, column.cast(kind.value_type), depth)]
    gaps = column.null_count
    validity = _digest(_arrow_memory, column.is_valid()) if gaps else None
    if family == "struct":
        names = [field.name for field in kind]
        trees = _named(walk, names, column.flatten(), column, depth, _arrow_column)
        return [family, rows, validity, trees]
    if family == "map":
        column = column.cast(pyarrow.list_(pyarrow.struct([kind.key_field, kind.item_field])))
    if family in ("list", "map", "fixed_size_list"):
        items = pyarrow.chunked_array([c.flatten() for c in column.chunks], column.type.value_type)
        trees = walk.trees([items], lambda _: "[…]", column, depth, _arrow_column)
        if family == "fixed_size_list":
            return [f"{family}[{kind.list_size}]", rows, validity, *trees]
        sizes = compute.list_value_length(column).fill_null(0).cast("uint32")
        return [family, rows, validity, _digest(_arrow_memory, sizes), *trees]
    if family in ("string", "binary"):
        column = column.cast(f"large_{family}") if str(kind).endswith("_view") else column
        shown = _without_nulls(column)
        sizes = compute.binary_length(shown)
        empty = compute.equal(sizes, pyarrow.scalar(0, sizes.type))
        if gaps and not compute.all(compute.or_(column.is_valid(), empty)).as_py():
            shown = column.fill_null(b"")
            sizes = compute.binary_length(shown)
        sizes = _digest(_arrow_memory, sizes.cast("int32"))
        return [family, rows, validity, sizes, _digest(_arrow_bytes, shown)]
    if not _FIXED.fullmatch(name):
        raise _unsupported(name)
    zeros = pyarrow.py_buffer(bytes(kind.bit_width // 8 or 1))
    [zero] = pyarrow.Array.from_buffers(kind, 1, [None, zeros])
    column = column.fill_null(zero) if gaps else column
    return [name, rows, validity, _digest(_arrow_memory, column)]


def _joined(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _without_nulls(column: Any) -> Any:
    """A column of strings without its bitmaps, which shows what bytes there are under a null."""
    pyarrow = sys.modules["pyarrow"]
    parts = [
        pyarrow.Array.from_buffers(
            part.type, len(part), [None, *part.buffers()[1:]], offset=part.offset
        )
        for part in column.chunks
    ]
    return pyarrow.chunked_array(parts, column.type)


def _arrow_bytes(column: Any) -> Any:
    """The bytes of strings, of which none is null."""
    part = _joined(column.cast("large_binary"))
    _, offsets, data = part.buffers()
    ends = (part.offset, part.offset + len(part))
    start, stop = (struct.unpack_from("<q", offsets, 8 * end)[0] for end in ends)
    return memoryview(data or b"")[start:stop]


def _arrow_memory(column: Any) -> Any:
    """Values of a fixed width, of which none is null, as they lie in memory."""
    part = _joined(column) if hasattr(column, "chunks") else column
    width, start, stop = part.type.bit_width, part.offset, part.offset + len(part)
    memory = memoryview(part.buffers()[1])
    if width > 1:
        return memory[start * width // 8 : stop * width // 8]
    bits = int.from_bytes(memory[start // 8 : (stop + 7) // 8], "little") >> start % 8
    return (bits & (1 << len(part)) - 1).to_bytes((len(part) + 7) // 8, "little")


# polars


def _polars_table(walk: Any, frame: Any, depth: int) -> object:
    names, columns = frame.columns, frame.get_columns()
    return {"!table": [frame.height, _named(walk, names, columns, frame, depth, _polars_column)]}


def _polars_series(walk: Any, series: Any, depth: int) -> object:
    return {"!series": [series.name, _polars_column(walk, series, depth)]}


@_checked
def _polars_column(walk: Any, series: Any, depth: int) -> object:
    polars = sys.modules["polars"]
    kind, rows = series.dtype, len(series)
    family = _family(kind)
    name = _POLARS.get(family, family).format(kind)
    if family == "null":
        return [name, rows]
    if family == "categorical":
        return ["dictionary", rows, _polars_column(walk, series.cast(polars.String), depth)]
    if family == "enum":
        codes = series.to_physical().cast(polars.Int32).fill_null(-1)
        categories = _polars_column(walk, kind.categories, depth)
        return ["categorical", rows, True, _digest(_polars_memory, codes), categories]
    gaps = series.null_count()
    validity = _digest(_polars_memory, series.is_not_null()) if gaps else None
    if family == "struct":
        names = [field.name for field in kind.fields]
        fields = [series.struct.field(name) for name in names]
        return [name, rows, validity, _named(walk, names, fields, series, depth, _polars_column)]
    if family in ("list", "array"):
        lists = series.arr.to_list() if family == "array" else series
        sizes = lists.list.len().cast(polars.UInt32)
        sizes = sizes.set(lists.is_null(), 0) if gaps else sizes
        full = lists.filter(sizes > 0)
        try:
            items = full.explode(empty_as_null=False)
        except TypeError:  # polars before 1.36
            items = full.explode()
        trees = walk.trees([items], lambda _: "[…]", series, depth, _polars_column)
        if family == "array":
            return [name, rows, validity, *trees]
        return [name, rows, validity, _digest(_polars_memory, sizes), *trees]
    if family == "binary":
        items = [item or b"" for item in series]
        return [name, rows, validity, _digest(_lengths, items), _digest(b"".join, items)]
    if family == "string":
        sizes = _digest(_polars_memory, series.str.len_bytes().fill_null(0))

        def join(part: Any) -> Any:
            return part.str.join("").cast(polars.Binary).item()

        return [name, rows, validity, sizes, _digest(join, series)]
    if family == "datetime" and kind.time_zone:
        name = f"{name[:-1]}, tz={kind.time_zone}]"
    if not _FIXED.fullmatch(name):
        raise _unsupported(kind)
    if family != "boolean":
        series = series.to_physical()
    if gaps:
        series = series.fill_null(False if family == "boolean" else 0)
    return [name, rows, validity, _digest(_polars_memory, series)]


def _family(kind: Any) -> str:
    return str(kind.base_type().__name__).lower()


def _polars_memory(series: Any) -> Any:
    """Values of a fixed width, of which none is null, as numpy holds them, which may be absent."""
    name, size = _family(series.dtype), len(series)
    if name in ("int128", "uint128"):
        signed = name == "int128"
        return b"".join(value.to_bytes(16, "little", signed=signed) for value in series)
    if name != "boolean" and name not in _CODES:
        raise _unsupported(series.dtype)
    try:
        numpy = import_module("numpy")
    except ImportError:
        if name != "boolean":
            return struct.pack(f"<{size}{_CODES[name]}", *series)
        digits = bytes(series)[::-1].hex()[1::2]
        return int(digits, 2).to_bytes((size + 7) // 8, "little")
    values = series.to_numpy()
    return numpy.packbits(values, bitorder="little") if name == "boolean" else values


_RULES: dict[str, dict[str, _Rule]] = {
    "pandas": {"DataFrame": _pandas_frame, "Series": _pandas_series, "Index": _pandas_index},
    "polars": {"DataFrame": _polars_table, "Series": _polars_series},
    "pyarrow": dict.fromkeys(["Table", "RecordBatch"], _arrow_table)
    | dict.fromkeys(["Array", "ChunkedArray"], _arrow_array),
}
