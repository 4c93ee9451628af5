"""Files into the inbox: what is counted, what is told, and that reading again changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexers import bulk
from indexers.bulk import Report, submit
from pipeline.errors import UnreadableSource
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArticleStore]:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield ArticleStore(database)
    database.close()


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def row(article_id: str, body: str = "본문", **more: object) -> dict[str, object]:
    return {"id": article_id, "title": "제목", "body": body, **more}


def submitted(store: ArticleStore, *paths: Path) -> tuple[Report, list[str], list[int]]:
    told: list[str] = []
    progress: list[int] = []
    return submit(store, paths, on_problem=told.append, on_progress=progress.append), told, progress


def test_bad_lines_are_told_by_number_and_the_others_are_accepted(store: ArticleStore, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("가"), "{no json", row("나"), {"title": "x", "body": "y"}, row("a/b"))
    report, told, progress = submitted(store, file)
    assert (report.accepted, report.unchanged, report.refused, report.last_seq) == (2, 0, 3, 2)
    assert progress == [2]
    for number, line in zip((2, 4, 5), told, strict=True):
        assert line.startswith(f"{file}:{number}:") or f"line {number}" in line, line
    assert store.counts() == {"queued": 2}


def test_reading_the_same_files_again_changes_nothing(store: ArticleStore, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("가"), row("나"))
    submitted(store, file)
    report, told, _ = submitted(store, file)
    assert (report.accepted, report.unchanged, report.refused, told) == (0, 2, 0, [])
    assert report.last_seq == 2
    assert store.queue_length() == 2


def test_of_an_id_twice_in_a_file_the_last_wins_and_it_is_said(store: ArticleStore, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("가", "먼저"), row("가", "나중"))
    report, told, _ = submitted(store, file)
    assert (report.accepted, report.refused, len(told)) == (1, 0, 1)
    assert "가" in told[0]
    article = store.state("가").article
    assert article is not None
    assert article.body == "나중"


def test_an_older_article_is_refused_by_name_with_both_times(store: ArticleStore, tmp_path: Path) -> None:
    new = lines(tmp_path / "1.jsonl", row("가", "새것", updated_at="2026-03-02T09:00:00+09:00"))
    old = lines(tmp_path / "2.jsonl", row("가", "옛것", updated_at="2026-03-01T09:00:00+09:00"), row("나"))
    report, told, _ = submitted(store, new, old)
    assert (report.accepted, report.refused) == (2, 1)
    assert len(told) == 1
    assert all(part in told[0] for part in ("가", "2026-03-02", "2026-03-01"))


def test_large_files_go_in_several_transactions(
    store: ArticleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_BATCH", 3)
    monkeypatch.setattr(bulk, "_BATCH_CHARS", 50)
    file = lines(tmp_path / "a.jsonl", *(row(f"글{n}", "가" * (40 if n > 3 else 1)) for n in range(8)))
    report, _, progress = submitted(store, file)
    assert report.accepted == 8
    assert progress == [3, 3, 2]


def test_a_missing_file_is_told_before_anything_is_accepted(store: ArticleStore, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", row("가"))
    with pytest.raises(UnreadableSource, match="nowhere"):
        submitted(store, file, tmp_path / "nowhere.jsonl")
    assert store.counts() == {}
