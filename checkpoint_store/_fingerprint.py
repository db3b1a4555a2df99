"""Inputs to the digest string `fp1:sha256:…`, the same in every process and on every machine.

A value becomes a tree of plain JSON types, the tree a canonical text, the text a SHA-256. A changed
byte of that text would be another format, so what a type's rule writes is for ever. Dispatch is on
the exact type, because a subclass could hide state. Where a rule needed a choice:

- Entries of a mapping whose keys have the same text (two NaNs) are sorted by the text of the value.
- An object has the fields that its `==` compares, a subclass without a decorator of its own those
  it inherits. Other attributes are refused, except caches and the `__orig_class__` of a generic
  class. A pydantic model has its fields and, unless empty, `__pydantic_extra__` and
  `__pydantic_private__`, which its `==` compares too.
- numpy: `{"!npscalar": [dtype, sha256 hex of the bytes]}` for a scalar, `{"!ndobject": [shape,
  items]}` for an object array, `{"!ndfields": [shape, [[name, array], …]]}` for a structured one,
  whose padding does not count. Bytes tell -0.0 from 0.0 and one NaN from another. A subclass
  (masked array, matrix, memmap) is refused.

numpy is never imported here: `sys.modules` has it where a value of its types has arrived. The rules
for tables are in `_fingerprint_tables`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import sha256
from operator import itemgetter, methodcaller
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import BuiltinFunctionType, MappingProxyType, MemberDescriptorType, NoneType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from . import _fingerprint_tables as tables
from ._modules import importable_name
from ._refusal import RefusedError, step_of
from .errors import FingerprintError

PREFIX = "fp1:sha256:"

MAX_DEPTH = 200
"""Containers within each other. The walk takes three Python frames of the stack's 1000 for each."""

MAX_WORK = 100_000_000
"""One for each item and `CONTAINER_WORK` for each container, shared ones counted each time. A list
of 90 million numbers passes; lists that share one another exponentially are refused in seconds."""

CONTAINER_WORK = 12

CHUNK_BYTES = 1 << 20

_BIG = 1 << 64
_SMALL = -_BIG
_STR = frozenset({str})
_AS_IS = frozenset({str, bool, NoneType})
_WORDS = {None: "null", True: "true", False: "false"}
_CACHES = frozenset({"__orig_class__", "_attrs_cached_hash"})
_PYDANTIC = ("__pydantic_extra__", "__pydantic_private__")
_IDENTIFY = (
    "pass a value that identifies it (a version or digest; a path does not tell of contents)"
)

# What reading a value raises while something else changes it, or where its class is too strange.
_UNREADABLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)

_to_json = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
).encode

_tags: dict[str, str] = {}


def fingerprint(inputs: object, *, ignore: Collection[str] = ()) -> str:
    """The fingerprint of `inputs`: `fp1:sha256:` and 64 hex digits.

    A dict with `str` keys names its inputs, and those named in `ignore` are left out, if there are
    such; anything else is one input. Raises `FingerprintError`, which says where, for a value that
    has no rule.

    These have a rule: None, bool, int, float, complex, str, bytes and buffers; list and tuple
    (alike), dict, set and frozenset (alike); date, time, datetime, timedelta; Decimal, Fraction,
    range, UUID, Enum; paths (as their text: what is in the file does not count); dataclasses,
    attrs, pydantic, msgspec and named tuples (the fields that `==` compares); numpy; tables and
    columns of pandas, polars and pyarrow (however they are chunked or stored); classes with a
    method `__fingerprint__()` that returns a value; and what was given to `register`. Values of
    different types differ (1, 1.0, True and "1"), but for those named alike.

    >>> fingerprint({"a": 1, "now": 2}, ignore=("now",)) == fingerprint({"a": 1})
    True
    """
    return combine(input_digests(inputs, ignore=ignore))


def input_digests(inputs: object, *, ignore: Collection[str] = ()) -> dict[str, str]:
    """The hex digest of each input by its name; what names no inputs is one, named `inputs`."""
    named = _by_name(inputs)
    ignored = _check_ignore(ignore, named) if ignore != () else ()
    walk = _Walk()
    digests = {}
    for name, value in ({"inputs": inputs} if named is None else named).items():
        if name not in ignored:
            try:
                digests[name] = _digest(walk.tree(value, MAX_DEPTH))
            except (RefusedError, *_UNREADABLE) as error:
                refused = _as_refused(error)
                if named is not None:
                    refused.steps.append((step_of(name), id(inputs)))
                raise refused.public() from refused.__cause__
    return digests


def combine(digests: Mapping[str, str]) -> str:
    """The fingerprint of the inputs that have these digests."""
    return PREFIX + _digest({_escape(name): digest for name, digest in digests.items()})


def register(cls: type, encode: Callable[[Any], object], *, tag: str | None = None) -> None:
    """Fingerprints values whose type is exactly `cls` by what `encode` returns for them.

    `tag` stands for the type in the text; by default its module and name do. With a tag such as
    `"acme.Model/1"` the class can move, and another number tells that `encode` has changed.
    Registering a class again replaces what was there. Raises `FingerprintError` for a type that has
    a rule, a class local to a function without a tag, and the tag of another class.
    """
    if not isinstance(cls, type):
        raise FingerprintError("register needs a class and a function: pass the type of the value")
    what = f"cannot register {_type_name(cls)}"
    if not callable(encode) or not isinstance(tag, str | None) or tag == "":
        raise FingerprintError(
            f"{what}: pass a function that takes the value, and as tag a str that is not empty"
        )
    if cls in _STANDARD or _library_rule(cls):
        raise FingerprintError(f"{what}: it has a rule already; register a subclass of it")
    name = f"{importable_name(cls.__module__)}:{cls.__qualname__}"
    if tag is None and "<locals>" in name:
        raise FingerprintError(f"{what}: it is local to a function; give it a tag")
    # By name, because a module that is imported again makes its classes anew.
    owner = _tags.setdefault(tag or name, name)
    if owner != name:
        raise FingerprintError(f"{what}: the tag {tag!r} is that of {owner}; choose another")
    tag = tag or name
    _RULES[cls] = _custom(
        f"the function registered for {_type_name(cls)}", tag, f".<{tag}>", encode
    )


class _Walk:
    """Turns the values of one call into trees; together they must not exceed `MAX_WORK`."""

    __slots__ = ("known", "work_left")

    def __init__(self) -> None:
        self.work_left = MAX_WORK
        self.known: dict[int, tuple[object, int, int, Any]] = {}

    def tree(self, value: Any, room: int) -> Any:
        """The tree of `value`, which may have `room` levels of containers.

        It is `value` itself where that is its own tree: copies of many small containers would keep
        the garbage collector busy for longer than everything else takes.
        """
        work_before = self.work_left
        if self.known and (known := self.known.get(id(value))) and known[1] <= room:
            self.work_left -= known[2]
            if self.work_left >= 0:
                return known[3]
        kind: Any = type(value)
        items: Collection[Any]
        if kind is dict:
            for key in value:
                # Nothing but "!" sorts between it and '"'.
                if type(key) is not str or key < '"':
                    return self.keep(value, room, work_before, _mapping(self, value, room))
            items = value.values()
        elif kind is list or kind is tuple:
            items = value
        elif kind in _AS_IS:
            return value
        elif kind in _LEAVES:
            return _LEAVES[kind](value)
        else:
            rule = _RULES.get(kind) or _rule_of(kind)
            return self.keep(value, room, work_before, rule(self, value, room))
        self.work_left -= len(items) + CONTAINER_WORK
        if room <= 0 or self.work_left < 0:
            raise _too_much(room)
        changed: dict[int, Any] = {}
        for item in items:
            kind = type(item)
            if (
                kind in _AS_IS
                or (kind is int and _SMALL < item < _BIG)
                or (kind is float and item - item == 0.0)  # which NaN and infinity do not satisfy
            ):
                continue
            try:
                tree = self.tree(item, room - 1)
            except RefusedError as refused:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                key = next((key for key, other in pairs if other is item), None)
                refused.steps.append((step_of(key), id(value)))
                raise
            if tree is not item:
                changed[id(item)] = tree
        if not changed:
            return value
        if isinstance(value, dict):
            tree = {key: changed.get(id(item), item) for key, item in value.items()}
        else:
            tree = [changed.get(id(item), item) for item in value]
        return self.keep(value, room, work_before, tree)

    def keep(self, value: object, room: int, work_before: int, tree: Any) -> Any:
        """Remembers the tree of a shared value, and the value itself, whose id is the key."""
        self.known[id(value)] = (value, room, work_before - self.work_left, tree)
        return tree

    def trees(
        self,
        items: list[Any],
        step: Callable[[int], str],
        container: object,
        room: int,
        encode: Callable[[Any, Any, int], Any] = tree,
    ) -> list[Any]:
        """The trees of the items of `container`; `step(index)` is an item's part of the path."""
        self.work_left -= len(items) + CONTAINER_WORK
        if room <= 0 or self.work_left < 0:
            raise _too_much(room)
        trees = []
        for index, item in enumerate(items):
            try:
                trees.append(encode(self, item, room - 1))
            except RefusedError as refused:
                refused.steps.append((step(index), id(container)))
                raise
        return trees


def _as_refused(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, RecursionError):
        return _too_much()
    refused = RefusedError(
        f"reading it raised {type(error).__name__}", "pass a copy that nothing changes meanwhile"
    )
    refused.__cause__ = error
    return refused


def _unsupported(kind: type, why: str = "") -> RefusedError:
    if _static(kind, "__next__") is not None:
        other = "pass a list of its items, or "
    elif kind.__module__ == "builtins":
        other = ""
    else:
        other = f"register it with checkpoint_store.register({kind.__name__}, ...), or "
    return RefusedError(f"unsupported type {_type_name(kind)}{why}", other + _IDENTIFY)


def _too_much(room: int = 0) -> RefusedError:
    if room > 0:
        return RefusedError("too many values, counting shared ones each time", _IDENTIFY)
    return RefusedError(
        f"nested deeper than {MAX_DEPTH} levels or than the stack allows", "pass a digest of it"
    )


def _check_ignore(ignore: object, named: object) -> frozenset[str]:
    if (
        isinstance(ignore, str)
        or not isinstance(ignore, Collection)
        or not all(isinstance(name, str) for name in ignore)
    ):
        raise FingerprintError('ignore must be a collection of names, such as ignore=("now",)')
    if ignore and named is None:
        raise FingerprintError(
            "ignore names inputs to leave out, but these have no names: pass a dict with str keys"
        )
    return frozenset(ignore)


def _by_name(inputs: Any) -> dict[str, object] | None:
    """The inputs by name, if `inputs` is one of the mappings that become an object."""
    if type(inputs) is MappingProxyType:
        (inputs,) = gc.get_referents(inputs)
    if _RULES.get(type(inputs)) is not _mapping or getattr(inputs, "__dict__", None):
        return None
    return dict(inputs) if _STR.issuperset(map(type, inputs)) else None


def _digest(tree: object) -> str:
    return sha256(_text(tree).encode()).hexdigest()


def _text(tree: Any) -> str:
    kind = type(tree)
    # The encoder sets itself up for each of these, which takes ten times as long.
    if kind is int or kind is float:
        return repr(tree)
    return _WORDS[tree] if kind is bool or tree is None else _to_json(tree)


def _escape(key: str) -> str:
    return "!" + key if key.startswith("!") else key


def _type_name(kind: type) -> str:
    module = importable_name(kind.__module__)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _name(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise RefusedError(
            f"type {_type_name(kind)} is local to a function",
            f"define {kind.__name__} in a module, or register it with a tag",
        )
    return f"{importable_name(kind.__module__)}:{kind.__qualname__}"


def _static(kind: type, name: str) -> Any:
    """The attribute of a class as it was defined; no descriptor or metaclass of a user runs."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


_Rule = Callable[[_Walk, Any, int], Any]

# The rules: each takes the walk, a value of its type, and how many levels it may have.


def _mapping(walk: _Walk, value: Any, room: int) -> dict[str, Any]:
    if getattr(value, "__dict__", None):
        raise _unsupported(type(value), ", which has attributes beside its items")
    # dict's own method neither hashes a key nor runs what a subclass defines.
    items = list(dict.items(value))
    keys = [key for key, _ in items]
    trees = walk.trees([item for _, item in items], lambda i: step_of(keys[i]), value, room)
    if _STR.issuperset(map(type, keys)):
        return dict(zip(map(_escape, keys), trees, strict=True))
    key_trees = walk.trees(keys, lambda _: "[<key>]", value, room)
    pairs = [list(pair) for pair in zip(key_trees, trees, strict=True)]
    texts = list(map(_text, key_trees))
    if len(set(texts)) < len(texts):
        # The keys stay in order: no text continues with less than the comma that follows here.
        texts = list(map(_text, pairs))
    return {"!map": [pair for _, pair in sorted(zip(texts, pairs, strict=True), key=itemgetter(0))]}


def _proxy(walk: _Walk, value: MappingProxyType[Any, Any], room: int) -> Any:
    # A method of the proxy would run the mapping's, which may be a user's.
    (mapping,) = gc.get_referents(value)
    if _RULES.get(type(mapping)) is not _mapping:
        raise RefusedError(f"a mappingproxy of {_type_name(type(mapping))}", "pass a dict")
    return _mapping(walk, mapping, room)


def _set(walk: _Walk, value: Any, room: int) -> object:
    return {"!set": sorted(walk.trees(list(value), lambda _: "[<item>]", value, room), key=_text)}


def _enum(walk: _Walk, value: Any, room: int) -> object:
    kind = type(value)
    if issubclass(kind, Flag):
        return {"!flag": [_name(kind), walk.tree(value._value_, room)]}
    return {"!enum": [_name(kind), walk.tree(value._name_, room)]}


def _raised(what: str, error: Exception) -> RefusedError:
    return RefusedError(f"{what} raised {type(error).__name__}", f"see there, or {_IDENTIFY}")


def _custom(what: str, tag: str, step: str, encode: Callable[[Any], object]) -> _Rule:
    def rule(walk: _Walk, value: Any, room: int) -> object:
        try:
            result = encode(value)
        except Exception as error:
            raise _raised(what, error) from error
        return {"!custom": [tag, *walk.trees([result], lambda _: step, value, room)]}

    return rule


@lru_cache(maxsize=1024)
def _rule_of(kind: type) -> _Rule:
    """The rule of a class that has none in `_RULES`, found by what the class defines."""
    if _static(kind, "__fingerprint__") is not None:
        what, call = f"__fingerprint__ of {_type_name(kind)}", methodcaller("__fingerprint__")
        return _custom(what, _name(kind), ".__fingerprint__()", call)
    if issubclass(kind, Enum):
        return _enum
    return _library_rule(kind) or _object(kind)


def _library_rule(kind: type) -> _Rule | None:
    """The rule of a type of numpy, or of a library for tables."""
    if _is_numpy(kind):
        return _array if kind.__name__ == "ndarray" else _numpy_scalar
    return tables.rule_of(kind)


def _object(kind: Any) -> _Rule:
    """The rule of a class that declares its fields: those that its `==` compares are read."""
    # What is made in C may keep state under no name.
    solid = [b for b in kind.__mro__[:-1] if type(vars(b).get("__new__")) is BuiltinFunctionType]
    compared: dict[str, bool] = {}
    read = None
    if solid == [tuple] and _static(kind, "_fields") is not None:
        read = _namedtuple_fields
    elif solid:
        raise _unsupported(kind)
    elif _static(kind, "__dataclass_fields__") is not None:
        compared = {field.name: field.compare for field in dataclasses.fields(kind)}
    elif _static(kind, "__attrs_attrs__") is not None:
        compared = {field.name: bool(field.eq) for field in kind.__attrs_attrs__}
    elif _static(type(kind), "__struct_fields__") is not None:
        compared = dict.fromkeys(kind.__struct_fields__, True)
    elif _static(kind, "__pydantic_root_model__") is not None:
        compared = {"__pydantic_fields_set__": False, **dict.fromkeys(_PYDANTIC, True)}
        read = _pydantic_fields
    else:
        raise _unsupported(kind)
    names = [name for name, equal in compared.items() if equal]
    slots = [name for name in _slots(kind) if name not in compared]
    tag = _name(kind)

    def rule(walk: _Walk, value: Any, room: int) -> object:
        try:
            fields = read(value) if read else {name: getattr(value, name) for name in names}
            state = [*getattr(value, "__dict__", ()), *(s for s in slots if hasattr(value, s))]
        except Exception as error:
            raise _raised(f"a field of {_type_name(kind)}", error) from error
        hidden = [name for name in state if name not in compared and name not in fields]
        if hidden := [name for name in hidden if not _is_cache(kind, name)]:
            raise _unsupported(kind, f", which has more than its fields ({', '.join(hidden[:3])})")
        steps = list(fields)
        trees = walk.trees(list(fields.values()), lambda i: f".{steps[i]}", value, room)
        return {"!object": [tag, dict(zip(steps, trees, strict=True))]}

    return rule


def _namedtuple_fields(value: Any) -> dict[str, Any]:
    return dict(zip(value._fields, tuple.__iter__(value), strict=True))


def _pydantic_fields(value: Any) -> dict[str, Any]:
    kind = type(value)
    fields = {name: item for name, item in vars(value).items() if not _is_cache(kind, name)}
    beside = {name: getattr(value, name) for name in _PYDANTIC}
    return fields | {name: items for name, items in beside.items() if items}


def _slots(kind: type) -> list[str]:
    names: list[str] = []
    for members in map(vars, kind.__mro__):
        # attrs writes the slots of such a class itself: fields, and caches under any name.
        by_attrs = getattr(members.get("__attrs_props__"), "is_slotted", False)
        if "__slots__" in members and not by_attrs:
            names += [n for n, member in members.items() if type(member) is MemberDescriptorType]
    return names


def _is_cache(kind: type, name: str) -> bool:
    return name in _CACHES or type(_static(kind, name)) is cached_property


def _integer(value: int) -> object:
    return value if _SMALL < value < _BIG else {"!int": hex(value)}


def _float(value: float) -> object:
    return value if value - value == 0.0 else {"!float": repr(value)}


def _bytes(value: bytes | bytearray | memoryview) -> object:
    return {"!bytes": [len(value), sha256(value).hexdigest()]}


def _memory(value: memoryview) -> object:
    try:
        # A shape with a zero cannot be cast.
        return _bytes(value.cast("B") if value.nbytes else b"")
    except (TypeError, ValueError) as error:
        raise RefusedError("a memoryview released or not contiguous", "pass its bytes") from error


def _microseconds(value: timedelta) -> int:
    return value // timedelta(microseconds=1)


def _moment(value: datetime | time) -> str:
    return value.replace(tzinfo=None).isoformat(timespec="microseconds") + _zone(value)


def _zone(value: datetime | time) -> str:
    zone: Any = value.tzinfo
    kind = type(zone)
    if zone is None:
        return ""
    if kind is timezone:
        offset = _microseconds(zone.utcoffset(None))
        return f"{offset:+d}us" if offset else "Z"
    if kind is ZoneInfo and type(zone.key) is str:
        return "Z" if zone.key == "UTC" else f"[{zone.key}]" + (";fold=1" if value.fold else "")
    raise RefusedError(
        f"unsupported time zone of type {_type_name(kind)}",
        "use zoneinfo.ZoneInfo with a key, or datetime.timezone",
    )


def _decimal(value: Decimal) -> object:
    sign, digits, exponent = value.as_tuple()
    return {"!decimal": [sign, "".join(map(str, digits)), exponent]}


def _is_numpy(kind: type) -> bool:
    numpy: Any = sys.modules.get("numpy")
    # While numpy is being imported, it does not have these yet.
    arrays, scalars = getattr(numpy, "ndarray", None), getattr(numpy, "generic", ())
    return kind is arrays or (issubclass(kind, scalars) and kind.__module__ == "numpy")


def _array(walk: _Walk, array: Any, room: int) -> object:
    shape, names = list(array.shape), array.dtype.names
    if names is not None:
        trees = walk.trees(
            [array[name] for name in names], lambda i: step_of(names[i]), array, room
        )
        return {"!ndfields": [shape, [list(pair) for pair in zip(names, trees, strict=True)]]}
    if array.dtype.kind == "O":
        items = array.reshape(-1).tolist()
        return {"!ndobject": [shape, walk.trees(items, lambda i: f".flat[{i}]", array, room)]}
    dtype = _portable(array.dtype)
    return {"!ndarray": [dtype.str, shape, _array_digest(array, dtype)]}


def _numpy_scalar(_walk: _Walk, value: Any, _room: int) -> object:
    dtype = _portable(value.dtype)
    array = sys.modules["numpy"].asarray(value)
    # An empty string becomes an array of one character.
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


def _path(value: PurePosixPath | PureWindowsPath) -> object:
    return {"!path": value.as_posix()}


_LEAVES: dict[type, Callable[[Any], Any]] = {
    int: _integer,
    float: _float,
    complex: lambda value: {"!complex": [_float(value.real), _float(value.imag)]},
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _memory,
    datetime: lambda value: {"!datetime": _moment(value)},
    time: lambda value: {"!time": _moment(value)},
    date: lambda value: {"!date": value.isoformat()},
    timedelta: lambda value: {"!timedelta": _integer(_microseconds(value))},
    UUID: lambda value: {"!uuid": value.hex},
    Decimal: _decimal,
    Fraction: lambda v: {"!fraction": [_integer(v.numerator), _integer(v.denominator)]},
    range: lambda v: {"!range": [_integer(v.start), _integer(v.stop), _integer(v.step)]},
    PurePosixPath: _path,
    PureWindowsPath: _path,
    PosixPath: _path,
    WindowsPath: _path,
}

_RULES: dict[type, _Rule] = {
    list: _Walk.tree,
    tuple: _Walk.tree,
    dict: _mapping,
    OrderedDict: _mapping,
    defaultdict: _mapping,
    Counter: _mapping,
    MappingProxyType: _proxy,
    set: _set,
    frozenset: _set,
}

_STANDARD = frozenset({*_AS_IS, *_LEAVES, *_RULES})
