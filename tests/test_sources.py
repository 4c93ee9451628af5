"""The registry of sources: cursors move with their articles or not at all, and each article has one owner."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from indexers.sources.folder import FolderSource
from indexers.sources.kinds import KINDS, Cron, Every, parsed_schedule, source_of
from pipeline.documents import Article
from pipeline.errors import InvalidInput, InvalidSetting, SourceChanged, SourceNotFound
from pipeline.settings import FILE, SourceSettings, in_force, load
from pipeline.storage import sources
from pipeline.storage.acceptance import BULK, SOURCE
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.sources import Kept, KnownSource

OPTIONS = {"path": "/srv/notices"}
_AT = datetime(2026, 5, 1, tzinfo=UTC)
_SECRET = "a-password-in-a-url"


@pytest.fixture
def database(state_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(state_url)
    yield opened
    opened.close()


@pytest.fixture
def notices(database: StateDatabase) -> KnownSource:
    return sources.add(database, "notices", "folder", OPTIONS, "5m")


def article(article_id: str, body: str = "본문입니다.", updated_at: datetime | None = None) -> Article:
    return Article(id=article_id, title="제목", body=body, updated_at=updated_at)


def found(*ids: str, key: str = "한 파일.jsonl") -> list[tuple[Article, str]]:
    return [(article(article_id), key) for article_id in ids]


def keep(database: StateDatabase, known: KnownSource, lane: int = SOURCE, **batch: Any) -> Kept:
    return sources.keep(database, known, lane=lane, **batch)


def cursor(database: StateDatabase, name: str = "notices") -> dict[str, Any]:
    return dict(sources.find(database, name).cursor)


# --- the registry ---------------------------------------------------------------------------------------------------


def test_an_added_source_is_found_as_it_was_given_with_an_empty_cursor(database: StateDatabase) -> None:
    added = sources.add(database, "공지-1", "folder", OPTIONS, "5m")
    assert added == KnownSource(name="공지-1", kind="folder", options=OPTIONS, schedule="5m", cursor={})
    assert sources.find(database, "공지-1") == added
    assert sources.listed(database) == [added]
    assert sources.articles_of(database, "공지-1") == {}


def test_a_name_that_is_taken_is_refused_by_name_and_changes_nothing(
    database: StateDatabase, notices: KnownSource
) -> None:
    with pytest.raises(InvalidInput, match="'notices' already"):
        sources.add(database, "notices", "sql", {}, "1h")
    assert sources.listed(database) == [notices]


def test_a_name_that_would_not_fit_an_address_or_an_id_is_refused(database: StateDatabase) -> None:
    for name in ("", "a b", "a/b", "..", "-a", "a#b", "가" * 101, "a\n"):
        for of_any in (sources.add, sources.put):
            with pytest.raises(InvalidInput, match="name of a source"):
                of_any(database, name, "folder", OPTIONS, "5m")
    assert sources.listed(database) == []


def test_a_changed_schedule_keeps_the_cursor_and_changed_options_begin_anew(
    database: StateDatabase, notices: KnownSource
) -> None:
    keep(database, notices, found=found("가"), cursor={"n": 1})
    assert sources.put(database, "notices", "folder", OPTIONS, "1h").cursor == {"n": 1}
    assert sources.find(database, "notices").schedule == "1h"
    assert sources.put(database, "notices", "folder", {"path": "/srv/others"}, "1h").cursor == {}
    assert sources.articles_of(database, "notices") == {"가": "한 파일.jsonl"}


def test_put_adds_what_there_is_not_and_twice_the_same_is_once(database: StateDatabase) -> None:
    first = sources.put(database, "feed.a", "feed", {"url": "https://example.com"}, "1h")
    assert sources.put(database, "feed.a", "feed", {"url": "https://example.com"}, "1h") == first
    assert sources.listed(database) == [first]


def test_a_removed_source_leaves_its_articles_and_names_them(database: StateDatabase, notices: KnownSource) -> None:
    keep(database, notices, found=found("나", "가"))
    assert sources.remove(database, "notices") == ["가", "나"]
    assert ArticleStore(database).counts() == {"queued": 2}
    assert (sources.listed(database), sources.articles_of(database, "notices")) == ([], {})
    for of_none in (sources.find, sources.remove):
        with pytest.raises(SourceNotFound, match="'notices'"):
            of_none(database, "notices")


def test_options_which_may_hold_a_password_are_in_no_repr(database: StateDatabase) -> None:
    known = sources.add(database, "board", "sql", {"url": f"postgresql://u:{_SECRET}@db/board"}, "5m")
    settings = SourceSettings(name="board", kind="sql", schedule="5m", options=dict(known.options))
    assert _SECRET in str(known.options)
    assert _SECRET not in repr(known) + repr(settings)


# --- what it delivers -----------------------------------------------------------------------------------------------


def test_a_batch_is_in_the_inbox_in_its_lane_and_its_cursor_is_kept(
    database: StateDatabase, notices: KnownSource
) -> None:
    store = ArticleStore(database)
    assert keep(database, notices, BULK, found=found("가", "나"), cursor={"n": 1}) == Kept(2, 0, 0, 0)
    assert [(change.article_id, change.lane) for change in store.queued(9)] == [("가", BULK), ("나", BULK)]
    assert cursor(database) == {"n": 1}
    assert keep(database, notices, found=found("가")) == Kept(0, 1, 0, 0)
    assert cursor(database) == {"n": 1}


def test_a_batch_that_breaks_off_leaves_nothing_of_itself(database: StateDatabase, notices: KnownSource) -> None:
    keep(database, notices, found=found("가"), cursor={"n": 1})
    with pytest.raises(TypeError):
        keep(database, notices, found=found("나"), removed=["가"], cursor={"n": object()})  # no JSON
    assert [change.article_id for change in ArticleStore(database).queued(9)] == ["가"]
    assert (cursor(database), sources.articles_of(database, "notices")) == ({"n": 1}, {"가": "한 파일.jsonl"})


def test_a_removed_article_is_deleted_once_and_is_nobodys(database: StateDatabase, notices: KnownSource) -> None:
    keep(database, notices, found=found("가", "나"))
    assert keep(database, notices, removed=["가"]).deleted == 1
    assert keep(database, notices, removed=["가"]).deleted == 0
    assert sources.articles_of(database, "notices") == {"나": "한 파일.jsonl"}
    assert ArticleStore(database).state("가").article is None


def test_what_another_delivered_is_taken_over_and_its_first_owner_removes_it_in_vain(
    database: StateDatabase, notices: KnownSource
) -> None:
    other = sources.add(database, "others", "folder", {"path": "/srv/others"}, "5m")
    keep(database, notices, found=found("가", "나"))
    assert keep(database, other, found=found("가", key="b.md")) == Kept(0, 1, 0, 0)
    assert sources.articles_of(database, "notices") == {"나": "한 파일.jsonl"}
    assert sources.articles_of(database, "others") == {"가": "b.md"}
    assert keep(database, notices, removed=["가"]).deleted == 0
    assert ArticleStore(database).state("가").article is not None
    assert keep(database, other, removed=["가"]).deleted == 1


def test_an_older_version_is_counted_and_takes_nothing_over(database: StateDatabase, notices: KnownSource) -> None:
    store = ArticleStore(database)
    store.accept(article("밀어 넣은 글", updated_at=_AT))
    before = store.state("밀어 넣은 글")
    old = article("밀어 넣은 글", "옛 본문입니다.", _AT - timedelta(days=1))
    assert keep(database, notices, found=[(old, "a.md"), *found("가")]) == Kept(1, 0, 1, 0)
    assert store.state("밀어 넣은 글") == before
    assert sources.articles_of(database, "notices") == {"가": "한 파일.jsonl"}
    keep(database, notices, removed=["밀어 넣은 글"])
    assert store.state("밀어 넣은 글") == before


def test_what_is_delivered_again_as_it_was_brings_no_withdrawn_article_back_and_undoes_no_correction(
    database: StateDatabase, notices: KnownSource
) -> None:
    store = ArticleStore(database)
    assert keep(database, notices, found=found("가", "나", "다")) == Kept(3, 0, 0, 0)
    store.accept_delete("가")
    store.accept(article("나", "고친 본문입니다."))
    again = [(article("가"), "새 이름.jsonl"), *found("나", "다")]
    assert keep(database, notices, found=again) == Kept(0, 3, 0, 0)
    assert store.state("가").article is None
    corrected = store.state("나").article
    assert corrected is not None
    assert corrected.body == "고친 본문입니다."
    assert sources.articles_of(database, "notices")["가"] == "새 이름.jsonl"
    assert keep(database, notices, found=again) == Kept(0, 3, 0, 0)  # and again

    changed = [(article(article_id, "새 본문입니다."), "한 파일.jsonl") for article_id in ("가", "나")]
    assert keep(database, notices, found=changed) == Kept(2, 0, 0, 0)  # the source itself has something new
    store.accept_delete("가")
    dated = [(article("가", "새 본문입니다.", datetime.now(UTC)), "한 파일.jsonl")]
    assert keep(database, notices, found=dated) == Kept(1, 0, 0, 0)  # or says that it is newer


def test_a_renamed_article_stays_as_it_is_under_its_new_key(database: StateDatabase, notices: KnownSource) -> None:
    keep(database, notices, found=found("가"))
    before = ArticleStore(database).state("가")
    assert keep(database, notices, renamed={"가": "새 이름.md", "모르는 글": "x.md"}) == Kept(0, 0, 0, 0)
    assert sources.articles_of(database, "notices") == {"가": "새 이름.md"}
    assert ArticleStore(database).state("가") == before


def test_a_batch_of_more_ids_than_a_statement_takes_is_kept_whole(
    database: StateDatabase, notices: KnownSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_SQL_VARIABLES", 3)
    ids = [f"글{n}" for n in range(8)]
    keep(database, notices, found=found(*ids))
    assert keep(database, notices, found=found(*ids, key="b.md")).unchanged == 8
    assert sources.articles_of(database, "notices") == dict.fromkeys(ids, "b.md")
    assert keep(database, notices, removed=ids).deleted == 8
    assert sources.articles_of(database, "notices") == {}


def test_a_run_of_a_source_that_was_changed_or_removed_meanwhile_keeps_nothing_more(
    database: StateDatabase, notices: KnownSource
) -> None:
    sources.put(database, "notices", "folder", OPTIONS, "1h")
    keep(database, notices, found=found("가"), cursor={"n": 1})  # only its schedule changed
    sources.put(database, "notices", "folder", {"path": "/srv/others"}, "1h")
    with pytest.raises(SourceChanged, match="'notices'"):
        keep(database, notices, found=found("나"), cursor={"n": 2})
    assert cursor(database) == {}
    sources.remove(database, "notices")
    with pytest.raises(SourceChanged):
        keep(database, notices, found=found("나"))
    assert ArticleStore(database).counts() == {"queued": 1}


def test_owners_are_looked_up_by_index_and_not_by_reading_the_table(tmp_path: Path) -> None:
    """A first load of a million articles looks each of them up."""
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    known = sources.add(database, "notices", "folder", OPTIONS, "5m")
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "source_articles" in statement and not statement.startswith("INSERT"):
            asked.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    keep(database, known, found=found("가", "나"))
    event.remove(database.engine, "before_cursor_execute", note)
    assert len(asked) == 2
    with database.read() as connection:
        for statement, parameters in asked:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert any(step[3].startswith("SEARCH source_articles") for step in steps), steps
    database.close()


# --- kinds and schedules --------------------------------------------------------------------------------------------


def test_a_kind_with_its_options_gives_a_source_and_nothing_is_opened(tmp_path: Path) -> None:
    missing = tmp_path / "not there yet"
    source = source_of("notices", "folder", {"path": str(missing)})
    assert isinstance(source, FolderSource)
    assert source.options.path == missing
    feed = source_of("news", "feed", {"url": "https://example.com/feed.xml"})
    table = source_of("board", "sql", {"url": "sqlite:///board.db", "table": "posts", "columns": {"title": "subject"}})
    assert (type(feed).__name__, type(table).__name__) == ("FeedSource", "SqlSource")


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("ftp", {}, "one of folder, feed, sql, is 'ftp'"),
        ("folder", {"path": "relative"}, "absolute path"),
        ("folder", {"path": "/a", "paths": 1}, "no option 'paths'"),
        ("feed", {}, "'url'"),
        ("sql", {"url": "sqlite:///x.db"}, "'table'"),
    ],
)
def test_a_source_that_cannot_work_is_refused_before_it_is_added(kind: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        source_of("a", kind, options)


def test_the_settings_know_the_same_kinds() -> None:
    """They name them a second time: `pipeline` does not know the indexers."""
    assert SourceSettings.model_json_schema()["properties"]["kind"]["enum"] == list(KINDS)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("60", 60), ("60s", 60), ("5m", 300), (" 1H ", 3600), ("1d", 86_400), ("10 m", 600), ("1", 1), ("30d", 2_592_000)],
)
def test_a_number_with_a_unit_is_an_interval(given: str, seconds: int) -> None:
    assert parsed_schedule(given) == Every(seconds)


def test_five_fields_are_cron() -> None:
    every_hour = tuple(range(24))
    every_month = tuple(range(1, 13))
    assert parsed_schedule("*/10 * * * *") == Cron(
        minutes=(0, 10, 20, 30, 40, 50), hours=every_hour, days=None, months=every_month, weekdays=None
    )
    assert parsed_schedule("0 9,18 1-7/3 jan,6-8 mon-fri") == Cron(
        minutes=(0,), hours=(9, 18), days=(1, 4, 7), months=(1, 6, 7, 8), weekdays=(1, 2, 3, 4, 5)
    )


@pytest.mark.parametrize(
    ("field", "weekdays"),
    [
        ("0", (0,)),
        ("7", (0,)),
        ("5-7", (0, 5, 6)),
        ("sat-sun", (0, 6)),
        ("*/2", (0, 2, 4, 6)),
        ("sun", (0,)),
        ("0-6", None),
    ],
)
def test_sunday_is_the_first_day_of_cron_and_the_last(field: str, weekdays: tuple[int, ...] | None) -> None:
    schedule = parsed_schedule(f"0 0 * * {field}")
    assert isinstance(schedule, Cron)
    assert schedule.weekdays == weekdays


_NO_INTERVALS = ("", "0", "0s", "31d", "-5m", "5 minutes", "5w", "1.5h", "@daily")
_NO_CRON = (
    *("* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8", "5-1 * * * *"),
    *("*/0 * * * *", "5/10 * * * *", "a * * * *", ", * * * *", "0 0 * foo *", "0 0 31 2 *", "0 0 31 apr,jun *"),
)


@pytest.mark.parametrize("given", [*_NO_INTERVALS, *_NO_CRON])
def test_what_is_no_schedule_is_refused_with_the_value_and_examples(given: str) -> None:
    with pytest.raises(InvalidInput, match="schedule of a source") as caught:
        parsed_schedule(given)
    assert repr(given) in caught.value.message
    assert "5m" in caught.value.message


# --- in the settings ------------------------------------------------------------------------------------------------


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings' file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("YEOUL_SOURCES", raising=False)
    return tmp_path / FILE


def test_sources_stand_in_the_file_as_tables(toml: Path) -> None:
    toml.write_text(
        '[[sources]]\nname = "공지"\nkind = "folder"\nschedule = "1h"\n[sources.options]\npath = "/srv/notices"\n'
        '[[sources]]\nname = "news"\nkind = "feed"\noptions = {url = "https://example.com"}\n'
    )
    first, second = load().sources
    assert (first.name, first.kind, first.schedule, first.options) == ("공지", "folder", "1h", OPTIONS)
    assert isinstance(parsed_schedule(second.schedule), Every)


def test_two_sources_of_one_name_are_refused(toml: Path) -> None:
    toml.write_text('[[sources]]\nname = "a"\nkind = "folder"\n[[sources]]\nname = "a"\nkind = "feed"\n')
    with pytest.raises(InvalidSetting, match=r"setting 'sources' should be without two sources of one name"):
        load()


def test_what_a_source_of_the_settings_holds_is_never_shown(toml: Path) -> None:
    address = f"postgresql://u:{_SECRET}@db/board"
    toml.write_text(f'[[sources]]\nname = "a"\nkind = "sql"\noptions = {{url = "{address}"}}\n')
    assert load().sources[0].options == {"url": address}
    assert dict(in_force(load()))["sources"] == "(hidden)"
    toml.write_text(f'[[sources]]\nname = "a"\nkind = "sql"\nurl = "{address}"\n')  # options forgotten
    with pytest.raises(InvalidSetting, match=r"setting 'sources\.0\.url' should be left out") as caught:
        load()
    assert _SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_sources_in_the_environment_that_are_no_json_are_refused_with_an_example_that_is(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not toml.exists()
    monkeypatch.setenv("YEOUL_SOURCES", "[{bad")
    with pytest.raises(InvalidSetting, match="setting 'sources' should be JSON") as caught:
        load()
    example = caught.value.message.split("as in ")[1].split(", is ")[0]
    monkeypatch.setenv("YEOUL_SOURCES", example)
    assert load().sources[0].options == OPTIONS
