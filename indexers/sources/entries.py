"""The bytes of a feed (RSS, RDF, Atom) to its entries, as much of them as can be read.

What feeds get wrong most is mended here: the declared encoding, entities of HTML, control characters, an end that is
missing. Knows nothing about articles, cursors or the web.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html.entities import html5
from time import struct_time
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat

import feedparser
from selectolax.lexbor import LexborHTMLParser

from pipeline.cleaning import clean_title
from pipeline.documents import MAX_FIELD_CHARS, MAX_TAGS, Format
from pipeline.errors import SourceUnavailable, UnreadableSource

_MAX_MENDED_BYTES = 3_000_000  # 3 MB: malformed XML takes feedparser up to 5 s a megabyte (measured), well-formed 0.1 s
_DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([\w.:-]{1,40})""", re.ASCII)
_DECLARED_WITHIN = 1_024  # bytes; HTML asks for the same
_LATIN_1 = "cp1252"
# What is declared → what is meant. Windows writes CP949 and calls it EUC-KR; a page that says Latin-1 is Windows-1252.
_MEANT = {"euc_kr": "cp949", "iso8859-1": _LATIN_1, "ascii": "utf-8"}
_NO_TEXT = frozenset(
    ("idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-7")
)  # codecs, not encodings
_BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_NAMED_ENTITY = re.compile("&([A-Za-z][A-Za-z0-9]{1,31};)")
_OF_XML = frozenset("&<>\"'")
_NO_MARKUP = re.compile(r"<!\[CDATA\[.*?(?:\]\]>|\Z)|<!--.*?(?:-->|\Z)", re.DOTALL)
_ENTRY_TAG = re.compile(r"<(/?)(?:[\w.-]+:)?(?:item|entry)(?=[\s>])", re.IGNORECASE)
_HTML_PAGE = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*)*<(?:!doctype\s+html|html|head|body)\b", re.DOTALL | re.I
)
_FEED_LINK = 'link[rel="alternate"][type="application/rss+xml"], link[rel="alternate"][type="application/atom+xml"]'


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry as it was delivered. `guid` is its id (guid, atom:id, rdf:about), `link` an http(s) address.

    `published` and `updated` are RFC 3339 in UTC.
    """

    guid: str | None
    link: str | None
    title: str
    body: str
    format: Format
    tags: tuple[str, ...]
    published: str | None
    updated: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """`link` is the page that the feed belongs to. `problem` says why it could not be read as a whole, None where it was."""

    link: str | None
    entries: tuple[Entry, ...]
    problem: str | None


def feed_of(content: bytes, *, url: str, content_type: str) -> Feed:
    """The feed that `url` answered. Entries that were cut off are left out.

    Raises UnreadableSource for a page that is no feed, SourceUnavailable for one that is too broken to hold a whole entry.
    """
    text, damage = decoded(content, content_type)
    if _HTML_PAGE.match(text):
        raise UnreadableSource(f"{url} is a page and no feed", _hint_of_page(text, url))
    text = _NAMED_ENTITY.sub(_character, _NOT_IN_XML.sub("", text)).lstrip("\ufeff \t\r\n")
    flaw = _flaw(text)
    may_need_mending = flaw or "<!ENTITY" in text  # feedparser does not take every entity that XML takes
    if may_need_mending and len(text.encode()) > _MAX_MENDED_BYTES:
        why = flaw or "it defines entities"
        raise SourceUnavailable(url, f"it is malformed ({why}) and too large to be mended", "tell the feed's owner")
    parsed = _parsed(text, url)
    if parsed.bozo:
        flaw = flaw or str(parsed.bozo_exception)
    raw_entries = _complete(parsed.entries, text) if flaw else parsed.entries
    if flaw and not raw_entries:
        raise SourceUnavailable(url, f"there is no whole entry in it: {flaw}")
    if not raw_entries and not parsed.version:
        raise UnreadableSource(f"{url} is XML, but no feed", "give the address of an RSS or Atom feed")
    problem = f"the feed is malformed ({flaw}): its whole entries are used" if flaw else damage
    return Feed(link=_web_link(parsed.feed.get("link")), entries=tuple(map(_entry, raw_entries)), problem=problem)


def decoded(content: bytes, content_type: str) -> tuple[str, str | None]:
    """`content` as text, and what was lost on the way.

    Text that is valid UTF-8 is UTF-8, whatever is declared; else the document's own word comes before its server's, and
    CP949 is tried unasked, before Latin-1: that is what many servers say of everything, and it never objects. Where
    nothing fits, what does not is replaced: one cut character is no reason to lose the rest.
    """
    for mark, name in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(name, "replace"), None
    declared = list(_declared(content, content_type))
    meant = [name for name in declared if name != _LATIN_1]
    for name in ("utf-8", *meant, "cp949", *declared):
        try:
            return content.decode(name), None
        except UnicodeDecodeError:
            continue
    name = declared[0] if declared else "utf-8"
    return content.decode(name, "replace"), f"not all of it is {name}: what could not be read is shown as �"


def _declared(content: bytes, content_type: str) -> Iterator[str]:
    for place in (content[:_DECLARED_WITHIN], content_type.encode("ascii", "ignore")):
        for match in _DECLARED.finditer(place):
            try:
                name = codecs.lookup(match[1].decode()).name
                "".encode(name)  # refuses the codecs that are not between text and bytes
            except (LookupError, UnicodeError):
                continue
            if name not in _NO_TEXT:
                yield _MEANT.get(name, name)


def _hint_of_page(text: str, url: str) -> str:
    found = LexborHTMLParser(text).css_first(_FEED_LINK)
    address = found.attributes.get("href") if found is not None else None
    link = _web_link(urljoin(url, address)) if address else None
    return f"its feed may be {link}" if link else "give the address of its RSS or Atom feed"


def _character(match: re.Match[str]) -> str:
    """The character of an HTML entity, which XML does not know; XML's own stay."""
    text = html5.get(match[1])
    return match[0] if text is None or _OF_XML.intersection(text) else text


def _flaw(text: str) -> str | None:
    """Why `text` is not well-formed XML. Asked before feedparser, whose fallback is slow."""
    parser = expat.ParserCreate("utf-8", " ")
    parser.SkippedEntityHandler = _undefined
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        return str(error)
    return None


def _undefined(name: str, is_parameter: bool) -> None:
    """An entity that a document type elsewhere may define: nobody fetches that."""
    if not is_parameter:
        raise expat.ExpatError(f"undefined entity &{name};")


def _parsed(text: str, url: str) -> Any:
    headers = {"content-type": "application/xml; charset=utf-8", "content-location": url}
    # The text is cleaned when it is indexed; sanitising it here is quadratic in "<!--": 6 s for 200 kB, 32 s for 400 kB.
    return feedparser.parse(
        io.BytesIO(text.encode()), response_headers=headers, sanitize_html=False, resolve_relative_uris=False
    )


def _complete(raw_entries: list[Any], text: str) -> list[Any]:
    """Those whose end tag is there."""
    closed: list[bool] = []
    for match in _ENTRY_TAG.finditer(_NO_MARKUP.sub("", text)):
        if not match[1]:
            closed.append(False)
        elif closed:
            closed[-1] = True
    if len(closed) != len(raw_entries):
        return raw_entries[:-1]  # the last one is the one that an end in the middle cuts
    return [raw for raw, is_closed in zip(raw_entries, closed, strict=True) if is_closed]


def _entry(raw: Any) -> Entry:
    body, format_ = _body(raw)
    return Entry(
        guid=str(raw.get("id") or "").strip() or None,
        link=_web_link(raw.get("link")),
        title=_title(raw),
        body=body,
        format=format_,
        tags=_tags(raw),
        published=_time(raw, "published_parsed"),
        updated=_time(raw, "updated_parsed"),
    )


def _web_link(value: object) -> str | None:
    """`value`, if it is an http(s) address that can be taken apart."""
    if not isinstance(value, str):
        return None
    link = value.strip()
    try:
        parts = urlsplit(link)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return link if is_usable else None


def _title(raw: Any) -> str:
    value = str(raw.get("title") or "")
    if (raw.get("title_detail") or {}).get("type") != "text/plain":
        value = LexborHTMLParser(value).text()
    return clean_title(value)


def _body(raw: Any) -> tuple[str, Format]:
    """The content, or the summary where there is none. Only Atom's plain texts are no HTML."""
    contents = raw.get("content") or []
    detail = contents[0] if contents else raw.get("summary_detail") or {}
    value = str(detail.get("value") or raw.get("summary") or "")
    return value, "text" if detail.get("type") == "text/plain" else "html"


def _tags(raw: Any) -> tuple[str, ...]:
    names = (str(tag.get("label") or tag.get("term") or "").strip() for tag in raw.get("tags") or [])
    fitting = dict.fromkeys(name for name in names if 0 < len(name) <= MAX_FIELD_CHARS)
    return tuple(fitting)[:MAX_TAGS]


def _time(raw: Any, name: str) -> str | None:
    if name not in raw:  # `get` would take the time of publication for the time of an update, with a warning
        return None
    parsed = raw.get(name)
    if not isinstance(parsed, struct_time):
        return None
    try:
        return datetime(*parsed[:6], tzinfo=UTC).isoformat()
    except ValueError:  # year 0, second 61
        return None
