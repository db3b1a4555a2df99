"""Turns objects into bytes and back, with the serializer that the caller chose."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ._filesystems.base import Data
from ._frame import Header
from ._modules import MAIN, importable_name
from .errors import SerializationError


class Serializer:
    """Anything with `dumps` and `loads`, and its name.

    The name is written into each file and compared when the file is loaded. It is never imported:
    the caller decides which code reads a file, and not the file.

    The name of a module, a class or an object with a `__name__` is that. Another object has the
    name of its class, if the class defines `dumps` and `loads`; two objects of one class are not
    told apart. If `dumps` and `loads` are attributes of the object itself, as in a
    `SimpleNamespace`, its class says nothing about it, and it must be given a `__name__`. The
    module that a process runs has the name under which others import it, or `__main__` if it is a
    script. So a class in it has the same name in all processes.
    """

    def __init__(self, implementation: Any, name: str | None = None) -> None:
        for function in ("dumps", "loads"):
            if not callable(getattr(implementation, function, None)):
                raise TypeError(
                    f"a serializer needs functions dumps and loads, and {implementation!r} has no "
                    f"{function}: pass json, pickle, or an object that has both"
                )
        self._implementation = implementation
        self.name = name or _name_of(implementation)

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
        if self.name not in (header.serializer, _today(header.serializer)):
            raise SerializationError(
                f"{header} was dumped by {header.serializer}, and this store uses {self.name}: "
                "open a store with that serializer, or read the bytes"
            )
        try:
            return self._implementation.loads(payload.decode("utf-8") if header.text else payload)
        except Exception as error:
            raise SerializationError(f"{header}: {self.name} cannot load it: {error}") from error

    def __reduce__(self) -> tuple[Callable[..., Serializer], tuple[object, str]]:
        # The name goes along. A worker that runs another module, and has received the class by
        # value, would find another name.
        if isinstance(self._implementation, ModuleType):
            return _of_module, (self._implementation.__name__, self.name)
        return Serializer, (self._implementation, self.name)


def _of_module(module: str, name: str) -> Serializer:
    return Serializer(importlib.import_module(module), name)


def _name_of(implementation: object) -> str:
    given = getattr(implementation, "__name__", None)
    if isinstance(given, str) and given not in ("", "<lambda>"):
        return importable_name(given)
    kind = type(implementation)
    for function in ("dumps", "loads"):
        if not _is_defined_by(kind, function, implementation):
            raise TypeError(
                f"a serializer needs a name, which its files carry, and {implementation!r} shares "
                f"that of its class with others whose {function} is another: set its __name__, "
                'such as "acme.compressed", and keep it as long as its files'
            )
    return f"{_module(kind)}.{kind.__qualname__}"


def _today(name: str) -> str:
    """The present form of a name that version 0.1.0 has written, with `__main__` or
    `__mp_main__`."""
    module, dot, rest = name.partition(".")
    return importable_name("__main__" if module in MAIN else module) + dot + rest


def _is_defined_by(kind: type, function: str, implementation: object) -> bool:
    """Whether a function of an object is defined by its class, and not by the object itself."""
    defined = inspect.getattr_static(kind, function, None)
    # Slots and the fields of named tuples hold what belongs to the object.
    is_field = inspect.isdatadescriptor(defined) and not isinstance(defined, property)
    found = inspect.getattr_static(implementation, function, None)
    return defined is not None and defined is found and not is_field


def _module(kind: type) -> str:
    # A class that was sent by value, as by cloudpickle, is not in the module that the worker runs.
    outermost = kind.__qualname__.partition(".")[0]
    if kind.__module__ in MAIN and not hasattr(sys.modules.get(kind.__module__), outermost):
        return "__main__"
    return importable_name(kind.__module__)
