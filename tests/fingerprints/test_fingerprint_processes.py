"""A fingerprint is the same in every process: hash seeds, interpreters, `__main__`, imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import pytest

from checkpoint_store._fingerprint_objects import name_of

from ..harness import PACKAGE

# Without what the package itself needs, so that an interpreter without any library can run it.
LOAD = f"""
import sys, types
package = types.ModuleType("checkpoint_store")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["checkpoint_store"] = package
from checkpoint_store._fingerprint import fingerprint
"""

VALUES = """
import datetime, decimal, enum, fractions, pathlib, uuid, zoneinfo
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

Pair = namedtuple("Pair", "x y")

@dataclass(frozen=True)
class Point:
    x: object
    y: object = None

class Color(enum.Enum):
    RED = 1

class Access(enum.IntFlag):
    READ = 1
    WRITE = 2

class Custom:
    def __fingerprint__(self):
        return {"b", "a"}

zone = zoneinfo.ZoneInfo("Europe/Berlin")
print(fingerprint({
    "json": {"b": [1, 1.5, None, True, "é\\ud800"], "a": -0.0, "!c": 1e300, "d": 5e-324},
    "numbers": [2**64, -2**70, float("nan"), 1+2j, decimal.Decimal("1.50"), range(9)],
    "fraction": fractions.Fraction(1, 3),
    "sets": {frozenset({"a", "b", "c"}), frozenset({"d", "e"}), "f", "g", 1, None, (1, "x")},
    "map": {1: "a", "1": "b", None: "c", ("x", "y"): {"z": {"p", "q"}}, b"k": 0},
    "ordered": OrderedDict(b=1, a={"k": {"l", "m"}}),
    "bytes": [b"abc", bytearray(b"x"), memoryview(b"y")],
    "times": [
        datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=zone),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
        datetime.date(2024, 1, 1), datetime.time(12, 30), datetime.timedelta(1, 2, 3),
    ],
    "path": [pathlib.PurePosixPath("a/./b//c"), pathlib.Path("x/y")],
    "uuid": uuid.UUID(int=1),
    "objects": [Point({"s", "t"}, Color.RED), Pair(1, Access.READ | Access.WRITE), Custom()],
}))
"""


def run(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, arguments)),
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert not done.stderr
    return done.stdout.strip()


@cache
def expected() -> str:
    result = run(sys.executable, "-c", LOAD + VALUES, PYTHONHASHSEED="0")
    assert result.startswith("fp1:sha256:")
    return result


@cache
def interpreter(version: str) -> str | None:
    """An interpreter of this version, wherever it usually is."""
    found = [shutil.which(f"python{version}")]
    found += map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    check = f"import sys; print(sys.version_info[:2] == ({version.replace('.', ', ')}))"
    for candidate in filter(None, found):
        done = subprocess.run([candidate, "-c", check], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "True":
            return candidate
    return None


@pytest.mark.parametrize("seed", ["1", "2", "random"])
def test_a_fingerprint_does_not_depend_on_the_hash_seed(seed: str) -> None:
    assert expected() == run(sys.executable, "-c", LOAD + VALUES, PYTHONHASHSEED=seed)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_fingerprint_does_not_depend_on_the_interpreter(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    for seed in ("0", "1", "random"):
        assert expected() == run(python, "-c", LOAD + VALUES, PYTHONHASHSEED=seed)


def test_a_fingerprint_does_not_depend_on_optimization_or_locale() -> None:
    assert expected() == run(
        sys.executable, "-OO", "-c", LOAD + VALUES, LC_ALL="C", TZ="Asia/Tokyo"
    )


def test_plain_values_need_no_library_and_none_is_imported() -> None:
    script = (
        f"{LOAD}\nfingerprint({{'a': [1, {{2}}, b'x'], 'b': {{1: None}}}})\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'numpy', 'pandas', 'polars', 'pyarrow', 'attr', 'attrs', 'pydantic', 'msgspec',"
        " 'fsspec', 'xxhash', 'filelock', 'multiprocessing'}))"
    )
    assert run(sys.executable, "-c", script) == "[]"


MODULE = (
    LOAD
    + """
from dataclasses import dataclass
import multiprocessing

@dataclass
class Point:
    x: int = 1

def show(_=None):
    return fingerprint([Point()])

while_imported = show()

def show_both(_):
    return show(), while_imported

if __name__ == "__main__":
    print(show())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(show_both, [0])[0])
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "pkg/mod.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(MODULE)
    return tmp_path


def in_folder(folder: Path, *arguments: object) -> list[str]:
    return run(sys.executable, *arguments, PYTHONPATH=str(folder)).split()


def test_a_class_of_a_module_keeps_its_name_under_python_m_and_in_spawned_children(
    folder: Path,
) -> None:
    [imported] = in_folder(folder, "-c", "import pkg.mod; print(pkg.mod.show())")
    assert [imported] * 3 == in_folder(folder, "-m", "pkg.mod")


def test_a_class_of_a_script_keeps_its_name_in_spawned_children(folder: Path) -> None:
    parent, *child = in_folder(folder, folder / "script.py")
    assert [parent, parent] == child
    assert [parent] != in_folder(folder, "-c", "import script; print(script.show())")


@pytest.mark.parametrize("name", ["__main__", "__mp_main__"])
@pytest.mark.parametrize(
    ("spec", "expected_name"),
    [(None, "__main__"), (types.SimpleNamespace(name="pkg.mod"), "pkg.mod")],
)
def test_the_main_module_goes_by_the_name_that_others_import(
    name: str, spec: object, expected_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = types.ModuleType(name)
    main.__spec__ = spec
    monkeypatch.setitem(sys.modules, name, main)
    kind = type("Point", (), {"__module__": name})
    assert f"{expected_name}:Point" == name_of(kind)
