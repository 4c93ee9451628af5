"""HTML to raw blocks: headings, paragraphs, list items, table rows and code, in the order of the page.

Tags, scripts, styles, navigation and form controls are left out; of attributes only `alt` is read, the text of an image
for those who cannot see it. A block's text is as the page wrote it: `cleaning.py` makes it clean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from selectolax.lexbor import LexborHTMLParser, LexborNode

BlockKind = Literal["paragraph", "heading", "list_item", "table_row", "code"]

_NO_TEXT = ("head", "title", "script", "style", "template", "noscript", "iframe", "object", "embed", "svg", "canvas")
_NO_PROSE = ("nav", "audio", "video", "button", "select", "datalist", "textarea")
_LEFT_OUT = frozenset((*_NO_TEXT, *_NO_PROSE))
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset(("ul", "ol", "menu", "dir"))
_CODE = frozenset(("pre", "listing", "xmp", "plaintext"))
_CELLS = frozenset(("td", "th"))
_TABLE_PARTS = ("table", "caption", "thead", "tbody", "tfoot", "tr", *_CELLS)
_SECTIONS = ("body", "main", "article", "section", "aside", "header", "footer", "search", "form", "fieldset", "dialog")
_PARAGRAPHS = ("p", "div", "center", "address", "blockquote", "figure", "figcaption", "details", "summary", "legend")
_ITEMS = ("li", "dl", "dt", "dd", "hr", "hgroup")
_BREAKING = frozenset((*_HEADINGS, *_LISTS, *_CODE, *_TABLE_PARTS, *_SECTIONS, *_PARAGRAPHS, *_ITEMS))
# A table with one of these inside arranges a page and is read as paragraphs; any other holds data and is read in rows.
_SIGNS_OF_LAYOUT = ", ".join(("table", "pre", *_HEADINGS))
_SOURCE_BREAKS = re.compile(r"[\n\r\f]+")  # how the author's editor broke the line: a space to the reader
_FILE_NAME = re.compile(r"\S+\.(?:jpe?g|png|gif|webp|svg|bmp)", re.IGNORECASE)  # an `alt` that describes nothing


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A block before cleaning: `parts` are the cells of a table row, else one text; a "\\n" in it is a line break.

    `level` is 1-6 for a heading, the depth (from 1) for a list item, else 0.
    """

    kind: BlockKind
    level: int
    parts: tuple[str, ...]


def html_blocks(source: str) -> list[RawBlock]:
    """The blocks of an HTML page or fragment without lone surrogates, however broken or deep it is."""
    body = LexborHTMLParser(source).body
    reader = _Reader()
    if body is not None:  # a page of frames has none
        _walk(body, reader)
    return reader.blocks


def _walk(root: LexborNode, reader: _Reader) -> None:
    """Opens and closes every element below `root` in document order; no recursion, so depth costs no stack."""
    ancestors: list[LexborNode] = []
    node = root
    while True:
        opened = reader.open(node)
        child = node.first_child if opened else None
        if child is not None:
            ancestors.append(node)
            node = child
            continue
        while True:
            if opened:
                reader.close(node.tag or "")
            if not ancestors:
                return
            sibling = node.next
            if sibling is not None:
                node = sibling
                break
            node, opened = ancestors.pop(), True


class _Reader:
    """Collects text until an element begins or ends a block."""

    def __init__(self) -> None:
        self.blocks: list[RawBlock] = []
        self._buffer: list[str] = []
        self._kinds: list[tuple[BlockKind, int]] = [("paragraph", 0)]  # of the elements that are open, outermost first
        self._tables: list[bool] = []  # of the open tables: does it hold data?
        self._cells: list[str] | None = None  # of the row being read
        self._depth = 0  # of open lists

    def open(self, node: LexborNode) -> bool:
        """Takes in a node; whether it is an element whose children are to be read and which is to be closed."""
        tag = node.tag
        if tag == "-text":
            self._add_text(node.text_content or "")
            return False
        if tag is None or tag.startswith("-") or tag in _LEFT_OUT:
            return False
        if tag == "br":
            self._buffer.append("\n")
        elif tag == "img":
            self._add_image(node)
        elif tag in _BREAKING:
            self._break()
            self._open_block(tag, node)
        return True

    def close(self, tag: str) -> None:
        if tag not in _BREAKING:
            return
        if tag in _CELLS and self._cells is not None:
            self._cells.append("".join(self._buffer))
            self._buffer.clear()
        self._break()
        if tag == "tr":
            self._close_row()
        elif tag == "table":
            self._tables.pop()
        elif tag in _LISTS:
            self._depth -= 1
        elif tag in _HEADINGS or tag in _CODE or tag == "li":
            self._kinds.pop()

    def _open_block(self, tag: str, node: LexborNode) -> None:
        if tag in _HEADINGS:
            self._kinds.append(("heading", _HEADINGS[tag]))
        elif tag in _CODE:
            self._kinds.append(("code", 0))
        elif tag == "li":
            self._kinds.append(("list_item", max(1, self._depth)))
        elif tag in _LISTS:
            self._depth += 1
        elif tag == "table":
            self._tables.append(_holds_data(node))
        elif tag == "tr" and self._tables and self._tables[-1]:
            self._cells = []
            self._buffer.clear()

    def _add_text(self, text: str) -> None:
        self._buffer.append(text if self._kinds[-1][0] == "code" else _SOURCE_BREAKS.sub(" ", text))

    def _add_image(self, node: LexborNode) -> None:
        alt = (node.attributes.get("alt") or "").strip()
        if alt and not _FILE_NAME.fullmatch(alt):
            self._buffer.append(f" {_SOURCE_BREAKS.sub(' ', alt)} ")

    def _break(self) -> None:
        """Ends a block; inside a table row, where a cell is one line, only a word."""
        if self._cells is not None:
            self._buffer.append(" ")
            return
        text = "".join(self._buffer)
        self._buffer.clear()
        if text and not text.isspace():
            kind, level = self._kinds[-1]
            self.blocks.append(RawBlock(kind, level, (text,)))
            if kind == "heading":  # what follows in an <h2> that was never closed is no heading
                self._kinds[-1] = ("paragraph", 0)

    def _close_row(self) -> None:
        if self._cells is not None:
            cells = tuple(cell for cell in self._cells if cell.strip())
            if cells:
                self.blocks.append(RawBlock("table_row", 0, cells))
            self._cells = None
            self._buffer.clear()


def _holds_data(table: LexborNode) -> bool:
    # From its parts: a selector also matches the element it starts from, and "table table" its ancestors.
    return all(part.css_first(_SIGNS_OF_LAYOUT) is None for part in table.iter())
