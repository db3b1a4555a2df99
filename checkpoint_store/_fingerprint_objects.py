"""The rule of classes with declared fields: dataclasses, attrs, pydantic, msgspec, named tuples.

Of what a user has defined, nothing runs here but the attributes that are read.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from types import BuiltinFunctionType, MemberDescriptorType
from typing import Any

from ._fingerprint_refusal import IDENTIFY, RefusedError
from ._fingerprint_tree import Rule, Walk
from ._modules import importable_name, type_name

_PYDANTIC = ("__pydantic_extra__", "__pydantic_private__")
"""What `==` of a pydantic model compares beside its fields."""

_CACHES = frozenset({"__orig_class__", "_attrs_cached_hash"})


def static(kind: type, name: str) -> Any:
    """The attribute of a class as it was defined. No descriptor or metaclass of a user runs."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


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
        # attrs writes the _slots of such a class: they are fields, or caches of any name.
        by_attrs = getattr(members.get("__attrs_props__"), "is_slotted", False)
        if "__slots__" in members and not by_attrs:
            names += [n for n, member in members.items() if type(member) is MemberDescriptorType]
    return names


def _is_cache(kind: type, name: str) -> bool:
    return name in _CACHES or type(static(kind, name)) is cached_property


def name_of(kind: type) -> str:
    if "<locals>" in kind.__qualname__:
        raise RefusedError(
            f"type {type_name(kind)} is local to a function",
            f"define {kind.__name__} in a module, or register it with a tag",
        )
    return f"{importable_name(kind.__module__)}:{kind.__qualname__}"


def unsupported(kind: type, why: str = "") -> RefusedError:
    if static(kind, "__next__") is not None:
        other = "pass a list of its items, or "
    elif kind.__module__ == "builtins":
        other = ""
    else:
        other = f"register it with checkpoint_store.register({kind.__name__}, ...), or "
    return RefusedError(f"unsupported type {type_name(kind)}{why}", other + IDENTIFY)


def raised(what: str, error: Exception) -> RefusedError:
    return RefusedError(f"{what} raised {type(error).__name__}", f"see there, or {IDENTIFY}")


def object_rule(kind: Any) -> Rule:
    """The rule of a class that declares its fields: those that its `==` compares are read."""
    # A class that is made in C may keep state that has no name.
    solid = [b for b in kind.__mro__[:-1] if type(vars(b).get("__new__")) is BuiltinFunctionType]
    compared: dict[str, bool] = {}
    read = None
    if solid == [tuple] and static(kind, "_fields") is not None:
        read = _namedtuple_fields
    elif solid:
        raise unsupported(kind)
    elif static(kind, "__dataclass_fields__") is not None:
        compared = {field.name: field.compare for field in dataclasses.fields(kind)}
    elif static(kind, "__attrs_attrs__") is not None:
        compared = {field.name: bool(field.eq) for field in kind.__attrs_attrs__}
    elif static(type(kind), "__struct_fields__") is not None:
        compared = dict.fromkeys(kind.__struct_fields__, True)
    elif static(kind, "__pydantic_root_model__") is not None:
        compared = {"__pydantic_fields_set__": False, **dict.fromkeys(_PYDANTIC, True)}
        read = _pydantic_fields
    else:
        raise unsupported(kind)
    names = [name for name, equal in compared.items() if equal]
    hidden_slots = [name for name in _slots(kind) if name not in compared]
    tag = name_of(kind)

    def rule(walk: Walk, value: Any, depth: int) -> object:
        try:
            fields = read(value) if read else {name: getattr(value, name) for name in names}
            state = [
                *getattr(value, "__dict__", ()),
                *(s for s in hidden_slots if hasattr(value, s)),
            ]
        except Exception as error:
            raise raised(f"a field of {type_name(kind)}", error) from error
        hidden = [name for name in state if name not in compared and name not in fields]
        if hidden := [name for name in hidden if not _is_cache(kind, name)]:
            raise unsupported(kind, f", which has more than its fields ({', '.join(hidden[:3])})")
        steps = list(fields)
        trees = walk.trees(list(fields.values()), lambda i: f".{steps[i]}", value, depth)
        return {"!object": [tag, dict(zip(steps, trees, strict=True))]}

    return rule
