"""Objects to bytes and back, with the serializer that the caller chose."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ._frame import Data, Header
from .errors import SerializationError


class Serializer:
    """Anything with `dumps` and `loads`, known by its name.

    The name goes into each file. It is compared and never followed: which code reads a file is
    up to the caller and not to the file.
    """

    def __init__(self, implementation: Any) -> None:
        for function in ("dumps", "loads"):
            if not callable(getattr(implementation, function, None)):
                raise TypeError(
                    f"a serializer needs functions dumps and loads, and {implementation!r} has no "
                    f"{function}: pass json, pickle, or an object that has both"
                )
        self._implementation = implementation
        kind = type(implementation)
        name = getattr(implementation, "__name__", None)
        given = isinstance(name, str) and name
        self.name: str = given or f"{kind.__module__}.{kind.__qualname__}"

    def dumps(self, value: object, subject: object) -> tuple[Data, bool]:
        """The bytes of `value`, and whether the serializer made text of it."""
        try:
            made = self._implementation.dumps(value)
            if isinstance(made, str):
                return made.encode("utf-8"), True
            if isinstance(made, bytes | bytearray | memoryview):
                return made, False
        except Exception as error:
            raise SerializationError(
                f"{subject}: {self.name} cannot dump it: {error}: convert it, or give the store "
                "another serializer"
            ) from error
        raise SerializationError(
            f"{subject}: {self.name}.dumps made a {type(made).__name__}: it must make bytes or str"
        )

    def loads(self, header: Header, payload: bytes) -> Any:
        """The value in the payload of a checkpoint with this header."""
        if header.serializer is None:
            raise SerializationError(
                f"{header} was written as bytes: read it instead of loading it"
            )
        if header.serializer != self.name:
            raise SerializationError(
                f"{header} was dumped by {header.serializer}, and this store uses {self.name}: "
                "open a store with that serializer, or read the bytes"
            )
        try:
            return self._implementation.loads(payload.decode("utf-8") if header.text else payload)
        except Exception as error:
            raise SerializationError(f"{header}: {self.name} cannot load it: {error}") from error

    def __reduce__(self) -> tuple[Callable[..., Serializer], tuple[object]]:
        if isinstance(self._implementation, ModuleType):
            return _of_module, (self._implementation.__name__,)
        return Serializer, (self._implementation,)


def _of_module(name: str) -> Serializer:
    return Serializer(importlib.import_module(name))
