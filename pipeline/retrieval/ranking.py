"""Scored candidates → a ranking of articles, and its pages.

An article stands where its best passage stands; its other passages are listed beside it. A cursor is the key (score, id)
of the last article shown and the hash of the question, so pages join without gap or repetition whatever their sizes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import orjson

from pipeline.errors import InvalidQuery
from pipeline.index.engine import Candidates
from pipeline.retrieval.fusion import Column, Fused

_HASH_CHARS = 16  # of the question's SHA-256: a slip is noticed, nothing secret is guarded


class ScoredPassage(NamedTuple):  # not a dataclass: a search makes some 400 of them, at a quarter of the time
    """A candidate with its scores; None where a leg is off."""

    passage_id: str
    score: float
    dense: float | None
    lexical: float | None
    dense_normalised: float | None
    lexical_normalised: float | None


class RankedArticle(NamedTuple):
    """An article by its `best` passage; `others` are its other candidates, best first."""

    article_id: str
    best: ScoredPassage
    others: tuple[ScoredPassage, ...]

    @property
    def score(self) -> float:
        return self.best.score


def rank(candidates: Candidates, fused: Fused) -> list[RankedArticle]:
    """The articles of the candidates, best first; equal scores by article id, equal passages by passage id."""
    columns = zip(
        candidates.passage_ids,
        fused.score.tolist(),
        _numbers(candidates.dense),
        _numbers(candidates.lexical),
        _numbers(fused.dense),
        _numbers(fused.lexical),
        strict=True,
    )
    grouped: dict[str, list[ScoredPassage]] = {}
    for article_id, (passage_id, score, dense, lexical, dense_normalised, lexical_normalised) in zip(
        candidates.article_ids, columns, strict=True
    ):
        scored = ScoredPassage(
            passage_id=passage_id,
            score=score,
            dense=dense,
            lexical=lexical,
            dense_normalised=dense_normalised,
            lexical_normalised=lexical_normalised,
        )
        grouped.setdefault(article_id, []).append(scored)
    articles = []
    for article_id, passages in grouped.items():
        best, *others = sorted(passages, key=lambda p: (-p.score, p.passage_id)) if len(passages) > 1 else passages
        articles.append(RankedArticle(article_id=article_id, best=best, others=tuple(others)))
    return sorted(articles, key=_key)


def page(
    ranking: Sequence[RankedArticle], *, limit: int, cursor: str | None, question: str
) -> tuple[list[RankedArticle], str | None]:
    """`limit` articles after `cursor`, and the cursor of the next page (None on the last).

    Raises InvalidQuery for a cursor that is none, or belongs to another `question`.
    """
    first = 0
    if cursor is not None:
        after = _decoded(cursor, question)
        first = next((i for i, article in enumerate(ranking) if _key(article) > after), len(ranking))
    shown = list(ranking[first : first + limit])
    more = first + limit < len(ranking)
    return shown, _encoded(shown[-1], question) if shown and more else None


def _key(article: RankedArticle) -> tuple[float, str]:
    return -article.score, article.article_id


def _numbers(column: Column) -> list[float] | list[None]:
    """The column as Python numbers; all None where its leg is off (NaN)."""
    return [None] * len(column) if np.isnan(column).any() else column.tolist()


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
