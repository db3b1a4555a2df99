"""The pages are run, followed and recomputed, not believed."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xxhash

import checkpoint_store
from checkpoint_store import (
    CheckpointStore,
    Decision,
    Run,
    Task,
    _fingerprint,
    _fingerprint_rules,
    _fingerprint_tree,
    _frame,
    _names,
    _record,
)
from checkpoint_store._filesystems.locks import lock_name
from checkpoint_store._tasks import declared

from .harness import PACKAGE, ROOT, fingerprints
from .harness.fingerprints import sha
from .harness.tables import libraries_of

README = ROOT / "README.md"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"
EVIDENCE = ROOT / "tests" / "README.md"
CHANGELOG = ROOT / "CHANGELOG.md"
FORMATS = PACKAGE / "FORMATS.md"
PAGES = [README, CONTRIBUTING, BENCHMARKS, EVIDENCE, CHANGELOG, FORMATS]

in_a_checkout = pytest.mark.skipif(not README.exists(), reason="runs in a checkout")
every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: f"{page.parent.name}-{page.stem}"
)


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)


def rows(page: Path, *columns: str) -> Iterator[list[str]]:
    """The cells of each row of the tables with exactly these columns, without their backquotes."""
    is_within = False
    for line in text_of(page).splitlines():
        cells = re.split(r" (?<!\\)\| ", line.removeprefix("| ").removesuffix(" |"))
        if cells == list(columns):
            is_within = True
        elif not line.startswith("|"):
            is_within = False
        elif is_within and not line.startswith("|-"):
            yield [cell.strip("`").replace(r"\|", "|") for cell in cells]


def run_blocks(page: Path) -> dict[str, Any]:
    """The names that the blocks of a page have made, one after the other."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)
    return namespace


@pytest.fixture(autouse=True)
def no_type_stays_registered() -> Iterator[None]:
    tables: list[dict[Any, Any]] = [_fingerprint_rules.RULES, _fingerprint._tags]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


# Every page


@in_a_checkout
@every_page
def test_every_python_block_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = run_blocks(page)

    if page == README:
        assert len(blocks(page, "python")) >= 2
        assert namespace["result"] == 3
        assert (tmp_path / "checkpoints" / "orders" / ".fingerprint").exists()


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@in_a_checkout
@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text_of(page)) if "://" not in link]
    assert links or page in (CHANGELOG, FORMATS)

    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@in_a_checkout
@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"`([\w./-]*\w\.(?:py|md|json|svg|toml|txt))`", text_of(page)))
    folders = [ROOT / name for name in ("tests", "checkpoint_store", "benchmarks")]
    known = {path.name for folder in folders for path in folder.rglob("*.*")}

    assert named or page in (README, CHANGELOG, BENCHMARKS)
    # Tests may move from folder to folder, and are named without one.
    assert [
        name
        for name in named
        if not (ROOT / name).exists() and not (PACKAGE / name).exists() and name not in known
    ] == []


@in_a_checkout
@every_page
def test_every_command_names_what_is_there(page: Path) -> None:
    text = text_of(page)
    modules = set(re.findall(r"python3? -m ([\w.]+\w)", text)) - {"venv", "pytest"}
    scripts = {
        path
        for command in re.findall(r"(?:python|pytest)((?: [\w/]+\.py)+)", text)
        for path in command.split()
    }

    paths = {module: ROOT / module.replace(".", "/") for module in modules}
    assert [
        module
        for module, path in paths.items()
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ] == []
    assert [path for path in scripts if not (ROOT / path).exists()] == []


# The README


@in_a_checkout
def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 140


@in_a_checkout
def test_the_commands_are_one_line_each_that_sets_everything_up() -> None:
    run, test = blocks(README, "sh")

    assert run.startswith("python3 -m venv ")
    assert run.endswith("python -m checkpoint_store\n")
    assert test.startswith("python3 -m venv ")
    assert test.endswith("python -m pytest -n auto\n")


@in_a_checkout
def test_every_error_is_listed() -> None:
    errors = [name for name in checkpoint_store.__all__ if name.endswith("Error")]

    assert errors
    assert [name for name in errors if f"`{name}`" not in text_of(README)] == []


def members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@in_a_checkout
def test_every_call_is_listed_under_what_has_it() -> None:
    listed = {
        where: set(re.findall(r"`(\w+)`", calls))
        for where, calls in re.findall(r"^\| `?(\w+)`? \| (`.*) \|$", text_of(README), re.MULTILINE)
    }

    functions = {name for name in checkpoint_store.__all__ if name[0].islower()}
    assert functions == listed["functions"] - {"Decision", "Task"}
    assert members(CheckpointStore) | {"url"} == listed["CheckpointStore"]
    assert members(Run) == listed["Run"]


def test_a_decision_explains_its_attributes() -> None:
    assert [name for name in members(Decision) if f"`{name}`" not in (Decision.__doc__ or "")] == []


@in_a_checkout
def test_a_recipe_is_as_short_as_is_said() -> None:
    folder = ROOT / "tests" / "integrations"
    recipes = {*folder.glob("*.py")} - {*folder.glob("test_*.py"), *folder.glob("__init__.py")}

    assert len(recipes) >= 5
    assert [path.name for path in recipes if len(text_of(path).splitlines()) > 60] == []


# The other pages


@in_a_checkout
def test_every_module_is_on_the_map() -> None:
    text = text_of(CONTRIBUTING).partition("## The map")[2].partition("\n## ")[0]
    modules = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}

    assert len(modules) > 30
    assert [name for name in sorted(modules) if f"`{name}`" not in text] == []


@in_a_checkout
def test_the_figures_are_those_of_the_results() -> None:
    results = json.loads((BENCHMARKS.parent / "results.json").read_text("utf-8"))
    columns = ("work", "floor", "ratio to it", "target", "each", "others, as ratios")
    found = {(row[0], row[1]): row[2:] for row in rows(BENCHMARKS, *columns)}

    assert len(found) == len(results["rows"])
    for row in results["rows"]:
        floor, ours, *_ = row["contenders"]
        ratio = ours["ratio"][row["clock"]]
        ratio_text, target, *_ = found[row["name"], floor["name"]]
        assert ours["name"] == "checkpoint_store"
        assert ratio_text == f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        if row["target"]:
            missed = ", missed" if ratio["median"] > row["target"] else ""
            assert target == f"≤ {row['target']:g}{missed}"
    for name, beyond, _ in rows(BENCHMARKS, "work", "beyond the payload", ""):
        [peak] = [peak["beyond"] for peak in results["memory"] if peak["name"] == name]
        assert beyond == f"{peak / 2**20:.1f} MiB"


# The formats

VECTORS = [tuple(row) for row in rows(FORMATS, "value", "text", "SHA-256")]
CALLS = [tuple(row) for row in rows(FORMATS, "call", "fingerprint")]
NAMES = [tuple(row) for row in rows(FORMATS, "name", "encoded")]


def test_the_page_of_formats_has_its_vectors() -> None:
    assert len(VECTORS) > 100
    assert len(CALLS) > 5
    assert len(NAMES) > 10
    # No row is left out because it is written in another way.
    assert len(VECTORS) == len(
        re.findall(r"` \| `[0-9a-f]{64}` \|$", text_of(FORMATS), re.MULTILINE)
    )


@pytest.mark.parametrize(("expression", "text", "digest"), VECTORS)
def test_a_vector_of_the_fingerprint_holds(expression: str, text: str, digest: str) -> None:
    value = eval(expression, run_blocks(FORMATS) | libraries_of(expression))

    assert text == fingerprints.text(value)
    assert digest == sha(text.encode("ascii"))
    assert {"value": digest} == _fingerprint.input_digests({"value": value})


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_a_call_has_the_fingerprint_that_is_said(call: str, expected: str) -> None:
    assert expected == eval(call, {"fingerprint": checkpoint_store.fingerprint})


@pytest.mark.parametrize(("expression", "segment"), NAMES)
def test_a_name_is_encoded_as_is_said(expression: str, segment: str) -> None:
    name = eval(expression)
    assert segment == _names.encode_name(name, "name")
    assert name == _names.decode_name(segment)


def test_the_record_on_the_page_is_the_one_that_is_written() -> None:
    text, _, _ = blocks(FORMATS, "json")
    data = text.encode()
    record = _record.decode_record(data, "orders/é")
    assert data == _record.encode_record(record)
    assert record.fingerprint == _fingerprint.combine(record.inputs or {})

    [_, sealed] = blocks(FORMATS, "text")
    fields = json.loads(data)
    checksum = fields.pop("checksum")
    assert sealed == json.dumps(fields, sort_keys=True) + "\n"
    assert checksum == xxhash.xxh3_128_hexdigest(sealed.rstrip("\n").encode("ascii"))
    assert f"has {len(data)} bytes and the SHA-256" in text_of(FORMATS)
    assert f"`{sha(data)}`" in text_of(FORMATS)


def test_the_record_with_declared_tasks_is_the_one_that_is_written() -> None:
    first, text, _ = blocks(FORMATS, "json")
    data = text.encode()
    record = _record.decode_record(data, "orders/é")
    assert data == _record.encode_record(record)
    assert first.encode() == _record.encode_record(record._replace(tasks={}, base_tasks={}))
    tasks = {"load": Task(uses=["date"]), "plot": Task(uses=["n"], after=["load"], version=2)}
    assert list(record.tasks) == list(declared(tasks, record.inputs or {}).keys.values())
    assert f"has {len(data)} bytes and the SHA-256 `{sha(data)}`" in text_of(FORMATS)


def test_the_keys_of_declared_tasks_are_those_on_the_page() -> None:
    vectors = list(rows(FORMATS, "task", "declared as", "key", "text"))
    inputs = {"day": "d", "rate": "e", "colour": "c", "größe": "c", "!x": "d"}
    tasks = {name: eval(task, {"Task": Task}) for name, task, _, _ in vectors}
    keys = declared(tasks, {name: 64 * letter for name, letter in inputs.items()}).keys
    assert len(vectors) == 8
    for name, _, key, text in vectors:
        assert key == keys[name] == sha(text.encode("ascii"))


def test_the_checkpoint_on_the_page_is_the_one_that_is_written() -> None:
    record, _, header = blocks(FORMATS, "json")
    line, payload = header.encode(), b"[3, 1, 2]"
    sealed = line + payload + struct.pack(">Q", len(payload))
    data = sealed + xxhash.xxh3_128_digest(sealed)
    fields = json.loads(record)
    expected = _frame.Header(
        "orders/é", "load", fields["token"], fields["fingerprint"], "json", text=True
    )

    assert (expected, payload) == _frame.decode_frame(data, expected)
    written = _frame.encode_header(expected)
    assert line == re.sub(
        rb'"created": "[^"]+"', b'"created": "2026-11-23T12:00:05+00:00"', written
    )
    trailer, size = data[-_frame.TRAILER_BYTES :].hex(), len(data)
    assert f"the {_frame.TRAILER_BYTES} bytes `{trailer}`" in text_of(FORMATS)
    assert f"It has {size} bytes" in text_of(FORMATS)
    assert f"`{sha(data)}`" in text_of(FORMATS)


def test_the_limits_on_the_page_are_those_of_the_code() -> None:
    text = text_of(FORMATS)
    assert f"at most {_record.MAX_RECORD_BYTES:,} bytes" in text
    assert f"1 to {_record.MAX_FINGERPRINT_BYTES:,} bytes" in text
    assert f"at most {_frame.MAX_HEADER_BYTES:,} bytes" in text
    assert f"{_names.MAX_SEGMENT_BYTES} bytes at most" in text
    assert f"nested {_fingerprint_tree.MAX_DEPTH} levels deep" in text
    assert (_record.VERSION, _frame.VERSION, _fingerprint.PREFIX) == (2, 1, "fp1:sha256:")
    for workflow in ("orders", "Orders"):
        assert f"`{lock_name(workflow).removesuffix('.lock')}` for the workflow" in text
