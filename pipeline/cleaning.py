"""HTML, Markdown and messy web text to clean text, cut into blocks whose offsets into that clean text are kept.

The three formats end in the same blocks: Markdown is rendered to HTML and read as HTML, plain text has a paragraph a
line. Clean text is a fixed point: cleaning it again as plain text gives the same text. Knows nothing about articles,
sentences, morphemes or passages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from html.entities import html5

import ftfy
from markdown_it import MarkdownIt

from pipeline.documents import Format, Span
from pipeline.korean import hangul
from pipeline.markup import BlockKind, RawBlock, html_blocks

CELL_SEPARATOR = " | "  # between the cells of a table row

_MAX_HEADING_CHARS = 200  # a longer "heading" is a paragraph that someone made big
_MAX_MARKDOWN_DEPTH = 100  # nested quotes and lists: deeper ones are left out, before Python's stack ends
_MAX_REPAIRS = 10  # entities inside entities: more than two or three levels are no accident

_NEWLINES = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Everything that shows as a blank: tab, separators, no-break, Ogham, typographic, ideographic, Braille blank, Hangul fillers
_SPACES = re.compile("[\t\x1c-\x1f\xa0\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0]")
# Everything that shows as nothing: controls, soft hyphen, joiners, directions, variation selectors, BOM, tags, surrogates
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff0-\ufffc\ufffe\uffff\U000e0000-\U000e0fff\ud800-\udfff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")  # HTML parsers take UTF-8, which has none
_RUNS_OF_SPACES = re.compile(" {2,}")
_BLANK_LINES = re.compile(" ?\n[ \n]*")

# An entity, escaped any number of times. Without its semicolon only where a URL's "&copy=1" cannot be meant.
_ENTITY = re.compile(
    "&(?:(?:amp|AMP|#0*38|#[xX]0*26);)*"
    "([A-Za-z][A-Za-z0-9]{1,31};|#[0-9]{1,7};?|#[xX][0-9A-Fa-f]{1,6};?|(?:nbsp|amp|lt|gt|quot)(?![A-Za-z0-9=;]))"
)
# A Hangul syllable is three bytes in UTF-8, EA-ED first. Read as Windows-1252 or Latin-1 it shows as one of ê ë ì í and two of these.
_CONTINUATION_BYTES = bytes(range(0x80, 0xC0))
_AS_CONTINUATION = re.escape(_CONTINUATION_BYTES.decode("latin-1") + _CONTINUATION_BYTES.decode("cp1252", "ignore"))
_MOJIBAKE = re.compile(f"[ê-í][{_AS_CONTINUATION}]{{2}}")
# Only what undoes a wrong decoding: quotes, widths and ligatures are the author's.
_ONLY_ENCODING = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_c1_controls=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
)
_FRONT_MATTER = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n((?:[ \t]*(?:#[^\n]*)?\r?\n)*[\w-]+[ \t]*:.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of clean text: `text[start:end]` of its CleanText, in characters; one line, `code` may have several.

    `level` is 1-6 for a heading, the depth (from 1) for a list item, else 0.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0

    @property
    def span(self) -> Span:
        return (self.start, self.end)


@dataclass(frozen=True, slots=True)
class CleanText:
    """Text in NFC without markup, blank runs and invisible characters, and its blocks.

    The blocks cover all of `text` in order but the one "\\n" between each and the next:
    `text == "\\n".join(text[b.start : b.end] for b in blocks)`; none is empty.
    """

    text: str
    blocks: tuple[Block, ...]


def clean(body: str, format: Format = "text") -> CleanText:  # noqa: A002 - the article's field is called so
    """`body` as clean text. Takes any string: malformed markup and lone surrogates are survived, never refused."""
    if format == "text":
        return _assembled([RawBlock("paragraph", 0, (body,))])
    body = _SURROGATES.sub("", body)
    if format == "markdown":
        body = _markdown().render(split_front_matter(body)[1])
    return _assembled(html_blocks(body))


def clean_title(title: str) -> str:
    """`title` as one line of clean text. A "<" in it is a "<": titles carry no markup."""
    return _one_line(_normalised(title))


def split_front_matter(markdown: str) -> tuple[str, str]:
    """(`key: value` lines between the `---` at the very beginning, the text after them); ("", all) without them."""
    match = _FRONT_MATTER.match(markdown)
    return (match[1], markdown[match.end() :]) if match else ("", markdown)


@cache
def _markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"maxNesting": _MAX_MARKDOWN_DEPTH}).enable("table").enable("strikethrough")


def _assembled(raw_blocks: Iterable[RawBlock]) -> CleanText:
    pieces: list[str] = []
    blocks: list[Block] = []
    start = 0
    for raw in raw_blocks:
        for kind, text in _pieces(raw):
            end = start + len(text)
            blocks.append(Block(kind, start, end, raw.level if kind == raw.kind else 0))
            pieces.append(text)
            start = end + 1
    return CleanText("\n".join(pieces), tuple(blocks))


def _pieces(raw: RawBlock) -> Iterator[tuple[BlockKind, str]]:
    """What `raw` is made of once clean: nothing, a block, or a paragraph a line."""
    parts = [part for part in map(_normalised, raw.parts) if part]
    if not parts:
        return
    if raw.kind == "paragraph":
        for line in parts[0].split("\n"):
            yield "paragraph", line
    elif raw.kind == "code":
        yield "code", parts[0]
    else:
        text = CELL_SEPARATOR.join(map(_one_line, parts))
        too_long = raw.kind == "heading" and len(text) > _MAX_HEADING_CHARS
        yield ("paragraph" if too_long else raw.kind), text


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _normalised(text: str) -> str:
    """`text` in NFC, entities and encoding repaired, without invisible characters, blanks and blank lines collapsed.

    Each step can uncover work for an earlier one (a zero-width space inside "&am\\u200bp;"), so where there was
    something to repair the steps run until nothing changes.
    """
    for _ in range(_MAX_REPAIRS):
        before = text
        text = _repaired(hangul.normalise(text))
        text = _INVISIBLE.sub("", _SPACES.sub(" ", _NEWLINES.sub("\n", text)))
        text = _BLANK_LINES.sub("\n", _RUNS_OF_SPACES.sub(" ", hangul.normalise(text))).strip(" \n")
        if text == before or not _may_need_repair(text):
            break
    return text


def _may_need_repair(text: str) -> bool:
    return "&" in text or _MOJIBAKE.search(text) is not None


def _repaired(text: str) -> str:
    if "&" in text:
        text = _ENTITY.sub(_entity_text, text)
    if _MOJIBAKE.search(text):
        text = "\n".join(
            ftfy.fix_encoding(line, _ONLY_ENCODING) if _MOJIBAKE.search(line) else line for line in text.split("\n")
        )
    return text


def _entity_text(match: re.Match[str]) -> str:
    name = match[1].removesuffix(";") + ";"
    if name.startswith("#"):
        return html.unescape(f"&{name}")
    return html5.get(name, f"&{match[1]}")
