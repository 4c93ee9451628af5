"""Fusion: every method against its formula written out, and what a score promises."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidSetting
from pipeline.index.engine import Candidates
from pipeline.retrieval.fusion import METHODS, Fused, Method, default_alpha, fuse

_EPSILON = 1e-6  # scores are rounded to this
_DENSE = st.floats(-1, 1).map(lambda score: round(score, 6))
_LEXICAL = st.floats(0, 60).map(lambda score: round(score, 9))
_PAIRS = st.lists(st.tuples(_DENSE, _LEXICAL), max_size=20)
_ALPHAS = st.floats(0, 1)
_METHODS = st.sampled_from(METHODS)


def _candidates(
    pairs: Sequence[tuple[float, float]], dense_best: float | None = None, lexical_best: float | None = None
) -> Candidates:
    dense, lexical = (np.array([pair[leg] for pair in pairs], dtype=np.float64) for leg in (0, 1))
    return Candidates(
        passage_ids=[f"a{n}#1#0" for n in range(len(pairs))],
        article_ids=[f"a{n}" for n in range(len(pairs))],
        dense=dense,
        lexical=lexical,
        dense_best=max(dense, default=0.0) if dense_best is None else dense_best,
        lexical_best=max(lexical, default=0.0) if lexical_best is None else lexical_best,
    )


def _without(candidates: Candidates, leg: str) -> Candidates:
    columns = {"dense": candidates.dense, "lexical": candidates.lexical, leg: np.full(len(candidates.dense), np.nan)}
    return Candidates(
        passage_ids=candidates.passage_ids,
        article_ids=candidates.article_ids,
        dense=columns["dense"],
        lexical=columns["lexical"],
        dense_best=0.0 if leg == "dense" else candidates.dense_best,
        lexical_best=0.0 if leg == "lexical" else candidates.lexical_best,
    )


def _best_to_worst(fused: Fused) -> list[int]:
    return sorted(range(len(fused.score)), key=lambda place: (-fused.score[place], place))


@given(_PAIRS, _METHODS, _ALPHAS)
def test_the_parts_add_up_to_the_score(pairs: list[tuple[float, float]], method: Method, alpha: float) -> None:
    fused = fuse(_candidates(pairs), method=method, alpha=alpha)
    assert fused.alpha == pytest.approx(0.5 if method == "rrf" else alpha)
    expected = fused.alpha * fused.dense + (1 - fused.alpha) * fused.lexical
    np.testing.assert_allclose(fused.score, expected, rtol=0, atol=_EPSILON)


@given(_PAIRS, _METHODS, _ALPHAS, st.sampled_from(["dense", "lexical"]))
def test_a_leg_that_is_off_leaves_all_the_weight_to_the_other(
    pairs: list[tuple[float, float]], method: Method, alpha: float, off: str
) -> None:
    both = fuse(_candidates(pairs), method=method, alpha=alpha)
    one = fuse(_without(_candidates(pairs), off), method=method, alpha=alpha)
    on, missing = (one.lexical, one.dense) if off == "dense" else (one.dense, one.lexical)
    assert np.isnan(missing).all()
    if pairs:
        assert one.alpha == (0.0 if off == "dense" else 1.0)
    np.testing.assert_allclose(one.score, on, rtol=0, atol=_EPSILON)
    np.testing.assert_array_equal(on, both.lexical if off == "dense" else both.dense)


@given(_PAIRS, _ALPHAS)
def test_tm2c2_is_the_papers_convex_combination(pairs: list[tuple[float, float]], alpha: float) -> None:
    candidates = _candidates(pairs)
    fused = fuse(candidates, method="tm2c2", alpha=alpha)
    for place, (dense, lexical) in enumerate(pairs):
        scaled_dense = (dense - -1) / (candidates.dense_best - -1) if candidates.dense_best > -1 else 0
        scaled_lexical = (lexical - 0) / (candidates.lexical_best - 0) if candidates.lexical_best > 0 else 0
        expected = alpha * scaled_dense + (1 - alpha) * scaled_lexical
        assert fused.score[place] == pytest.approx(expected, abs=_EPSILON)
        assert 0 <= fused.score[place] <= 1


@given(_PAIRS, _ALPHAS, st.data(), st.sampled_from(["tm2c2", "dpr"]))
def test_tm2c2_and_dpr_do_not_depend_on_the_other_candidates(
    pairs: list[tuple[float, float]], alpha: float, data: st.DataObject, method: Method
) -> None:
    every = _candidates(pairs)
    kept = [place for place in range(len(pairs)) if data.draw(st.booleans())]
    few = _candidates([pairs[place] for place in kept], every.dense_best, every.lexical_best)
    np.testing.assert_array_equal(
        fuse(few, method=method, alpha=alpha).score, fuse(every, method=method, alpha=alpha).score[kept]
    )


@given(_PAIRS, _ALPHAS)
def test_minmax_is_its_formula(pairs: list[tuple[float, float]], alpha: float) -> None:
    def scaled(scores: list[float]) -> list[float]:
        low, high = min(scores, default=0), max(scores, default=0)
        return [(score - low) / (high - low) if high > low else 1.0 for score in scores]

    fused = fuse(_candidates(pairs), method="minmax", alpha=alpha)
    legs = zip(scaled([d for d, _ in pairs]), scaled([x for _, x in pairs]), strict=True)
    expected = [alpha * dense + (1 - alpha) * lexical for dense, lexical in legs]
    np.testing.assert_allclose(fused.score, expected, rtol=0, atol=_EPSILON)
    assert all(0 <= score <= 1 for score in fused.score)


@given(
    st.lists(st.tuples(st.integers(-10, 10).map(lambda n: n / 10), st.integers(0, 40).map(float)), max_size=20), _ALPHAS
)
def test_zscore_is_its_formula(pairs: list[tuple[float, float]], alpha: float) -> None:
    def scaled(scores: list[float]) -> list[float]:
        if len(set(scores)) < 2:
            return [0.0] * len(scores)
        mean = sum(scores) / len(scores)
        deviation = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
        return [(score - mean) / deviation for score in scores]

    fused = fuse(_candidates(pairs), method="zscore", alpha=alpha)
    legs = zip(scaled([d for d, _ in pairs]), scaled([x for _, x in pairs]), strict=True)
    expected = [alpha * dense + (1 - alpha) * lexical for dense, lexical in legs]
    np.testing.assert_allclose(fused.score, expected, rtol=0, atol=_EPSILON)


def test_zscore_of_equal_scores_is_zero_in_spite_of_rounding() -> None:
    fused = fuse(_candidates([(0.1, 0.3)] * 3), method="zscore", alpha=0.5)
    assert fused.score.tolist() == [0.0, 0.0, 0.0]


@given(_PAIRS, _ALPHAS)
def test_dpr_adds_the_raw_scores(pairs: list[tuple[float, float]], alpha: float) -> None:
    fused = fuse(_candidates(pairs), method="dpr", alpha=alpha)
    expected = [alpha * dense + (1 - alpha) * lexical for dense, lexical in pairs]
    np.testing.assert_allclose(fused.score, expected, rtol=0, atol=_EPSILON)


@given(
    st.lists(_DENSE, unique=True, max_size=15).flatmap(
        lambda dense: st.tuples(
            st.just(dense), st.lists(_LEXICAL, unique=True, min_size=len(dense), max_size=len(dense))
        )
    ),
    st.integers(1, 200),
    _ALPHAS,
)
def test_rrf_ranks_as_the_plain_formula(legs: tuple[list[float], list[float]], k: int, alpha: float) -> None:
    ranks = [[1 + sum(other > score for other in leg) for score in leg] for leg in legs]
    plain = [1 / (k + dense) + 1 / (k + lexical) for dense, lexical in zip(*ranks, strict=True)]
    fused = fuse(_candidates(list(zip(*legs, strict=True))), method="rrf", alpha=alpha, rrf_k=k)
    np.testing.assert_allclose(fused.score, [score * (k + 1) / 2 for score in plain], rtol=0, atol=_EPSILON)
    for first, second in itertools.pairwise(_best_to_worst(fused)):
        assert plain[first] >= plain[second] - 2 * _EPSILON


@given(st.permutations(range(8)), st.lists(st.tuples(_DENSE, _LEXICAL), min_size=8, max_size=8), _METHODS)
def test_a_score_does_not_depend_on_the_order_of_the_candidates(
    order: list[int], pairs: list[tuple[float, float]], method: Method
) -> None:
    pairs[4:6] = [pairs[0], pairs[0]]  # ties
    straight = fuse(_candidates(pairs), method=method, alpha=0.3)
    shuffled = fuse(_candidates([pairs[place] for place in order]), method=method, alpha=0.3)
    np.testing.assert_allclose(shuffled.score, straight.score[list(order)], rtol=0, atol=_EPSILON)


@given(_PAIRS, _ALPHAS, st.floats(0.01, 1000), st.floats(0, 1))
def test_the_weight_moves_to_the_dense_leg_where_the_words_prove_little(
    pairs: list[tuple[float, float]], alpha: float, attainable: float, rarest: float
) -> None:
    candidates = replace(_candidates(pairs), lexical_attainable=attainable, lexical_rarest=rarest)
    fused = fuse(candidates, method="tm2c2", alpha=alpha)
    share = min(1.0, candidates.lexical_best / attainable)
    assert fused.evidence == pytest.approx(share)
    assert fused.alpha == pytest.approx(np.interp(share, [0.1, 0.39 - 0.24 * rarest], [1.0, alpha]))
    np.testing.assert_allclose(
        fused.score, fused.alpha * fused.dense + (1 - fused.alpha) * fused.lexical, rtol=0, atol=_EPSILON
    )
    assert all(0 <= score <= 1 for score in fused.score)
    assert fuse(candidates, method="tm2c2", alpha=alpha, adaptive=False).alpha == alpha


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidSetting, match=r"one of tm2c2, minmax, zscore, rrf, dpr, is 'max'"):
        fuse(_candidates([(0.1, 1.0)]), method="max", alpha=0.5)  # type: ignore[arg-type]


def test_the_measured_weight_goes_with_the_encoders_name() -> None:
    assert default_alpha("kiwi-static:0.24.0:abc:def") == default_alpha("kiwi-static")
    assert 0 < default_alpha("kiwi-static") != default_alpha("intfloat/multilingual-e5-small:1234") < 1
