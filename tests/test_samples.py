"""The shipped articles and judged queries: what they promise, and how well the gate half is answered by the code that serves.

The targets that the gate half does not reach are named in docs/proof.md, with their figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from pipeline.documents import Article
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.korean.morphemes import Analyser
from tests.benchmarks import samples
from tests.benchmarks.samples import REWORDED, WORDED, Query, Values, mean

_HALVES = ("tune", "gate")
_LEAST_A_KIND = 12  # queries in each half: below that, one query moves a mean by more than a tenth
_BEST_GRADE = 2

# First letters of the tags that carry meaning. Adverbs, determiners, numbers and grammar may be shared; no word is excepted.
_CONTENT = ("NN", "VV", "VA", "XR", "SL")


@pytest.fixture(scope="module")
def articles() -> list[Article]:
    return samples.shipped_articles()


@pytest.fixture(scope="module")
def queries() -> list[Query]:
    return samples.shipped_queries()


@pytest.fixture(scope="module")
def gate(queries: list[Query]) -> list[Query]:
    return samples.gate(queries)


@pytest.fixture(scope="module")
def ndcg(articles: list[Article], gate: list[Query], analyser: Analyser, encoder: KiwiStaticEncoder) -> Values:
    return samples.ndcg(articles, gate, analyser, encoder)


def _of_kinds(queries: Iterable[Query], *kinds: str) -> list[Query]:
    return [query for query in queries if query["kind"] in kinds]


# --- what is shipped ------------------------------------------------------------------------------------------------


def test_at_least_120_articles_of_different_ids_and_titles(articles: list[Article]) -> None:
    assert len(articles) >= 120
    assert len({article.id for article in articles}) == len({article.title for article in articles}) == len(articles)


def test_bodies_have_400_to_2000_characters(articles: list[Article]) -> None:
    assert {article.id: len(article.body) for article in articles if not 400 <= len(article.body) <= 2000} == {}


def test_every_article_is_dated_and_categorised(articles: list[Article]) -> None:
    assert [a.id for a in articles if not (a.title and a.category and a.published_at and a.updated_at)] == []


def test_at_least_120_queries_of_different_ids_and_texts(queries: list[Query]) -> None:
    assert len(queries) >= 120
    assert len({query["id"] for query in queries}) == len({query["text"] for query in queries}) == len(queries)


def test_every_query_asks_for_an_article_that_is_there(articles: list[Article], queries: list[Query]) -> None:
    ids = {article.id for article in articles}
    for query in queries:
        assert query["relevant"].keys() <= ids, query
        assert set(query["relevant"].values()) <= {1, _BEST_GRADE}, query
        assert _BEST_GRADE in query["relevant"].values(), query


def test_every_kind_is_in_both_halves(queries: list[Query]) -> None:
    counts = Counter((query["kind"], query["half"]) for query in queries)
    assert counts.keys() == {(kind, half) for kind in (*WORDED, *REWORDED) for half in _HALVES}
    assert min(counts.values()) >= _LEAST_A_KIND


def test_the_halves_are_of_one_size(queries: list[Query]) -> None:
    sizes = Counter(query["half"] for query in queries)
    assert abs(sizes["tune"] - sizes["gate"]) <= 1


def test_unspaced_queries_have_no_blank(queries: list[Query]) -> None:
    unspaced = _of_kinds(queries, "unspaced")
    assert unspaced
    assert [query["text"] for query in unspaced if len(query["text"].split()) > 1] == []


def test_reworded_queries_share_no_content_morpheme_with_the_title_they_ask_for(
    articles: list[Article], queries: list[Query], analyser: Analyser
) -> None:
    titles = {article.id: _content(analyser, article.title) for article in articles}
    assert all(titles.values())
    for query in _of_kinds(queries, *REWORDED):
        words = _content(analyser, query["text"])
        assert words, query
        for article_id, grade in query["relevant"].items():
            if grade == _BEST_GRADE:
                assert words & titles[article_id] == set(), (query, article_id)


def test_plain_queries_share_a_content_morpheme_with_the_article_they_ask_for(
    articles: list[Article], queries: list[Query], analyser: Analyser
) -> None:
    """Otherwise the test above could pass because nothing is ever shared."""
    words = {article.id: _content(analyser, f"{article.title}\n{article.body}") for article in articles}
    for query in _of_kinds(queries, "plain"):
        best = [article_id for article_id, grade in query["relevant"].items() if grade == _BEST_GRADE]
        assert any(_content(analyser, query["text"]) & words[article_id] for article_id in best), query


def _content(analyser: Analyser, text: str) -> set[str]:
    (tokens,) = analyser.analyse([text])
    return {token.form.lower() for token in tokens if token.tag.startswith(_CONTENT)}


# --- how well the gate half is answered -----------------------------------------------------------------------------


def test_hybrid_is_not_below_the_lexical_leg(ndcg: Values, gate: list[Query]) -> None:
    assert mean(ndcg, "hybrid", gate) >= mean(ndcg, "lexical", gate) - 0.003


@pytest.mark.parametrize("other", ["dense", "rrf"])
def test_hybrid_is_above_the_dense_leg_and_rrf(ndcg: Values, gate: list[Query], other: str) -> None:
    assert mean(ndcg, "hybrid", gate) >= mean(ndcg, other, gate)


@pytest.mark.parametrize("kind", WORDED)
def test_queries_with_the_articles_words_are_answered(ndcg: Values, gate: list[Query], kind: str) -> None:
    assert mean(ndcg, "hybrid", _of_kinds(gate, kind)) >= 0.90


def test_the_kinds_that_the_target_names_reach_it(ndcg: Values, gate: list[Query]) -> None:
    """Without "indirect", a sixth kind (docs/proof.md). Seen: .917."""
    named = _of_kinds(gate, *WORDED, "paraphrase")
    assert mean(ndcg, "hybrid", named) >= 0.90
    assert mean(ndcg, "hybrid", named) >= max(mean(ndcg, leg, named) for leg in ("lexical", "dense"))


def test_reworded_queries_gain_by_the_dense_leg(ndcg: Values, gate: list[Query]) -> None:
    """Over both kinds together; on "paraphrase" alone the gain is smaller, on "indirect" larger (docs/proof.md).

    Seen: .085; nothing was chosen on the gate half.
    """
    reworded = _of_kinds(gate, *REWORDED)
    assert mean(ndcg, "hybrid", reworded) >= mean(ndcg, "lexical", reworded) + 0.05
