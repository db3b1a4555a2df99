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

The walk and the text are in `_fingerprint_tree`, the rules in `_fingerprint_rules` and the modules
that it imports.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from types import MappingProxyType
from typing import Any

from ._fingerprint_refusal import RefusedError, step_of
from ._fingerprint_rules import RULES, STANDARD, custom_rule, library_rule, mapping_rule, rule_of
from ._fingerprint_tree import MAX_DEPTH, Walk, escape, text_of, too_much
from ._modules import importable_name, type_name
from .errors import FingerprintError

PREFIX = "fp1:sha256:"

_STR = frozenset({str})
# These are raised by a value that another thread changes meanwhile, or whose class is too strange.
_UNREADABLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)

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
    walk = Walk(rule_of)
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
    return PREFIX + _digest({escape(name): digest for name, digest in digests.items()})


def register(cls: type, encode: Callable[[Any], object], *, tag: str | None = None) -> None:
    """Fingerprints values whose type is exactly `cls` by what `encode` returns for them.

    `tag` stands for the type in the canonical text; by default its module and name do. With a tag
    such as `"acme.Model/1"` the class may move to another module, and another number in the tag
    makes values differ after `encode` has changed.
    Registering a class again replaces what was there, and a class with fields or a method
    `__fingerprint__` goes by `encode` from then on. Raises `FingerprintError` for a type of the
    standard library, of numpy or of tables that has a rule, for a class local to a function without
    a tag, and for the tag of another class.
    """
    if not isinstance(cls, type):
        raise FingerprintError("register needs a class and a function: pass the type of the value")
    what = f"cannot register {type_name(cls)}"
    if not callable(encode) or not isinstance(tag, str | None) or tag == "":
        raise FingerprintError(
            f"{what}: pass a function that takes the value, and as tag a str that is not empty"
        )
    if cls in STANDARD or library_rule(cls):
        raise FingerprintError(f"{what}: it has a rule already; register a subclass of it")
    name = f"{importable_name(cls.__module__)}:{cls.__qualname__}"
    if tag is None and "<locals>" in name:
        raise FingerprintError(f"{what}: it is local to a function; give it a tag")
    # Owners are kept by name, because a module that is imported again makes its classes anew.
    owner = _tags.setdefault(tag or name, name)
    if owner != name:
        raise FingerprintError(f"{what}: the tag {tag!r} is that of {owner}; choose another")
    tag = tag or name
    RULES[cls] = custom_rule(
        f"the function registered for {type_name(cls)}", tag, f".<{tag}>", encode
    )


def _as_refused(error: Exception) -> RefusedError:
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, RecursionError):
        return too_much()
    refused = RefusedError(
        f"reading it raised {type(error).__name__}", "pass a copy that nothing changes meanwhile"
    )
    refused.__cause__ = error
    return refused


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
    if RULES.get(type(inputs)) is not mapping_rule or getattr(inputs, "__dict__", None):
        return None
    return dict(inputs) if _STR.issuperset(map(type, inputs)) else None


def _digest(tree: object) -> str:
    return sha256(text_of(tree).encode()).hexdigest()
