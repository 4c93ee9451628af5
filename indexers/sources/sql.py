"""A table as a source: rows that changed by a watermark, rows that are marked as deleted or are gone.

How a table is reached and paged is `table`'s business, what a value means is in `values`, how far a table was read in
`watermarks`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement

from indexers.sources.source import Batch, Cursor, Found, Known
from indexers.sources.table import Line, SqlOptions, TableReader, bound, columns_there, connected, telling
from indexers.sources.values import fields_of_values, key_text
from indexers.sources.watermarks import Watermark, from_json, is_comparable, moved, not_after, to_json
from pipeline.documents import Article
from pipeline.errors import InvalidArticle, SourceUnavailable, TooLarge, shown

__all__ = ["SqlOptions", "SqlSource"]

_CLOSE_ABOVE = timedelta(seconds=1)  # drivers cut a time to microseconds: the row that had the highest is not above it


class SqlSource:
    """The articles of a table; the key of an article is its row's primary key as text.

    Rows whose watermark is null are read each time: a table that leaves it null until the first edit had better be read
    through a view that fills it in. A row that breaks a rule of articles is told, and its article stays as it was. One that
    gets another id removes the article of the old one. Where two rows have one id, the one read first counts, and it is told.
    """

    def __init__(self, options: SqlOptions) -> None:
        self.options = options

    def read(self, cursor: Cursor, known: Known) -> Iterator[Batch]:
        """As the protocol says; a table that is the same as before gives at most the rows of the overlap.

        Raises SourceUnavailable where the database does not answer, or where `compare_keys` finds an empty table and
        articles are known; UnreadableSource for a table or a column that there is not.
        """
        with telling(self.options), connected(self.options) as connection:
            rows = TableReader(self.options, connection, columns_there(self.options, connection))
            keeper = _Keeper(self.options, known)
            yield from _changed(rows, keeper, cursor)
            if self.options.compare_keys:
                yield from _gone(rows, keeper)


# --- what changed ---------------------------------------------------------------------------------------------------


def _changed(rows: TableReader, keeper: _Keeper, cursor: Cursor) -> Iterator[Batch]:
    if rows.watermark is None:
        for page in rows.pages(by_watermark=False):
            yield keeper.batch(page, cursor={})
    else:
        top = rows.top()
        if top is not None:
            yield from _changed_since(rows, keeper, cursor, rows.watermark, top)
        for page in rows.pages(rows.watermark.is_(None), by_watermark=False):
            yield keeper.batch(page, cursor=None)
    if without_key := rows.count_without_key():
        yield Batch(problems=[f"{keeper.options.place}: {without_key:,} rows are left out, their key is null"])


def _changed_since(
    rows: TableReader, keeper: _Keeper, cursor: Cursor, watermark: ColumnElement[Any], top: Watermark
) -> Iterator[Batch]:
    """The rows from a little before the cursor's watermark up to `top`.

    A row that comes above `top` meanwhile waits for the next run: so no cursor is ever ahead of the rows that were committed
    when it began, and the overlap is what it promises.
    """
    options = keeper.options
    conditions = [watermark <= bound(moved(top, _CLOSE_ABOVE))]
    since = from_json(cursor.get("watermark")) if cursor.get("of") == _what_is_read(options) else None
    if since is not None and _is_backwards(rows, watermark, since, top):
        yield Batch(
            problems=[
                f"{options.place}: the highest {options.watermark!r} is {shown(top)}, below {shown(since)} where the last run "
                "ended (was it restored, was its newest row deleted?): all of it is read again"
            ]
        )
        since = None
    if since is not None:
        conditions.append(watermark >= bound(moved(since, -timedelta(seconds=options.overlap_seconds))))
    now = datetime.now(UTC)
    for page in rows.pages(*conditions, by_watermark=True):
        # A row dated ahead of the clock would hide all that is written until then.
        seen = not_after(page[-1].watermark, now, options.timezone)
        yield keeper.batch(page, cursor={"of": _what_is_read(options), "watermark": to_json(seen)})


def _is_backwards(rows: TableReader, watermark: ColumnElement[Any], since: Watermark, top: Watermark) -> bool:
    return not is_comparable(since, top) or not rows.has(watermark >= bound(since))


def _what_is_read(options: SqlOptions) -> dict[str, Any]:
    """What a watermark stands for: with another table, column or meaning, all rows are to be read anew."""
    return {
        "table": options.table,
        "key": options.key,
        "watermark": options.watermark,
        "deleted": options.deleted,
        "columns": dict(options.columns),
        "timezone": options.timezone.key,
    }


class _Keeper:
    """Which article each row is known as, from the runs before and in this one."""

    def __init__(self, options: SqlOptions, known: Known) -> None:
        self.options = options
        self._key_of = dict(known)
        self._ids_of: defaultdict[str, set[str]] = defaultdict(set)
        for article_id, key in known.items():
            self._ids_of[key].add(article_id)
        self._read_as: dict[str, str] = {}  # article id → key of the row that gave it in this run

    def batch(self, lines: Sequence[Line], cursor: Cursor | None) -> Batch:
        found: dict[str, Found] = {}
        removed: dict[str, None] = {}  # a set that keeps its order
        problems: list[str] = []
        for line in lines:
            key = key_text(line.key)
            if line.is_deleted:
                removed |= dict.fromkeys(self.forget(key))
                continue
            row = f"row {shown(key)} of {self.options.place}"
            try:
                article = Article.from_mapping(fields_of_values(line.values, self.options.timezone))
            except (InvalidArticle, TooLarge) as error:
                problems.append(f"{row}: {error}")
                continue
            if (other := self._read_as.setdefault(article.id, key)) != key:
                problems.append(f"{row}: its id {shown(article.id)} is also that of row {shown(other)}, which counts")
                continue
            removed |= dict.fromkeys(self._remember(article.id, key))
            removed.pop(article.id, None)
            found[article.id] = Found(article=article, key=key)
        kept = [one for article_id, one in found.items() if article_id not in removed]
        return Batch(found=kept, removed=list(removed), cursor=cursor, problems=problems)

    def forget(self, key: str) -> list[str]:
        """The articles of a row that is no more."""
        ids = sorted(self._ids_of.pop(key, ()))
        for article_id in ids:
            del self._key_of[article_id]
            self._read_as.pop(article_id, None)
        return ids

    def keys(self) -> set[str]:
        """Of the rows that are known as an article."""
        return {key for key, ids in self._ids_of.items() if ids}

    @property
    def number_known(self) -> int:
        return len(self._key_of)

    def _remember(self, article_id: str, key: str) -> list[str]:
        """Notes that the row `key` is the article `article_id`, and gives those that the row was before."""
        before = self._key_of.get(article_id)
        if before is not None:
            self._ids_of[before].discard(article_id)
        others = self.forget(key)
        self._key_of[article_id] = key
        self._ids_of[key].add(article_id)
        return others


def _gone(rows: TableReader, keeper: _Keeper) -> Iterator[Batch]:
    options = keeper.options
    missing = keeper.keys()
    is_empty = True
    for key, is_deleted in rows.key_marks():
        is_empty = False
        if not is_deleted:
            missing.discard(key_text(key))
    if is_empty and missing and not options.allow_empty:
        raise SourceUnavailable(
            options.place,
            f"the table is empty, {keeper.number_known:,} articles are known",
            "nothing was removed; where that is meant, set the option 'allow_empty'",
        )
    removed = [article_id for key in sorted(missing) for article_id in keeper.forget(key)]
    for start in range(0, len(removed), options.batch_rows):
        yield Batch(removed=removed[start : start + options.batch_rows])
