"""The module that runs, by the name under which other processes know it.

Its own name is `__main__`, and `__mp_main__` in the processes that multiprocessing spawned for it.
Whatever is named after it would else be somebody else's there.
"""

from __future__ import annotations

import sys

MAIN = ("__main__", "__mp_main__")


def importable_name(module: str) -> str:
    """The name under which other processes import a module; of a script, `__main__`."""
    if module not in MAIN:
        return module
    # While a spawned process imports what its parent runs, its own `__main__` is another module.
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return "__main__" if spec is None else str(spec.name)


def type_name(kind: type) -> str:
    """How messages call a type: with its module, unless that is `builtins`."""
    module = importable_name(kind.__module__)
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
