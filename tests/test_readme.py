"""The README is run, not believed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import checkpoint_store
from checkpoint_store import CheckpointStore, Decision, Run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="runs in a checkout")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_every_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    assert len(blocks("python")) >= 3

    for block in blocks("python"):
        exec(compile(block, str(README), "exec"), namespace)

    assert namespace["result"] == 3
    assert (tmp_path / "checkpoints" / "orders" / ".fingerprint").exists()


def test_the_commands_are_one_line_each_that_sets_everything_up() -> None:
    run, test = blocks("sh")

    assert run.startswith("python3 -m venv ")
    assert run.endswith("python -m checkpoint_store\n")
    assert test.startswith("python3 -m venv ")
    assert test.endswith("python -m pytest -n auto\n")


def test_every_error_is_listed() -> None:
    text = README.read_text()
    errors = [name for name in checkpoint_store.__all__ if name.endswith("Error")]

    assert [name for name in errors if f"`{name}`" not in text] == []


def test_the_reference_names_everything_that_is_public() -> None:
    reference = README.read_text().partition("## Reference")[2].partition("\n## ")[0]
    functions = {name for name in checkpoint_store.__all__ if name[0].islower()}
    methods = {
        name
        for cls in (CheckpointStore, Run, Decision)
        for name in dir(cls)
        if not name.startswith("_")
    }

    assert len(functions) == 4
    assert [name for name in functions | methods if not re.search(rf"`{name}\b", reference)] == []


def test_every_file_and_link_named_exists() -> None:
    text = README.read_text()
    links = [
        link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link and link[0] != "#"
    ]
    tests = [f"tests/{name}" for name in re.findall(r"`(test_\w+\.py)`", text)]

    assert links
    assert tests
    assert [path for path in links + tests if not (ROOT / path).exists()] == []


def test_a_recipe_is_as_short_as_is_said() -> None:
    recipes = re.findall(r"\((tests/integrations/\w+\.py)\)", README.read_text())
    assert len(recipes) >= 5
    assert [path for path in recipes if len((ROOT / path).read_text().splitlines()) > 60] == []
