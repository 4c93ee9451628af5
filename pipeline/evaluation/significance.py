"""Is a difference of two rankings real? Paired tests over queries, seeded, so that a figure can be made again.

Smucker, Allan, Carterette 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation":
bootstrap and randomisation agree with one another on means of retrieval measures, and sign tests with neither.
Knows nothing of rankings: it sees two columns of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK_DRAWS = 4_000_000  # draws made at a time: 32 MB of places
_TIE = 1e-12  # sums of the same numbers in another order differ in the 16th digit: they are equally extreme

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`first` minus `second`, over the same queries; positive where the first is better.

    `low` and `high` bound the mean difference two-sided, `bound` is the one-sided lower bound, all at `confidence`;
    `p_value`, in (0, 1], is that of the two-sided randomisation test.
    """

    difference: float
    low: float
    high: float
    bound: float
    p_value: float
    queries: int
    confidence: float = 0.95


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Both tests on two columns of a measure, aligned by query. Raises ValueError as they do."""
    differences = _differences(first, second)
    means = bootstrap_means(differences, resamples=resamples, seed=seed)
    tail = 100.0 * (1.0 - confidence)
    low, high, bound = np.percentile(means, [tail / 2, 100.0 - tail / 2, tail]).tolist()
    return Comparison(
        difference=float(differences.mean()),
        low=low,
        high=high,
        bound=bound,
        p_value=randomisation_test(first, second, resamples=resamples, seed=seed),
        queries=len(differences),
        confidence=confidence,
    )


def bootstrap_means(differences: Column, *, resamples: int = RESAMPLES, seed: int = 0) -> Column:
    """float64 (resamples,): means of as many differences drawn with replacement; their percentiles are the interval.

    The percentile bootstrap of Efron, Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3: it makes no
    assumption about the differences, of which most are 0 and a few are large.
    """
    random = np.random.default_rng(seed)
    n = len(differences)
    means = [differences[random.integers(n, size=(rows, n))].mean(axis=1) for rows in _blocks(resamples, n)]
    return np.concatenate(means)


def randomisation_test(
    first: Sequence[float], second: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """p of the two-sided paired randomisation test: how often a mean is as far from 0 when each sign is a coin's.

    p = (1 + b) / (1 + resamples), where b counts the shuffles at least as extreme: the observed one is among them, so p is
    never 0 (Phipson, Smyth 2010, "Permutation P-values Should Never Be Zero"). Raises ValueError for columns that are
    empty or of different lengths.
    """
    differences = _differences(first, second)
    random = np.random.default_rng(seed)
    n = len(differences)
    seen = abs(differences.sum()) - _TIE * max(1.0, np.abs(differences).sum())
    extreme = 0
    for rows in _blocks(resamples, n):
        signs = random.integers(2, size=(rows, n), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ differences) >= seen).sum())
    return (1 + extreme) / (1 + resamples)


def _differences(first: Sequence[float], second: Sequence[float]) -> Column:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not len(left):
        raise ValueError(f"columns should be as long as one another and not empty, are {left.shape} and {right.shape}")
    return left - right


def _blocks(resamples: int, n: int) -> Iterator[int]:
    """Numbers of rows that add up to `resamples`, each small enough for memory."""
    most = max(1, _BLOCK_DRAWS // n)
    while resamples > 0:
        yield min(most, resamples)
        resamples -= most
