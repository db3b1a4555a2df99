"""The names of modules and types, as other processes know them.

The module that a process runs is called `__main__` there, and `__mp_main__` in processes that
multiprocessing has spawned. In another process these names belong to another module.
"""

from __future__ import annotations

import sys

MAIN = ("__main__", "__mp_main__")


def importable_name(module: str) -> str:
    """The name under which other processes import a module. For a script it is `__main__`."""
    if module not in MAIN:
        return module
    # A spawned process first imports the module that its parent runs, as `__mp_main__`. Its own
    # `__main__` is another module.
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return "__main__" if spec is None else str(spec.name)


def type_name(kind: type) -> str:
    """The name of a type in messages. It has the module, unless that is `builtins`."""
    module = importable_name(kind.__module__)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
