"""The commands of who runs an installation, as real processes: sources, the indexers, verify, rebuild and rollback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.index.collection import Collection
from pipeline.storage import manifests
from pipeline.storage.database import StateDatabase
from tests.command_line import Outcome, Shell, counts

_NEWS = [
    {"id": "두루미", "title": "두루미가 왔다", "body": "두루미가 강가에 내렸다."},
    {"id": "느시", "title": "느시가 걷는다", "body": "느시가 들판을 걷는다."},
]


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Shell:
    (tmp_path / "news").mkdir()
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _NEWS)
    (tmp_path / "news" / "news.jsonl").write_text(lines, encoding="utf-8")
    return Shell(tmp_path, environment)


def listed(shell: Shell) -> str:
    return shell.run("sources", "list").done().out


def found(shell: Shell) -> list[str]:
    answer = shell.run("search", "두루미와 느시", "--json").done().json
    return sorted({item["article_id"] for item in answer["items"]} & {row["id"] for row in _NEWS})


def test_the_indexers_leave_milvus_lite_to_the_process_that_serves_and_say_so(shell: Shell) -> None:
    told = shell.run("indexers", "run").told()
    assert "belongs to one process, which is yeoul serve: it indexes by itself" in told
    assert "Set milvus.uri to a Milvus server" in told


def test_a_source_is_added_read_listed_and_removed_with_its_articles(shell: Shell) -> None:
    for arguments, cure in (
        (("news", "telegram"), "telegram"),
        (("news", "folder", "--set", "path=news", "--every", "often"), "often"),
    ):
        assert cure in shell.run("sources", "add", *arguments).told()
    assert listed(shell) == ""
    shell.run("sources", "add", "news", "folder", "--set", "path=news", "--every", "5m").done()
    assert listed(shell) == "news\tfolder\t5m\t0 articles\tnever run\n"

    read = shell.run("sources", "run", "news").done().out
    assert read.startswith("2 accepted, ")
    assert read.endswith(
        "; 2 changes wait to be indexed: yeoul serve does it, or yeoul indexers run where there is a Milvus server\n"
    )
    assert listed(shell).startswith("news\tfolder\t5m\t2 articles\tdone 2 accepted, ")
    (shell.folder / "more.jsonl").write_text('{"id": "더", "title": "더", "body": "더 있다"}\n', encoding="utf-8")
    shell.run("index", "more.jsonl").done()  # what waits is indexed with it
    assert found(shell) == sorted(["두루미", "느시"])

    (shell.folder / "news").rename(shell.folder / "gone")
    error = shell.run("sources", "run", "news").told()
    assert "gone" not in error
    assert str(shell.folder / "news") in error
    assert f"\tfailed  {error.removeprefix('yeoul: ')}" in listed(shell)
    assert counts(shell) == ({"indexed": 3}, 0)  # it asked for nothing to be deleted

    assert "yeoul sources list" in shell.run("sources", "run", "olds").told()
    removed = shell.run("sources", "remove", "news", "--delete-articles").done().out
    assert removed == "news is removed; 2 articles of it are being deleted\n"
    assert listed(shell) == ""
    shell.run("index", "more.jsonl").done()
    assert found(shell) == []


def test_what_does_not_agree_is_told_and_mended_and_a_rebuild_can_be_taken_back(shell: Shell) -> None:
    shell.run("index", "news").done()
    _lose_a_row(shell)
    differing = shell.run("verify")
    assert (differing.code, "두루미" in differing.out) == (1, True)
    assert "1 differences: yeoul verify --repair mends them" in differing.err
    assert _last(shell.run("verify", "--repair").done()) == "1 differences, all mended"
    assert _last(shell.run("verify").done()) == "2 articles: registry, collection, change log and index agree"

    rebuilt = shell.run("rebuild", CHUNKING__MAX_TOKENS="24")
    assert rebuilt.code == 0, rebuilt
    assert "yeoul_1: 2 articles, 2 passages" in rebuilt.out
    assert "yeoul_2: 2 articles, " in rebuilt.out
    assert found(shell) == sorted(["두루미", "느시"])
    assert "yeoul_1 is in use; the one before is kept" in shell.run("rollback").out
    assert found(shell) == sorted(["두루미", "느시"])
    assert _last(shell.run("rebuild", "--prune").done()) == "dropped: yeoul_2"


def _last(outcome: Outcome) -> str:
    return outcome.out.splitlines()[-1]


def _lose_a_row(shell: Shell) -> None:
    data = shell.folder / ".yeoul"
    database = StateDatabase.open(f"sqlite:///{data / 'state.db'}")
    known = manifests.active(database)
    database.close()
    assert known is not None
    collection = Collection.open(uri=str(data / "milvus.db"), name=known.name, dim=known.manifest.dim, create=False)
    try:
        collection.delete([i for i, article_id, _ in list(collection.iterate_ids()) if article_id == "두루미"])
    finally:
        collection.close()
