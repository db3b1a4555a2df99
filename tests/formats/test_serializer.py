"""Serializers: chosen by the caller, named in the file, and never by the file."""

from __future__ import annotations

import json
import marshal
import multiprocessing
import os
import pickle
import subprocess
import sys
import types
import unittest.mock
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from checkpoint_store import CheckpointStore, SerializationError, resume
from checkpoint_store._frame import Header
from checkpoint_store._serializer import Serializer

from ..harness import ROOT

SUBJECT = Header("orders", "total", "0" * 16)
VALUE = {"total": 42, "rows": [1, 2.5, None, True, "é"]}


class Upper:
    """A serializer as an object with a state of its own, which makes text."""

    def __init__(self, prefix: str = "U") -> None:
        self.prefix = prefix

    def dumps(self, value: Any) -> str:
        return self.prefix + json.dumps(value)

    def loads(self, data: str) -> Any:
        assert type(data) is str
        return json.loads(data.removeprefix(self.prefix))


class Making:
    """Makes whatever it is told to."""

    def __init__(self, made: object = None, error: BaseException | None = None) -> None:
        self.made = made
        self.error = error

    def dumps(self, _: object) -> Any:
        if self.error:
            raise self.error
        return self.made

    loads = dumps


class Canary:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, int]]:
        return os.open, (self.path, os.O_CREAT | os.O_WRONLY)


def header_of(serializer: Serializer, *, text: bool) -> Header:
    return Header("orders", "total", "0" * 16, serializer=serializer.name, text=text)


def round_trip(serializer: Serializer, value: object) -> Any:
    payload, text = serializer.dumps(value, SUBJECT)
    return serializer.loads(header_of(serializer, text=text), bytes(payload))


@pytest.mark.parametrize("implementation", [json, pickle, marshal, Upper(), Upper("x")])
def test_what_is_dumped_is_loaded(implementation: Any) -> None:
    assert round_trip(Serializer(implementation), VALUE) == VALUE


@pytest.mark.parametrize("implementation", ["cloudpickle", "orjson"])
def test_the_usual_packages_fit(implementation: str) -> None:
    module = pytest.importorskip(implementation)
    assert round_trip(Serializer(module), VALUE) == VALUE


@pytest.mark.parametrize(
    ("made", "payload", "text"),
    [
        ("é", "é".encode(), True),
        ("", b"", True),
        (b"\xff", b"\xff", False),
        (bytearray(b"x"), b"x", False),
        (memoryview(b"x"), b"x", False),
    ],
)
def test_a_serializer_makes_text_or_bytes(made: object, payload: bytes, text: bool) -> None:  # noqa: FBT001
    dumped, is_text = Serializer(Making(made)).dumps(None, SUBJECT)
    assert (payload, text) == (bytes(dumped), is_text)


@pytest.mark.parametrize("made", [None, 5, ["x"], {"x": 1}, object()])
def test_anything_else_that_a_serializer_makes_is_an_error(made: object) -> None:
    with pytest.raises(SerializationError, match=f"'total'.*made a {type(made).__name__}"):
        Serializer(Making(made)).dumps(None, SUBJECT)


@pytest.mark.parametrize("made", ["\ud800", "a\udcffb"])
def test_text_that_has_no_utf_8_is_an_error(made: str) -> None:
    with pytest.raises(SerializationError, match="cannot dump") as caught:
        Serializer(Making(made)).dumps(None, SUBJECT)
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)


@pytest.mark.parametrize("kind", [ValueError, RecursionError, MemoryError, KeyError, OSError])
def test_a_failure_of_the_serializer_is_the_cause_and_the_task_is_named(
    kind: type[Exception],
) -> None:
    error = kind("bad")
    serializer = Serializer(Making(error=error))
    with pytest.raises(SerializationError, match=r"'total'.*cannot dump") as dumping:
        serializer.dumps(VALUE, SUBJECT)
    with pytest.raises(SerializationError, match=r"'total'.*cannot load") as loading:
        serializer.loads(header_of(serializer, text=False), b"x")
    assert (error, error) == (dumping.value.__cause__, loading.value.__cause__)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_passes_through_a_serializer(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        Serializer(Making(error=kind())).dumps(VALUE, SUBJECT)


def test_a_value_that_json_does_not_know_is_an_error_that_names_the_task() -> None:
    with pytest.raises(SerializationError, match=r"'total'.*json cannot dump") as caught:
        Serializer(json).dumps({"x": object()}, SUBJECT)
    assert isinstance(caught.value.__cause__, TypeError)


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff", b"nothing", b"[" * 100_000])
def test_bytes_that_json_does_not_know_are_an_error_that_names_the_task(payload: bytes) -> None:
    serializer = Serializer(json)
    for text in (True, False):
        with pytest.raises(SerializationError, match=r"'total'.*json cannot load"):
            serializer.loads(header_of(serializer, text=text), payload)


@pytest.mark.parametrize("name", ["pickle", "orjson", "Json", "json ", "", "os", "builtins.eval"])
def test_a_file_of_another_serializer_is_refused_and_its_bytes_are_not_looked_at(name: str) -> None:
    def never(_: object) -> object:
        pytest.fail("it was loaded")

    mine = types.SimpleNamespace(__name__="json", dumps=json.dumps, loads=never)
    header = Header("orders", "total", "0" * 16, serializer=name)
    with pytest.raises(SerializationError, match="open a store with that serializer"):
        Serializer(mine).loads(header, b"{}")


def test_a_checkpoint_written_as_bytes_is_read_and_not_loaded() -> None:
    with pytest.raises(SerializationError, match="read it instead"):
        Serializer(json).loads(SUBJECT, b"{}")


def test_a_pickle_in_the_place_of_json_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "canary"
    url = "memory://serializer-canary"
    trusting = CheckpointStore(url, serializer=pickle)
    run = resume(trusting, "orders", fingerprint="v1", on_input_change="reset")
    run.dump("total", Canary(str(path)))
    mine = CheckpointStore(url).run("orders")
    with pytest.raises(SerializationError, match="pickle"):
        mine.load("total")
    with pytest.raises(SerializationError, match="pickle"):
        mine.load_many()
    assert not path.exists()
    assert b"canary" in mine.read("total")
    descriptor = run.load("total")
    assert path.exists()
    os.close(descriptor)


def test_a_store_gives_back_what_its_serializer_makes_of_it() -> None:
    for number, implementation in enumerate((json, pickle, Upper())):
        store = CheckpointStore(f"memory://serializer-{number}", serializer=implementation)
        run = resume(store, "orders", fingerprint="v1", on_input_change="reset")
        assert run.dump("total", VALUE) is VALUE
        assert run.load("total") == VALUE
        assert run.load_many() == {"total": VALUE}
        run.dump_many({"none": None, "empty": ""})
        assert run.load_many(["empty", "none", "missing"]) == {"empty": "", "none": None}


def test_nothing_is_stored_when_one_of_many_cannot_be_dumped() -> None:
    store = CheckpointStore("memory://serializer-many")
    run = resume(store, "orders", fingerprint="v1", on_input_change="reset")
    with pytest.raises(SerializationError, match="'bad'"):
        run.dump_many({"good": 1, "bad": object()})
    with pytest.raises(SerializationError, match="'bad'"):
        run.dump("bad", object())
    assert run.tasks() == set()


# What is a serializer


class Named(Upper):
    __name__ = "acme.named"


class Properties:
    """One of which the class says how it finds its functions."""

    @property
    def dumps(self) -> Callable[[object], str]:
        return json.dumps

    @property
    def loads(self) -> Callable[[str], object]:
        return json.loads


class Half:
    def __init__(self) -> None:
        self.loads = json.loads

    def dumps(self, value: object) -> str:
        return json.dumps(value)


@dataclass
class Fields:
    dumps: Callable[[object], str] = json.dumps
    loads: Callable[[str], object] = json.loads


@dataclass(slots=True)
class Slots:
    dumps: Callable[[object], str]
    loads: Callable[[str], object]


class Pair(NamedTuple):
    dumps: Callable[[object], str]
    loads: Callable[[str], object]


class Wrapper:
    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


def local_class() -> type:
    class Local(Upper):
        pass

    return Local


def with_functions(function: Any) -> Any:
    function.dumps, function.loads = json.dumps, json.loads
    return function


class WithoutLoads:
    def dumps(self, value: object) -> str:
        return str(value)


@pytest.mark.parametrize(
    ("implementation", "missing"),
    [
        (None, "dumps"),
        ("json", "dumps"),
        (object(), "dumps"),
        (json.dumps, "dumps"),
        (WithoutLoads(), "loads"),
        (types.SimpleNamespace(dumps="x", loads="y"), "dumps"),
    ],
)
def test_what_has_no_dumps_and_loads_is_refused_when_the_store_is_made(
    implementation: object, missing: str
) -> None:
    with pytest.raises(TypeError, match=f"has no {missing}"):
        CheckpointStore("memory://x", serializer=implementation)


@pytest.mark.parametrize(
    ("implementation", "name"),
    [
        (json, "json"),
        (pickle, "pickle"),
        (Upper, "Upper"),
        (Upper(), f"{__name__}.Upper"),
        (Upper("x"), f"{__name__}.Upper"),
        (Properties(), f"{__name__}.Properties"),
        (Fields(json.dumps), f"{__name__}.Fields"),
        (Named(), "acme.named"),
        (local_class()(), f"{__name__}.local_class.<locals>.Local"),
        (types.SimpleNamespace(__name__="acme.x", dumps=repr, loads=eval), "acme.x"),
        (Wrapper(json), "json"),
    ],
)
def test_a_serializer_is_known_by_the_name_of_its_module_or_class(
    implementation: object, name: str
) -> None:
    assert name == Serializer(implementation).name


NAMELESS = {
    "namespace": types.SimpleNamespace(dumps=repr, loads=eval),
    "half a namespace": Half(),
    "mock": unittest.mock.Mock(),
    "fields": Fields(repr),
    "slots": Slots(json.dumps, json.loads),
    "named tuple": Pair(json.dumps, json.loads),
    "wrapper": Wrapper(Upper()),
    "class": type("", (), {"dumps": repr, "loads": eval}),
    "lambda": with_functions(lambda: None),
    **{
        f"named {name!r}": types.SimpleNamespace(__name__=name, dumps=json.dumps, loads=json.loads)
        for name in (5, None, b"json", ["json"], "")
    },
}


@pytest.mark.parametrize("implementation", NAMELESS.values(), ids=NAMELESS)
def test_an_object_without_a_name_of_its_own_must_be_given_one(implementation: Any) -> None:
    with pytest.raises(TypeError, match=r"needs a name.*set its __name__"):
        CheckpointStore("memory://nameless", serializer=implementation)


def test_two_objects_of_one_class_would_have_exchanged_their_values() -> None:
    def forwards(**name: str) -> Any:
        return types.SimpleNamespace(dumps=str, loads=int, **name)

    def backwards(**name: str) -> Any:
        return types.SimpleNamespace(dumps=str, loads=lambda text: int(text[::-1]), **name)

    forced = [Serializer(make(), "types.SimpleNamespace") for make in (forwards, backwards)]
    payload, text = forced[0].dumps(12, SUBJECT)
    header = header_of(forced[0], text=text)
    assert [serializer.loads(header, bytes(payload)) for serializer in forced] == [12, 21]

    for make in (forwards, backwards):
        with pytest.raises(TypeError, match="needs a name"):
            Serializer(make())
    one, other = Serializer(forwards(__name__="acme.one")), Serializer(backwards(__name__="other"))
    with pytest.raises(SerializationError, match=r"dumped by acme\.one, and this store uses other"):
        other.loads(header_of(one, text=True), b"12")


def test_a_serializer_with_an_endless_name_writes_nothing_that_it_cannot_read() -> None:
    odd = types.SimpleNamespace(__name__="x" * 20_000, dumps=json.dumps, loads=json.loads)
    store = CheckpointStore("memory://endless", serializer=odd)
    run = resume(store, "orders", fingerprint="v1", on_input_change="reset")
    with pytest.raises((SerializationError, ValueError)):
        run.dump("total", VALUE)
    assert run.tasks() == set()


# Elsewhere


@pytest.mark.parametrize("implementation", [json, pickle, marshal, Upper("q")])
def test_a_serializer_survives_pickling(implementation: Any) -> None:
    arrived = pickle.loads(pickle.dumps(Serializer(implementation)))
    assert arrived.name == Serializer(implementation).name
    assert round_trip(arrived, VALUE) == VALUE
    payload, text = Serializer(implementation).dumps(VALUE, SUBJECT)
    assert arrived.loads(header_of(arrived, text=text), bytes(payload)) == VALUE


SCRIPT = """
import multiprocessing
import sys
from checkpoint_store import CheckpointStore

class Hex:
    def dumps(self, value):
        return f"{value:x}"

    def loads(self, data):
        return int(data, 16)

def make():
    return CheckpointStore(sys.argv[1], serializer=Hex()).run("wf")

while_imported = make()

def work(handed):
    for name, run in {"handed": handed, "imported": while_imported, "made": make()}.items():
        assert run.load("parent") == 10
        run.dump(name, 11)

if __name__ == "__main__":
    while_imported.dump("parent", 10)
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(while_imported,))
    worker.start()
    worker.join()
    print(sorted(make().load_many().items()))
"""
EXCHANGED = [("handed", 11), ("imported", 11), ("made", 11), ("parent", 10)]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize(
    ("command", "name"), [(["script.py"], "__main__.Hex"), (["-m", "pkg.mod"], "pkg.mod.Hex")]
)
def test_a_class_of_the_module_that_runs_is_the_same_serializer_in_its_workers(
    tmp_path: Path, method: str, command: list[str], name: str
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    for file in ("script.py", "pkg/mod.py"):
        (tmp_path / file).write_text(SCRIPT)
    root = tmp_path / "root"

    def interpret(*arguments: object) -> str:
        path = [str(tmp_path), str(ROOT)]
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    assert interpret(*command, root, method) == str(EXCHANGED)
    heads = [file.read_bytes().partition(b"\n")[0] for file in (root / "wf").glob("*@*")]
    assert [name] * 4 == [json.loads(head)["serializer"] for head in heads]
    if "-m" in command:
        found = "import pkg.mod; print(sorted(pkg.mod.make().load_many().items()))"
        assert interpret("-c", found, root) == str(EXCHANGED)


class Main(types.ModuleType):
    def __init__(self, name: str | None) -> None:
        super().__init__("__main__")
        self.__spec__: Any = name and types.SimpleNamespace(name=name)


def of_main(module: str = "__main__") -> Any:
    return type("Kind", (Upper,), {"__module__": module})()


@pytest.mark.parametrize("written", ["__main__", "__mp_main__", "pkg.mod"])
def test_what_version_0_1_0_wrote_from_the_module_that_runs_is_loaded(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    main = Main("pkg.mod")
    monkeypatch.setitem(sys.modules, "__main__", main)
    for implementation, name in {of_main(): "pkg.mod.Kind", main: "pkg.mod"}.items():
        vars(main).update(Kind=type(implementation), dumps=Upper().dumps, loads=Upper().loads)
        serializer = Serializer(implementation)
        assert name == serializer.name
        header = header_of(Serializer(Upper(), name.replace("pkg.mod", written)), text=True)
        assert serializer.loads(header, b"U5") == 5
    monkeypatch.setitem(sys.modules, "__main__", Main("other"))
    if written != "pkg.mod":
        with pytest.raises(SerializationError, match="open a store with that serializer"):
            serializer.loads(header, b"U5")


def test_a_class_that_a_worker_has_got_by_value_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As cloudpickle sends it from a notebook to the workers of dask and joblib.
    for main in (Main(None), Main("distributed.cli.dask_worker")):
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert Serializer(of_main()).name == "__main__.Kind"
    sent = Serializer(Upper(), "__main__.Upper")
    assert pickle.loads(pickle.dumps(sent)).name == "__main__.Upper"
    assert pickle.loads(pickle.dumps(Serializer(json, "pkg.mod"))).name == "pkg.mod"
