"""The error tree: as drawn, picklable whole, and plain to read."""

from __future__ import annotations

import copy
import copyreg
import errno
import inspect
import multiprocessing
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from checkpoint_store import InputChange, errors
from checkpoint_store.errors import (
    CheckpointNotFoundError,
    CheckpointStoreError,
    ContentionError,
    CorruptCheckpointError,
    CorruptRecordError,
    FingerprintError,
    IncompleteClearError,
    InputChangedError,
    InvalidNameError,
    InvalidPolicyError,
    InvalidTaskError,
    InvalidURLError,
    SerializationError,
    StorageError,
    UnsupportedFormatError,
    storage_errors,
)

CHANGE = InputChange(("a",), ("b",), ("c",), "added: 'a'; removed: 'b'; changed: 'c'")


def examples() -> list[CheckpointStoreError]:
    return [
        CheckpointStoreError("base"),
        InvalidNameError("name"),
        InvalidPolicyError("policy"),
        InvalidTaskError("task"),
        InvalidURLError("url"),
        FingerprintError("value", path="inputs['model']", reason="unsupported type"),
        InputChangedError("changed", workflow_id="wf", stored="v1", current="v2", change=CHANGE),
        InputChangedError("changed", workflow_id="wf", stored=None, current="v2", change=CHANGE),
        CheckpointNotFoundError("there is no checkpoint 'a'"),
        CorruptCheckpointError("checkpoint"),
        CorruptRecordError("record"),
        UnsupportedFormatError("newer"),
        SerializationError("serializer"),
        ContentionError("contention"),
        IncompleteClearError("partly", failures={"wf/a@0": "AccessDenied"}),
        StorageError("storage", errno=errno.ENOSPC, failures={"a": "no space"}),
        StorageError("storage"),
    ]


@pytest.fixture(params=range(len(examples())), ids=[type(error).__name__ for error in examples()])
def error(request: pytest.FixtureRequest) -> CheckpointStoreError:
    """Made anew: raising an error changes it, and so may a copy."""
    return examples()[request.param]


def classes() -> dict[str, type[CheckpointStoreError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, CheckpointStoreError)
    }


def drawn() -> dict[str, tuple[str, ...]]:
    """Each error in the docstring's tree, with the builtin it is also drawn as."""
    tree = {}
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        if line.startswith(("├── ", "└── ")):
            also = re.findall(r"\(also (\w+)\)", line)
            for name in re.findall(r"\w+Error\b", line.partition("(")[0]):
                tree[name] = ("CheckpointStoreError", *also)
    return tree


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {
        name: tuple(base.__name__ for base in kind.__bases__)
        for name, kind in classes().items()
        if kind is not CheckpointStoreError
    }
    assert drawn() == real
    assert len(real) == 14
    assert CheckpointStoreError.__bases__ == (Exception,)
    assert "CheckpointStoreError\n├──" in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (InvalidNameError, ValueError),
        (InvalidPolicyError, ValueError),
        (InvalidTaskError, ValueError),
        (InvalidURLError, ValueError),
        (FingerprintError, ValueError),
        (CheckpointNotFoundError, KeyError),
        (StorageError, OSError),
    ],
)
def test_an_error_is_caught_as_the_builtin_it_also_is(
    kind: type[CheckpointStoreError], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin):
        raise kind("message")


def test_no_other_error_is_caught_by_accident() -> None:
    also = {
        InvalidNameError,
        InvalidPolicyError,
        InvalidTaskError,
        InvalidURLError,
        FingerprintError,
    }
    also |= {CheckpointNotFoundError, StorageError}
    for kind in set(classes().values()) - also:
        assert not issubclass(kind, ValueError | KeyError | OSError | TypeError | RuntimeError)


def test_every_error_has_an_example_here_and_a_docstring() -> None:
    assert set(classes().values()) == {type(error) for error in examples()}
    for kind in classes().values():
        assert kind.__doc__


def state(error: BaseException) -> dict[str, object]:
    names = ["args", "path", "reason", "workflow_id", "stored", "current", "change", "failures"]
    names += ["errno", "strerror", "filename", "__notes__"]
    return {name: getattr(error, name) for name in names if hasattr(error, name)}


PICKLERS: list[Callable[[CheckpointStoreError], CheckpointStoreError]] = [
    *(
        lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))  # type: ignore[misc]
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ),
    copy.copy,
    copy.deepcopy,
]


@pytest.mark.parametrize("passed", PICKLERS)
def test_an_error_survives_pickling_and_copying_whole(
    error: CheckpointStoreError, passed: Callable[[CheckpointStoreError], CheckpointStoreError]
) -> None:
    error.add_note("in worker 3")
    arrived = passed(error)
    assert type(error) is type(arrived)
    assert state(error) == state(arrived)
    assert str(error) == str(arrived)
    assert state(arrived)["__notes__"] == ["in worker 3"]


@pytest.mark.parametrize("passed", PICKLERS)
def test_an_error_survives_the_pickling_that_dask_installs_for_all_errors(
    error: CheckpointStoreError,
    passed: Callable[[CheckpointStoreError], CheckpointStoreError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reason = "needs the extra integrations"
    pickling = pytest.importorskip("tblib.pickling_support", reason=reason)
    monkeypatch.setitem(copyreg.dispatch_table, type(error), pickling.pickle_exception)
    test_an_error_survives_pickling_and_copying_whole(error, passed)


def _raise(number: int) -> None:
    raise examples()[number]


def test_an_error_of_a_worker_reaches_its_parent_whole() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_raise, number) for number in range(len(examples()))]
        for error, future in zip(examples(), futures, strict=True):
            arrived = future.exception()
            assert arrived is not None
            assert type(arrived) is type(error)
            assert state(error) == {k: v for k, v in state(arrived).items() if k != "__notes__"}


def test_the_text_of_an_error_is_its_plain_message(error: CheckpointStoreError) -> None:
    assert str(error) == error.args[0]
    assert f"{error}" == error.args[0]


@pytest.mark.parametrize("kind", sorted(set(classes().values()) - {InputChangedError}, key=repr))
def test_an_error_needs_no_more_than_a_message(kind: type[CheckpointStoreError]) -> None:
    assert str(kind("message")) == "message"


def test_the_failures_of_an_error_are_its_own() -> None:
    failures = {"a": "reason"}
    for error in (IncompleteClearError("m", failures=failures), StorageError("m")):
        error.failures["b"] = "another"
    assert failures == {"a": "reason"}
    assert StorageError("m").failures == {}
    assert IncompleteClearError("m").failures == {}


# Wrapping what a filesystem raises


@pytest.mark.parametrize(
    ("kind", "arguments", "number"),
    [
        (OSError, (errno.ENOSPC, "no space left"), errno.ENOSPC),
        (PermissionError, (errno.EACCES, "denied", "/secret"), errno.EACCES),
        (FileNotFoundError, ("gone",), None),
        (FileNotFoundError, (errno.ENOENT, "gone"), errno.ENOENT),
        (TimeoutError, (), None),
        (ConnectionResetError, ("reset",), None),
        (ValueError, ("not an OSError",), None),
        (KeyError, ("key",), None),
        (RuntimeError, (), None),
        (EOFError, (), None),
        (MemoryError, (), None),
        (RecursionError, ("deep",), None),
    ],
)
def test_whatever_a_filesystem_raises_is_a_storage_error_about_its_subject(
    kind: type[Exception], arguments: tuple[Any, ...], number: int | None
) -> None:
    raised = kind(*arguments)
    with (
        pytest.raises(StorageError, match=r"^checkpoint 'a': ") as caught,
        storage_errors("checkpoint 'a'"),
    ):
        raise raised
    assert caught.value.__cause__ is raised
    assert number == caught.value.errno
    assert not str(caught.value).endswith(": ")


def test_an_error_of_ours_passes_unchanged(error: CheckpointStoreError) -> None:
    with pytest.raises(type(error)) as caught, storage_errors("it"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_program_passes_unchanged(kind: type[BaseException]) -> None:
    with pytest.raises(kind), storage_errors("it"):
        raise kind
