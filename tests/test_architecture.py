"""The map of the house: who may import what, and that README names every setting and command."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import yeoul
from indexers.sources.feeds import FeedOptions
from indexers.sources.folder import FolderOptions
from indexers.sources.table import SqlOptions
from pipeline import settings

_ROOT = Path(__file__).parent.parent
_PACKAGES = ("pipeline", "indexers", "api")
_MODULES = sorted(path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py"))
_NAMES = [str(path.relative_to(_ROOT)) for path in _MODULES]

# What only some files may import: the other side of each is written so that it can be replaced.
_DOORS = {
    "pymilvus": {"pipeline/index/collection.py", "pipeline/index/lite_process.py", "pipeline/index/schema.py"},
    "milvus_lite": {"pipeline/index/lite.py", "pipeline/index/lite_process.py"},
    "rank_bm25": {"pipeline/index/bm25.py"},
    "apscheduler": {"indexers/scheduler.py"},
    "filelock": {"pipeline/folder.py"},
    "psycopg": {"pipeline/storage/postgres.py"},
}
# Scripts for environments without Yeoul: what each of them imports is what it measures.
_PEERS = "indexers/benchmarks/peers/"
_WEB = ("fastapi", "starlette", "uvicorn", "httpx", "jinja2")

# Opens what `yeoul search` opens with the default encoder, and tells which heavy packages came along.
_SEARCH_PATH = """
import sys
from pathlib import Path
import pipeline.assembly
from pipeline.encoding.opening import open_encoder
from pipeline.korean.morphemes import Analyser
encoder = open_encoder("kiwi-static", Analyser.open().kiwi, cache_dir=Path(sys.argv[1]))
assert encoder.encode_queries(["전세 대출"]).any()
print(*sorted({"sentence_transformers", "transformers", "fastapi", "alembic"} & set(sys.modules)))
"""


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that `path` imports anywhere, also inside functions; `from a import b` gives a and a.b."""
    return frozenset(imports_in(parsed(path), path))


def imports_in(tree: ast.Module, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where a module lives"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str) -> set[str]:
    return {
        name
        for name, path in zip(_NAMES, _MODULES, strict=True)
        if any(found == package or found.startswith(f"{package}.") for found in imports(path))
    }


def test_nothing_imports_the_command_line() -> None:
    assert importers("yeoul") == set()


@pytest.mark.parametrize("package", _DOORS)
def test_a_package_is_imported_behind_its_door_alone(package: str) -> None:
    assert _importers_of_the_house(package) <= _DOORS[package]


@pytest.mark.parametrize("package", ["pymilvus", "rank_bm25", "milvus_lite", "psycopg"])
def test_the_doors_are_used(package: str) -> None:
    """Otherwise the test above could not fail."""
    assert _importers_of_the_house(package) == _DOORS[package]


def _importers_of_the_house(package: str) -> set[str]:
    return {name for name in importers(package) if not name.startswith(_PEERS)}


@pytest.mark.parametrize("path", sorted((_ROOT / _PEERS).glob("*.py")), ids=lambda path: path.name)
def test_a_script_for_another_environment_imports_nothing_of_the_house(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
    assert not {name.split(".")[0] for name in imports_in(tree, path)} & {*_PACKAGES, "yeoul"}


@pytest.mark.parametrize("package", _WEB)
def test_the_web_stays_in_api(package: str) -> None:
    assert {name for name in importers(package) if not name.startswith("api/")} == set()


def test_only_the_analyser_makes_a_kiwi() -> None:
    makers = {
        name
        for name, path in zip(_NAMES, _MODULES, strict=True)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Kiwi", "kiwipiepy.Kiwi")
    }
    assert makers == {"pipeline/korean/morphemes.py"}


def test_settings_are_read_at_the_edge_alone() -> None:
    """Below it they come as plain arguments."""
    edge = {f"pipeline/{name}.py" for name in ("assembly", "parts", "processes", "reading", "diagnosis")}
    below = {name for name in importers("pipeline.settings") if not name.startswith(("api/", "indexers/commands/"))}
    assert below <= edge


def test_the_search_path_of_kiwi_static_imports_no_transformer(pytestconfig: pytest.Config) -> None:
    cache = pytestconfig.cache
    assert cache is not None
    done = subprocess.run(
        [sys.executable, "-c", _SEARCH_PATH, str(cache.mkdir("kiwi-static"))],
        cwd=_ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_every_module_says_its_duty() -> None:
    silent = [
        name
        for name, path in zip(_NAMES, _MODULES, strict=True)
        if path.name != "__init__.py" and not ast.get_docstring(parsed(path))
    ]
    assert silent == []


@pytest.fixture(scope="module")
def readme() -> str:
    return (_ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, _, _ in settings.described()])
def test_readme_names_the_setting(readme: str, name: str) -> None:
    assert f"`{name}`" in readme


@pytest.mark.parametrize(
    "command", [c.name or getattr(c.callback, "__name__", "") for c in yeoul.app.registered_commands]
)
def test_readme_names_the_command(readme: str, command: str) -> None:
    assert f"yeoul {command}" in readme


@pytest.mark.parametrize(("kind", "options"), [("folder", FolderOptions), ("feed", FeedOptions), ("sql", SqlOptions)])
def test_readme_names_the_options_of_a_source(readme: str, kind: str, options: type[Any]) -> None:
    assert set(re.findall(rf"^\| {kind} \| `(\w+)` \|", readme, re.MULTILINE)) == {f.name for f in fields(options)}


@pytest.mark.parametrize("row", settings.described(), ids=lambda row: row[0])
def test_every_setting_is_explained(row: tuple[str, str, str]) -> None:
    name, _, explanation = row
    assert len(explanation) > len("empty"), name
