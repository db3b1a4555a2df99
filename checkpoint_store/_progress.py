"""Tells one of fsspec's callbacks, if there is one, how far a long operation has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsspec.callbacks import Callback


class Progress:
    def __init__(self, callback: Callback | None) -> None:
        methods = (getattr(callback, name, None) for name in ("set_size", "relative_update"))
        if callback is not None and (isinstance(callback, type) or not all(map(callable, methods))):
            raise TypeError(
                f"callback must be one of fsspec's, such as TqdmCallback(), not {callback!r}"
            )
        self._callback = callback

    def expect(self, count: int) -> None:
        if self._callback is not None:
            self._callback.set_size(count)

    def advance(self, count: int = 1) -> None:
        if self._callback is not None:
            self._callback.relative_update(count)
