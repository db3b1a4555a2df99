"""Which module may know which, and what an import may cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .harness import PACKAGE

PURE = {"errors", "_changes", "_handling", "_json", "_modules", "_names", "_policy", "_record"} | {
    *("_fingerprint", "_progress", "_tasks"),
    *(f"_fingerprint_{name}" for name in ("numpy", "objects", "refusal", "rules")),
    *(f"_fingerprint_{name}" for name in ("scalars", "tables", "tree")),
}
BASE, URLS = "_filesystems.base", "_filesystems.urls"
BACKENDS = {f"_filesystems.{name}" for name in ("local", "memory", "s3", "generic", "conditional")}
FILESYSTEMS = {"_filesystems", BASE, URLS} | BACKENDS
OF_LOCAL = {f"_filesystems.{name}" for name in ("disk", "locks", "mounts")}
OF_LOOPS = {"_filesystems.loop"}
OF_S3 = {f"_filesystems.s3_{name}" for name in ("engine", "errors", "transfers")}

# What each module may import of ours. Whoever adds a module says here where it belongs.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "_changes": set(),
    "_handling": set(),
    "_modules": set(),
    "_progress": set(),
    "_json": {"errors"},
    "_names": {"errors"},
    "_fingerprint_refusal": {"errors"},
    "_fingerprint_scalars": {"_modules", "_fingerprint_refusal"},
    "_fingerprint_numpy": {"_fingerprint_refusal"},
    "_fingerprint_tables": {"_fingerprint_refusal"},
    "_fingerprint_tree": {"_fingerprint_refusal", "_fingerprint_scalars"},
    "_fingerprint_objects": {"_modules", "_fingerprint_refusal", "_fingerprint_tree"},
    "_fingerprint_rules": {"_modules"}
    | {f"_fingerprint_{name}" for name in ("numpy", "objects", "refusal", "scalars")}
    | {f"_fingerprint_{name}" for name in ("tables", "tree")},
    "_fingerprint": {"errors", "_modules"}
    | {f"_fingerprint_{name}" for name in ("refusal", "rules", "tree")},
    "_record": {"errors", "_json", "_names"},
    "_tasks": {"errors", "_changes", "_fingerprint", "_names"},
    "_policy": {"errors", "_changes", "_record", "_tasks"},
    # Bytes under keys, and nothing about workflows.
    BASE: set(),
    URLS: {"errors"},
    "_filesystems.loop": {BASE},
    "_filesystems.generic": {BASE, URLS} | OF_LOOPS,
    "_filesystems.conditional": {BASE, "_filesystems.generic"},
    "_filesystems.memory": {"errors", BASE, URLS, "_filesystems.generic"},
    "_filesystems.mounts": set(),
    "_filesystems.locks": {"errors"},
    "_filesystems.disk": {BASE},
    "_filesystems.local": {"errors", BASE, URLS} | OF_LOCAL,
    "_filesystems.s3_errors": set(),
    "_filesystems.s3_engine": {BASE, "_filesystems.s3_errors"} | OF_LOOPS,
    "_filesystems.s3_transfers": {BASE, "_filesystems.s3_engine", "_filesystems.s3_errors"},
    "_filesystems.s3": {"errors", BASE, URLS} | OF_S3 | OF_LOOPS,
    "_filesystems": {BASE, URLS} | BACKENDS,
    # Files and their serializers.
    "_frame": {"errors", "_handling", "_json", "_names", BASE},
    "_serializer": {"errors", "_frame", "_modules", BASE},
    # Operations as steps: records and files, and of policies no more than a transition.
    "_steps": {"errors", BASE} | OF_LOOPS,
    "_protocol": {"errors", "_names", "_policy", "_progress", "_record", "_steps", BASE},
    "_checkpoints": {"errors", "_frame", "_names", "_steps", BASE},
    "_description": {"errors", "_names", "_protocol", "_steps", BASE},
    # What users hold.
    "_run": PURE | {"_checkpoints", "_frame", "_protocol", "_serializer", "_steps", BASE},
    "_store": PURE
    | {"_description", "_protocol", "_run", "_serializer", "_steps", "_filesystems", BASE},
    "_resume": PURE | {"_protocol", "_run", "_steps", "_store"},
    # What people run.
    "_command": set(),
    "_command.demo": {"errors", "_policy", "_resume", "_store", "_tasks"},
    "_command.races": {"_filesystems", BASE},
    "_command.check": {"errors", "_names", "_run", "_steps", "_store", BASE, "_command.races"},
    "_command.report": {"_command.check"},
    "_command.command": {"errors", "_store", "_filesystems"}
    | {f"_command.{name}" for name in ("check", "demo", "report")},
    "__main__": {"_command.command"},
    "__init__": {
        "errors",
        "_changes",
        "_description",
        "_fingerprint",
        "_policy",
        "_tasks",
        "_resume",
        "_run",
        "_store",
    },
}

# What a run and a store may know of policies: how a decision looks, and what becomes of a record.
OF_POLICY = {"Decision", "Found", "labelled", "opened", "tokens_of"}

THIRD_PARTY = {
    "_record": {"xxhash"},
    "_frame": {"xxhash"},
    "_filesystems": {"fsspec"},
    "_filesystems.loop": {"fsspec"},
    "_filesystems.generic": {"fsspec"},
    "_filesystems.conditional": {"azure"},
    "_filesystems.memory": {"fsspec"},
    "_filesystems.locks": {"filelock"},
    "_filesystems.s3_engine": {"fsspec", "s3fs"},
}


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"), str(path))
    return found


MODULES = modules()


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import, also within functions, but for those that only a type checker sees."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.orelse:
            yield from statements(child)
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for child in ast.iter_child_nodes(node):
        yield from statements(child)


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Dotted module and name of each import, relative to the package if it is ours."""
    is_package = module in ("_filesystems", "_command", "__init__")
    own = [] if module == "__init__" else module.split(".")
    for statement in statements(MODULES[module]):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                yield alias.name, ""
            continue
        base = own if is_package else own[:-1]
        if statement.level:
            up = statement.level - 1
            parents = base[: len(base) - up]
            target = ".".join([*parents, *filter(None, [statement.module])])
            prefix = "checkpoint_store."
        else:
            target, prefix = statement.module or "", ""
        for alias in statement.names:
            yield prefix + target if target else prefix.rstrip("."), alias.name


def ours(module: str) -> dict[str, set[str]]:
    """Our modules that `module` imports, each with the names taken from it."""
    found: dict[str, set[str]] = {}
    for target, name in imports(module):
        root, _, rest = target.partition(".")
        if root == "checkpoint_store":
            joined = f"{rest}.{name}" if rest else name
            if joined in MODULES:
                found.setdefault(joined, set())
            else:
                found.setdefault(rest or "__init__", set()).add(name)
    return found


def test_every_module_has_its_place_in_the_table() -> None:
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_knows_only_what_lies_below_it(module: str) -> None:
    assert set(ours(module)) - ALLOWED[module] == set()


def test_the_pure_modules_know_only_pure_ones() -> None:
    for module in PURE:
        assert ALLOWED[module] <= PURE


def test_the_filesystems_know_no_workflows() -> None:
    for module in FILESYSTEMS:
        assert ALLOWED[module] <= FILESYSTEMS | OF_LOCAL | OF_S3 | OF_LOOPS | {"errors"}
        assert set(ours(module)) <= ALLOWED[module]


@pytest.mark.parametrize("module", ["_run", "_store", "_protocol"])
def test_stores_and_runs_decide_nothing(module: str) -> None:
    assert ours(module).get("_policy", set()) <= OF_POLICY
    assert "_resume" not in ours(module)
    assert "_fingerprint" not in ours(module)


def test_no_two_modules_need_each_other() -> None:
    for table in (ALLOWED, {module: set(ours(module)) for module in MODULES}):
        assert len(list(TopologicalSorter(table).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_needs_only_the_packages_it_is_known_to(module: str) -> None:
    packages = {target.partition(".")[0] for target, _ in imports(module)}
    foreign = packages - sys.stdlib_module_names - {"checkpoint_store"}
    assert foreign <= THIRD_PARTY.get(module, set())


def test_s3fs_is_imported_only_within_a_function() -> None:
    top = [
        alias.name
        for module in MODULES.values()
        for statement in module.body
        if isinstance(statement, ast.Import | ast.ImportFrom)
        for alias in [*statement.names, ast.alias(getattr(statement, "module", None) or "")]
    ]
    assert "xxhash" in top
    assert not any(name.startswith(("s3fs", "aiobotocore", "botocore")) for name in top)


# What is loaded

HEAVY = {"s3fs", "boto3", "botocore", "aiobotocore", "aiohttp", "numpy", "pandas", "pyarrow"} | {
    *("polars", "attr", "attrs", "pydantic", "msgspec", "cloudpickle", "dotflow", "requests"),
}


def loaded_by(script: str) -> set[str]:
    """The top-level modules and packages that a fresh interpreter has after `script`."""
    script += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )
    assert done.stderr == ""
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_library_loads_nothing_heavy() -> None:
    loaded = loaded_by("import checkpoint_store")
    assert "checkpoint_store" in loaded
    assert loaded & (HEAVY | {"fsspec", "asyncio", "concurrent.futures", "http", "email"}) == set()


def test_a_local_store_at_work_loads_no_fsspec_and_no_event_loop(tmp_path: Path) -> None:
    loaded = loaded_by(
        "from checkpoint_store import CheckpointStore, resume\n"
        f"store = CheckpointStore({str(tmp_path / 'store')!r})\n"
        "run = resume(store, 'orders', {'day': 1}, on_input_change='reset')\n"
        "run.dump('total', 42)\n"
        "assert run.load_many() == {'total': 42}\n"
        "store.clear('orders')\n"
    )
    # The oldest filelock that is allowed loads asyncio itself.
    dragged_in = loaded_by("import filelock")
    assert (loaded - dragged_in) & (HEAVY | {"fsspec", "asyncio"}) == set()
    assert "filelock" in loaded


def test_a_store_in_memory_loads_nothing_of_s3() -> None:
    loaded = loaded_by(
        "from checkpoint_store import CheckpointStore, resume\n"
        "resume(CheckpointStore('memory://x'), 'orders', {'a': [1.5]}, on_input_change='reset')\n"
    )
    assert "fsspec" in loaded
    assert loaded & HEAVY == set()


def test_s3_is_loaded_when_it_is_used_and_not_before() -> None:
    loaded = loaded_by("from checkpoint_store import CheckpointStore\nCheckpointStore('s3://b/x')")
    assert (
        loaded & {"s3fs", "boto3", "botocore", "aiobotocore", "aiohttp", "numpy", "pandas"} == set()
    )


def test_a_fingerprint_of_plain_values_loads_no_package_that_might_have_made_them() -> None:
    loaded = loaded_by(
        "import dataclasses, decimal, pathlib\n"
        "from checkpoint_store import fingerprint\n"
        "fingerprint({'a': [1, 2.5, None, 'x', b'y', {1}, decimal.Decimal(1), pathlib.Path('z')]})"
    )
    assert loaded & HEAVY == set()
