"""An analysed article → pieces that fit the encoder: whole sentences up to a token budget, overlapping by sentences.

A sentence never crosses a block (paragraph, heading, list item, table row, code), the heading it stands under is carried in
front where a piece starts below it, and what is too long for any piece (a table of one line, a text without a full stop)
is cut between morphemes, at the worst between characters. Knows nothing of Kiwi's models, encoders' insides and stores.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kiwipiepy import Token

from pipeline.cleaning import Block, CleanText
from pipeline.documents import Span

MAX_PIECE_CHARS = 8_000  # the collection takes 65,535 bytes of text, 4 bytes a character at the worst, heading included
_TITLE_SHARE = 1 / 3  # of the budget at most: a title is context, the text is what is found
_HEADING_SHARE = 1 / 4  # of what the title leaves
_OVERLAP_SHARE = 1 / 4  # likewise

TokenCounter = Callable[[Sequence[Span]], list[int]]  # spans of the clean text → the encoder's tokens in each


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the clean text: `text[start:end]`, after the carried `heading` where it is not empty.

    `sentences` are spans of the clean text.
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


def title_budget(budget: int) -> int:
    """How many of `budget` tokens a title may take in front of a text."""
    return int(budget * _TITLE_SHARE)


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

    `title_tokens` are those of the title as it is carried. `overlap` is the number of sentences a piece repeats of the
    one before it, as far as they fill no more than a quarter of the room. A text without any morpheme gives no piece; one
    character is a piece even where it alone is above the budget.
    """
    room = max(1, budget - title_tokens)
    headings = _Headings(clean.blocks, count, int(room * _HEADING_SHARE))
    sentences = _fitting(sentence_spans(clean, morphemes), clean.blocks, morphemes, count, room, headings)
    packer = _Packer(sentences, clean.blocks, headings, count, room)
    pieces: list[Piece] = []
    first = 0
    while first < len(sentences):
        last = packer.end(first)
        part = sentences[first:last]
        heading, _ = headings.above(part[0].block)
        pieces.append(Piece(part[0].start, part[-1].end, heading, tuple((s.start, s.end) for s in part)))
        if last == len(sentences):
            break
        # A start that leaves no place for a new sentence would only repeat the piece before.
        starts = range(packer.overlap_start(first, last, overlap), last + 1)
        first = next(start for start in starts if packer.end(start) > last)
    return pieces


def sentence_spans(clean: CleanText, morphemes: Sequence[Token]) -> list[Span]:
    """The sentences of `clean`, none crossing a block, white space at their ends left out."""
    # Without calls: a bulk load comes by here for every morpheme of the corpus.
    spans: list[Span] = []
    ends = iter([*(block.end for block in clean.blocks), sys.maxsize])
    block_end = next(ends)
    sentence, start, end = -1, 0, 0
    for token in morphemes:
        token_start, token_sentence = token.start, token.sent_position
        if token_start >= block_end or token_sentence != sentence:
            if end > start:
                spans.append((start, end))
            sentence, start, end = token_sentence, token_start, 0
            while token_start >= block_end:
                block_end = next(ends)
        token_end = token_start + token.len
        if token_end > end:  # noqa: PLR1730 - max() would be a call
            end = token_end
    if end > start:
        spans.append((start, end))
    return spans


class _Headings:
    """Which heading is carried in front of a text, and its tokens; those above `limit` tokens would crowd it out."""

    def __init__(self, blocks: Sequence[Block], count: TokenCounter, limit: int) -> None:
        self._places = [place for place, block in enumerate(blocks) if block.kind == "heading"]
        self._spans = [blocks[place].span for place in self._places]
        self._tokens = count(self._spans)
        self._limit = limit

    def above(self, block: int) -> tuple[Span | None, int]:
        """The heading that `block` stands under and its tokens; (None, 0) for a heading and where none is carried."""
        place = bisect_right(self._places, block) - 1
        if place < 0 or self._places[place] == block or self._tokens[place] > self._limit:
            return None, 0
        return self._spans[place], self._tokens[place]


def _fitting(
    spans: Sequence[Span],
    blocks: Sequence[Block],
    morphemes: Sequence[Token],
    count: TokenCounter,
    room: int,
    headings: _Headings,
) -> list[_Sentence]:
    """`spans` as sentences, those that do not fit into `room` under their heading halved until they do."""
    ends = [block.end for block in blocks]
    starts = [token.start for token in morphemes]
    fitting: list[_Sentence] = []
    todo = list(zip(reversed(spans), reversed(count(spans)), strict=True))
    while todo:
        (start, end), tokens = todo.pop()
        block = bisect_right(ends, start)
        fits = tokens <= room - headings.above(block)[1] and end - start <= MAX_PIECE_CHARS
        if fits or end - start <= 1:
            fitting.append(_Sentence(start, end, block, tokens))
            continue
        middle = _cut(start, end, starts)
        halves = [(middle, end), (start, middle)]
        todo += zip(halves, count(halves), strict=True)
    return fitting


def _cut(start: int, end: int, morpheme_starts: Sequence[int]) -> int:
    """A place near the middle to cut: before a morpheme where there is one inside, else between characters."""
    middle = (start + end) // 2
    place = bisect_right(morpheme_starts, middle)
    for candidate in morpheme_starts[max(0, place - 1) : place + 1]:
        if start < candidate < end and abs(candidate - middle) <= (end - start) // 4:
            return candidate
    return middle


class _Packer:
    """Says where a piece that starts at a sentence ends, and where the next one starts."""

    def __init__(
        self,
        sentences: Sequence[_Sentence],
        blocks: Sequence[Block],
        headings: _Headings,
        count: TokenCounter,
        room: int,
    ) -> None:
        self._sentences = sentences
        self._blocks = blocks
        self._headings = headings
        self._count = count
        self._room = room

    def end(self, first: int) -> int:
        """Where the piece that starts at `first` ends: full, at the character limit, or half full before a heading."""
        begin = self._sentences[first].start
        room = self._room - self._headings.above(self._sentences[first].block)[1]
        used, end = 0, len(self._sentences)
        for place in range(first, len(self._sentences)):
            sentence = self._sentences[place]
            full = used + sentence.tokens > room or sentence.end - begin > MAX_PIECE_CHARS
            section = self._is_heading(place) and 2 * used >= self._room
            if place > first and (full or section):
                end = place
                break
            used += sentence.tokens
        # A word that was cut can have more tokens as a whole than its parts have.
        while end - 1 > first and self._count([(begin, self._sentences[end - 1].end)])[0] > room:
            end -= 1
        return self._without_trailing_heading(first, end)

    def overlap_start(self, first: int, last: int, overlap: int) -> int:
        """The first of up to `overlap` sentences before `last` that fill a quarter of the room at most."""
        start, used = last, 0
        while start > max(first + 1, last - overlap):
            used += self._sentences[start - 1].tokens
            if used > self._room * _OVERLAP_SHARE:
                break
            start -= 1
        return start

    def _without_trailing_heading(self, first: int, end: int) -> int:
        """A heading belongs to what follows it: it does not stand last in a piece, unless nothing follows."""
        if end == len(self._sentences):
            return end
        while end - 1 > first and self._is_heading(end - 1):
            end -= 1
        return end

    def _is_heading(self, place: int) -> bool:
        return self._blocks[self._sentences[place].block].kind == "heading"
