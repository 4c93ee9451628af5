"""The measures against their formulas, written out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.measures import MEASURES, means, measured

DOCUMENTS = [f"d{n}" for n in range(130)]
GRADES = st.dictionaries(st.sampled_from(DOCUMENTS), st.integers(0, 3), min_size=1, max_size=20).filter(
    lambda grades: any(grades.values())
)
RANKING = st.permutations(DOCUMENTS).flatmap(lambda order: st.integers(0, 130).map(lambda n: order[:n]))


def _by_hand(grades: dict[str, int], ranking: list[str]) -> dict[str, float]:
    gains = [grades.get(document, 0) for document in ranking]
    ideal = sorted(grades.values(), reverse=True)

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values[:10], start=1))

    relevant = sum(grade > 0 for grade in grades.values())
    first = next((rank for rank, gain in enumerate(gains[:10], start=1) if gain > 0), None)
    recall = {f"recall@{k}": sum(gain > 0 for gain in gains[:k]) / relevant for k in (1, 10, 100)}
    return {"ndcg@10": dcg(gains) / dcg(ideal), **recall, "mrr@10": 1 / first if first else 0.0}


@given(st.lists(st.tuples(GRADES, RANKING), min_size=1, max_size=4))
def test_each_measure_is_its_formula_for_every_query(judged: list[tuple[dict[str, int], list[str]]]) -> None:
    qrels = {f"q{n}": grades for n, (grades, _) in enumerate(judged)}
    rankings = {f"q{n}": ranking for n, (_, ranking) in enumerate(judged)}
    found = measured(qrels, rankings)
    assert list(found) == list(MEASURES)
    for query, grades in qrels.items():
        by_hand = _by_hand(grades, rankings[query])
        assert {name: values[query] for name, values in found.items()} == pytest.approx(by_hand)
    assert means(found)["ndcg@10"] == pytest.approx(
        sum(_by_hand(qrels[q], rankings[q])["ndcg@10"] for q in qrels) / len(qrels)
    )


def test_a_query_without_a_ranking_counts_as_zero_and_a_ranking_without_judgments_not_at_all() -> None:
    found = measured({"q1": {"a": 1}, "q2": {"a": 1}}, {"q1": ["a"], "q9": ["a"]})
    assert found["ndcg@10"] == {"q1": 1.0, "q2": 0.0}
    assert means(found)["recall@1"] == 0.5


def test_columns_are_in_the_order_of_the_judgments() -> None:
    qrels = {query: {"a": 1} for query in ("z", "b", "y", "a")}
    assert list(measured(qrels, {"a": ["a"], "z": ["a"]}, ["mrr@10"])["mrr@10"]) == ["z", "b", "y", "a"]
