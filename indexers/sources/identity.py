"""Which entry of a feed is which article, though feeds change their ids and their links.

An article's id is made once, from what the entry called itself when it was first seen. Afterwards it is found again by
its key: the link where no other entry has the same one (ids change more often than addresses: from http to https, with
another blog system), else the entry's id. So new ids for old links bring no article twice, and two entries that both link
to one page stay two articles. Knows nothing about what an article holds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from indexers.sources.entries import Entry, Feed
from indexers.sources.source import Known

_ID_DIGITS = 20  # hexadecimal digits of SHA-256, 80 bits: no two entries of a feed will ever share them
_BY_ID = "id:"  # begins a key that is no link; links are kept without their scheme, so none begins so
_DEFAULT_PORTS = (None, 80, 443)
_TRACKING = ("utm_", "fbclid=", "gclid=", "yclid=", "igshid=", "mc_cid=", "mc_eid=")  # say who sent the reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An entry, the article that it is, and the key by which the article is found the next time."""

    entry: Entry
    article_id: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """An entry with all that could tell it apart. `name_key` is None where only the link can."""

    entry: Entry
    own_id: str  # the article id that a new article gets
    link_key: str | None
    name_key: str | None


def placed(source: str, feed: Feed, known: Known) -> list[Placed]:
    """The articles of `feed`, in its order; an entry that comes twice with the same id and link is taken once.

    An article id is `{source}:{first 20 hex digits of the SHA-256 of the entry's name}`. The name is its id (guid); its
    link where it has no id or shares it with other entries; id, link, title and date together where it shares both.
    """
    named = _named(source, feed, known)
    by_key = {key: article_id for article_id, key in known.items()}
    by_link = _claims(named, lambda entry: by_key.get(entry.link_key or ""))
    by_own = _claims(named, lambda entry: entry.own_id if entry.own_id in known else None, by_link)
    claimed = _claims(named, lambda entry: by_key.get(entry.name_key or ""), by_own)
    taken = set(claimed.values())
    return [_placed(source, entry, claimed.get(place), taken) for place, entry in enumerate(named)]


def link_key(link: str) -> str:
    """`link` without what may differ between two links to one page: scheme, `www.`, a last slash, marks of tracking."""
    parts = urlsplit(link)
    host = (parts.hostname or "").removeprefix("www.")
    port = "" if parts.port in _DEFAULT_PORTS else f":{parts.port}"
    query = "&".join(part for part in parts.query.split("&") if part and not part.startswith(_TRACKING))
    fragment = f"#{parts.fragment}" if parts.fragment else ""
    return f"{host}{port}{parts.path.rstrip('/')}{'?' + query if query else ''}{fragment}"


def _named(source: str, feed: Feed, known: Known) -> list[_Named]:
    first: dict[tuple[str | None, ...], Entry] = {}
    for entry in feed.entries:  # feeds begin with the newest: of two versions the first is the later one
        rest = () if entry.guid else (entry.title, entry.published)
        first.setdefault((entry.guid, entry.link, *rest), entry)
    entries = list(first.values())
    guids = Counter(entry.guid for entry in entries)
    links = Counter(link_key(entry.link) for entry in entries if entry.link)
    if feed.link:
        links[link_key(feed.link)] += 1  # an entry that links to the site's front page has no page of its own
    return [_name(source, entry, guids, links, known) for entry in entries]


def _name(source: str, entry: Entry, guids: Counter[str | None], links: Counter[str], known: Known) -> _Named:
    link = link_key(entry.link) if entry.link else None
    has_own_link = link is not None and links[link] == 1
    if entry.guid and guids[entry.guid] == 1:
        own_id, name = _article_id(source, entry.guid), _BY_ID + _guid_key(entry.guid)
        if known.get(own_id, "").startswith(_BY_ID):
            has_own_link = False  # shared once: the link would lead the next one that shares it to this article
        return _Named(entry=entry, own_id=own_id, link_key=link if has_own_link else None, name_key=name)
    if has_own_link and entry.link:
        return _Named(entry=entry, own_id=_article_id(source, entry.link), link_key=link, name_key=None)
    all_of_it = "\n".join((entry.guid or "", entry.link or "", entry.title, entry.published or ""))
    own_id = _article_id(source, all_of_it)
    return _Named(entry=entry, own_id=own_id, link_key=None, name_key=_BY_ID + own_id)


def _guid_key(guid: str) -> str:
    """An id that is an address may change as addresses do."""
    try:
        return link_key(guid) if guid.startswith(("http://", "https://")) else guid
    except ValueError:
        return guid


def _claims(
    named: Sequence[_Named], article_of: Callable[[_Named], str | None], before: dict[int, str] | None = None
) -> dict[int, str]:
    """{place in the feed: known article}, added to `before`; an article is one entry's only."""
    claims = dict(before or {})
    taken = set(claims.values())
    for place, entry in enumerate(named):
        article_id = article_of(entry)
        if place not in claims and article_id is not None and article_id not in taken:
            claims[place] = article_id
            taken.add(article_id)
    return claims


def _placed(source: str, named: _Named, claimed: str | None, taken: set[str]) -> Placed:
    """`taken` grows by the article's id."""
    key = named.link_key or named.name_key or named.own_id
    article_id = claimed or named.own_id
    if claimed is None and article_id in taken:  # the name was another entry's before: ids that count from the top
        article_id = _article_id(source, f"{article_id}\n{key}")
    taken.add(article_id)
    return Placed(entry=named.entry, article_id=article_id, key=key)


def _article_id(source: str, name: str) -> str:
    return f"{source}:{hashlib.sha256(name.encode()).hexdigest()[:_ID_DIGITS]}"
