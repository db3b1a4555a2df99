"""Which fields a class declares, and where its objects keep their state.

This is about the classes that dataclasses, attrs, pydantic, msgspec and named tuples make. Of what
a user has defined, nothing runs here but the attributes that are read.
"""

from __future__ import annotations

from functools import cached_property
from types import MemberDescriptorType
from typing import Any

PYDANTIC = ("__pydantic_extra__", "__pydantic_private__")
"""What `==` of a pydantic model compares beside its fields."""

_CACHES = frozenset({"__orig_class__", "_attrs_cached_hash"})


def static(kind: type, name: str) -> Any:
    """The attribute of a class as it was defined. No descriptor or metaclass of a user runs."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def namedtuple_fields(value: Any) -> dict[str, Any]:
    return dict(zip(value._fields, tuple.__iter__(value), strict=True))


def pydantic_fields(value: Any) -> dict[str, Any]:
    kind = type(value)
    fields = {name: item for name, item in vars(value).items() if not is_cache(kind, name)}
    beside = {name: getattr(value, name) for name in PYDANTIC}
    return fields | {name: items for name, items in beside.items() if items}


def slots(kind: type) -> list[str]:
    names: list[str] = []
    for members in map(vars, kind.__mro__):
        # attrs writes the slots of such a class: they are fields, or caches of any name.
        by_attrs = getattr(members.get("__attrs_props__"), "is_slotted", False)
        if "__slots__" in members and not by_attrs:
            names += [n for n, member in members.items() if type(member) is MemberDescriptorType]
    return names


def is_cache(kind: type, name: str) -> bool:
    return name in _CACHES or type(static(kind, name)) is cached_property
