"""Files of one article: .md with front matter, .html with its main content. Each is read to one row, an empty one to none.

Knows nothing about folders; what the fields may hold is `Article.from_mapping`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from selectolax.lexbor import LexborHTMLParser, LexborNode

from indexers.sources.encodings import opened_text
from indexers.sources.formats import LineProblem, Notice, Row, fields_of_texts
from pipeline.cleaning import clean, clean_title, split_front_matter
from pipeline.documents import Article

_MAX_PAGE_CHARS = 50_000_000  # the article in it has at most 5 MB, the rest is markup
_FIELDS = frozenset(field.name for field in fields(Article))
_KEY = re.compile(r"([\w-]+)[ \t]*:(?:[ \t]+(.*))?")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")
_QUOTES = "\"'"
_AROUND_THE_CONTENT = "body > footer, body > aside"


def markdown_page(path: Path, default_id: str, default_title: str) -> Iterator[Row | LineProblem | Notice]:
    """Fields from the front matter; the title else from the first heading, else `default_title`."""
    source = _page_text(path)
    if isinstance(source, LineProblem):
        yield source
        return
    if not source:
        return
    front, body = split_front_matter(source)
    given = _front_matter(front)
    unknown = [name for name in given if name not in _FIELDS]
    if unknown:
        yield Notice(path, None, f"keys that are no field of an article are left out: {', '.join(map(repr, unknown))}")
    found = {"id": default_id, "body": body, "format": "markdown"}
    found |= {name: value for name, value in given.items() if name in _FIELDS}
    if "title" not in found:
        found["title"] = _first_heading(body) or default_title
    yield Row(None, found)


def html_page(path: Path, default_id: str, default_title: str) -> Iterator[Row | LineProblem]:
    """The main content as body; title, date of publication and address from the page's own statements."""
    source = _page_text(path)
    if isinstance(source, LineProblem):
        yield source
        return
    if not source:
        return
    page = LexborHTMLParser(source)
    content, is_marked = _main_content(page)
    # The heading inside the article is its title; a page's <title> often adds the name of the site.
    titles = (_text(content, "h1") if is_marked else "", _text(page.head, "title"), _text(page.body, "h1"))
    found: dict[str, Any] = {
        "id": default_id,
        "title": next(filter(None, titles), default_title),
        "body": (content.inner_html or "") if content is not None else "",
        "format": "html",
        "published_at": _attribute(page, 'meta[property="article:published_time"]', "content"),
        "url": _attribute(page, 'link[rel="canonical"]', "href"),
    }
    yield Row(None, found)


def _page_text(path: Path) -> str | LineProblem:
    """All of `path`; empty where there is nothing but blanks."""
    with opened_text(path) as stream:
        text = stream.read(_MAX_PAGE_CHARS + 1)
    if len(text) > _MAX_PAGE_CHARS:
        return LineProblem(path, None, f"longer than {_MAX_PAGE_CHARS:,} characters: no article is; split it")
    return text if text.strip() else ""


def _first_heading(markdown: str) -> str:
    result = clean(markdown, "markdown")
    return next((result.text[block.start : block.end] for block in result.blocks if block.kind == "heading"), "")


def _front_matter(lines: str) -> dict[str, Any]:
    """`key: value`, `key: [a, b]` and `key:` with `- a` below it: the part of YAML that front matter is written in."""
    texts: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    key = ""
    for line in lines.splitlines():
        if match := _KEY.fullmatch(line.rstrip()):
            key, value = match[1], (match[2] or "").strip()
            if value.startswith("[") and value.endswith("]"):
                lists[key] = [_unquoted(item) for item in value[1:-1].split(",") if item.strip()]
            else:
                texts[key] = _unquoted(value)
        elif key and (match := _ITEM.fullmatch(line.rstrip())):
            lists.setdefault(key, []).append(_unquoted(match[1]))
    return {**fields_of_texts(texts), **lists}


def _unquoted(value: str) -> str:
    value = value.strip()
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES
    return value[1:-1] if is_quoted else value


def _main_content(page: LexborHTMLParser) -> tuple[LexborNode | None, bool]:
    """The element that holds the article, and whether the page marks it as such (else it is the whole body)."""
    main = page.css_first("main")
    if main is not None:
        return main, True
    articles = page.css("article")
    if len(articles) == 1:  # several are a list of teasers
        return articles[0], True
    for element in page.css(_AROUND_THE_CONTENT):
        element.decompose()
    return page.body, False


def _text(root: LexborNode | None, selector: str) -> str:
    element = root.css_first(selector) if root is not None else None
    return clean_title(element.text(separator=" ")) if element is not None else ""


def _attribute(page: LexborHTMLParser, selector: str, name: str) -> str | None:
    element = page.css_first(selector)
    return (element.attributes.get(name) or "").strip() or None if element is not None else None
