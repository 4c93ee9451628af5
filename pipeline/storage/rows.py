"""What the state database gives back: the answers of the registry, the inbox and the change log, as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pipeline.documents import Article, Change

Status = Literal["queued", "indexed", "failed", "deleted"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a change: `seq` to wait for; `unchanged` where the same content is already accepted."""

    article_id: str
    seq: int
    revision: int | None
    status: Status
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class ArticleState:
    """What is known of one article; `article` is the newest accepted version, None after a delete.

    `error` is of the last attempt: of one that failed for good, or of one that is tried again while it is `queued`.
    """

    article_id: str
    article: Article | None
    seq: int
    revision: int | None
    status: Status
    error: str | None
    passages: int
    updated_at: datetime
    accepted_at: datetime
    indexed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the worker made of a change: its rows are in the collection (or, for a delete, there is nothing to show)."""

    change: Change
    passages: int
    rows: str = ""  # all of them as text, for the processes that follow the log; "" leaves them to the collection


@dataclass(frozen=True, slots=True)
class Leftover:
    """Rows of an article that may go: the `passages` ones of `revision`.

    A revision of 0 stands for whichever are below `before` and not `keep`, the visible one: they have to be looked for.
    """

    article_id: str
    revision: int
    passages: int
    keep: int | None
    before: int


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of the change log: from `position` on, `revision` is visible (None: the article is gone)."""

    position: int
    article_id: str
    revision: int | None
    seq: int
    lane: int | None
    accepted_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> LogEntry:
        """The entry of a row of the table `changes`."""
        return cls(row.position, row.article_id, row.revision, row.seq, row.lane, row.accepted_at)


@dataclass(frozen=True, slots=True)
class Failed:
    """A change that could not be indexed after all attempts: a dead letter until it is sent again or tried again."""

    article_id: str
    seq: int
    error: str
    accepted_at: datetime
