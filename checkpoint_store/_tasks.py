"""Tasks that use only some of the inputs, and the keys that stand for what they depend on.

The key of a task is a digest of its version, of the inputs that it uses and of the keys of the
tasks whose results it reads. So it is known before anything is computed, and it changes with
whatever may change the result. The name of the task is not in it: tasks that are declared alike
have the same key, however many they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, NoReturn

from ._changes import InputChange, listed
from ._fingerprint import input_digests
from ._names import encode_name
from .errors import FingerprintError, InvalidTaskError


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What the result of a task depends on.

    Whatever is not declared here, and is read all the same, makes stale results: a declaration must
    name every input and every other task whose result the code reads. A helper function is no
    input; where the code changes, change `version`.

    uses
        The names of the inputs that the task reads. None stands for all of them.
    after
        The names of the tasks whose results it reads. They must be declared, too.
    version
        Anything that has a fingerprint, such as a number or a digest of the code. With another
        version the task, and all that comes after it, is computed anew.
    """

    uses: Collection[str] | None = None
    after: Collection[str] = ()
    version: object = None


Tasks = Mapping[str, Task]
"""Declarations by the names of the tasks, each after those that it reads from."""


class Declared(NamedTuple):
    """Tasks, and the key of each for the present inputs."""

    tasks: Tasks
    keys: Mapping[str, str]

    def keys_of(self, inputs: Mapping[str, str] | None) -> Mapping[str, str]:
        """The keys that these very tasks would have for other inputs; none if those are unknown."""
        return {} if inputs is None or not self.tasks else task_keys(self.tasks, inputs)


NOTHING = Declared({}, {})


def declared(tasks: object, inputs: Mapping[str, str], ignore: Collection[str] = ()) -> Declared:
    """These declarations with their keys, or `InvalidTaskError`."""
    checked = check_tasks(tasks, inputs, ignore)
    return Declared(checked, task_keys(checked, inputs))


def check_tasks(tasks: object, inputs: Collection[str], ignore: Collection[str] = ()) -> Tasks:
    """These declarations in an order in which they can be computed, or `InvalidTaskError`.

    `inputs` are the names of all inputs but those in `ignore`.
    """
    if not isinstance(tasks, Mapping):
        raise InvalidTaskError(
            f"tasks must be a dict of names and Task(…), not a {type(tasks).__name__}"
        )
    for name, task in tasks.items():
        encode_name(name, "task name")
        if not isinstance(task, Task):
            raise InvalidTaskError(
                f"task {name!r} is declared by a {type(task).__name__}: pass Task(uses=…, after=…)"
            )
        for used in _names(name, "uses", () if task.uses is None else task.uses):
            if used in ignore:
                raise InvalidTaskError(
                    f"task {name!r} uses the input {used!r}, which ignore leaves out: take it from "
                    "one of them"
                )
            if used not in inputs:
                _unknown(f"task {name!r} uses the input {used!r}, which is not", used, inputs)
        for other in _names(name, "after", task.after):
            if other not in tasks:
                _unknown(
                    f"task {name!r} comes after {other!r}, which is not declared", other, tasks
                )
    if _is_ordered(tasks):
        return dict(tasks)
    try:
        order = TopologicalSorter({name: task.after for name, task in tasks.items()})
        return {name: tasks[name] for name in order.static_order()}
    except CycleError as error:
        circle = ", ".join(map(repr, error.args[1]))
        raise InvalidTaskError(
            f"tasks come after one another in a circle: {circle}: take one of these away"
        ) from None


def task_keys(tasks: Tasks, inputs: Mapping[str, str]) -> dict[str, str]:
    """The key of each task, for inputs with these digests. Inputs that are missing are left out."""
    keys: dict[str, str] = {}
    known: dict[object, str] = {}
    for name, task in tasks.items():
        uses = None if task.uses is None else frozenset(task.uses)
        # A version is known by identity: equal ones may have different digests, as 1 and True have.
        declaration = uses, frozenset(task.after), id(task.version)
        if declaration not in known:
            known[declaration] = _key(name, task, inputs, keys)
        keys[name] = known[declaration]
    return keys


def _key(name: str, task: Task, inputs: Mapping[str, str], keys: Mapping[str, str]) -> str:
    """The key of one task, after those of the tasks that it reads from."""
    used = inputs.keys() if task.uses is None else inputs.keys() & set(task.uses)
    text = {
        "after": {other: keys[other] for other in task.after},
        "uses": {other: inputs[other] for other in used},
        "version": task.version,
    }
    try:
        return input_digests({"key": text})["key"]
    except FingerprintError as error:
        raise InvalidTaskError(
            f"the version of task {name!r} has no fingerprint ({error.reason}): pass a number, "
            "a text or a digest"
        ) from error


def reasons(
    given: Declared, kept: Collection[str], change: InputChange | None, otherwise: str
) -> dict[str, str]:
    """Why each task is computed anew whose key is not among those that are kept.

    It is a sentence that names the inputs of the task that are in `change`, or a task before it, or
    else is `otherwise`.
    """
    differing = set() if change is None else {*change.added, *change.removed, *change.changed}
    origins: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, task in given.tasks.items():
        if given.keys[name] in kept:
            continue
        used = differing if task.uses is None else differing.intersection(task.uses)
        before = next((other for other in task.after if other in found), None)
        if used:
            many = "inputs" if len(used) > 1 else "input"
            found[name] = origins[name] = f"{many} {listed(sorted(used))} changed"
        elif before is not None:
            origins[name] = origins[before]
            found[name] = f"through {before!r}: {origins[name]}"
        else:
            found[name] = origins[name] = otherwise
    return found


def with_dependents(after: Mapping[str, Collection[str]], name: str) -> list[str]:
    """The task of this name and all that come after it, the last first.

    `after` has for each task those that it comes after, which stand before it.
    """
    found = {name}
    for other, before in after.items():
        if not found.isdisjoint(before):
            found.add(other)
    return [other for other in reversed(list(after)) if other in found]


def _is_ordered(tasks: Tasks) -> bool:
    """Whether each task stands after those that it reads from already, so that none is to move."""
    before: set[str] = set()
    for name, task in tasks.items():
        if not before.issuperset(task.after):
            return False
        before.add(name)
    return True


def _names(task: str, what: str, names: Iterable[str]) -> Iterable[str]:
    if (
        isinstance(names, str)
        or not isinstance(names, Collection)
        or not all(isinstance(name, str) for name in names)
    ):
        raise InvalidTaskError(
            f'{what} of task {task!r} must be a collection of names, such as {what}=["day"]'
        )
    return names


def _unknown(fact: str, name: str, known: Iterable[str]) -> NoReturn:
    near = get_close_matches(name, list(known), n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {listed(sorted(known))}"
    raise InvalidTaskError(f"{fact}: {remedy}")
