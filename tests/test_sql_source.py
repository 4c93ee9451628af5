"""indexers/sources/sql, table, values and watermarks: a table is edited between runs, on SQLite and PostgreSQL"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Double,
    Engine,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    Uuid,
    create_engine,
    insert,
    text,
    update,
)
from sqlalchemy.pool import NullPool
from sqlalchemy.types import TypeEngine

from indexers.sources import table as table_module
from indexers.sources.source import Batch
from indexers.sources.sql import SqlOptions, SqlSource
from indexers.sources.values import fields_of_values, is_set
from indexers.sources.watermarks import Watermark, from_json, is_comparable, moved, not_after, to_json
from pipeline.documents import Article
from pipeline.errors import InvalidArticle, InvalidInput, SourceUnavailable, UnreadableSource

_SEOUL = ZoneInfo("Asia/Seoul")
_START = datetime(2026, 3, 2, 9)  # naive, as most tables have it


class Reader:
    """Runs a source as its caller does: batches are applied in order, the cursor is kept after each."""

    def __init__(self, url: str, table: str = "articles", **options: Any) -> None:
        self.options = {"url": url, "table": table, **options}
        self.cursor: dict[str, Any] = {}
        self.keys: dict[str, str] = {}
        self.articles: dict[str, Article] = {}

    def run(self, *, stop_after: int | None = None) -> list[Batch]:
        source = SqlSource(SqlOptions.from_mapping(self.options))
        batches: list[Batch] = []
        for batch in source.read(dict(self.cursor), dict(self.keys)):
            if len(batches) == stop_after:
                break
            batches.append(batch)
            assert set(batch.removed) <= self.keys.keys(), "only what is known can be removed"
            assert len({found.article.id for found in batch.found}) == len(batch.found)
            for found in batch.found:
                self.keys[found.article.id] = found.key
                self.articles[found.article.id] = found.article
            for article_id in batch.removed:
                del self.keys[article_id], self.articles[article_id]
            if batch.cursor is not None:
                self.cursor = orjson.loads(orjson.dumps(batch.cursor))
        return batches

    @property
    def bodies(self) -> dict[str, str]:
        return {article_id: article.body for article_id, article in self.articles.items()}


def _found(batches: Iterable[Batch]) -> list[str]:
    return [found.article.id for batch in batches for found in batch.found]


def _problems(batches: Iterable[Batch]) -> list[str]:
    return [problem for batch in batches for problem in batch.problems]


def _removed(batches: Iterable[Batch]) -> list[str]:
    return [article_id for batch in batches for article_id in batch.removed]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        (tmp_path / "source.db").touch()
        return f"sqlite:///{tmp_path / 'source.db'}"
    url = str(request.getfixturevalue("module_postgres_url"))
    engine = create_engine(url, poolclass=NullPool)
    _run_sql(engine, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


def _made(engine: Engine, *columns: Column[Any], name: str = "articles") -> Table:
    table = Table(name, MetaData(), *columns)
    table.create(engine)
    return table


def _articles(
    engine: Engine, key: TypeEngine[Any] | None = None, watermark: TypeEngine[Any] | None = None, **more: Any
) -> Table:
    return _made(
        engine,
        Column("id", key or BigInteger(), primary_key=True, autoincrement=False),
        Column("body", Text),
        Column("changed", watermark or BigInteger()),
        *(Column(name, kind) for name, kind in more.items()),
    )


def _put(engine: Engine, table: Table, *rows: Mapping[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(table), [dict(row) for row in rows])


def _run_sql(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


# --- the whole table ------------------------------------------------------------------------------------------------


_KEYS: dict[str, tuple[TypeEngine[Any], Any]] = {
    "int": (BigInteger(), lambda n: 2**40 + n),
    "str": (String(50), lambda n: f"글-{n}"),
    "uuid": (Uuid(), lambda n: uuid5(UUID(int=0), str(n))),
    "decimal": (Numeric(20, 0), Decimal),
}


@pytest.mark.parametrize("watermark", [None, "changed"])
@pytest.mark.parametrize("kind", _KEYS)
def test_every_row_is_read_once_whatever_the_key_is(url: str, engine: Engine, kind: str, watermark: str | None) -> None:
    key, make = _KEYS[kind]
    table = _articles(engine, key)
    _put(engine, table, *({"id": make(n), "body": f"글 {n}", "changed": n // 300} for n in range(1_200)))
    reader = Reader(url, watermark=watermark, batch_rows=100)
    batches = reader.run()
    assert len(_found(batches)) == 1_200
    assert set(reader.bodies.values()) == {f"글 {n}" for n in range(1_200)}
    assert max(len(batch.found) for batch in batches) == 100
    if kind in ("int", "str"):
        assert reader.keys[str(make(7))] == str(make(7))


def test_without_a_watermark_changes_are_seen_because_all_is_read(url: str, engine: Engine) -> None:
    table = _articles(engine)
    _put(engine, table, {"id": 1, "body": "하나"}, {"id": 2, "body": "둘"})
    reader = Reader(url, compare_keys=True)
    reader.run()
    _run_sql(engine, "UPDATE articles SET body = '새로' WHERE id = 1")
    _run_sql(engine, "DELETE FROM articles WHERE id = 2")
    _put(engine, table, {"id": 3, "body": "셋"})
    batches = reader.run()
    assert reader.bodies == {"1": "새로", "3": "셋"}
    assert _removed(batches) == ["2"]


def test_deleted_rows_stay_where_keys_are_not_compared(url: str, engine: Engine) -> None:
    _put(engine, _articles(engine), {"id": 1, "body": "하나"}, {"id": 2, "body": "둘"})
    reader = Reader(url)
    reader.run()
    _run_sql(engine, "DELETE FROM articles WHERE id = 2")
    assert not _removed(reader.run())


@pytest.mark.postgres
def test_a_table_that_another_one_has_locked_is_given_up(
    module_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "_STATEMENT_SECONDS", 1)
    engine = create_engine(module_postgres_url, poolclass=NullPool)
    _run_sql(engine, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    _articles(engine)
    with engine.begin() as connection:
        connection.execute(text("LOCK TABLE articles"))
        with pytest.raises(SourceUnavailable, match="statement timeout"):
            Reader(module_postgres_url).run()


def test_long_bodies_make_short_batches(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_PAGE_CHARS", 1_000)
    table = _articles(engine)
    _put(engine, table, *({"id": n, "body": "글" * 100} for n in range(120)))
    batches = Reader(url).run()
    assert len(_found(batches)) == 120
    assert {len(batch.found) for batch in batches[1:]} == {10}


def test_a_view_with_names_that_need_quotes_is_read(url: str, engine: Engine) -> None:
    _put(engine, _articles(engine), {"id": 1, "body": "하나", "changed": 1})
    _run_sql(
        engine, 'CREATE VIEW "글 목록" AS SELECT id AS "order", body AS "본문 %(x)s", changed AS "select" FROM articles'
    )
    reader = Reader(url, "글 목록", columns={"id": "order", "body": "본문 %(x)s"}, watermark="select")
    reader.run()
    assert reader.bodies == {"1": "하나"}


def test_a_table_in_a_schema_is_read(url: str, engine: Engine) -> None:
    schema = "main" if engine.dialect.name == "sqlite" else "public"
    _put(engine, _articles(engine), {"id": 1, "body": "하나"})
    reader = Reader(url, f"{schema}.articles")
    reader.run()
    assert reader.bodies == {"1": "하나"}


# --- with a watermark -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int", "time", "time with offset", "text", "fraction"])
def test_only_rows_at_or_above_the_watermark_are_read_again(url: str, engine: Engine, kind: str) -> None:
    is_sqlite = engine.dialect.name == "sqlite"
    kinds: dict[str, tuple[TypeEngine[Any], Any]] = {
        "int": (BigInteger(), lambda n: 2**60 + n),
        "time": (DateTime(), lambda n: _START + timedelta(**{"seconds" if is_sqlite else "microseconds": n})),
        "time with offset": (DateTime(timezone=True), lambda n: (_START + timedelta(hours=n)).replace(tzinfo=_SEOUL)),
        "text": (Text(), lambda n: f"v{n:05}"),
        "fraction": (Double() if is_sqlite else Numeric(30, 15), lambda n: n / 3),
    }
    of, make = kinds[kind]
    table = _articles(engine, watermark=of)
    _put(engine, table, *({"id": n, "body": "글", "changed": make(n)} for n in range(130)))
    reader = Reader(url, watermark="changed", overlap_seconds=0, batch_rows=60)
    assert len(_found(reader.run())) == 130
    assert _found(reader.run()) == ["129"]
    _put(
        engine, table, {"id": 500, "body": "글", "changed": make(130)}, {"id": 400, "body": "글", "changed": make(129)}
    )
    assert _found(reader.run()) == ["129", "400", "500"]
    assert _found(reader.run()) == ["500"]


def test_texts_of_times_as_sqlite_writes_them_are_read_to_the_last(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'source.db'}"
    engine = create_engine(url, poolclass=NullPool)
    _run_sql(engine, "CREATE TABLE articles (id INTEGER PRIMARY KEY, body, changed DATETIME DEFAULT CURRENT_TIMESTAMP)")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO articles (body) VALUES (:body)"), [{"body": "글"} for _ in range(200)])
    reader = Reader(url, watermark="changed", timezone="UTC", batch_rows=20)
    assert len(_found(reader.run())) == 200
    _run_sql(engine, "UPDATE articles SET changed = datetime(changed, '-59 seconds') WHERE id = 7")
    _run_sql(engine, "UPDATE articles SET changed = datetime(changed, '-61 seconds') WHERE id = 8")
    read = _found(reader.run())
    assert len(read) == 199
    assert "8" not in read


@pytest.mark.parametrize("batch_rows", [1, 3, 50])
def test_equal_watermarks_are_read_across_the_borders_of_batches(url: str, engine: Engine, batch_rows: int) -> None:
    table = _articles(engine)
    _put(engine, table, *({"id": n, "body": "글", "changed": n // 7} for n in range(60)))
    reader = Reader(url, watermark="changed", batch_rows=batch_rows)
    reader.run(stop_after=2)
    reader.run()
    assert len(reader.bodies) == 60


@pytest.mark.parametrize(("late", "is_read"), [(59, True), (61, False)])
def test_a_row_committed_late_is_read_within_the_overlap(url: str, engine: Engine, late: int, is_read: bool) -> None:
    table = _articles(engine, watermark=DateTime())
    _put(engine, table, {"id": 1, "body": "글", "changed": _START})
    reader = Reader(url, watermark="changed")
    reader.run()
    _put(engine, table, {"id": 2, "body": "늦은 글", "changed": _START - timedelta(seconds=late)})
    reader.run()
    assert ("2" in reader.bodies) == is_read


def test_rows_that_come_during_a_run_do_not_carry_the_cursor_past_the_overlap(url: str, engine: Engine) -> None:
    table = _articles(engine, watermark=DateTime())
    _put(engine, table, *({"id": n, "body": "글", "changed": _START + timedelta(seconds=n)} for n in range(2)))
    reader = Reader(url, watermark="changed", batch_rows=1)
    batches = SqlSource(SqlOptions.from_mapping(reader.options)).read({}, {})
    next(batches)
    _put(engine, table, {"id": 9, "body": "글", "changed": _START + timedelta(hours=1)})
    cursors = [batch.cursor for batch in batches]
    assert cursors[-1] is not None
    assert "09:00:01" in cursors[-1]["watermark"][1]
    assert "10:00" not in str(cursors)


def test_a_row_dated_ahead_of_the_clock_hides_no_other(url: str, engine: Engine) -> None:
    table = _articles(engine, watermark=DateTime(timezone=True))
    _put(engine, table, {"id": 1, "body": "글", "changed": datetime(9999, 12, 31, 23, tzinfo=UTC)})
    reader = Reader(url, watermark="changed", timezone="UTC")
    reader.run()
    _put(engine, table, {"id": 2, "body": "글", "changed": datetime.now(UTC)})
    assert sorted(_found(reader.run())) == ["1", "2"]


def test_a_watermark_that_goes_back_is_told_and_all_is_read_once(url: str, engine: Engine) -> None:
    table = _articles(engine)
    _put(engine, table, *({"id": n, "body": "글", "changed": 100 + n} for n in range(5)))
    reader = Reader(url, watermark="changed")
    reader.run()
    _run_sql(engine, "UPDATE articles SET changed = changed - 90, body = '복원'")
    batches = reader.run()
    assert len(_found(batches)) == 5
    assert "'changed' is 14, below 104" in _problems(batches)[0]
    assert set(reader.bodies.values()) == {"복원"}
    batches = reader.run()
    assert not _problems(batches)
    assert _found(batches) == ["4"]


def test_a_watermark_of_another_type_is_read_from_the_beginning(url: str, engine: Engine) -> None:
    _put(engine, _articles(engine), {"id": 1, "body": "글", "changed": 100}, {"id": 2, "body": "글", "changed": 101})
    reader = Reader(url, watermark="changed")
    reader.run()
    _run_sql(engine, "DROP TABLE articles")
    rows = [{"id": n, "body": "글", "changed": _START + timedelta(days=n)} for n in range(3)]
    _put(engine, _articles(engine, watermark=DateTime()), *rows)
    batches = reader.run()
    assert len(_found(batches)) == 3
    assert len(_problems(batches)) == 1


def test_another_column_or_field_is_read_from_the_beginning_without_a_word(url: str, engine: Engine) -> None:
    rows = [{"id": n, "body": "글", "changed": n, "summary": "요약"} for n in range(3)]
    _put(engine, _articles(engine, summary=Text()), *rows)
    reader = Reader(url, watermark="changed")
    reader.run()
    reader.options["columns"] = {"title": "summary"}
    batches = reader.run()
    assert len(_found(batches)) == 3
    assert not _problems(batches)
    assert {article.title for article in reader.articles.values()} == {"요약"}


def test_rows_without_a_watermark_are_read_each_time(url: str, engine: Engine) -> None:
    table = _articles(engine)
    _put(engine, table, {"id": 1, "body": "글", "changed": 5}, {"id": 2, "body": "글", "changed": None})
    reader = Reader(url, watermark="changed", batch_rows=1)
    assert _found(reader.run()) == ["1", "2"]
    _run_sql(engine, "UPDATE articles SET body = '새로' WHERE id = 2")
    _put(engine, table, {"id": 3, "body": "글", "changed": 6})
    assert _found(reader.run()) == ["1", "3", "2"]
    assert reader.bodies["2"] == "새로"


def test_an_empty_table_leaves_the_cursor_where_it_was(url: str, engine: Engine) -> None:
    _put(engine, _articles(engine), {"id": 1, "body": "글", "changed": 5})
    reader = Reader(url, watermark="changed")
    reader.run()
    before = reader.cursor
    _run_sql(engine, "DELETE FROM articles")
    assert reader.run() == []
    assert reader.cursor == before


@pytest.mark.filterwarnings("ignore:The default datetime adapter:DeprecationWarning")  # of sqlite3, since Python 3.12
def test_values_finer_than_the_driver_are_told_instead_of_read_for_ever(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'source.db'}", poolclass=NullPool)
    _run_sql(engine, "CREATE TABLE articles (id INTEGER PRIMARY KEY, body, changed TIMESTAMP)")
    for n in range(30):
        _run_sql(engine, f"INSERT INTO articles VALUES ({n}, '글', '2026-03-02 09:00:00.1234567')")
    parsing = f"sqlite:///{tmp_path / 'source.db'}?detect_types=1"  # sqlite3 then cuts times to microseconds
    reader = Reader(parsing, watermark="changed", batch_rows=50)
    assert len(_found(reader.run())) == 30, "as long as it comes forward it is no matter"
    with pytest.raises(UnreadableSource, match="finer than its driver"):
        Reader(parsing, watermark="changed", batch_rows=20).run()


@pytest.mark.postgres
@pytest.mark.parametrize(("kind", "value", "seen"), [("real", "0.1", r"0\.1"), ("bool", "true", "True")])
def test_a_watermark_without_an_exact_order_is_refused(
    module_postgres_url: str, kind: str, value: str, seen: str
) -> None:
    engine = create_engine(module_postgres_url, poolclass=NullPool)
    _run_sql(engine, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    _run_sql(engine, f"CREATE TABLE articles (id int, body text, changed {kind})")
    _run_sql(engine, f"INSERT INTO articles VALUES (1, '글', {value})")
    with pytest.raises(UnreadableSource, match=f"has {seen} in its watermark column 'changed'"):
        Reader(module_postgres_url, watermark="changed").run()


def test_bytes_that_grow_are_a_watermark(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'source.db'}", poolclass=NullPool)
    _run_sql(engine, "CREATE TABLE articles (id int, body, changed BLOB)")  # as SQL Server's rowversion
    _run_sql(engine, "INSERT INTO articles VALUES (1, '글', x'0001'), (2, '글', x'0100'), (3, '글', x'00ff')")
    reader = Reader(str(engine.url), watermark="changed")
    assert _found(reader.run()) == ["1", "3", "2"]
    assert _found(reader.run()) == ["2"]


# --- what is deleted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watermark", [None, "changed"])
def test_a_row_marked_as_deleted_removes_its_article_and_unmarked_brings_it_back(
    url: str, engine: Engine, watermark: str | None
) -> None:
    table = _articles(engine, deleted_at=DateTime())
    rows = [{"id": n, "body": "글", "changed": n, "deleted_at": _START if n == 3 else None} for n in range(4)]
    _put(engine, table, *rows)
    reader = Reader(url, watermark=watermark, deleted="deleted_at")
    assert not _removed(reader.run()), "what was never known need not be removed"
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == 1).values(deleted_at=_START, changed=10))
    assert _removed(reader.run()) == ["1"]
    assert not _removed(reader.run())
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == 1).values(deleted_at=None, changed=11))
    reader.run()
    assert reader.keys.keys() == {"0", "1", "2"}


def test_keys_that_are_gone_are_removed_also_when_nothing_else_changed(url: str, engine: Engine) -> None:
    table = _articles(engine)
    _put(engine, table, *({"id": n, "body": "글", "changed": 1} for n in range(1_200)))
    reader = Reader(url, watermark="changed", compare_keys=True)
    reader.run()
    _run_sql(engine, "DELETE FROM articles WHERE id < 700")
    batches = reader.run()
    assert len(_removed(batches)) == 700
    assert max(len(batch.removed) for batch in batches) == 500
    assert len(reader.keys) == 500


def test_keys_are_compared_in_pages(url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "_KEYS_A_PAGE", 7)
    _put(engine, _articles(engine), *({"id": n, "body": "글"} for n in range(50)))
    reader = Reader(url, compare_keys=True)
    reader.run()
    _run_sql(engine, "DELETE FROM articles WHERE id IN (0, 20, 49)")
    assert _removed(reader.run()) == ["0", "20", "49"]


def test_a_mark_that_moved_no_watermark_is_seen_where_keys_are_compared(url: str, engine: Engine) -> None:
    rows = [{"id": n, "body": "글", "changed": n, "deleted": 0} for n in range(3)]
    _put(engine, _articles(engine, deleted=BigInteger()), *rows)
    reader = Reader(url, watermark="changed", deleted="deleted", compare_keys=True)
    reader.run()
    _run_sql(engine, "UPDATE articles SET deleted = 1 WHERE id = 0")
    assert _removed(reader.run()) == ["0"]


def test_an_empty_table_removes_articles_only_where_that_is_allowed(url: str, engine: Engine) -> None:
    _put(engine, _articles(engine), {"id": 1, "body": "글"}, {"id": 2, "body": "글"})
    reader = Reader(url, compare_keys=True)
    reader.run()
    _run_sql(engine, "DELETE FROM articles")
    with pytest.raises(SourceUnavailable, match=r"the table is empty, 2 articles are known.*allow_empty"):
        reader.run()
    assert reader.keys.keys() == {"1", "2"}
    reader.options["allow_empty"] = True
    assert _removed(reader.run()) == ["1", "2"]


@pytest.mark.parametrize("watermark", [None, "changed"])
def test_ids_that_change_rows_are_followed(url: str, engine: Engine, watermark: str | None) -> None:
    columns: list[Column[Any]] = [Column("key", BigInteger, primary_key=True), Column("id", Text), Column("body", Text)]
    table = _made(engine, *columns, Column("changed", BigInteger))
    _put(engine, table, *({"key": n, "id": name, "body": name, "changed": n} for n, name in enumerate("abc")))
    reader = Reader(url, key="key", watermark=watermark)
    reader.run()
    _run_sql(engine, "UPDATE articles SET id = 'x' || id, body = 'x' || id, changed = 10 WHERE key IN (0, 1)")
    _run_sql(engine, "UPDATE articles SET id = 'a', body = 'a', changed = 10 WHERE key = 2")
    reader.run()
    assert reader.keys == {"xa": "0", "xb": "1", "a": "2"}


def test_an_id_given_to_a_new_row_during_a_run_is_followed(url: str, engine: Engine) -> None:
    columns: list[Column[Any]] = [Column("key", BigInteger, primary_key=True), Column("id", Text), Column("body", Text)]
    table = _made(engine, *columns, Column("changed", BigInteger), Column("deleted", BigInteger))
    _put(engine, table, *({"key": n, "id": f"a{n}", "body": "글", "changed": n, "deleted": 0} for n in (1, 9)))
    options = {"url": url, "table": "articles", "key": "key", "watermark": "changed", "deleted": "deleted"}
    batches = SqlSource(SqlOptions.from_mapping(options | {"batch_rows": 1})).read({}, {})
    assert _found([next(batches)]) == ["a1"]
    _run_sql(engine, "UPDATE articles SET deleted = 1, changed = 5 WHERE key = 1")
    _put(engine, table, {"key": 6, "id": "a1", "body": "새로", "changed": 6, "deleted": 0})
    rest = list(batches)
    assert [(batch.removed, [found.key for found in batch.found]) for batch in rest] == [
        (["a1"], []),
        ([], ["6"]),
        ([], ["9"]),
    ]


def test_of_two_rows_with_one_id_the_first_counts_and_it_is_told(url: str, engine: Engine) -> None:
    columns: list[Column[Any]] = [Column("key", BigInteger, primary_key=True), Column("id", Text), Column("body", Text)]
    _put(engine, _made(engine, *columns), *({"key": n, "id": "a", "body": f"글 {n}"} for n in range(2)))
    reader = Reader(url, key="key")
    for _ in range(2):
        assert "its id 'a' is also that of row '0'" in _problems(reader.run())[0]
        assert reader.bodies == {"a": "글 0"}


# --- values ---------------------------------------------------------------------------------------------------------


def test_values_become_fields(url: str, engine: Engine) -> None:
    table = _made(
        engine,
        Column("no", BigInteger, primary_key=True),
        *(Column(name, Text) for name in ("title", "body", "kind", "link", "tags", "shown")),
        Column("part", BigInteger),
        Column("score", Double() if engine.dialect.name == "sqlite" else Numeric(3, 2)),
        Column("published", DateTime),
        Column("changed", DateTime(timezone=True)),
    )
    row = {"no": 7, "title": "제목", "body": "글", "kind": "html", "link": "https://example.com/1", "part": 3}
    moments = {"published": _START, "changed": _START.replace(tzinfo=UTC)}
    if engine.dialect.name == "sqlite":
        moments["changed"] = _START + timedelta(hours=9)  # no offsets there: written as Seoul sees it
    _put(engine, table, row | moments | {"tags": '["금리", "전세"]', "shown": "N", "score": 0.25})
    columns = {"id": "no", "format": "kind", "url": "link", "tags": "tags", "category": "part", "visible": "shown"}
    columns |= {"quality": "score", "published_at": "published", "updated_at": "changed"}
    reader = Reader(url, columns=columns)
    reader.run()
    assert reader.articles["7"] == Article(
        id="7",
        title="제목",
        body="글",
        format="html",
        url="https://example.com/1",
        category="3",
        tags=("금리", "전세"),
        published_at=_START.replace(tzinfo=_SEOUL),
        updated_at=_START.replace(tzinfo=UTC),
        quality=0.25,
        visible=False,
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("tags", "금리, 전세;월세", ["금리", "전세", "월세"]),
        ("tags", ["금리"], ["금리"]),
        ("tags", "[공지], 금리", ["[공지]", "금리"]),
        ("quality", Decimal("0.5"), 0.5),
        ("quality", "0.5", 0.5),
        ("visible", 0, False),
        ("visible", Decimal(1), True),
        ("visible", "y", True),
        ("visible", b"\x00", False),
        ("visible", 2, 2),
        ("id", UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        ("published_at", date(2026, 3, 2), "2026-03-02T00:00:00+09:00"),
        ("published_at", "2026-03-02 09:00:00", "2026-03-02T09:00:00+09:00"),
        ("published_at", "2026-03-02T00:00:00Z", "2026-03-02T00:00:00+00:00"),
        ("published_at", "어제", "어제"),
    ],
)
def test_a_value_means_what_its_column_says(name: str, value: Any, expected: Any) -> None:
    assert fields_of_values({name: value}, _SEOUL)[name] == expected


def test_bytes_are_refused() -> None:
    with pytest.raises(InvalidArticle, match="no bytes: make it a text"):
        fields_of_values({"title": "글".encode("cp949")}, _SEOUL)


@pytest.mark.parametrize("value", [True, 1, Decimal(1), "Y", "t", "true", "2026-03-02", _START, b"\x01"])
def test_a_mark_of_deletion_is_seen(value: Any) -> None:
    assert is_set(value)


@pytest.mark.parametrize("value", [None, False, 0, Decimal(0), "", " ", "N", "f", "0", "0000-00-00 00:00:00", b"\x00"])
def test_a_mark_that_says_no_is_none(value: Any) -> None:
    assert not is_set(value)


def test_a_row_that_breaks_a_rule_fails_alone_and_keeps_its_article(url: str, engine: Engine) -> None:
    table = _articles(engine, key=String(50))
    _put(engine, table, {"id": "a", "body": "글"}, {"id": "b", "body": "글"}, {"id": "c/d", "body": "글"})
    reader = Reader(url, compare_keys=True)
    assert "row 'c/d' of articles in" in _problems(reader.run())[0]
    _run_sql(engine, "UPDATE articles SET body = ' ' WHERE id = 'b'")
    assert "row 'b' of" in _problems(reader.run())[0]
    assert reader.bodies == {"a": "글", "b": "글"}


def test_rows_without_a_key_are_counted(url: str, engine: Engine) -> None:
    table = _made(engine, Column("id", Text), Column("body", Text))
    _put(engine, table, {"id": None, "body": "글"}, {"id": "a", "body": "글"}, {"id": None, "body": "글"})
    batches = Reader(url).run()
    assert _found(batches) == ["a"]
    assert "2 rows are left out" in _problems(batches)[0]


# --- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "nowhere"}, "there is no nowhere in .*; there is .*articles.*'table'"),
        ({"table": "elsewhere.articles"}, "there is no elsewhere.articles"),
        ({"watermark": "updated"}, "has no column 'updated'; its columns are id, body, changed.*'watermark'"),
        ({"columns": {"tags": "topics"}}, "has no column 'topics'; .*'columns.tags'"),
        ({"columns": {"body": "x"}}, "has no column 'x'"),
        ({"key": "no"}, "has no column 'no'"),
        ({"deleted": "gone"}, "has no column 'gone'"),
    ],
)
def test_a_table_or_column_that_is_missing_is_told_with_those_there_are(
    url: str, engine: Engine, options: dict[str, Any], message: str
) -> None:
    _articles(engine)
    if engine.dialect.name == "sqlite" and "elsewhere" in str(options):
        message = "elsewhere"
    with pytest.raises((UnreadableSource, SourceUnavailable), match=message):
        Reader(url, **options).run()


def test_a_file_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="there is no such file"):
        Reader(f"sqlite:///{tmp_path / 'source.db'}").run()
    assert not (tmp_path / "source.db").exists()


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "source.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(SourceUnavailable, match="file is not a database"):
        Reader(f"sqlite:///{tmp_path / 'source.db'}").run()


def test_a_database_that_is_away_is_told_without_the_password() -> None:
    for bad in (
        "postgresql+psycopg://reader:geheim@127.0.0.1:1/x",
        "postgresql+psycopg://127.0.0.1:1/x?password=geheim",
    ):
        with pytest.raises(SourceUnavailable, match=r"articles in postgresql\+psycopg") as caught:
            Reader(bad).run()
        assert "geheim" not in str(caught.value)
        assert "127.0.0.1" in str(caught.value)


def test_no_option_shows_the_password() -> None:
    options = SqlOptions.from_mapping({"url": "postgresql+psycopg://u:geheim@h/x?password=versteckt", "table": "t"})
    assert "geheim" not in f"{options!r} {options.place}"
    assert "versteckt" not in f"{options!r} {options.place}"
    assert options.without_secrets("no entry\nfor geheim, versteckt") == "no entry for ***, ***"


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({}, "'url' .* should be given"),
        ({"url": "geheim", "table": "t"}, "'url' .* an SQLAlchemy URL"),
        ({"url": "postgresql://u:geheim@h:port/x", "table": "t"}, "'url' .* an SQLAlchemy URL"),
        ({"url": "nosuch://u:geheim@h/x", "table": "t"}, r"'url' .* \(.*nosuch\), is 'nosuch://u:\*\*\*@h/x'"),
        ({"url": "oracle+cx_oracle://u:geheim@h/x", "table": "t"}, r"'url' .* \(.*cx_Oracle.*\), is"),
        ({"url": "sqlite:///a.db"}, "'table' .* should be given"),
        ({"url": "sqlite:///a.db", "table": "t", "columns": ["id"]}, r"'columns' .*, is \['id'\]"),
        ({"url": "sqlite:///a.db", "table": "t", "columns": {"text": "a"}}, "'columns' .* is {'text': 'a'}"),
        ({"url": "sqlite:///a.db", "table": "t", "columns": {"body": 3}}, "'columns' .* is {'body': 3}"),
        ({"url": "sqlite:///a.db", "table": "t", "timezone": "Seoul"}, "'timezone' .* is 'Seoul'"),
        ({"url": "sqlite:///a.db", "table": "t", "timezone": "../x"}, "'timezone' .* is '../x'"),
        ({"url": "sqlite:///a.db", "table": "t", "batch_rows": 0}, r"'batch_rows' .* in 1\.\.10,000, is 0"),
        ({"url": "sqlite:///a.db", "table": "t", "overlap_seconds": True}, "'overlap_seconds' .*, is True"),
        ({"url": "sqlite:///a.db", "table": "t", "where": "1=1"}, "no option 'where'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        SqlOptions.from_mapping(given_options)
    assert "geheim" not in str(caught.value).replace("is 'geheim'", "")


def test_a_run_that_is_given_up_leaves_no_lock(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'source.db'}"
    (tmp_path / "source.db").touch()
    engine = create_engine(url, poolclass=NullPool)
    table = _articles(engine)
    _put(engine, table, *({"id": n, "body": "글"} for n in range(10)))
    batches = SqlSource(SqlOptions.from_mapping({"url": url, "table": "articles", "batch_rows": 2})).read({}, {})
    next(batches)
    _put(engine, table, {"id": 99, "body": "글"})  # would wait for a lock and fail
    assert len(list(batches)) == 5


# --- watermarks -----------------------------------------------------------------------------------------------------


_WATERMARKS = st.one_of(
    st.integers(),
    st.floats(allow_nan=False),
    st.decimals(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=9))])),
    st.dates(),
)


@given(value=_WATERMARKS)
def test_a_watermark_comes_back_from_json_exactly(value: Watermark) -> None:
    back = from_json(orjson.loads(orjson.dumps(to_json(value))))
    assert (back, type(back)) == (value, type(value))
    assert back is not None
    assert is_comparable(value, back)


@pytest.mark.parametrize("data", [None, 3, ["int"], ["bool", "True"], [1, 2]])
def test_what_is_no_watermark_begins_at_the_beginning(data: object) -> None:
    assert from_json(data) is None


@pytest.mark.parametrize(
    ("value", "earlier"),
    [
        (100, 100),
        ("v100", "v100"),
        ("2026-13-45 00:00:00", "2026-13-45 00:00:00"),
        ("2026-03-02 09:00:30.5", "2026-03-02 08:59:30"),
        ("2026-03-02T09:00:30+09:00", "2026-03-02T08:59:30"),
        ("2026-03-02", "2026-03-01"),
        (date(2026, 3, 2), date(2026, 3, 1)),
        (datetime(2026, 3, 2, 9, 0, 30), datetime(2026, 3, 2, 8, 59, 30)),
        (datetime.min, datetime.min),
    ],
)
def test_a_time_is_moved_as_it_is_written(value: Watermark, earlier: Watermark) -> None:
    assert moved(value, timedelta(seconds=-60)) == earlier


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (10**18, 10**18),
        ("2026-03-02 18:00:00", "2026-03-02 18:00:00"),
        ("2026-03-02 18:00:01", "2026-03-02 18:00:00"),
        ("2026-03-02T09:00:01Z", "2026-03-02T09:00:00"),
        (datetime(2026, 3, 2, 19), datetime(2026, 3, 2, 18)),
        (datetime.max, datetime(2026, 3, 2, 18)),
        (datetime.max.replace(tzinfo=UTC), datetime(2026, 3, 2, 9, tzinfo=UTC)),
        (date(2027, 1, 1), date(2026, 3, 2)),
    ],
)
def test_no_watermark_is_ahead_of_the_clock(value: Watermark, expected: Watermark) -> None:
    assert not_after(value, datetime(2026, 3, 2, 9, tzinfo=UTC), _SEOUL) == expected


# --- any edits ------------------------------------------------------------------------------------------------------


_IDS = st.integers(min_value=1, max_value=6)
_EDITS = st.one_of(
    st.tuples(st.just("put"), _IDS, st.booleans()),
    st.tuples(st.just("mark"), _IDS),
    st.tuples(st.just("delete"), _IDS),
    st.tuples(st.just("swap"), _IDS, _IDS),
    st.tuples(st.just("restore")),
    st.tuples(st.just("run"), st.sampled_from([None, 0, 1, 2])),
)


class _Model:
    """A table that is edited as applications do it: each change has the next version, several at times the same."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.version = 0
        self.rows: dict[int, dict[str, Any]] = {}
        self.bodies = count()

    def put(self, key: int, is_next: bool) -> None:
        self.version += is_next
        article_id = self.rows[key]["id"] if key in self.rows else f"a{key}"
        if key in self.rows or article_id not in {row["id"] for row in self.rows.values()}:
            self._keep(key, id=article_id, body=f"글 {next(self.bodies)}", deleted=0)

    def mark(self, key: int) -> None:
        if key in self.rows:
            self._keep(key, deleted=1)

    def delete(self, key: int) -> None:
        self.rows.pop(key, None)

    def swap(self, one: int, other: int) -> None:
        if one in self.rows and other in self.rows:
            ids = self.rows[one]["id"], self.rows[other]["id"]
            self._keep(one, id=ids[1])
            self._keep(other, id=ids[0])

    def restore(self) -> None:
        self.version = max(0, self.version - 3)
        for key, row in self.rows.items():
            self.rows[key] = row | {"changed": min(row["changed"], self.version)}

    def _keep(self, key: int, **values: Any) -> None:
        self.rows[key] = self.rows.get(key, {"key": key}) | values | {"changed": self.version}

    def write(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM articles"))
            columns = (
                "INSERT INTO articles (key, id, body, deleted, changed) VALUES (:key, :id, :body, :deleted, :changed)"
            )
            if self.rows:
                connection.execute(text(columns), list(self.rows.values()))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(edits=st.lists(_EDITS, max_size=14), watermark=st.sampled_from([None, "changed"]))
def test_after_any_edits_and_runs_the_articles_are_those_of_the_table(
    url: str, engine: Engine, edits: list[tuple[Any, ...]], watermark: str | None
) -> None:
    _run_sql(engine, "DROP TABLE IF EXISTS articles")
    _run_sql(engine, "CREATE TABLE articles (key int PRIMARY KEY, id text, body text, deleted int, changed int)")
    model = _Model(engine)
    options: dict[str, Any] = {"key": "key", "deleted": "deleted", "watermark": watermark, "batch_rows": 2}
    reader = Reader(url, compare_keys=True, allow_empty=True, **options)
    for what, *arguments in edits:
        if what != "run":
            getattr(model, what)(*arguments)
        if what in ("run", "restore"):  # what is written above an old watermark before the next run hides the restore
            model.write()
            reader.run(stop_after=arguments[0] if arguments else None)
    model.write()
    reader.run()
    assert reader.bodies == {row["id"]: row["body"] for row in model.rows.values() if not row["deleted"]}
    assert all(model.rows[int(key)]["id"] == article_id for article_id, key in reader.keys.items())
