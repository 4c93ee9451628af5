"""Queries as both legs read them: vectors and weighted terms, for many queries at a time.

A leg that cannot be prepared is left out and named; a query that breaks one breaks it for no other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pipeline.encoding.encoder import Encoder, FloatArray, MorphemeEncoder
from pipeline.encoding.word_probabilities import form_probabilities
from pipeline.errors import YeoulError
from pipeline.index.lexical_query import LexicalQuery
from pipeline.korean.bigrams import bigrams
from pipeline.korean.morphemes import Analyser, QueryTerms
from pipeline.retrieval.evidence import rarities
from pipeline.retrieval.query import SearchRequest

log = logging.getLogger(__name__)

ENCODER_ERRORS = (YeoulError, RuntimeError, MemoryError)  # RuntimeError: what torch raises, out of memory too
_ANALYSER_ERRORS = (RuntimeError, MemoryError)

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


@dataclass(slots=True, kw_only=True)
class Understood:
    """A query as both legs read it; a leg that could not be prepared is None and named in `failed`, with the reason."""

    vector: FloatArray | None = None
    terms: LexicalQuery | None = None
    failed: dict[str, str] = field(default_factory=dict)


class Reader(Protocol):
    """What reads queries, here or in another process."""

    def read(self, requests: Sequence[SearchRequest]) -> list[Understood]:
        """Each request as each leg that its mode asks for reads it."""


class QueryReader:
    """Reads queries by `analyser` and `encoder`: one analysis and one encoding for all. Safe to use from several threads."""

    def __init__(self, analyser: Analyser, encoder: Encoder) -> None:
        self._analyser = analyser
        self._encoder = encoder

    def read(self, requests: Sequence[SearchRequest]) -> list[Understood]:
        made = [Understood() for _ in requests]
        wanted = [place for place, request in enumerate(requests) if request.mode != "dense"]
        texts = [requests[place].text for place in wanted]
        found: dict[int, QueryTerms] = {}
        for place, terms in zip(wanted, _made(self._analyser.terms_of_queries, texts, _ANALYSER_ERRORS), strict=True):
            if isinstance(terms, Exception):
                log.error("a query could not be analysed", exc_info=terms)
                made[place].failed["lexical"] = str(terms)
            else:
                found[place] = terms
                made[place].terms = self._lexical(requests[place].text, terms)
        wanted = [place for place, request in enumerate(requests) if request.mode != "lexical"]
        for place, vector in zip(wanted, self._vectors(requests, wanted, found), strict=True):
            if isinstance(vector, Exception):
                log.error("a query could not be encoded", exc_info=vector)
                made[place].failed["dense"] = str(vector)
            else:
                made[place].vector = vector
        return made

    def terms(self, text: str) -> LexicalQuery:
        """What the lexical leg is asked for `text`."""
        return self._lexical(text, self._analyser.query_terms(text))

    def _lexical(self, text: str, found: QueryTerms) -> LexicalQuery:
        terms = found.weights | found.synonyms
        return LexicalQuery(
            terms=terms,
            bigrams=tuple(bigrams(text)),
            synonyms=frozenset(found.synonyms),
            rarities=rarities(terms, form_probabilities(self._analyser.kiwi)),
        )

    def _vectors(
        self, requests: Sequence[SearchRequest], wanted: Sequence[int], found: Mapping[int, QueryTerms]
    ) -> list[FloatArray | Exception]:
        """The vectors of the `wanted` requests; what Kiwi found already is not looked for again."""
        encoder = self._encoder
        if isinstance(encoder, MorphemeEncoder) and all(place in found for place in wanted):
            morphemes = [found[place].morphemes for place in wanted]
            return _made(lambda some: list(encoder.encode_morphemes(some)), morphemes, ENCODER_ERRORS)
        texts = [requests[place].text for place in wanted]
        return _made(lambda some: list(encoder.encode_queries(some)), texts, ENCODER_ERRORS)


def _made(
    make: Callable[[Sequence[_Given]], Sequence[_Made]], given: Sequence[_Given], errors: tuple[type[Exception], ...]
) -> list[_Made | Exception]:
    """What `make` gives for all of `given` at once or, where that raises one of `errors`, for each by itself, with the error
    in the place of what cannot be made."""
    if not given:
        return []
    try:
        return [*make(given)]
    except errors as error:
        if len(given) == 1:
            return [error]
    return [made for each in given for made in _made(make, [each], errors)]
