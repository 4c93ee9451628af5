"""An analysed article → pieces that fit the encoder: whole sentences up to a token budget, overlapping by sentences.

A sentence never crosses a block (paragraph, heading, list item, table row, code), the heading it stands under is carried in
front where a piece starts below it, and what is too long for any piece (a table of one line, a text without a full stop)
is cut between morphemes, at the worst between characters. Knows nothing of Kiwi's models, encoders' insides and stores.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kiwipiepy import Token

from pipeline.cleaning import Block, CleanText
from pipeline.documents import Span

MAX_PIECE_CHARS = 8_000  # the collection takes 65,535 bytes of text, 4 bytes a character at the worst, heading included
_TITLE_SHARE = 1 / 3  # of the budget at most: a title is context, the text is what is found
_HEADING_SHARE = 1 / 4

TokenCounter = Callable[[Sequence[Span]], list[int]]  # spans of the clean text → the encoder's tokens in each


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the clean text: `text[start:end]`, after the carried `heading` where it is not empty.

    `first` and `last` delimit its tokens, `sentences` are spans of the clean text.
    """

    start: int
    end: int
    heading: Span | None
    sentences: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class _Sentence:
    start: int
    end: int
    block: int
    tokens: int


def chunk(
    clean: CleanText,
    morphemes: Sequence[Token],
    count: TokenCounter,
    *,
    budget: int,
    title_tokens: int = 0,
    overlap: int = 1,
) -> list[Piece]:
    """Cuts `clean` into pieces of at most `budget` of the encoder's tokens, title and heading counted in.

    `overlap` is the number of sentences a piece repeats of the one before it, as far as they fill no more than a quarter
    of the budget. A text without any character gives no piece.
    """
    room = max(1, budget - min(title_tokens, int(budget * _TITLE_SHARE)))
    sentences = _fitting(
        _sentences(clean, morphemes), morphemes, count, room - int(room * _HEADING_SHARE), clean.blocks
    )
    headings = [i for i, block in enumerate(clean.blocks) if block.kind == "heading"]
    heading_spans = [(clean.blocks[i].start, clean.blocks[i].end) for i in headings]
    heading_tokens = dict(zip(heading_spans, count(heading_spans), strict=True))
    pieces: list[Piece] = []
    first = 0
    while first < len(sentences):
        heading = _heading_above(sentences[first], clean.blocks, headings)
        if heading is not None and heading_tokens[heading] > int(room * _HEADING_SHARE):
            heading = None  # a heading of a paragraph's length would crowd out the text
        left = room - (heading_tokens[heading] if heading is not None else 0)
        last = _end_of_piece(sentences, first, left, clean.blocks)
        part = sentences[first:last]
        pieces.append(Piece(part[0].start, part[-1].end, heading, tuple((s.start, s.end) for s in part)))
        if last == len(sentences):
            break
        first = _overlapped(sentences, first, last, overlap, room)
    return pieces


def sentence_spans(clean: CleanText, morphemes: Sequence[Token]) -> list[Span]:
    """The sentences of `clean`, none crossing a block, white space at their ends left out."""
    spans: list[Span] = []
    ends = [block.end for block in clean.blocks]
    start: int | None = None
    here = (-1, -1)
    end = 0
    for token in morphemes:
        place = (token.sent_position, bisect_right(ends, token.start))
        if place != here:
            if start is not None:
                spans.append((start, end))
            start, here, end = token.start, place, 0
        end = max(end, token.start + token.len)
    if start is not None:
        spans.append((start, end))
    return spans


def _sentences(clean: CleanText, morphemes: Sequence[Token]) -> list[Span]:
    return [span for span in sentence_spans(clean, morphemes) if clean.text[span[0] : span[1]].strip()]


def _fitting(
    spans: Sequence[Span], morphemes: Sequence[Token], count: TokenCounter, room: int, blocks: Sequence[Block]
) -> list[_Sentence]:
    """`spans` as sentences, those above `room` tokens halved until they fit."""
    ends = [block.end for block in blocks]
    starts = [token.start for token in morphemes]
    fitting: list[_Sentence] = []
    todo = [(span, tokens) for span, tokens in zip(reversed(spans), reversed(count(spans)), strict=True)]
    while todo:
        (start, end), tokens = todo.pop()
        if end - start <= 1 or (tokens <= room and end - start <= MAX_PIECE_CHARS):
            fitting.append(_Sentence(start, end, bisect_right(ends, start), tokens))
            continue
        middle = _cut(start, end, starts)
        halves = [(middle, end), (start, middle)]
        todo += list(zip(halves, count(halves), strict=True))
    return fitting


def _cut(start: int, end: int, morpheme_starts: Sequence[int]) -> int:
    """A place near the middle to cut: before a morpheme where there is one inside, else between characters."""
    middle = (start + end) // 2
    place = bisect_right(morpheme_starts, middle)
    for candidate in morpheme_starts[max(0, place - 1) : place + 1]:
        if start < candidate < end and abs(candidate - middle) <= (end - start) // 4:
            return candidate
    return middle


def _heading_above(sentence: _Sentence, blocks: Sequence[Block], headings: Sequence[int]) -> Span | None:
    """The heading that `sentence` stands under, None if it is itself (part of) a heading or stands under none."""
    above = bisect_right(headings, sentence.block) - 1
    if above < 0 or headings[above] == sentence.block:
        return None
    block = blocks[headings[above]]
    return block.start, block.end


def _end_of_piece(sentences: Sequence[_Sentence], first: int, room: int, blocks: Sequence[Block]) -> int:
    """Where the piece that starts at `first` ends: full, at the character limit, or half full before a heading."""
    used = 0
    for place in range(first, len(sentences)):
        sentence = sentences[place]
        fresh = place > first
        full = used + sentence.tokens > room or sentence.end - sentences[first].start > MAX_PIECE_CHARS
        section = blocks[sentence.block].kind == "heading" and 2 * used >= room
        if fresh and (full or section):
            return _without_trailing_heading(sentences, first, place, blocks)
        used += sentence.tokens
    return len(sentences)


def _without_trailing_heading(sentences: Sequence[_Sentence], first: int, end: int, blocks: Sequence[Block]) -> int:
    """A heading belongs to what follows it: it does not stand last in a piece."""
    while end - 1 > first and blocks[sentences[end - 1].block].kind == "heading":
        end -= 1
    return end


def _overlapped(sentences: Sequence[_Sentence], first: int, last: int, overlap: int, room: int) -> int:
    """Where the next piece starts: up to `overlap` sentences before `last`, within a quarter of the room."""
    start, used = last, 0
    while start > max(first + 1, last - overlap):
        used += sentences[start - 1].tokens
        if used > room // 4:
            break
        start -= 1
    return start
