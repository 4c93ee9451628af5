"""Ranking and paging: pages of any size join to the one-shot list."""

from __future__ import annotations

import base64
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidQuery
from pipeline.index.engine import Candidates
from pipeline.retrieval.fusion import fuse
from pipeline.retrieval.ranking import RankedArticle, Ranking, page

QUESTION = "전세대출 금리"
_ARTICLES = st.sampled_from([*"abcdefgh", "가", "나#다", "é", "👍"])
_SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.25000049, 0.3, 0.7, 1.0])  # few values: many ties
_ROWS = st.lists(st.tuples(_ARTICLES, _SCORES, st.floats(0, 30)), max_size=40)
Row = tuple[str, float, float]


def _ranking(rows: list[Row], alpha: float = 0.5) -> Ranking:
    ordinals: dict[str, int] = {}
    ids = []
    for article, _, _ in rows:
        ids.append(f"{article}#1#{ordinals.setdefault(article, 0)}")
        ordinals[article] += 1
    candidates = Candidates(
        passage_ids=ids,
        article_ids=[row[0] for row in rows],
        dense=np.array([row[1] for row in rows], dtype=np.float64),
        lexical=np.array([row[2] for row in rows], dtype=np.float64),
        dense_best=max((row[1] for row in rows), default=0.0),
        lexical_best=max((row[2] for row in rows), default=0.0),
    )
    return Ranking(candidates, fuse(candidates, method="tm2c2", alpha=alpha))


def _pages(ranking: Ranking, sizes: list[int]) -> list[list[RankedArticle]]:
    pages, cursor = [], None
    for turn in range(len(ranking) + 1):
        shown, cursor = page(ranking, limit=sizes[turn % len(sizes)], cursor=cursor, question=QUESTION)
        pages.append(shown)
        if cursor is None:
            return pages
    raise AssertionError("the pages never end")


@given(_ROWS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1))
def test_pages_of_any_sizes_join_to_the_one_shot_list(rows: list[Row], sizes: list[int], alpha: float) -> None:
    ranking = _ranking(rows, alpha)
    pages = _pages(ranking, sizes)
    assert [article for shown in pages for article in shown] == list(ranking)
    assert all(pages[:-1]), "no page but the only one is empty"
    assert len({article.article_id for article in ranking}) == len(ranking) == len({row[0] for row in rows})


@given(_ROWS, st.randoms(use_true_random=False))
def test_the_ranking_does_not_depend_on_the_order_of_the_candidates(rows: list[Row], random: object) -> None:
    numbered = [(f"{n}", dense, lexical) for n, (_, dense, lexical) in enumerate(rows)]
    shuffled = list(numbered)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert list(_ranking(shuffled)) == list(_ranking(numbered))


@given(_ROWS)
def test_articles_stand_by_their_best_passage_and_ties_by_id(rows: list[Row]) -> None:
    ranking = _ranking(rows)
    assert ranking.article_ids == [article.article_id for article in ranking]
    for article in ranking:
        passages = [article.best, *article.others]
        assert [(-p.score, p.passage_id) for p in passages] == sorted((-p.score, p.passage_id) for p in passages)
        assert len(passages) == sum(row[0] == article.article_id for row in rows)
        assert all(p.passage_id.rsplit("#", 2)[0] == article.article_id for p in passages)
    for first, second in pairwise(ranking):
        assert first.score > second.score or (first.score == second.score and first.article_id < second.article_id)


def test_a_leg_that_is_off_has_no_number() -> None:
    nothing = np.array([np.nan])
    candidates = Candidates(
        passage_ids=["a#1#0"],
        article_ids=["a"],
        dense=nothing,
        lexical=np.array([2.0]),
        dense_best=0.0,
        lexical_best=4.0,
    )
    (article,) = Ranking(candidates, fuse(candidates, method="tm2c2", alpha=0.2))
    assert (article.best.dense, article.best.dense_normalised) == (None, None)
    assert (article.best.lexical, article.best.lexical_normalised, article.score) == (2.0, 0.5, 0.5)


def _cursor() -> str:
    _, cursor = page(_ranking([("a", 0.5, 1.0), ("b", 0.2, 0.5)]), limit=1, cursor=None, question=QUESTION)
    assert cursor is not None
    return cursor


def test_a_cursor_goes_on_after_an_article_that_is_gone_since() -> None:
    without_a = _ranking([("b", 0.2, 0.5), ("c", 0.5, 1.0)])  # c scores as the one that is gone
    shown, cursor = page(without_a, limit=5, cursor=_cursor(), question=QUESTION)
    assert [article.article_id for article in shown] == ["c", "b"]
    assert cursor is None


def test_a_cursor_belongs_to_its_question() -> None:
    with pytest.raises(InvalidQuery, match="for the same question"):
        page(_ranking([]), limit=5, cursor=_cursor(), question=QUESTION + "?")


def test_no_part_of_a_cursor_is_a_cursor() -> None:
    cursor = _cursor()
    for cut in range(len(cursor)):
        with pytest.raises(InvalidQuery, match="next_cursor"):
            page(_ranking([]), limit=5, cursor=cursor[:cut], question=QUESTION)


def _forged(content: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(content)).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "!!!",
        "한글",
        "\ud800",
        "AAAA",
        _cursor() + "!",
        _cursor() + " ",
        " " + _cursor(),
        _forged(None),
        _forged(5),
        _forged("abc"),
        _forged({"a": 1, "b": 2, "c": 3}),
        _forged([0.5, "a"]),
        _forged(["0.5", "a", "x"]),
        _forged([0.5, 7, "x"]),
        _forged([0.5, "a", None]),
        _forged([[], {}, []]),
    ],
)
def test_what_is_no_cursor_is_refused_with_the_cure(cursor: str) -> None:
    with pytest.raises(InvalidQuery, match="next_cursor given by a search") as caught:
        page(_ranking([]), limit=5, cursor=cursor, question=QUESTION)
    str(caught.value).encode()


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_garbage_is_never_a_cursor(text: str) -> None:
    with pytest.raises(InvalidQuery):
        page(_ranking([]), limit=5, cursor=text, question=QUESTION)
