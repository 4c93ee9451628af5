"""Passages of a few words for tests of engines, what a search of them should give, and the filter as a plain predicate.

A vector depends on the text alone, so equal texts tie.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.index.engine import DENSE_DECIMALS, LEXICAL_DECIMALS, Candidates, EngineQuery
from pipeline.index.fields import LexicalFields, LexicalParameters
from pipeline.index.filters import Filter
from pipeline.index.lexical_query import LexicalQuery
from pipeline.korean.bigrams import bigrams

DIM = 16
WORDS = ("대출", "금리", "세금", "연금", "카드", "보험", "투자", "전세", "사기", "환율", "ETF", "청약")
EVERYTHING = 200  # candidates: more than any corpus here has passages
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

documents = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=3)


def passages(article_id: str, revision: int, texts: Sequence[Sequence[str]], **fields: object) -> list[Passage]:
    """An article of one passage a list of words; the first word of all is the title."""
    return [
        Passage(
            article_id=article_id,
            revision=revision,
            ordinal=ordinal,
            title=texts[0][0],
            text=" ".join(words),
            terms=tuple(words),
            term_spans=tuple((n, n + 1) for n in range(len(words))),
            title_terms=(texts[0][0],),
            sentence_spans=((0, 1),),
            **fields,  # type: ignore[arg-type]
        )
        for ordinal, words in enumerate(texts)
    ]


def vector(text: str) -> FloatArray:
    """float32 (DIM,), a unit row that depends on `text` alone."""
    drawn = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIM)
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float32)


def vectors(some: Iterable[Passage]) -> FloatArray:
    """float32 (n, DIM)."""
    return np.array([vector(p.text) for p in some], dtype=np.float32).reshape(-1, DIM)


def question(
    words: Sequence[str],
    *,
    mode: str = "hybrid",
    conditions: Filter | None = None,
    candidates: int = EVERYTHING,
) -> EngineQuery:
    """A query of `words`; a word that stands twice weighs twice."""
    text = " ".join(words)
    return EngineQuery(
        vector=vector(text) if mode != "lexical" else None,
        terms=LexicalQuery(terms={w: float(words.count(w)) for w in words}, bigrams=tuple(bigrams(text)))
        if mode != "dense"
        else None,
        filter=conditions or Filter(),
        candidates=candidates,
    )


def scores(found: Candidates) -> dict[str, tuple[float, float]]:
    """Passage id → its dense and lexical score; no candidate comes twice."""
    assert len(set(found.passage_ids)) == len(found.passage_ids)
    assert [i.rsplit("#", 2)[0] for i in found.passage_ids] == list(found.article_ids)
    pairs = zip(found.dense.tolist(), found.lexical.tolist(), strict=True)
    return dict(zip(found.passage_ids, pairs, strict=True))


def expected(
    visible: Sequence[Passage], query: EngineQuery, parameters: LexicalParameters
) -> dict[str, tuple[float, float]]:
    """What an exact search over `visible` gives if every passage that passes the filter is a candidate."""
    nothing = np.full(len(visible), np.nan)
    dense = lexical = nothing
    if query.vector is not None:
        products: NDArray[np.float64] = vectors(visible).astype(np.float64) @ query.vector.astype(np.float64)
        dense = products.round(DENSE_DECIMALS)
    if query.terms is not None:
        fields = LexicalFields(parameters)
        fields.add(range(len(visible)), visible)
        lexical = fields.scores(query.terms)[: len(visible)].round(LEXICAL_DECIMALS)
    return {
        p.id: (float(dense[n]), float(lexical[n]))
        for n, p in enumerate(visible)
        if passes(p, query.filter) and (query.vector is not None or lexical[n] > 0)
    }


def assert_same(found: Candidates, wanted: dict[str, tuple[float, float]]) -> None:
    """The same candidates with the same scores (1e-6), and maxima that are theirs."""
    given = scores(found)
    assert given.keys() == wanted.keys()
    for passage_id, pair in given.items():
        np.testing.assert_allclose(pair, wanted[passage_id], rtol=0, atol=1e-6, err_msg=passage_id)
    for best, column in ((found.dense_best, 0), (found.lexical_best, 1)):
        exact = max((pair[column] for pair in wanted.values()), default=0.0)
        np.testing.assert_allclose(best, 0.0 if np.isnan(exact) else exact, rtol=0, atol=1e-6)


def passes(passage: Passage, conditions: Filter) -> bool:
    """The filter, in plain Python."""
    wanted = [(conditions.category, passage.category), (conditions.series, passage.series)]
    wanted += [(conditions.source, passage.source)]
    if any(value is not None and value != seen for value, seen in wanted):
        return False
    if conditions.tag is not None and conditions.tag not in passage.tags:
        return False
    moment = passage.published_at
    if conditions.since is not None and (moment is None or moment < conditions.since):
        return False
    return not (conditions.until is not None and (moment is None or moment >= conditions.until))


VALUES = ("금융", "세금", '" or 1==1', "")

filters = st.builds(
    Filter,
    category=st.none() | st.sampled_from(VALUES),
    series=st.none() | st.none() | st.sampled_from(VALUES),
    source=st.none() | st.none() | st.sampled_from(VALUES),
    tag=st.none() | st.none() | st.sampled_from((*VALUES, "없는 태그")),
    since=st.none() | st.integers(-1, 6).map(lambda days: NOON + timedelta(days=days)),
    until=st.none() | st.integers(-1, 6).map(lambda days: NOON + timedelta(days=days)),
)


def varied_articles(count: int = 60) -> list[list[Passage]]:
    """Articles whose filter fields, words and numbers of passages vary, the same in each run; some fields are missing."""
    random = np.random.default_rng(11)

    def any_of(values: Sequence[object]) -> object:
        return values[int(random.integers(len(values)))]

    articles = []
    for number in range(count):
        texts = [[str(any_of(WORDS)) for _ in range(random.integers(1, 9))] for _ in range(random.integers(1, 4))]
        fields = {name: any_of((None, *VALUES)) for name in ("category", "series", "source")}
        tags = tuple(value for value in VALUES if random.random() < 0.4)
        day = any_of((None, 0, 1, 2, 3, 4))
        moment = NOON + timedelta(days=day) if isinstance(day, int) else None
        articles.append(passages(f"글{number}", 1, texts, tags=tags, published_at=moment, **fields))
    return articles
