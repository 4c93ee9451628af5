"""What goes in and what is indexed: `Article`, `Change`, `Passage`, and the rules of their ids and hashes.

Knows nothing about files, databases, encoders or the web.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from pipeline.errors import InvalidArticle, TooLarge

Format = Literal["text", "markdown", "html"]
Span = tuple[int, int]  # [start, end) in characters

MAX_ID_CHARS = 200
MAX_BODY_BYTES = 5_000_000  # 5 MB of UTF-8: larger bodies are dumps, not articles
MAX_TITLE_CHARS = 1_000
MAX_FIELD_CHARS = 500  # category, series, source, a tag: they are filter values
MAX_URL_CHARS = 2_000
MAX_TAGS = 50
_FORMATS: tuple[Format, ...] = ("text", "markdown", "html")
_FORBIDDEN_IN_ID = "#/"  # '#' separates the parts of a passage id, '/' the parts of a path
CANARY = "/canary"  # the article that measures freshness: nobody else can have this id, and no search shows it


@dataclass(frozen=True, slots=True, kw_only=True)
class Article:
    """What is published. Made by `Article.from_mapping`, which checks every field.

    `updated_at` None means "as of its acceptance"; `quality` is in 0..1, higher is better; an article with
    `visible=False` is stored and not shown.
    """

    id: str
    title: str
    body: str
    format: Format = "text"
    url: str | None = None
    category: str | None = None
    series: str | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    published_at: datetime | None = None
    updated_at: datetime | None = None
    quality: float | None = None
    visible: bool = True

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Article:
        """The article described by `data` (the JSON object of the contract).

        Raises InvalidArticle naming the field, the value seen and the rule; TooLarge for a body over 5 MB.
        """
        unknown = sorted(set(data) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidArticle(unknown[0], data[unknown[0]], "left out: there is no such field")
        title = _text(data, "title", MAX_TITLE_CHARS)
        body = _body(data)
        if not (title or "").strip() and not body.strip():
            raise InvalidArticle("body", body, "some text (title and body are both empty)")
        return cls(
            id=checked_id(data.get("id")),
            title=title or "",
            body=body,
            format=_format(data.get("format")),
            url=_text(data, "url", MAX_URL_CHARS),
            category=_text(data, "category", MAX_FIELD_CHARS),
            series=_text(data, "series", MAX_FIELD_CHARS),
            tags=_tags(data.get("tags")),
            source=_text(data, "source", MAX_FIELD_CHARS),
            published_at=_time(data, "published_at"),
            updated_at=_time(data, "updated_at"),
            quality=_quality(data.get("quality")),
            visible=_flag(data, "visible", default=True),
        )

    def to_mapping(self) -> dict[str, Any]:
        """The JSON object of the contract, without empty fields; `from_mapping` reads it back to an equal article."""
        mapping = {name: value for name, value in asdict(self).items() if value is not None and value != ()}
        mapping["tags"] = list(self.tags)
        for name in ("published_at", "updated_at"):
            if name in mapping:
                mapping[name] = mapping[name].isoformat()
        return mapping

    @property
    def content_hash(self) -> str:
        """SHA-256 over everything but `updated_at`: equal hashes mean nothing to index anew."""
        mapping = self.to_mapping()
        mapping.pop("updated_at", None)
        return hashlib.sha256(orjson.dumps(mapping, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An accepted change: `seq` is its number in the inbox, given at acceptance; `article` None is a delete.

    `lane`: what waits in a lower one goes first; `attempts` is how often indexing it has failed so far.
    """

    seq: int
    article_id: str
    article: Article | None
    updated_at: datetime
    accepted_at: datetime | None = None
    lane: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What is indexed: a piece of one revision of an article, with what searching and showing it needs.

    `text` is clean text; a carried heading stands in its first line. `terms` are Kiwi terms in the order of the text, an
    entry an occurrence, and `term_spans[i]` is where `terms[i]` stands in `text` (whole compounds overlap their parts).
    `sentence_spans` cover the text. `content_hash` is over what an encoder reads: equal hash and manifest, equal vector.
    """

    article_id: str
    revision: int
    ordinal: int
    title: str
    text: str
    terms: tuple[str, ...]
    term_spans: tuple[Span, ...]
    title_terms: tuple[str, ...]
    sentence_spans: tuple[Span, ...]
    url: str | None = None
    category: str | None = None
    series: str | None = None
    tags: tuple[str, ...] = ()
    source: str | None = None
    published_at: datetime | None = None
    quality: float | None = None

    @property
    def id(self) -> str:
        return passage_id(self.article_id, self.revision, self.ordinal)

    @property
    def content_hash(self) -> str:
        return hashlib.sha256(f"{self.title}\0{self.text}".encode()).hexdigest()


def stored_article(data: Mapping[str, Any]) -> Article:
    """The article of which `data` is `to_mapping`, as it was checked when it was accepted."""
    given = dict(data)
    for name in ("published_at", "updated_at"):
        if name in given:
            given[name] = datetime.fromisoformat(given[name])
    return Article(**{**given, "tags": tuple(given.get("tags", ()))})


def passage_id(article_id: str, revision: int, ordinal: int) -> str:
    return f"{article_id}#{revision}#{ordinal}"


def passage_parts(passage: str) -> tuple[str, int, int]:
    """(article id, revision, ordinal) of a passage id."""
    article_id, revision, ordinal = passage.rsplit("#", 2)
    return article_id, int(revision), int(ordinal)


def checked_id(value: object) -> str:
    """`value` as an article id in NFC: 1-200 characters of any script without `#`, `/` and control characters."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidArticle("id", value, "a text of 1-200 characters")
    _refuse_surrogates("id", value)
    article_id = unicodedata.normalize("NFC", value)
    if len(article_id) > MAX_ID_CHARS:
        raise InvalidArticle("id", value, f"at most {MAX_ID_CHARS} characters ({len(article_id)} seen)")
    for char in article_id:
        if char in _FORBIDDEN_IN_ID or unicodedata.category(char).startswith("C"):
            raise InvalidArticle("id", value, f"free of '#', '/' and control characters ({char!r} seen)")
    return article_id


def parsed_time(value: object) -> datetime | None:
    """An RFC 3339 time with an offset, in UTC; None where it is not one."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _refuse_surrogates(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArticle(
            name, value[max(0, error.start - 5) : error.end + 5], "Unicode text without lone surrogates"
        ) from error


def _text(data: Mapping[str, Any], name: str, limit: int) -> str | None:
    value = data.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidArticle(name, value, "a text")
    _refuse_surrogates(name, value)
    if len(value) > limit:
        raise InvalidArticle(name, value, f"at most {limit:,} characters ({len(value):,} seen)")
    return value


def _body(data: Mapping[str, Any]) -> str:
    value = data.get("body")
    if not isinstance(value, str):
        raise InvalidArticle("body", value, "a text")
    _refuse_surrogates("body", value)
    size = len(value.encode())
    if size > MAX_BODY_BYTES:
        raise TooLarge("the article's body", size, MAX_BODY_BYTES, "bytes")
    return value


def _format(value: object) -> Format:
    if value is None:
        return "text"
    for known in _FORMATS:
        if value == known:
            return known
    raise InvalidArticle("format", value, "one of text, markdown, html")


def _tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or len(value) > MAX_TAGS:
        raise InvalidArticle("tags", value, f"a list of at most {MAX_TAGS} texts")
    tags = [_text({"tags": tag}, "tags", MAX_FIELD_CHARS) for tag in value]
    if None in tags:
        raise InvalidArticle("tags", value, "a list of texts, without null")
    return tuple(dict.fromkeys(tag for tag in tags if tag is not None))


def _time(data: Mapping[str, Any], name: str) -> datetime | None:
    value = data.get(name)
    if value is None:
        return None
    moment = parsed_time(value)
    if moment is None:
        raise InvalidArticle(name, value, "an RFC 3339 time with an offset, such as 2026-03-02T09:00:00+09:00")
    return moment


def _quality(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidArticle("quality", value, "a number in 0..1")
    return float(value)


def _flag(data: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = data.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise InvalidArticle(name, value, "true or false")
    return value
