"""Bootstrap and randomisation against what enumeration and the binomial distribution say."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.evaluation.significance import bootstrap_means, compare, randomisation_test

MEASURES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40)


def _columns(pairs: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    first, second = zip(*pairs, strict=True)
    return list(first), list(second)


def _binomial_quantiles(n: int, p: float, at: list[float]) -> list[int]:
    cumulative = np.cumsum([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])
    return [int(k) for k in np.searchsorted(cumulative, at)]


def _every_resample(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.mean(chosen) for chosen in product(differences, repeat=len(differences))])


@pytest.mark.parametrize(("n", "better"), [(100, 30), (400, 12), (50, 49)])
def test_the_interval_of_wins_is_the_binomial_one(n: int, better: int) -> None:
    """A resample's sum of n differences, of which `better` are 1 and the rest 0, is binomial (n, better / n)."""
    found = compare([1.0] * better + [0.0] * (n - better), [0.0] * n, resamples=200_000)
    low, bound, high = (k / n for k in _binomial_quantiles(n, better / n, [0.025, 0.05, 0.975]))
    assert found.difference == pytest.approx(better / n)
    assert [found.low, found.bound, found.high] == pytest.approx([low, bound, high], abs=1.01 / n)


def test_bootstrap_means_are_distributed_as_all_resamples() -> None:
    differences = np.array([-0.3, 0.0, 0.1, 0.4, 0.9])
    every, means = _every_resample(differences), bootstrap_means(differences, resamples=200_000)
    levels = np.unique(np.round(every, 9))
    for level in levels:
        expected = float((every <= level + 1e-9).mean())
        error = math.sqrt(expected * (1 - expected) / len(means))
        assert float((means <= level + 1e-9).mean()) == pytest.approx(expected, abs=5 * error + 1e-12)


def test_bootstrap_means_have_the_mean_and_the_variance_of_the_formula() -> None:
    differences = np.random.default_rng(3).normal(0.02, 0.3, 500)
    means = bootstrap_means(differences, resamples=50_000)
    error = differences.std() / math.sqrt(len(differences))
    assert means.mean() == pytest.approx(differences.mean(), abs=5 * error / math.sqrt(len(means)))
    assert means.std() == pytest.approx(error, rel=0.02)


def test_every_resample_is_made_where_they_do_not_fit_into_one_block() -> None:
    assert bootstrap_means(np.ones(900_000), resamples=7).tolist() == [1.0] * 7


@pytest.mark.parametrize(
    "differences", [[0.5, 0.2, -0.1, 0.3, 0.7, -0.2, 0.1], [0.1] * 8, [0.4, -0.4, 0.2, -0.2], [0.3]]
)
def test_the_p_value_is_that_of_all_sign_changes(differences: list[float]) -> None:
    sums = [abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in product((-1, 1), repeat=len(differences))]  # fmt: skip
    exact = sum(s >= abs(math.fsum(differences)) - 1e-9 for s in sums) / len(sums)
    resamples = 100_000
    found = randomisation_test(differences, [0.0] * len(differences), resamples=resamples)
    assert found == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / resamples) + 2 / resamples)


def test_the_p_value_is_uniform_where_nothing_differs() -> None:
    """The share of tests that reject at level a is a, when the two systems are the same but for chance."""
    random = np.random.default_rng(5)
    p = [
        randomisation_test(random.normal(size=40).tolist(), random.normal(size=40).tolist(), resamples=999)
        for _ in range(400)
    ]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 400))


@given(MEASURES)
@settings(max_examples=50, deadline=None)
def test_exchanging_the_columns_mirrors_the_comparison(pairs: list[tuple[float, float]]) -> None:
    first, second = _columns(pairs)
    there, back = compare(first, second, resamples=400), compare(second, first, resamples=400)
    assert back.difference == pytest.approx(-there.difference)
    assert [back.low, back.high] == pytest.approx([-there.high, -there.low], abs=1e-12)
    assert back.p_value == there.p_value


@given(MEASURES)
@settings(max_examples=50, deadline=None)
def test_bounds_are_ordered_and_the_p_value_is_never_zero(pairs: list[tuple[float, float]]) -> None:
    found = compare(*_columns(pairs), resamples=400)
    differences = [a - b for a, b in pairs]
    assert min(differences) - 1e-12 <= found.low <= found.bound <= found.high <= max(differences) + 1e-12
    assert 1 / 401 <= found.p_value <= 1
    assert found == compare(*_columns(pairs), resamples=400)
    assert found.queries == len(pairs)


def test_equal_columns_differ_by_nothing() -> None:
    found = compare([0.3, 0.9, 0.0], [0.3, 0.9, 0.0])
    assert (found.difference, found.low, found.high, found.bound, found.p_value) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 0.0])])
def test_columns_that_cannot_be_paired_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="as long as one another and not empty"):
        compare(first, second)
    with pytest.raises(ValueError, match="as long as one another and not empty"):
        randomisation_test(first, second)
