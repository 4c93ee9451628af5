from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import bm25s
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray
from rank_bm25 import BM25L, BM25Okapi, BM25Plus

from pipeline.errors import InvalidInput
from pipeline.index.bm25 import Variant
from pipeline.index.lexical import LexicalIndex

RANK_BM25: dict[Variant, Any] = {"okapi": BM25Okapi, "l": BM25L, "plus": BM25Plus}
VARIANTS: tuple[Variant, ...] = ("lucene", "okapi", "l", "plus")
WORDS = ("대출", "금리", "세금", "연금", "카드", "보험", "투자", "전세", "사기", "환율")

documents_of_words = st.lists(st.lists(st.sampled_from(WORDS), max_size=12), min_size=1, max_size=6)
queries = st.lists(st.sampled_from([*WORDS, "없는말", ""]), max_size=8)


def fresh_scores(variant: Variant, documents: Sequence[Sequence[str]], query: Sequence[str]) -> NDArray[np.float64]:
    """What a fresh index gives each document: rank_bm25 itself, and for lucene the formula written out.

    0 where rank_bm25 would divide by zero: no documents, or not one term in them.
    """
    if not any(documents):
        return np.zeros(len(documents))
    if variant != "lucene":
        scores: NDArray[np.float64] = RANK_BM25[variant](documents).get_scores(query)
        return scores
    return np.array([lucene_score(document, documents, query) for document in documents])


def lucene_score(document: Sequence[str], documents: Sequence[Sequence[str]], query: Sequence[str]) -> float:
    k1, b = 1.2, 0.75
    average = sum(map(len, documents)) / len(documents)
    score = 0.0
    for term in query:
        df = sum(term in other for other in documents)
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        tf = document.count(term)
        score += idf * tf / (tf + k1 * (1 - b + b * len(document) / average))
    return score


def filled(documents: Mapping[int, Sequence[str]], variant: Variant = "lucene", **options: Any) -> LexicalIndex:
    index = LexicalIndex(variant=variant, **options)
    index.add(list(documents), list(documents.values()))
    return index


class LiveIndex(RuleBasedStateMachine):
    """Adds, removes and replacements in any order, beside a plain mapping of what is there."""

    variant: Variant

    @initialize(segment_postings=st.sampled_from([1, 7, 40, 1 << 21]))
    def start(self, segment_postings: int) -> None:
        self.index = LexicalIndex(variant=self.variant, segment_postings=segment_postings)
        self.documents: dict[int, list[str]] = {}

    @rule(documents=documents_of_words, data=st.data())
    def add(self, documents: list[list[str]], data: st.DataObject) -> None:
        unused = [row for row in range(40) if row not in self.documents]
        rows = data.draw(st.permutations(unused))[: len(documents)]
        self.index.add(rows, documents[: len(rows)])
        self.documents.update(zip(rows, documents, strict=False))

    @precondition(lambda self: self.documents)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        rows = data.draw(st.lists(st.sampled_from(sorted(self.documents)), unique=True))
        self.index.remove(rows)
        for row in rows:
            del self.documents[row]

    @precondition(lambda self: self.documents)
    @rule(data=st.data(), document=st.lists(st.sampled_from(WORDS), max_size=12))
    def replace(self, data: st.DataObject, document: list[str]) -> None:
        row = data.draw(st.sampled_from(sorted(self.documents)))
        self.index.remove([row])
        self.index.add([row], [document])
        self.documents[row] = document

    @rule(query=queries)
    def scores_are_those_of_a_fresh_index(self, query: list[str]) -> None:
        rows = sorted(self.documents)
        expected = np.zeros(self.index.capacity)
        expected[rows] = fresh_scores(self.variant, [self.documents[row] for row in rows], query)
        np.testing.assert_allclose(self.index.scores(query), expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(self.index.scores(Counter(query)), expected, rtol=0, atol=1e-6)

    @rule(query=queries)
    def matched_terms_are_those_the_document_holds(self, query: list[str]) -> None:
        expected = [[term for term in dict.fromkeys(query) if term in self.documents.get(row, ())] for row in range(40)]
        assert [self.index.held(query, row) for row in range(40)] == expected

    @rule(query=queries, k=st.integers(1, 12), data=st.data())
    def top_is_the_head_of_all_scores_sorted(self, query: list[str], k: int, data: st.DataObject) -> None:
        capacity = self.index.capacity
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=capacity, max_size=capacity)), dtype=bool)
        scores = self.index.scores(query)
        wanted = [row for row, terms in self.documents.items() if mask[row] and set(terms) & set(query)]
        expected = sorted(wanted, key=lambda row: (-scores[row], row))[:k]
        rows, found = self.index.top(query, k, mask)
        assert rows.tolist() == expected
        assert found.tolist() == scores[expected].tolist()

    @invariant()
    def statistics_are_exact(self) -> None:
        documents = self.documents.values()
        assert self.index.documents == len(documents)
        total = sum(map(len, documents))
        assert self.index.average_length == (total / len(documents) if documents else 0.0)
        for word in WORDS:
            assert self.index.document_frequency(word) == sum(word in terms for terms in documents)


class LuceneIndex(LiveIndex):
    variant: Variant = "lucene"


class OkapiIndex(LiveIndex):
    variant: Variant = "okapi"


class LIndex(LiveIndex):
    variant: Variant = "l"


class PlusIndex(LiveIndex):
    variant: Variant = "plus"


_STEPS = settings(max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestLucene: Any = LuceneIndex.TestCase
TestLucene.settings = _STEPS
TestOkapi: Any = OkapiIndex.TestCase
TestOkapi.settings = _STEPS
TestL: Any = LIndex.TestCase
TestL.settings = _STEPS
TestPlus: Any = PlusIndex.TestCase
TestPlus.settings = _STEPS


@given(
    documents=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=20),
    query=queries,
)
def test_lucene_variant_equals_bm25s(documents: list[list[str]], query: list[str]) -> None:
    # bm25s's "lucene" has no factor (k1 + 1) either; it computes in float32 unless told otherwise.
    reference = bm25s.BM25(method="lucene", k1=1.2, b=0.75, dtype="float64")
    reference.index(documents, show_progress=False)
    known = [term for term in query if term in set().union(*documents)]
    expected = reference.get_scores(known) if known else np.zeros(len(documents))
    index = filled(dict(enumerate(documents)))
    np.testing.assert_allclose(index.scores(query)[: len(documents)], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["okapi", "l", "plus"])
@given(
    documents=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=12),
    query=queries,
    k1=st.floats(0.01, 5),
    b=st.floats(0, 1),
    floor=st.floats(0, 2),
)
def test_given_parameters_mean_what_they_mean_to_rank_bm25(
    *, variant: Variant, documents: list[list[str]], query: list[str], k1: float, b: float, floor: float
) -> None:
    parameters = {"k1": k1, "b": b, ("epsilon" if variant == "okapi" else "delta"): floor}
    index = filled(dict(enumerate(documents)), variant, **parameters)
    expected = RANK_BM25[variant](documents, **parameters).get_scores(query)
    np.testing.assert_allclose(index.scores(query)[: len(documents)], expected, rtol=0, atol=1e-6)
    assert index.parameters == parameters


@pytest.mark.parametrize("variant", ["okapi", "l", "plus"])
def test_defaults_are_those_of_rank_bm25(variant: Variant) -> None:
    reference = RANK_BM25[variant]([["대출"]])
    parameters = LexicalIndex(variant=variant).parameters
    assert parameters == {name: getattr(reference, name) for name in parameters}
    assert set(parameters) == {"k1", "b", "epsilon" if variant == "okapi" else "delta"}


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        *product(VARIANTS, [{"k1": 0.0}, {"b": 1.0}, {"k1": 0.0, "b": 1.0}, {"b": 0.0}]),
        ("l", {"k1": 0.0, "delta": 0.0}),
    ],
)
def test_extreme_parameters_give_finite_scores_after_a_removal(variant: Variant, parameters: dict[str, float]) -> None:
    index = filled({0: ["대출", "금리"], 1: ["대출"], 2: [], 3: ["세금"]}, variant, **parameters)
    index.remove([1])
    scores = index.scores(["대출", "금리"])
    assert np.isfinite(scores).all()
    assert scores[1] == 0.0
    assert scores[0] > scores[3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_index_scores_nothing(variant: Variant) -> None:
    index = LexicalIndex(variant=variant)
    assert index.scores(["대출"]).shape == (0,)
    assert [len(part) for part in index.top(["대출"], 3)] == [0, 0]
    index.add([], [])
    index.remove([])
    assert (index.documents, index.average_length, index.document_frequency("대출")) == (0, 0.0, 0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_bulk_load_equals_one_document_at_a_time(variant: Variant) -> None:
    random = np.random.default_rng(7)
    documents = [[f"말{word}" for word in random.zipf(1.3, size) if word < 500] for size in random.integers(0, 60, 300)]
    bulk = filled(dict(enumerate(documents)), variant, segment_postings=2_000)
    single = LexicalIndex(variant=variant, segment_postings=2_000)
    for row, document in enumerate(documents):
        single.add([row], [document])
    query = ["말1", "말2", "말17", "말333"]
    np.testing.assert_allclose(single.scores(query)[:300], bulk.scores(query)[:300], rtol=0, atol=1e-12)


def test_a_row_used_again_does_not_bring_old_terms_back() -> None:
    index = filled({0: ["대출", "대출"], 1: ["금리"]})
    index.remove([0])
    index.add([0], [["세금"]])
    assert index.scores(["대출"]).tolist() == [0.0, 0.0]
    assert index.held(["대출", "세금"], 0) == ["세금"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_not_in_use_score_zero(variant: Variant) -> None:
    index = filled({1: ["대출"], 4: ["금리"], 9: ["대출", "세금"]}, variant)
    index.remove([4])
    scores = index.scores(["대출", "세금"])
    assert np.delete(scores, [1, 9]).tolist() == [0.0] * 8
    assert scores[9] != 0.0


def test_weights_multiply_and_repetitions_add_up() -> None:
    index = filled({0: ["대출", "금리"], 1: ["대출", "세금", "세금"]})
    separate = 2.5 * index.scores(["대출"]) + index.scores(["세금"])
    np.testing.assert_allclose(index.scores({"대출": 2.5, "세금": 1.0, "금리": 0.0}), separate, atol=1e-12)
    assert index.scores(["대출", "대출"]).tolist() == index.scores({"대출": 2}).tolist()


def test_equal_scores_are_ordered_by_row_at_the_cut() -> None:
    index = filled({row: ["대출", *(["금리"] if row == 6 else ["세금"])] for row in (8, 3, 6, 1, 9, 4)})
    rows, scores = index.top(["대출", "금리"], 3)
    assert rows.tolist() == [6, 1, 3]
    assert scores[0] > scores[1] == scores[2]


def test_capacity_doubles_by_itself_and_is_exact_when_reserved() -> None:
    index = LexicalIndex()
    index.reserve(10)
    assert index.scores(["대출"]).shape == (10,)
    index.add([10], [["대출"]])
    assert index.capacity == 20
    index.add([1000], [["대출"]])
    index.reserve(5)
    assert index.capacity == 1001
    assert np.flatnonzero(index.scores(["대출"])).tolist() == [10, 1000]


def test_a_posting_takes_six_bytes() -> None:
    documents = {row: [f"말{(row * 37 + step) % 3000}" for step in range(100)] for row in range(3000)}
    index = filled(documents)
    postings = sum(len(set(document)) for document in documents.values())
    vocabulary = 3000 * 250
    assert 6 * postings < index.memory_bytes < 6 * postings + 100 * len(documents) + vocabulary


@pytest.mark.parametrize(
    ("rows", "documents", "complaint"),
    [
        ([5, 0], [["대출"], ["대출"]], "row 0 is in use"),
        ([5, 5], [["대출"], ["대출"]], "row 5 is given twice"),
        ([5, -1], [["대출"], ["대출"]], "row -1 is not a row"),
        ([5, 1 << 31], [["대출"], ["대출"]], "is not a row"),
        ([5], [["대출"], ["대출"]], "1 rows were given for 2 documents"),
    ],
)
def test_a_refused_add_adds_nothing(rows: list[int], documents: list[list[str]], complaint: str) -> None:
    index = filled({0: ["금리"]})
    with pytest.raises(InvalidInput, match=complaint):
        index.add(rows, documents)
    assert (index.documents, index.document_frequency("대출"), index.capacity) == (1, 0, 1)


@pytest.mark.parametrize("rows", [[0, 3], [0, 0], [0, -1], [0, 99]])
def test_a_refused_remove_removes_nothing(rows: list[int]) -> None:
    index = filled({0: ["금리"], 2: ["대출"]})
    with pytest.raises(InvalidInput, match="row"):
        index.remove(rows)
    assert (index.documents, index.document_frequency("금리")) == (2, 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"variant": "bm25f"}, "one of lucene, okapi, l, plus, is 'bm25f'"),
        ({"epsilon": 0.1}, "variant 'lucene' has no parameter 'epsilon'"),
        ({"variant": "okapi", "delta": 0.1}, "variant 'okapi' has no parameter 'delta'"),
        ({"k1": -1.0}, "'k1' should be finite and >= 0, is -1.0"),
        ({"k1": math.nan}, "'k1' should be finite"),
        ({"b": 1.5}, "'b' should be in 0..1, is 1.5"),
    ],
)
def test_unusable_parameters_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        LexicalIndex(**options)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_unusable_weights_are_refused(weight: float) -> None:
    with pytest.raises(InvalidInput, match="weight of '대출' should be finite"):
        filled({0: ["대출"]}).scores({"대출": weight})


def test_top_refuses_k_below_one() -> None:
    with pytest.raises(InvalidInput, match="k should be >= 1, is 0"):
        filled({0: ["대출"]}).top(["대출"], 0)
