"""Articles → passages: cleaned, cut into pieces of the encoder's length, with their terms, by one pass of Kiwi.

An encoder that reads morphemes gives their vectors at once; any other one reads the text later (`encode`). Knows no stores.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Protocol

import numpy as np
from kiwipiepy import Token

from pipeline.chunking import Piece, TokenCounter, chunk, title_budget
from pipeline.cleaning import CleanText, clean, clean_title
from pipeline.documents import Article, Passage, Span
from pipeline.encoding.encoder import Encoder, FloatArray, MorphemeEncoder
from pipeline.korean.morphemes import Analyser, Term, terms_of

if TYPE_CHECKING:
    from pipeline.encoding.sentence import Prompts

_TERM_START = itemgetter(1)
_SPECIAL_TOKENS = 4  # begin, end and separator tokens, and one where a sentence's edge is cut otherwise in context


@dataclass(frozen=True, slots=True)
class ChunkingParameters:
    """Budget of a passage in the encoder's tokens, and how many sentences neighbours share."""

    max_tokens: int = 192
    overlap_sentences: int = 1


@dataclass(frozen=True, slots=True)
class AnalysedPassage:
    """A passage and its title as encoders read it (long ones cut); `vector`, float32 (dim,), where the encoder reads morphemes."""

    passage: Passage
    carried_title: str
    vector: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """A passage, its title as encoders read it, and all morphemes of that title and the text."""

    passage: Passage
    carried_title: str
    morphemes: tuple[Token, ...]


class MakesPassages(Protocol):
    """What makes passages, here or in another process."""

    def of(self, articles: Sequence[tuple[int, Article]]) -> list[list[AnalysedPassage]]:
        """The passages of each (revision, article); an article whose text is empty gives one of its title alone."""


class Passages:
    """Articles → passages with their terms, by one Kiwi pass."""

    def __init__(self, analyser: Analyser, encoder: Encoder, parameters: ChunkingParameters) -> None:
        self._analyser = analyser
        self._encoder = encoder
        self._parameters = parameters
        self._by_morphemes = encoder if isinstance(encoder, MorphemeEncoder) else None

    def of(self, articles: Sequence[tuple[int, Article]]) -> list[list[AnalysedPassage]]:
        cleaned = [(clean_title(article.title), clean(article.body, article.format)) for _, article in articles]
        texts = chain.from_iterable((title, body.text) for title, body in cleaned)
        analysed = self._analyser.analyse(texts)
        made = []
        for (revision, article), (title, body) in zip(articles, cleaned, strict=True):
            title_morphemes, morphemes = next(analysed), next(analysed)
            made.append(self._passages(revision, article, title, title_morphemes, body, morphemes))
        return self._encoded(made)

    def _encoded(self, made: Sequence[list[_Read]]) -> list[list[AnalysedPassage]]:
        encoder = self._by_morphemes
        if encoder is None:
            return [[AnalysedPassage(one.passage, one.carried_title) for one in parts] for parts in made]
        vectors = iter(encoder.encode_morphemes([one.morphemes for parts in made for one in parts]))
        return [[AnalysedPassage(one.passage, one.carried_title, next(vectors)) for one in parts] for parts in made]

    def _passages(
        self,
        revision: int,
        article: Article,
        title: str,
        title_morphemes: list[Token],
        body: CleanText,
        morphemes: list[Token],
    ) -> list[_Read]:
        budget = self._budget()
        count_title, count = self._counter(title, title_morphemes), self._counter(body.text, morphemes)
        carried_end = _end_within(len(title), count_title, title_budget(budget))
        pieces = chunk(
            body,
            morphemes,
            count,
            budget=budget,
            title_tokens=count_title([(0, carried_end)])[0],
            overlap=self._parameters.overlap_sentences,
        )
        template = Passage(
            article_id=article.id,
            revision=revision,
            ordinal=0,
            title=title,
            text="",
            terms=(),
            term_spans=(),
            title_terms=tuple(form for form, _, _ in terms_of(title_morphemes)),
            sentence_spans=(),
            url=article.url,
            category=article.category,
            series=article.series,
            tags=article.tags,
            source=article.source,
            published_at=article.published_at,
            quality=article.quality,
        )
        if not pieces:  # the title is all there is
            carried_end = _end_within(len(title), count_title, budget)
        carried = _Read(template, title[:carried_end], tuple(t for t in title_morphemes if t.start < carried_end))
        if not pieces:
            return [carried]
        terms, starts = terms_of(morphemes), [token.start for token in morphemes]
        return [self._passage(n, carried, piece, body, morphemes, starts, terms) for n, piece in enumerate(pieces)]

    def _passage(
        self,
        ordinal: int,
        carried: _Read,
        piece: Piece,
        body: CleanText,
        morphemes: Sequence[Token],
        starts: Sequence[int],
        terms: Sequence[Term],
    ) -> _Read:
        """The passage of `piece`; `carried` is the one of the title alone."""
        heading = piece.heading
        parts: list[tuple[Span, int]] = []  # (span of the clean text, where it begins in the passage's text)
        if heading is not None:
            parts.append((heading, 0))
        text_start = heading[1] - heading[0] + 1 if heading is not None else 0
        parts.append(((piece.start, piece.end), text_start))
        forms: list[str] = []
        spans: list[Span] = []
        for (start, end), at in parts:
            inside, shift = _within(terms, start, end), at - start
            forms += [form for form, _, _ in inside]
            spans += [(first + shift, last + shift) for _, first, last in inside]
        sentences = [
            (start - piece.start + text_start, end - piece.start + text_start) for start, end in piece.sentences
        ]
        if heading is not None:
            sentences.insert(0, (0, heading[1] - heading[0]))
        tokens = [
            t for (start, end), _ in parts for t in morphemes[bisect_left(starts, start) : bisect_left(starts, end)]
        ]
        passage = replace(
            carried.passage,
            ordinal=ordinal,
            text="\n".join(body.text[start:end] for (start, end), _ in parts),
            terms=tuple(forms),
            term_spans=tuple(spans),
            sentence_spans=tuple(sentences),
        )
        return _Read(passage, carried.carried_title, (*carried.morphemes, *tokens))

    def _budget(self) -> int:
        longest = self._encoder.max_tokens
        if longest is None:
            return self._parameters.max_tokens
        return max(1, min(self._parameters.max_tokens, longest - _SPECIAL_TOKENS - self._prompt_tokens()))

    def _prompt_tokens(self) -> int:
        prompts: Prompts | None = getattr(self._encoder, "prompts", None)
        return self._encoder.count_tokens([prompts.passage])[0] if prompts is not None and prompts.passage else 0

    def _counter(self, text: str, morphemes: Sequence[Token]) -> TokenCounter:
        if self._by_morphemes is not None:
            starts = [token.start for token in morphemes]
            return lambda spans: [bisect_left(starts, end) - bisect_left(starts, start) for start, end in spans]
        return lambda spans: self._encoder.count_tokens([text[start:end] for start, end in spans])


def encode(encoder: Encoder, passages: Sequence[AnalysedPassage]) -> FloatArray:
    """The vectors of `passages`, title in front: float32 (n, dim), unit rows."""
    if not passages:
        return np.zeros((0, encoder.dim), dtype=np.float32)
    there = [p.vector for p in passages if p.vector is not None]
    if len(there) == len(passages):
        return np.stack(there)
    return encoder.encode_passages([f"{p.carried_title}\n{p.passage.text}" for p in passages])


def _within(terms: Sequence[Term], start: int, end: int) -> Sequence[Term]:
    """The terms that lie inside [start, end); `terms` are sorted by their start."""
    first = bisect_left(terms, start, key=_TERM_START)
    last = bisect_left(terms, end, key=_TERM_START)
    return [term for term in terms[first:last] if term[2] <= end]


def _end_within(length: int, count: TokenCounter, budget: int) -> int:
    """The longest beginning of a text of `length` characters with at most `budget` tokens, by bisection: its end."""
    if count([(0, length)])[0] <= budget:
        return length
    end = bisect_right(range(length), budget, key=lambda place: count([(0, place)])[0]) - 1
    while end > 0 and count([(0, end)])[0] > budget:  # tokens need not grow with every character
        end -= 1
    return max(0, end)
