"""A table or view of any database: how it is reached, what its columns are, its rows in pages.

Only SELECTs are sent; identifiers go through SQLAlchemy's constructs and values are bound, so no name and no cell can be
SQL. Knows nothing about articles already delivered or about what changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import (
    URL,
    BindParameter,
    ColumnClause,
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    bindparam,
    column,
    create_engine,
    func,
    inspect,
    make_url,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, InterfaceError, NoSuchTableError, OperationalError
from sqlalchemy.pool import NullPool
from sqlalchemy.types import NullType

from indexers.sources import options as given
from indexers.sources.values import is_set
from indexers.sources.watermarks import Watermark, is_watermark
from pipeline.documents import Article
from pipeline.errors import SourceUnavailable, UnreadableSource, shown

_FIRST_PAGE_ROWS = 50  # until it is known how long the bodies are
_PAGE_CHARS = 4_000_000  # of text a page: a batch stays within some 20 MB
_KEYS_A_PAGE = 10_000  # a key is small
_ARTICLE_FIELDS = tuple(f.name for f in fields(Article))
_SECRET_PARAMETER = re.compile("pass|pwd|secret|token|key|odbc_connect", re.IGNORECASE)
_URL_RULE = (
    "an SQLAlchemy URL of a database whose driver is installed, such as postgresql+psycopg://user:password@host/db"
)
# A server that went away silently is noticed within a minute instead of hours. All in seconds.
_POSTGRESQL = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_STATEMENT_SECONDS = 600  # for a page, which may be locked, or of a view that does not end; PostgreSQL keeps to it


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlOptions:
    """Which table is read and how. Made by `from_mapping`, which checks every option.

    `columns`: article field → column; id, body and title are those of the same name where nothing is said. `key`: the
    column of the primary key, unique, the one of the id where nothing is said. `watermark`: a column that grows with every
    change; without one the whole table is read each time. `deleted`: a column that is set (true, not 0, a time) where a row
    counts as deleted. `compare_keys`: rows that are not in the table any more are removed articles. `allow_empty`: also
    where the table is empty. `timezone` is that of times without an offset. `overlap_seconds`: how long a transaction may
    take from setting a watermark that is a time to its commit.
    """

    url: URL = field(repr=False)
    table: str
    columns: Mapping[str, str] = field(default_factory=dict)
    key: str
    watermark: str | None = None
    deleted: str | None = None
    compare_keys: bool = False
    allow_empty: bool = False
    timezone: ZoneInfo
    overlap_seconds: int = 60
    batch_rows: int = 500

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> SqlOptions:
        """Raises InvalidInput naming the option, the value seen (a URL without its password) and the rule."""
        given.refuse_unknown(data, tuple(f.name for f in fields(cls)))
        columns = _checked_columns(data.get("columns"))
        return cls(
            url=_checked_url(given.needed_text(data, "url")),
            table=given.needed_text(data, "table"),
            columns=columns,
            key=given.text(data, "key") or columns["id"],
            watermark=given.text(data, "watermark"),
            deleted=given.text(data, "deleted"),
            compare_keys=given.flag(data, "compare_keys"),
            allow_empty=given.flag(data, "allow_empty"),
            timezone=_checked_zone(given.text(data, "timezone") or "Asia/Seoul"),
            overlap_seconds=given.whole_number(data, "overlap_seconds", default=60, least=0, most=86_400),
            batch_rows=given.whole_number(data, "batch_rows", default=500, least=1, most=10_000),
        )

    @property
    def place(self) -> str:
        """The table as it is named in an error: without password and parameters."""
        address = self.url.set(query={}).render_as_string(hide_password=True)
        return f"{self.table} in {address}"

    def without_secrets(self, text: str) -> str:
        """`text` of a driver in one line, with the password and what else is secret in the URL starred out."""
        secrets = [self.url.password, *(v for name, v in self.url.query.items() if _SECRET_PARAMETER.search(name))]
        for secret in filter(None, secrets):
            for part in (secret,) if isinstance(secret, str) else secret:
                text = text.replace(part, "***")
        return " ".join(text.split())


def _checked_columns(value: object) -> dict[str, str]:
    rule = f"an object of article fields ({', '.join(_ARTICLE_FIELDS)}) and the names of their columns"
    if not isinstance(value, Mapping | None):
        raise given.refused("columns", value, rule)
    columns = {"id": "id", "body": "body"}
    for name, of in (value or {}).items():
        if name not in _ARTICLE_FIELDS or not isinstance(of, str) or not of:
            raise given.refused("columns", {name: of}, rule)
        columns[name] = of
    return columns


def _checked_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # What cannot be parsed may hold a password anywhere, in the error's cause too.
        raise given.refused("url", re.sub(r"(?<=:).*", "…", text), _URL_RULE) from None
    try:
        url.get_dialect().import_dbapi()
    except (ArgumentError, ImportError) as error:
        raise given.refused("url", url.set(query={}).render_as_string(), f"{_URL_RULE} ({error})") from error
    return url


def _checked_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise given.refused("timezone", name, "a name of the time zone database, such as Asia/Seoul") from error


# --- one connection -------------------------------------------------------------------------------------------------


@contextmanager
def telling(options: SqlOptions) -> Iterator[None]:
    """Turns what the driver raises into an error that tells the place and no password."""
    try:
        yield
    except (DBAPIError, OSError) as error:
        why = options.without_secrets(str(getattr(error, "orig", None) or error))
        is_away = isinstance(error, OperationalError | InterfaceError | OSError) or type(error) is DatabaseError
        if is_away or getattr(error, "connection_invalidated", False):
            raise SourceUnavailable(options.place, why) from error
        raise UnreadableSource(
            f"{options.place} cannot be read: {why}", "check the types of its columns and the right to SELECT"
        ) from error


@contextmanager
def connected(options: SqlOptions) -> Iterator[Connection]:
    """A connection that holds no transaction: the time between two batches is another's."""
    engine = _engine(options)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":  # not as a startup parameter, which PgBouncer refuses
                connection.execute(text(f"SET statement_timeout = '{_STATEMENT_SECONDS}s'"))
            yield connection
    finally:
        engine.dispose()


def _engine(options: SqlOptions) -> Engine:
    arguments: dict[str, Any] = {}
    match options.url.get_backend_name():
        case "postgresql":
            arguments = {name: value for name, value in _POSTGRESQL.items() if name not in options.url.query}
        case "sqlite":
            path = options.url.database or ""
            if not path.startswith("file:") and not Path(path).exists():  # SQLite would make an empty one
                raise SourceUnavailable(options.place, "there is no such file; is a drive not mounted?")
            arguments = {"check_same_thread": False}  # a run that is given up may be closed by another thread
    return create_engine(options.url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments)


def columns_there(options: SqlOptions, connection: Connection) -> set[str]:
    """The columns of the table. Raises UnreadableSource where it or one that is needed is missing."""
    schema, name = _schema_and_name(options.table)
    inspector = inspect(connection)
    try:
        there = [found["name"] for found in inspector.get_columns(name, schema)]
    except NoSuchTableError as error:
        tables = [*inspector.get_table_names(schema), *inspector.get_view_names(schema)]
        raise UnreadableSource(
            f"there is no {options.place}; there is {shown(tables)}", "correct the option 'table'"
        ) from error
    needed = {"key": options.key, "watermark": options.watermark, "deleted": options.deleted}
    needed |= {f"columns.{name}": of for name, of in options.columns.items()}
    for option, of in needed.items():
        if of is not None and of not in there:
            raise UnreadableSource(
                f"{options.place} has no column {of!r}; its columns are {', '.join(there)}",
                f"correct the option {option!r}",
            )
    return set(there)


def _schema_and_name(name: str) -> tuple[str | None, str]:
    schema, _, name = name.rpartition(".")
    return schema or None, name


# --- rows, in pages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A row: `values` by article field."""

    key: Any
    watermark: Any
    is_deleted: bool
    values: dict[str, Any]


class TableReader:
    """The SELECTs of one run. Pages are found by the last row seen, never by counting rows from the beginning."""

    def __init__(self, options: SqlOptions, connection: Connection, there: set[str]) -> None:
        self._options = options
        self._connection = connection
        schema, name = _schema_and_name(options.table)
        title = {"title": "title"} if "title" in there else {}
        self._fields = title | dict(options.columns)
        # Without types: what the driver returns is what it is asked with again, also where a column holds many types.
        self._columns: dict[str, ColumnClause[Any]] = {of: column(of) for of in there}
        self._table = table(name, *self._columns.values(), schema=schema)
        self.key = self._columns[options.key]
        self.watermark = self._columns[options.watermark] if options.watermark else None

    def top(self) -> Watermark | None:
        """The highest watermark; None where there is none. Raises UnreadableSource for one without an exact order."""
        assert self.watermark is not None
        statement = select(self.watermark).where(self.watermark.is_not(None)).order_by(self.watermark.desc()).limit(1)
        value = self._connection.execute(statement.select_from(self._table)).scalar()
        if value is None:
            return None
        is_exact = not isinstance(value, float) or self._connection.dialect.name == "sqlite"  # others have a short REAL
        if not is_watermark(value) or not is_exact:
            raise UnreadableSource(
                f"{self._options.place} has {shown(value)} in its watermark column {self._options.watermark!r}",
                "name a column of whole numbers, decimals or times that grows with every change, or none",
            )
        checked: Watermark = value
        return checked

    def has(self, condition: ColumnElement[bool]) -> bool:
        """Whether any row meets `condition`."""
        statement = select(self.key).select_from(self._table).where(condition).limit(1)
        return self._connection.execute(statement).first() is not None

    def count_without_key(self) -> int:
        statement = select(func.count()).select_from(self._table).where(self.key.is_(None))
        return int(self._connection.execute(statement).scalar_one())

    def pages(self, *conditions: ColumnElement[bool], by_watermark: bool) -> Iterator[list[Line]]:
        """The rows that meet `conditions`, in the order of (watermark, key), or of the key alone."""
        order = [self.watermark, self.key] if by_watermark and self.watermark is not None else [self.key]
        statement = self._selected().where(self.key.is_not(None), *conditions).order_by(*order)
        size = min(self._options.batch_rows, _FIRST_PAGE_ROWS)
        last: tuple[Any, ...] | None = None
        while True:
            after = [_is_after(order, last)] if last is not None else []
            page = [self._line(row) for row in self._connection.execute(statement.where(*after).limit(size))]
            if not page:
                return
            yield page
            if len(page) < size:
                return
            before, last = last, (page[-1].watermark, page[-1].key)[-len(order) :]
            if before == last:
                raise self._stuck(last)
            size = _next_size(page, self._options.batch_rows)

    def key_marks(self) -> Iterator[tuple[Any, bool]]:
        """(key, whether the row is marked as deleted) of every row."""
        last: tuple[Any, ...] | None = None
        deleted = self._columns[self._options.deleted] if self._options.deleted else self.key
        statement = select(self.key.label("k"), deleted.label("d")).select_from(self._table).order_by(self.key)
        while True:
            conditions = [self.key.is_not(None), *([_is_after([self.key], last)] if last is not None else [])]
            rows = self._connection.execute(statement.where(*conditions).limit(_KEYS_A_PAGE)).all()
            for key, mark in rows:
                yield key, self._options.deleted is not None and is_set(mark)
            if len(rows) < _KEYS_A_PAGE:
                return
            before, last = last, (rows[-1].k,)
            if before == last:
                raise self._stuck(last)

    def _selected(self) -> Select[Any]:
        chosen = {"k": self.key}
        if self.watermark is not None:
            chosen["w"] = self.watermark
        if self._options.deleted:
            chosen["d"] = self._columns[self._options.deleted]
        chosen |= {f"f_{name}": self._columns[of] for name, of in self._fields.items()}
        return select(*(of.label(label) for label, of in chosen.items())).select_from(self._table)

    def _line(self, row: Any) -> Line:
        cells = row._mapping
        return Line(
            key=cells["k"],
            watermark=cells.get("w"),
            is_deleted=is_set(cells.get("d")),
            values={name: cells[f"f_{name}"] for name in self._fields},
        )

    def _stuck(self, last: tuple[Any, ...]) -> UnreadableSource:
        return UnreadableSource(
            f"{self._options.place} gives the rows at {shown(last)} again and again: its values are finer than its driver",
            "read it through a view that rounds the watermark to microseconds",
        )


def _is_after(order: Sequence[ColumnElement[Any]], last: tuple[Any, ...]) -> ColumnElement[bool]:
    """Written out, because not every database compares tuples."""
    first, value = order[0], bound(last[0])
    if len(order) == 1:
        return first > value
    return or_(first > value, and_(first == value, order[1] > bound(last[1])))


def bound(value: Any) -> BindParameter[Any]:
    """Without a type, so that the database compares as the column does (a cast to VARCHAR would lose its collation)."""
    return bindparam(None, value, type_=NullType())


def _next_size(page: Sequence[Line], most: int) -> int:
    chars = sum(len(value) for line in page for value in line.values.values() if isinstance(value, str))
    return max(1, min(most, len(page) * _PAGE_CHARS // max(1, chars)))
