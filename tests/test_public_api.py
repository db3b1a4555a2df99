"""The public names: which there are, how they are called, and that each explains itself."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import importlib.resources
import inspect
import pydoc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import checkpoint_store
from checkpoint_store import CheckpointStore, CheckpointStoreError, Decision, InputChange, Run

from .harness import PACKAGE

PUBLIC = [
    *("CheckpointNotFoundError", "CheckpointStore", "CheckpointStoreError", "ContentionError"),
    *("CorruptCheckpointError", "CorruptRecordError", "Decision", "Description"),
    *("FingerprintError", "IncompleteClearError", "InputChange", "InputChangedError"),
    *(
        "InvalidNameError",
        "InvalidPolicyError",
        "InvalidTaskError",
        "InvalidURLError",
        "Run",
        "SerializationError",
        "StorageError",
    ),
    *(
        "Task",
        "TaskDescription",
        "UnsupportedFormatError",
        "fingerprint",
        "plan",
        "register",
        "resume",
    ),
]

SIGNATURES = {
    "CheckpointStore": "(url, *, serializer=json, durable=True, max_concurrency=32, "
    "storage_options=None)",
    "CheckpointStore.clear": "(self, workflow_id, *, callback=None)",
    "CheckpointStore.close": "(self)",
    "CheckpointStore.collect": "(self, workflow_id, *, callback=None)",
    "CheckpointStore.describe": "(self, workflow_id)",
    "CheckpointStore.prune": "(self, older_than, *, dry_run=False, callback=None)",
    "CheckpointStore.read_fingerprint": "(self, workflow_id)",
    "CheckpointStore.run": "(self, workflow_id, *, fingerprint=None, tasks=None)",
    "CheckpointStore.workflows": "(self)",
    "CheckpointStore.write_fingerprint": "(self, workflow_id, fingerprint)",
    "Decision": "(action, policy, stored, current, change, kept=<factory>, recomputed=<factory>)",
    "Description": "(workflow_id, fingerprint, mixed, live, retired, size, oldest, newest)",
    "InputChange": "(added, removed, changed, reason)",
    "Task": "(*, uses=None, after=(), version=None)",
    "TaskDescription": "(size, written, since)",
    "Run.delete": "(self, task, *, dependents=False)",
    "Run.dump": "(self, task, value)",
    "Run.dump_many": "(self, values, *, callback=None)",
    "Run.is_current": "(self)",
    "Run.load": "(self, task)",
    "Run.load_many": "(self, tasks=None, *, callback=None)",
    "Run.open": "(self, task, mode='rb')",
    "Run.read": "(self, task)",
    "Run.read_many": "(self, tasks=None, *, callback=None)",
    "Run.tasks": "(self)",
    "Run.write": "(self, task, data)",
    "Run.write_many": "(self, payloads, *, callback=None)",
    "fingerprint": "(inputs, *, ignore=())",
    "plan": "(store, workflow_id, inputs=…, *, fingerprint=None, on_input_change=None, "
    "ignore=(), tasks=None)",
    "register": "(cls, encode, *, tag=None)",
    "resume": "(store, workflow_id, inputs=…, *, fingerprint=None, on_input_change=None, "
    "ignore=(), tasks=None)",
}
ATTRIBUTES = {
    "CheckpointStore": {"url", "conditional_writes"},
    "Decision": {"action", "policy", "stored", "current", "change", "kept", "recomputed"},
    "Description": {
        *("workflow_id", "fingerprint", "mixed", "live", "tasks", "retired"),
        *("size", "oldest", "newest"),
    },
    "InputChange": {"added", "removed", "changed", "reason"},
    "Task": {"uses", "after", "version"},
    "TaskDescription": {"size", "written", "since"},
    "Run": {"workflow_id", "fingerprint", "token", "decision"},
}


def named(name: str) -> Any:
    found: Any = checkpoint_store
    for part in name.split("."):
        found = getattr(found, part)
    return found


@dataclasses.dataclass(frozen=True)
class Shown:
    """A default that is shown by its name."""

    name: str

    def __repr__(self) -> str:
        return self.name


def signature(function: Callable[..., object]) -> str:
    """How it is called, without annotations."""
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=Shown(parameter.default.__name__)
            if inspect.ismodule(parameter.default)
            else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


def members(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_the_public_names_are_these_and_sorted() -> None:
    assert checkpoint_store.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_a_star_import_brings_exactly_them() -> None:
    namespace: dict[str, object] = {}
    exec("from checkpoint_store import *", namespace)
    assert sorted(set(namespace) - {"__builtins__"}) == PUBLIC


def test_every_other_name_of_the_package_is_private_or_a_module() -> None:
    others = {name for name in vars(checkpoint_store) if not name.startswith("_")} - set(PUBLIC)
    assert others <= {"errors"}


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_a_public_callable_is_called_as_documented(name: str, expected: str) -> None:
    assert expected == signature(named(name))


def test_every_public_callable_has_its_signature_here() -> None:
    functions = {name for name in PUBLIC if inspect.isfunction(named(name))}
    methods = {
        f"{kind.__name__}.{name}"
        for kind in (CheckpointStore, Run)
        for name in members(kind)
        if inspect.isfunction(vars(kind)[name])
    }
    assert functions | methods | {
        "CheckpointStore",
        "Decision",
        "Description",
        "InputChange",
        "Task",
        "TaskDescription",
    } == set(SIGNATURES)


@pytest.mark.parametrize(("name", "expected"), ATTRIBUTES.items())
def test_a_public_object_has_these_attributes_and_no_more(name: str, expected: set[str]) -> None:
    kind = named(name)
    fields = (
        {field.name for field in dataclasses.fields(kind)} if name != "CheckpointStore" else {"url"}
    )
    methods = {key.partition(".")[2] for key in SIGNATURES if key.startswith(f"{name}.")}
    shown = {field for field in fields if not field.startswith("_")} | members(kind)
    assert expected | methods == shown
    if name == "CheckpointStore":
        store = CheckpointStore("memory://x")
        assert {key for key in vars(store) if not key.startswith("_")} == {"url"}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_where_it_says(name: str) -> None:
    found = named(name)
    assert found.__module__.startswith("checkpoint_store")
    assert found.__name__ == name


@pytest.mark.parametrize("kind", [Decision, InputChange, Run])
def test_a_public_record_is_frozen_and_slotted(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__dict__" not in dir(kind)
    change = InputChange((), (), (), "why")
    with pytest.raises(dataclasses.FrozenInstanceError):
        change.reason = "other"  # type: ignore[misc]


def test_decisions_and_changes_are_values() -> None:
    change = InputChange(("a",), (), (), "added: 'a'")
    decision = Decision("reset", "reset", "v1", "v2", change)
    assert decision == Decision(
        "reset", "reset", "v1", "v2", InputChange(("a",), (), (), "added: 'a'")
    )
    assert len({decision, decision}) == 1
    assert repr(decision).startswith("Decision(action='reset', policy='reset', stored='v1'")


# Documented


def documented() -> list[str]:
    found = ["", *PUBLIC]
    for kind in (CheckpointStore, Run):
        found += [f"{kind.__name__}.{name}" for name in sorted(members(kind))]
    return [name for name in found if not inspect.ismemberdescriptor(named(name) if name else None)]


@pytest.mark.parametrize("name", documented())
def test_everything_public_says_what_it_does(name: str) -> None:
    found = named(name) if name else checkpoint_store
    text = inspect.getdoc(found)
    assert text
    first = text.split("\n\n")[0]
    assert first.rstrip().endswith((".", ":")), first
    if inspect.isclass(found) and issubclass(found, CheckpointStoreError):
        assert vars(found)["__doc__"], "inherited"


def test_a_run_explains_its_attributes() -> None:
    text = inspect.getdoc(Run) or ""
    for name in ATTRIBUTES["Run"]:
        assert re.search(rf"^{name}$", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["CheckpointStore"])
def test_a_store_explains_its_arguments(name: str) -> None:
    text = inspect.getdoc(named(name)) or ""
    for parameter in inspect.signature(named(name)).parameters:
        assert re.search(rf"^{parameter}$", text, re.MULTILINE)


def test_help_shows_the_quick_start_and_every_public_name() -> None:
    shown = pydoc.plain(pydoc.render_doc(checkpoint_store))
    assert "from checkpoint_store import CheckpointNotFoundError, CheckpointStore, resume" in shown
    for name in PUBLIC:
        assert name in shown


def test_help_works_in_a_fresh_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import checkpoint_store; help(checkpoint_store)"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
        cwd=PACKAGE.parent,
    )
    assert "never come back for other inputs" in done.stdout
    assert done.stderr == ""


def dotted(path: Path) -> str:
    """The name of the module at a path within the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert failed == 0
    assert tried > 0 or module != "checkpoint_store"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for_and_is_not_long(module: str) -> None:
    source = MODULES[module].read_text("utf-8")
    assert source.count("\n") <= 450
    text = ast.get_docstring(ast.parse(source))
    assert text
    assert text.split("\n\n")[0].rstrip().endswith((".", ":", "*"))


def test_the_package_is_marked_as_typed() -> None:
    assert importlib.resources.files(checkpoint_store).joinpath("py.typed").is_file()


def test_the_public_types_are_pinned_for_every_public_name() -> None:
    pinned = Path(__file__).with_name("public_types.py").read_text("utf-8")
    for name in PUBLIC:
        kind = named(name)
        is_plain_error = inspect.isclass(kind) and issubclass(kind, CheckpointStoreError)
        assert re.search(rf"\b{name}\b", pinned) or is_plain_error
