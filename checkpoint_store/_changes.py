"""How the inputs of a workflow differ from those that its checkpoints were computed from."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOST_NAMES = 10
"""How many names a message lists before it counts the rest."""

_short = reprlib.Repr()
_short.maxstring = 60


@dataclass(frozen=True, slots=True)
class InputChange:
    """How the inputs differ from those of the stored checkpoints: names only, never values.

    The tuples are sorted. They are empty where the record has no digest per input (an explicit
    fingerprint, or too many inputs); `reason` is a sentence in every case.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    reason: str


def compare(
    old: Mapping[str, str] | None, new: Mapping[str, str] | None, otherwise: str
) -> InputChange:
    """The change from the digests `old` to the digests `new`, each by the name of its input.

    `otherwise` is the reason where no name can be given: digests are missing, or all are equal.
    """
    if old is None or new is None:
        return InputChange((), (), (), otherwise)
    added = tuple(sorted(new.keys() - old.keys()))
    removed = tuple(sorted(old.keys() - new.keys()))
    changed = tuple(sorted(name for name in old.keys() & new.keys() if old[name] != new[name]))
    kinds = {"added": added, "removed": removed, "changed": changed}
    differences = "; ".join(f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)
    return InputChange(added, removed, changed, differences or otherwise)


def listed(names: Sequence[str]) -> str:
    """The first few of these names, and how many more there are."""
    shown = ", ".join(map(_short.repr, names[:MOST_NAMES]))
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"
