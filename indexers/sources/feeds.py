"""A feed (RSS, RDF, Atom) as a source: what is new or changed in it since the last run, page by page where that is asked.

What falls off the end of a feed stays: a feed shows the newest, and says nothing about the rest. Knows nothing about XML,
connections, or how an entry is recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import orjson
import trafilatura

from indexers.sources.entries import Entry, Feed, decoded, feed_of
from indexers.sources.fetching import Fetched, Fetcher, Limits, checked_address
from indexers.sources.identity import Placed, placed
from indexers.sources.options import flag, needed_text, refuse_unknown, refused, text, whole_number
from indexers.sources.robots import Robots
from indexers.sources.source import Batch, Cursor, Found, Known
from pipeline.cleaning import clean
from pipeline.documents import MAX_FIELD_CHARS, Article, checked_id
from pipeline.errors import InvalidArticle, SourceUnavailable, TooLarge, UnreadableSource, shown

_BATCH_ARTICLES = 50  # with full texts a batch takes a minute or two: what is read is kept that often
_BATCH_CHARS = 2_000_000  # of bodies: some megabytes
_KEPT_DIGESTS = 2_000  # of entries that left the feed: enough for the few that come back, 100 kB of cursor
_DIGEST_DIGITS = 20  # hexadecimal: 80 bits
_PAGE_TRIES = 3  # runs in which an entry's page is tried before its summary has to do
_FAILURES_IN_A_ROW = 5  # pages; then the place is taken to be down, and this run asks it no more
_MAX_ENTRIES = 10_000
_DEFAULT_ENTRIES = 500  # feeds hold 10 to 100; more is an archive
_HTML_TYPES = ("text/html", "application/xhtml+xml", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """How a feed is read. Made by `from_mapping`, which checks it.

    `full_text` fetches the page of each new or changed entry for its body, where the place's robots.txt lets it or
    `ignore_robots` says that the place is ours; `category` is given to every article;
    `allow_private` lets the feed and its pages lie on this machine or the networks around it; of more than `max_entries`
    the first are taken.
    """

    url: str
    full_text: bool = False
    ignore_robots: bool = False
    category: str | None = None
    allow_private: bool = False
    max_entries: int = _DEFAULT_ENTRIES

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> FeedOptions:
        """Raises InvalidInput naming the option, the value seen and the rule; UnreadableSource for an address unfit to ask."""
        refuse_unknown(options, [option.name for option in fields(cls)])
        url = needed_text(options, "url").strip()
        checked_address(url)
        category = text(options, "category")
        if category is not None and len(category) > MAX_FIELD_CHARS:
            raise refused("category", category, f"at most {MAX_FIELD_CHARS} characters")
        return cls(
            url=url,
            full_text=flag(options, "full_text"),
            ignore_robots=flag(options, "ignore_robots"),
            category=category,
            allow_private=flag(options, "allow_private"),
            max_entries=whole_number(options, "max_entries", default=_DEFAULT_ENTRIES, least=1, most=_MAX_ENTRIES),
        )


@dataclass(slots=True, kw_only=True)
class _Memory:
    """The cursor while a run fills it: `seen` {article id: digest}, `waiting` {article id: failed tries of its page}."""

    seen: dict[str, str]
    waiting: dict[str, int]

    @classmethod
    def of(cls, cursor: Cursor) -> _Memory:
        return cls(seen=dict(cursor.get("seen", {})), waiting=dict(cursor.get("waiting", {})))

    def put(self, article_id: str, digest: str) -> None:
        """Also moves it to the end: what was not in the feed for long stands in front, and is forgotten first."""
        self.seen.pop(article_id, None)
        self.seen[article_id] = digest
        self.waiting.pop(article_id, None)

    def cursor(self, conditions: Mapping[str, str | None] | None = None) -> Cursor:
        """Without `conditions` the next run reads the feed anew, though it did not change."""
        return {**(conditions or {}), "seen": dict(self.seen), "waiting": dict(self.waiting)}


@dataclass(slots=True)
class _Part:
    """The batch that is being filled."""

    found: list[Found] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def is_full(self) -> bool:
        chars = sum(len(one.article.body) for one in self.found)
        return len(self.found) >= _BATCH_ARTICLES or chars >= _BATCH_CHARS

    def batch(self, cursor: Cursor) -> Batch:
        return Batch(found=tuple(self.found), problems=tuple(self.problems), renamed=dict(self.renamed), cursor=cursor)


class FeedSource:
    """A feed under the name `name`, which becomes the `source` of its articles and the beginning of their ids.

    An article's id is told in `identity.placed`, its key there is the entry's link or id. The cursor holds the feed's ETag
    and Last-Modified, a digest of each entry as it was delivered, and the pages that have to be tried again.
    """

    def __init__(self, name: str, options: FeedOptions, *, limits: Limits | None = None) -> None:
        checked_id(f"{name}:0")
        self._name = name
        self._options = options
        self._limits = limits or Limits()

    def read(self, cursor: Cursor, known: Known) -> Iterator[Batch]:
        """New and changed entries; nothing where the server says that the feed did not change.

        Raises SourceUnavailable and UnreadableSource as `Source.read` says.
        """
        with Fetcher(self._limits, allow_private=self._options.allow_private) as fetcher:
            fetched = fetcher.get(self._options.url, etag=cursor.get("etag"), last_modified=cursor.get("last_modified"))
            if fetched.status == 304:
                return
            feed = feed_of(fetched.content, url=fetched.url, content_type=fetched.content_type)
            pages = _Pages(fetcher, None if self._options.ignore_robots else Robots(fetcher))
            yield from self._batches(feed, fetched, _Memory.of(cursor), known, pages)

    def _batches(self, feed: Feed, fetched: Fetched, memory: _Memory, known: Known, pages: _Pages) -> Iterator[Batch]:
        entries = placed(self._name, feed, known)
        part = _Part(problems=self._problems(feed, len(entries)))
        entries = entries[: self._options.max_entries]
        here = {entry.article_id for entry in entries}
        memory.waiting = {article_id: n for article_id, n in memory.waiting.items() if article_id in here}
        for entry in entries:
            if known.get(entry.article_id, entry.key) != entry.key:
                part.renamed[entry.article_id] = entry.key
            self._take(entry, part, memory, known, pages)
            if part.is_full():
                yield part.batch(memory.cursor())
                part = _Part()
        _forget(memory, here)
        is_settled = feed.problem is None and not memory.waiting
        conditions = {"etag": fetched.etag, "last_modified": fetched.last_modified} if is_settled else None
        yield part.batch(memory.cursor(conditions))

    def _problems(self, feed: Feed, count: int) -> list[str]:
        problems = [feed.problem] if feed.problem else []
        if count > self._options.max_entries:
            problems.append(f"the feed holds {count:,} entries, the first {self._options.max_entries:,} are used")
        return problems

    def _take(self, entry: Placed, part: _Part, memory: _Memory, known: Known, pages: _Pages) -> None:
        """Adds the article to `part`, if it is new or changed."""
        digest = self._digest(entry.entry)
        if memory.seen.get(entry.article_id) == digest:
            memory.put(entry.article_id, digest)
            return
        fields_of_it = self._fields(entry, is_known=entry.article_id in known)
        page_problem = None
        if self._options.full_text and entry.entry.link:
            page_problem = pages.put_into(fields_of_it, entry.entry.link)
        try:
            part.found.append(Found(article=Article.from_mapping(fields_of_it), key=entry.key))
        except (InvalidArticle, TooLarge) as error:
            part.problems.append(f"entry {shown(entry.entry.title or entry.key)}: {error}")
        if page_problem is None:
            memory.put(entry.article_id, digest)
        else:
            part.problems.append(page_problem + _tried(entry.article_id, digest, memory))

    def _fields(self, placed_entry: Placed, *, is_known: bool) -> dict[str, Any]:
        entry = placed_entry.entry
        # A changed entry keeps the time of its publication: taken for the time of the change, it could come too late.
        updated = entry.updated or (None if is_known else entry.published)
        return {
            "id": placed_entry.article_id,
            "title": entry.title,
            "body": entry.body,
            "format": entry.format,
            "url": entry.link,
            "tags": entry.tags,
            "category": self._options.category,
            "source": self._name,
            "published_at": entry.published,
            "updated_at": updated if updated and datetime.fromisoformat(updated) <= datetime.now(UTC) else None,
        }

    def _digest(self, entry: Entry) -> str:
        """Of what the feed delivered and the options that make an article of it; not of the id, which may change alone."""
        of = (
            entry.link,
            entry.title,
            entry.body,
            entry.format,
            entry.tags,
            entry.published,
            entry.updated,
            self._options.category,
            self._options.full_text,
            self._options.ignore_robots,
        )
        return hashlib.sha256(orjson.dumps(of)).hexdigest()[:_DIGEST_DIGITS]


class _Pages:
    """The pages of entries, in one run. Without `robots` every one may be read."""

    def __init__(self, fetcher: Fetcher, robots: Robots | None) -> None:
        self._fetcher = fetcher
        self._robots = robots
        self._failures = 0  # in a row

    def put_into(self, fields_of_it: dict[str, Any], link: str) -> str | None:
        """Puts the page's text into `fields_of_it` where it is more than the feed gave; else why there is none."""
        if self._failures >= _FAILURES_IN_A_ROW:
            return f"the page {link} was not tried, {_FAILURES_IN_A_ROW} before it failed"
        try:
            body = self._main_text(link)
        except (SourceUnavailable, UnreadableSource) as error:
            self._failures += isinstance(
                error, SourceUnavailable
            )  # a page of another kind says nothing about the place
            return f"the page of an entry gives no text: {error.message}"
        self._failures = 0
        given = clean(fields_of_it["body"], fields_of_it["format"]).text
        if len(clean(body, "html").text) > len(given):  # a page that gives less asks for consent or a subscription
            fields_of_it |= {"body": body, "format": "html"}
        return None

    def _main_text(self, link: str) -> str:
        self._check_robots(str(checked_address(link)))
        fetched = self._fetcher.get(link)
        self._check_robots(fetched.url)  # it may have led elsewhere
        kind = fetched.content_type.partition(";")[0].strip().lower()
        if kind not in _HTML_TYPES:
            raise UnreadableSource(f"{link} is {shown(kind)} and no page", "nothing to do: the summary is used")
        page, _ = decoded(fetched.content, fetched.content_type)
        try:
            body = trafilatura.extract(page, url=fetched.url, output_format="html", include_comments=False)
        except (ValueError, RecursionError) as error:
            raise UnreadableSource(f"{link} cannot be read: {error}", "nothing to do: the summary is used") from error
        if not body:
            raise UnreadableSource(f"{link} has no main text", "nothing to do: the summary is used")
        return body

    def _check_robots(self, url: str) -> None:
        if self._robots is not None and not self._robots.allow(url):
            raise UnreadableSource(
                f"robots.txt keeps robots from {url} (where the place is yours: ignore_robots = true)",
                "nothing to do: the summary is used",
            )


def _tried(article_id: str, digest: str, memory: _Memory) -> str:
    """Counts a failed try of a page, and says what follows."""
    tries = memory.waiting.get(article_id, 0) + 1
    if tries >= _PAGE_TRIES:
        memory.put(article_id, digest)
        return f"; its summary is used, {tries} runs have tried"
    memory.seen.pop(article_id, None)
    memory.waiting[article_id] = tries
    return "; its summary is used, the next run tries again"


def _forget(memory: _Memory, here: Collection[str]) -> None:
    """Drops the digests of entries that left the feed longest ago."""
    gone = [article_id for article_id in memory.seen if article_id not in here]
    for article_id in gone[: max(0, len(gone) - _KEPT_DIGESTS)]:
        del memory.seen[article_id]
