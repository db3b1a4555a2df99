"""Values to trees of plain JSON types, and these trees to canonical text.

A changed byte of that text would be another format. Which tree a type becomes is told by its rule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from ._fingerprint_refusal import IDENTIFY, RefusedError, step_of
from ._fingerprint_scalars import AS_IS, BIG, SCALARS, SMALL

MAX_DEPTH = 200
"""How deep containers may be nested. The walk needs three of the stack's 1000 frames for each."""

MAX_WORK = 100_000_000
"""How much one call may do: 1 for each item and `CONTAINER_WORK` for each container, each time that
it is met. A list of 90 million numbers passes. Lists that contain one another so often that they
would take for ever are refused within seconds."""

CONTAINER_WORK = 12

_WORDS = {None: "null", True: "true", False: "false"}
_to_json = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
).encode

Rule = Callable[["Walk", Any, int], Any]
"""Makes the tree of a value of its type, given the walk and how many levels may be nested in it."""


class Walk:
    """Turns the values of one call into trees, and adds up how much work that is.

    `rule_of` gives the rule of a type that is neither plain JSON nor a scalar, or refuses the type.
    """

    __slots__ = ("known", "rule_of", "work_left")

    def __init__(self, rule_of: Callable[[type], Rule]) -> None:
        self.rule_of = rule_of
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
                    return self.keep(
                        value, depth, work_before, self.rule_of(dict)(self, value, depth)
                    )
            items = value.values()
        elif kind is list or kind is tuple:
            items = value
        elif kind in AS_IS:
            return value
        elif kind in SCALARS:
            return SCALARS[kind](value)
        else:
            return self.keep(value, depth, work_before, self.rule_of(kind)(self, value, depth))
        self.work_left -= len(items) + CONTAINER_WORK
        if depth <= 0 or self.work_left < 0:
            raise too_much(depth)
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
            raise too_much(depth)
        trees = []
        for index, item in enumerate(items):
            try:
                trees.append(encode(self, item, depth - 1))
            except RefusedError as refused:
                refused.steps.append((step(index), id(container)))
                raise
        return trees


def text_of(tree: Any) -> str:
    kind = type(tree)
    # The encoder prepares itself for each call, which takes ten times as long as this.
    if kind is int or kind is float:
        return repr(tree)
    return _WORDS[tree] if kind is bool or tree is None else _to_json(tree)


def escape(key: str) -> str:
    return "!" + key if key.startswith("!") else key


def too_much(depth: int = 0) -> RefusedError:
    if depth > 0:
        return RefusedError("too many values, counting shared ones each time", IDENTIFY)
    return RefusedError(
        f"nested deeper than {MAX_DEPTH} levels or than the stack allows", "pass a digest of it"
    )
