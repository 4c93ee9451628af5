"""Scored candidates → a ranking of articles, and its pages.

An article stands where its best passage stands; its other passages are listed beside it. A cursor is the key (score, id)
of the last article shown and the hash of the question, so pages join without gap or repetition whatever their sizes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import orjson

from pipeline.errors import InvalidQuery
from pipeline.index.engine import Candidates
from pipeline.retrieval.fusion import Fused

_HASH_CHARS = 16  # of the question's SHA-256: a slip is noticed, nothing secret is guarded


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredPassage:
    """A candidate with its scores; None where a leg is off."""

    passage_id: str
    score: float
    dense: float | None
    lexical: float | None
    dense_normalised: float | None
    lexical_normalised: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedArticle:
    """An article by its `best` passage; `others` are its other candidates, best first. `place` is that of the best passage
    among the candidates."""

    article_id: str
    place: int = field(compare=False, repr=False)
    best: ScoredPassage
    others: tuple[ScoredPassage, ...]

    @property
    def score(self) -> float:
        return self.best.score


class Ranking(Sequence[RankedArticle]):
    """The articles of the candidates, best first; equal scores by article id, equal passages by passage id.

    An article is put together when it is looked at: of hundreds, ten are shown.
    """

    def __init__(self, candidates: Candidates, fused: Fused) -> None:
        self._candidates = candidates
        self._fused = fused
        self._on = [not np.isnan(column).any() for column in (candidates.dense, candidates.lexical)]
        numbers = candidates.articles.tolist() if len(candidates.articles) else candidates.article_ids
        places: dict[int | str, list[int]] = {}
        for place in self._best_first():
            places.setdefault(numbers[place], []).append(place)
        self._articles = list(places.values())  # the places of each article's candidates, best first

    @property
    def article_ids(self) -> list[str]:
        return [self._candidates.article_ids[places[0]] for places in self._articles]

    def after(self, key: tuple[float, str]) -> int:
        """The number of articles up to the one with `key` (minus the score, id), whether it is there or not."""
        return bisect_right(self._articles, key, key=self._key)

    def _key(self, places: Sequence[int]) -> tuple[float, str]:
        return -float(self._fused.score[places[0]]), self._candidates.article_ids[places[0]]

    def _best_first(self) -> list[int]:
        """All places by score; ids are looked at only where scores tie."""
        places = np.argsort(-self._fused.score, kind="stable")
        scores = self._fused.score[places]
        tied = np.flatnonzero(scores[1:] == scores[:-1])
        order: list[int] = places.tolist()
        ids, articles = self._candidates.passage_ids, self._candidates.article_ids
        for run in np.split(tied, np.flatnonzero(np.diff(tied) > 1) + 1) if len(tied) else ():
            start, end = int(run[0]), int(run[-1]) + 2
            order[start:end] = sorted(order[start:end], key=lambda place: (articles[place], ids[place]))
        return order

    def __len__(self) -> int:
        return len(self._articles)

    @overload
    def __getitem__(self, index: int) -> RankedArticle: ...
    @overload
    def __getitem__(self, index: slice) -> list[RankedArticle]: ...
    def __getitem__(self, index: int | slice) -> RankedArticle | list[RankedArticle]:
        if isinstance(index, slice):
            return [self._article(places) for places in self._articles[index]]
        return self._article(self._articles[index])

    def _article(self, places: Sequence[int]) -> RankedArticle:
        best, *others = map(self._scored, places)
        article_id = self._candidates.article_ids[places[0]]
        return RankedArticle(article_id=article_id, place=places[0], best=best, others=tuple(others))

    def _scored(self, place: int) -> ScoredPassage:
        dense_on, lexical_on = self._on
        return ScoredPassage(
            passage_id=self._candidates.passage_ids[place],
            score=float(self._fused.score[place]),
            dense=float(self._candidates.dense[place]) if dense_on else None,
            lexical=float(self._candidates.lexical[place]) if lexical_on else None,
            dense_normalised=float(self._fused.dense[place]) if dense_on else None,
            lexical_normalised=float(self._fused.lexical[place]) if lexical_on else None,
        )


def page(ranking: Ranking, *, limit: int, cursor: str | None, question: str) -> tuple[list[RankedArticle], str | None]:
    """`limit` articles after `cursor`, and the cursor of the next page (None on the last).

    Raises InvalidQuery for a cursor that is none, or belongs to another `question`.
    """
    first = ranking.after(_decoded(cursor, question)) if cursor is not None else 0
    shown = ranking[first : first + limit]
    more = first + limit < len(ranking)
    return shown, _encoded(shown[-1], question) if shown and more else None


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:_HASH_CHARS]


def _encoded(article: RankedArticle, question: str) -> str:
    content = orjson.dumps([article.score, article.article_id, _digest(question)])
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _decoded(cursor: str, question: str) -> tuple[float, str]:
    rule = "a next_cursor given by a search"
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        content = orjson.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        score, article_id, digest = content
    except (ValueError, TypeError, binascii.Error, UnicodeEncodeError) as error:
        raise InvalidQuery("cursor", cursor, rule) from error
    if not isinstance(score, int | float) or not isinstance(article_id, str):
        raise InvalidQuery("cursor", cursor, rule)
    if digest != _digest(question):
        raise InvalidQuery("cursor", cursor, f"{rule} for the same question, mode and filters")
    return -float(score), article_id
