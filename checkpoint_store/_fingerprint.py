"""Inputs to the digest string `fp1:sha256:…`, the same in every process and on every machine.

A value becomes a tree of plain JSON types, the tree a canonical text, the text a SHA-256. A changed
byte of that text would be another format, so what a type's rule writes is for ever. Dispatch is on
the exact type, because a subclass could hide state. Where a rule needed a choice:

- If two keys of a mapping have the same text (two NaNs), their entries are sorted by the text of
  their values.
- An object is represented by the fields that its `==` compares. A subclass without a decorator of
  its own has the fields that it inherits. Other attributes are refused, except caches and the
  `__orig_class__` of a generic class. A pydantic model has its fields and, unless they are empty,
  `__pydantic_extra__` and `__pydantic_private__`, because its `==` compares those, too.

The rules for values without parts, for numpy and for tables stand in modules of their own.
"""

from __future__ import annotations

import dataclasses
import gc
import json
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Collection, Mapping
from enum import Enum, Flag
from functools import lru_cache
from hashlib import sha256
from operator import itemgetter, methodcaller
from types import BuiltinFunctionType, MappingProxyType
from typing import Any

from . import _fingerprint_numpy as arrays
from . import _fingerprint_tables as tables
from ._fingerprint_objects import (
    PYDANTIC,
    is_cache,
    namedtuple_fields,
    pydantic_fields,
    slots,
    static,
)
from ._fingerprint_refusal import RefusedError, step_of
from ._fingerprint_scalars import AS_IS, BIG, SCALARS, SMALL
from ._modules import importable_name, type_name
from .errors import FingerprintError

PREFIX = "fp1:sha256:"

MAX_DEPTH = 200
"""How deep containers may be nested. The walk needs three of the stack's 1000 frames for each."""

MAX_WORK = 100_000_000
"""How much one call may do: 1 for each item and `CONTAINER_WORK` for each container, each time that
it is met. A list of 90 million numbers passes. Lists that contain one another so often that they
would take for ever are refused within seconds."""

CONTAINER_WORK = 12

_STR = frozenset({str})
_WORDS = {None: "null", True: "true", False: "false"}
_IDENTIFY = (
    "pass a value that identifies it (a version or digest; a path does not tell of contents)"
)

# These are raised by a value that another thread changes meanwhile, or whose class is too strange.
_UNREADABLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)

_to_json = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
).encode

_tags: dict[str, str] = {}


def fingerprint(inputs: object, *, ignore: Collection[str] = ()) -> str:
    """The fingerprint of `inputs`: `fp1:sha256:` and 64 hex digits.

    A dict with `str` keys names its inputs, and those named in `ignore` are left out if they are
    there. Any other value is a single input. For a value without a rule it raises
    `FingerprintError`, which says where in the inputs the value stands.

    There are rules for None, bool, int, float, complex, str, bytes and buffers; list and tuple
    (alike), dict, set and frozenset (alike); date, time, datetime, timedelta; Decimal, Fraction,
    range, UUID, Enum; paths (as their text: what is in the file does not count); dataclasses,
    attrs, pydantic, msgspec and named tuples (the fields that `==` compares); numpy; tables and
    columns of pandas, polars and pyarrow (however they are chunked or stored); classes with a
    method `__fingerprint__()` that returns a value; and classes given to `register`. Values of
    different types differ (1, 1.0, True and "1"), except for the types that are called alike here.

    >>> fingerprint({"a": 1, "now": 2}, ignore=("now",)) == fingerprint({"a": 1})
    True
    """
    return combine(input_digests(inputs, ignore=ignore))


def input_digests(inputs: object, *, ignore: Collection[str] = ()) -> dict[str, str]:
    """The hex digest of each input by its name. A value without names is one input, `inputs`."""
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

    `tag` stands for the type in the canonical text; by default its module and name do. With a tag
    such as `"acme.Model/1"` the class may move to another module, and another number in the tag
    makes values differ after `encode` has changed.
    Registering a class again replaces what was there. Raises `FingerprintError` for a type that has
    a rule, a class local to a function without a tag, and the tag of another class.
    """
    if not isinstance(cls, type):
        raise FingerprintError("register needs a class and a function: pass the type of the value")
    what = f"cannot register {type_name(cls)}"
    if not callable(encode) or not isinstance(tag, str | None) or tag == "":
        raise FingerprintError(
            f"{what}: pass a function that takes the value, and as tag a str that is not empty"
        )
    if cls in _STANDARD or _library_rule(cls):
        raise FingerprintError(f"{what}: it has a rule already; register a subclass of it")
    name = f"{importable_name(cls.__module__)}:{cls.__qualname__}"
    if tag is None and "<locals>" in name:
        raise FingerprintError(f"{what}: it is local to a function; give it a tag")
    # Owners are kept by name, because a module that is imported again makes its classes anew.
    owner = _tags.setdefault(tag or name, name)
    if owner != name:
        raise FingerprintError(f"{what}: the tag {tag!r} is that of {owner}; choose another")
    tag = tag or name
    _RULES[cls] = _custom(f"the function registered for {type_name(cls)}", tag, f".<{tag}>", encode)


class _Walk:
    """Turns the values of one call into trees, and adds up how much work that is."""

    __slots__ = ("known", "work_left")

    def __init__(self) -> None:
        self.work_left = MAX_WORK
        self.known: dict[int, tuple[object, int, int, Any]] = {}

    def tree(self, value: Any, depth: int) -> Any:
        """The tree of `value`, within which containers may be nested `depth` deep.

        A value that needs no change is its own tree. It is not copied, because copies of many small
        containers would keep the garbage collector busy for longer than all the rest takes.
        """
        work_before = self.work_left
        if self.known and (known := self.known.get(id(value))) and known[1] <= depth:
            self.work_left -= known[2]
            if self.work_left >= 0:
                return known[3]
        kind: Any = type(value)
        items: Collection[Any]
        if kind is dict:
            for key in value:
                # Among printable characters, only a space and "!" sort before '"'.
                if type(key) is not str or key < '"':
                    return self.keep(value, depth, work_before, _mapping(self, value, depth))
            items = value.values()
        elif kind is list or kind is tuple:
            items = value
        elif kind in AS_IS:
            return value
        elif kind in SCALARS:
            return SCALARS[kind](value)
        else:
            rule = _RULES.get(kind) or _rule_of(kind)
            return self.keep(value, depth, work_before, rule(self, value, depth))
        self.work_left -= len(items) + CONTAINER_WORK
        if depth <= 0 or self.work_left < 0:
            raise _too_much(depth)
        changed: dict[int, Any] = {}
        for item in items:
            kind = type(item)
            if (
                kind in AS_IS
                or (kind is int and SMALL < item < BIG)
                or (kind is float and item - item == 0.0)  # true for all but NaN and infinity
            ):
                continue
            try:
                tree = self.tree(item, depth - 1)
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
        return self.keep(value, depth, work_before, tree)

    def keep(self, value: object, depth: int, work_before: int, tree: Any) -> Any:
        """Remembers the tree of a value that may be met again, and keeps the value for its id."""
        self.known[id(value)] = (value, depth, work_before - self.work_left, tree)
        return tree

    def trees(
        self,
        items: list[Any],
        step: Callable[[int], str],
        container: object,
        depth: int,
        encode: Callable[[Any, Any, int], Any] = tree,
    ) -> list[Any]:
        """The trees of the items of `container`; `step(index)` is an item's part of the path."""
        self.work_left -= len(items) + CONTAINER_WORK
        if depth <= 0 or self.work_left < 0:
            raise _too_much(depth)
        trees = []
        for index, item in enumerate(items):
            try:
                trees.append(encode(self, item, depth - 1))
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
    if static(kind, "__next__") is not None:
        other = "pass a list of its items, or "
    elif kind.__module__ == "builtins":
        other = ""
    else:
        other = f"register it with checkpoint_store.register({kind.__name__}, ...), or "
    return RefusedError(f"unsupported type {type_name(kind)}{why}", other + _IDENTIFY)


def _too_much(depth: int = 0) -> RefusedError:
    if depth > 0:
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
    # The encoder prepares itself for each call, which takes ten times as long as this.
    if kind is int or kind is float:
        return repr(tree)
    return _WORDS[tree] if kind is bool or tree is None else _to_json(tree)


def _escape(key: str) -> str:
    return "!" + key if key.startswith("!") else key


def _name(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise RefusedError(
            f"type {type_name(kind)} is local to a function",
            f"define {kind.__name__} in a module, or register it with a tag",
        )
    return f"{importable_name(kind.__module__)}:{kind.__qualname__}"


_Rule = Callable[[_Walk, Any, int], Any]

# The rules. Each takes the walk, a value of its type, and how many levels may be nested in it.


def _mapping(walk: _Walk, value: Any, depth: int) -> dict[str, Any]:
    if getattr(value, "__dict__", None):
        raise _unsupported(type(value), ", which has attributes beside its items")
    # The method of dict itself hashes no key, and runs nothing that a subclass defines.
    items = list(dict.items(value))
    keys = [key for key, _ in items]
    trees = walk.trees([item for _, item in items], lambda i: step_of(keys[i]), value, depth)
    if _STR.issuperset(map(type, keys)):
        return dict(zip(map(_escape, keys), trees, strict=True))
    key_trees = walk.trees(keys, lambda _: "[<key>]", value, depth)
    pairs = [list(pair) for pair in zip(key_trees, trees, strict=True)]
    texts = list(map(_text, key_trees))
    if len(set(texts)) < len(texts):
        # The order of different keys stays: in a pair a comma follows, and no text of a key goes on
        # with a character that sorts before it.
        texts = list(map(_text, pairs))
    return {"!map": [pair for _, pair in sorted(zip(texts, pairs, strict=True), key=itemgetter(0))]}


def _proxy(walk: _Walk, value: MappingProxyType[Any, Any], depth: int) -> Any:
    # A method of the proxy would run that of the mapping, which a user may have defined.
    (mapping,) = gc.get_referents(value)
    if _RULES.get(type(mapping)) is not _mapping:
        raise RefusedError(f"a mappingproxy of {type_name(type(mapping))}", "pass a dict")
    return _mapping(walk, mapping, depth)


def _set(walk: _Walk, value: Any, depth: int) -> object:
    return {"!set": sorted(walk.trees(list(value), lambda _: "[<item>]", value, depth), key=_text)}


def _enum(walk: _Walk, value: Any, depth: int) -> object:
    kind = type(value)
    if issubclass(kind, Flag):
        return {"!flag": [_name(kind), walk.tree(value._value_, depth)]}
    return {"!enum": [_name(kind), walk.tree(value._name_, depth)]}


def _raised(what: str, error: Exception) -> RefusedError:
    return RefusedError(f"{what} raised {type(error).__name__}", f"see there, or {_IDENTIFY}")


def _custom(what: str, tag: str, step: str, encode: Callable[[Any], object]) -> _Rule:
    def rule(walk: _Walk, value: Any, depth: int) -> object:
        try:
            result = encode(value)
        except Exception as error:
            raise _raised(what, error) from error
        return {"!custom": [tag, *walk.trees([result], lambda _: step, value, depth)]}

    return rule


@lru_cache(maxsize=1024)
def _rule_of(kind: type) -> _Rule:
    """The rule of a class that has none in `_RULES`, found by what the class defines."""
    if static(kind, "__fingerprint__") is not None:
        what, call = f"__fingerprint__ of {type_name(kind)}", methodcaller("__fingerprint__")
        return _custom(what, _name(kind), ".__fingerprint__()", call)
    if issubclass(kind, Enum):
        return _enum
    return _library_rule(kind) or _object(kind)


def _library_rule(kind: type) -> _Rule | None:
    """The rule of a type of numpy, or of a library for tables."""
    return arrays.rule_of(kind) or tables.rule_of(kind)


def _object(kind: Any) -> _Rule:
    """The rule of a class that declares its fields: those that its `==` compares are read."""
    # A class that is made in C may keep state that has no name.
    solid = [b for b in kind.__mro__[:-1] if type(vars(b).get("__new__")) is BuiltinFunctionType]
    compared: dict[str, bool] = {}
    read = None
    if solid == [tuple] and static(kind, "_fields") is not None:
        read = namedtuple_fields
    elif solid:
        raise _unsupported(kind)
    elif static(kind, "__dataclass_fields__") is not None:
        compared = {field.name: field.compare for field in dataclasses.fields(kind)}
    elif static(kind, "__attrs_attrs__") is not None:
        compared = {field.name: bool(field.eq) for field in kind.__attrs_attrs__}
    elif static(type(kind), "__struct_fields__") is not None:
        compared = dict.fromkeys(kind.__struct_fields__, True)
    elif static(kind, "__pydantic_root_model__") is not None:
        compared = {"__pydantic_fields_set__": False, **dict.fromkeys(PYDANTIC, True)}
        read = pydantic_fields
    else:
        raise _unsupported(kind)
    names = [name for name, equal in compared.items() if equal]
    hidden_slots = [name for name in slots(kind) if name not in compared]
    tag = _name(kind)

    def rule(walk: _Walk, value: Any, depth: int) -> object:
        try:
            fields = read(value) if read else {name: getattr(value, name) for name in names}
            state = [
                *getattr(value, "__dict__", ()),
                *(s for s in hidden_slots if hasattr(value, s)),
            ]
        except Exception as error:
            raise _raised(f"a field of {type_name(kind)}", error) from error
        hidden = [name for name in state if name not in compared and name not in fields]
        if hidden := [name for name in hidden if not is_cache(kind, name)]:
            raise _unsupported(kind, f", which has more than its fields ({', '.join(hidden[:3])})")
        steps = list(fields)
        trees = walk.trees(list(fields.values()), lambda i: f".{steps[i]}", value, depth)
        return {"!object": [tag, dict(zip(steps, trees, strict=True))]}

    return rule


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

_STANDARD = frozenset({*AS_IS, *SCALARS, *_RULES})
