"""Which rule a type has: those of containers and custom types, and where to find all others."""

from __future__ import annotations

import gc
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from enum import Enum, Flag
from functools import lru_cache
from operator import itemgetter, methodcaller
from types import MappingProxyType
from typing import Any

from . import _fingerprint_numpy as arrays
from . import _fingerprint_tables as tables
from ._fingerprint_objects import name_of, object_rule, raised, static, unsupported
from ._fingerprint_refusal import RefusedError, step_of
from ._fingerprint_scalars import AS_IS, SCALARS
from ._fingerprint_tree import Rule, Walk, escape, text_of
from ._modules import type_name

_STR = frozenset({str})


def mapping_rule(walk: Walk, value: Any, depth: int) -> dict[str, Any]:
    if getattr(value, "__dict__", None):
        raise unsupported(type(value), ", which has attributes beside its items")
    # The method of dict itself hashes no key, and runs nothing that a subclass defines.
    items = list(dict.items(value))
    keys = [key for key, _ in items]
    trees = walk.trees([item for _, item in items], lambda i: step_of(keys[i]), value, depth)
    if _STR.issuperset(map(type, keys)):
        return dict(zip(map(escape, keys), trees, strict=True))
    key_trees = walk.trees(keys, lambda _: "[<key>]", value, depth)
    pairs = [list(pair) for pair in zip(key_trees, trees, strict=True)]
    texts = list(map(text_of, key_trees))
    if len(set(texts)) < len(texts):
        # The order of different keys stays: in a pair a comma follows, and no text of a key goes on
        # with a character that sorts before it.
        texts = list(map(text_of, pairs))
    return {"!map": [pair for _, pair in sorted(zip(texts, pairs, strict=True), key=itemgetter(0))]}


def _proxy_rule(walk: Walk, value: MappingProxyType[Any, Any], depth: int) -> Any:
    # A method of the proxy would run that of the mapping, which a user may have defined.
    (mapping,) = gc.get_referents(value)
    if RULES.get(type(mapping)) is not mapping_rule:
        raise RefusedError(f"a mappingproxy of {type_name(type(mapping))}", "pass a dict")
    return mapping_rule(walk, mapping, depth)


def _set_rule(walk: Walk, value: Any, depth: int) -> object:
    return {
        "!set": sorted(walk.trees(list(value), lambda _: "[<item>]", value, depth), key=text_of)
    }


def _enum_rule(walk: Walk, value: Any, depth: int) -> object:
    kind = type(value)
    if issubclass(kind, Flag):
        return {"!flag": [name_of(kind), walk.tree(value._value_, depth)]}
    return {"!enum": [name_of(kind), walk.tree(value._name_, depth)]}


def custom_rule(what: str, tag: str, step: str, encode: Callable[[Any], object]) -> Rule:
    def rule(walk: Walk, value: Any, depth: int) -> object:
        try:
            result = encode(value)
        except Exception as error:
            raise raised(what, error) from error
        return {"!custom": [tag, *walk.trees([result], lambda _: step, value, depth)]}

    return rule


def rule_of(kind: type) -> Rule:
    """The rule of a type that is no scalar, or `RefusedError` if it has none."""
    return RULES.get(kind) or _class_rule(kind)


@lru_cache(maxsize=1024)
def _class_rule(kind: type) -> Rule:
    """The rule of a class that has none in `RULES`, found by what the class defines."""
    if static(kind, "__fingerprint__") is not None:
        what, call = f"__fingerprint__ of {type_name(kind)}", methodcaller("__fingerprint__")
        return custom_rule(what, name_of(kind), ".__fingerprint__()", call)
    if issubclass(kind, Enum):
        return _enum_rule
    return library_rule(kind) or object_rule(kind)


def library_rule(kind: type) -> Rule | None:
    """The rule of a type of numpy, or of a library for tables."""
    return arrays.rule_of(kind) or tables.rule_of(kind)


RULES: dict[type, Rule] = {
    list: Walk.tree,
    tuple: Walk.tree,
    dict: mapping_rule,
    OrderedDict: mapping_rule,
    defaultdict: mapping_rule,
    Counter: mapping_rule,
    MappingProxyType: _proxy_rule,
    set: _set_rule,
    frozenset: _set_rule,
}

STANDARD = frozenset({*AS_IS, *SCALARS, *RULES})
