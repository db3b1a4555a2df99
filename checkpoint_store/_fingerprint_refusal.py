"""Why a value has no fingerprint, and where in the inputs it stands."""

from __future__ import annotations

from .errors import FingerprintError

IDENTIFY = "pass a value that identifies it (a version or digest; a path does not tell of contents)"


class RefusedError(Exception):
    """Why a value has no fingerprint. Each container around the value adds its step to the path."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason = reason
        self.remedy = remedy
        self.steps: list[tuple[str, int]] = []

    def public(self) -> FingerprintError:
        path, seen = "inputs", set[int]()
        for step, container in reversed(self.steps):
            if container in seen:
                self.reason, self.remedy = "it contains itself", "pass a value without the cycle"
                break
            seen.add(container)
            path += step
        path = _shorten(path, 200)
        message = f"cannot fingerprint {path}: {self.reason}: {self.remedy}"
        return FingerprintError(message, path=path, reason=self.reason)


def step_of(key: object) -> str:
    """The part of a path for a key or an index. It shows names and numbers, no other values."""
    kind = type(key)
    if kind is str:
        return f"[{_shorten(str(key), 60)!r}]"
    shown = key is None or kind is bool or (type(key) is int and key.bit_length() <= 64)
    return f"[{key!r}]" if shown else f"[<{kind.__name__}>]"


def _shorten(text: str, size: int) -> str:
    half = size // 2
    return text if len(text) <= size else f"{text[:half]}…{text[1 - half :]}"
