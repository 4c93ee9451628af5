"""Fusion: two scores of a candidate → one.

Every method is `score = alpha · dense_normalised + (1 - alpha) · lexical_normalised`; they differ in how a leg's scores are
normalised, and so in what a score means.

    method  normalised leg                                                   range of a score  source
    tm2c2   (ip + 1) / (best ip + 1)  and  bm25 / best bm25                  [0, 1]            Bruch et al. 2022, "An Analysis of
                                                                                               Fusion Functions for Hybrid
                                                                                               Retrieval", arXiv 2210.11934
    minmax  (s - min) / (max - min) over the candidates                      [0, 1]            the same, section 3
    zscore  (s - mean) / standard deviation over the candidates              unbounded         the same, section 3
    rrf     (k + 1) / (k + rank) among the candidates, both legs weigh .5    (0, 1]            Cormack et al. 2009, scaled so
                                                                                               that first in both legs is 1
    dpr     the raw scores: BM25 + lambda · ip with lambda = alpha/(1-alpha) unbounded         Karpukhin et al. 2020, section 4.2

Only `tm2c2` (and `dpr`) give a score that does not depend on which other candidates were fetched: its minima are the
theoretical ones and its maxima are exact. Higher is better everywhere.

`alpha` adapts to what the words prove (`evidence.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InvalidSetting
from pipeline.index.engine import Candidates
from pipeline.retrieval.evidence import adapted, evidence

Method = Literal["tm2c2", "minmax", "zscore", "rrf", "dpr"]
Column = NDArray[np.float64]

METHODS: tuple[Method, ...] = get_args(Method)
SCORE_DECIMALS = 6  # scores are compared, paged and shown at this precision: what differs less is a tie

_MEASURED_ALPHA = {"kiwi-static": 0.1}  # by the first part of the encoder's id; see README, "Decisions"
_UNMEASURED_ALPHA = 0.4  # of an encoder nobody measured yet: below the weight where a weak encoder does harm


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """Columns aligned with the candidates; a leg that is off has NaN and weighs nothing: `alpha` is then 0 or 1.

    `alpha` is the weight in force for this query, `evidence` (0..1) what it was adapted to.
    """

    score: Column
    dense: Column
    lexical: Column
    alpha: float
    evidence: float


def default_alpha(encoder_id: str) -> float:
    """The weight of the dense leg measured for this encoder, in 0..1."""
    return _MEASURED_ALPHA.get(encoder_id.split(":", maxsplit=1)[0], _UNMEASURED_ALPHA)


def fuse(candidates: Candidates, *, method: Method, alpha: float, rrf_k: int = 60, adaptive: bool = True) -> Fused:
    """Normalises both legs by `method` and adds them up; `adaptive` lets `alpha` follow the evidence (tm2c2 alone).

    Raises InvalidSetting for an unknown method. A leg whose scores are NaN is off: the other one has all the weight.
    """
    if method not in _NORMALISERS:
        raise InvalidSetting("fusion.method", method, f"one of {', '.join(METHODS)}")
    normalise = _NORMALISERS[method]
    share = evidence(candidates)
    dense_off, lexical_off = _off(candidates.dense), _off(candidates.lexical)
    dense, lexical = normalise(candidates, rrf_k)
    if dense_off or lexical_off:
        alpha = 0.0 if dense_off else 1.0
    elif method == "rrf":
        alpha = 0.5
    elif method == "tm2c2" and adaptive:
        alpha = adapted(alpha, share, candidates.lexical_rarest)
    score = np.zeros(len(dense))
    if not dense_off:
        score += alpha * dense
    if not lexical_off:
        score += (1.0 - alpha) * lexical
    return Fused(score=np.round(score, SCORE_DECIMALS), dense=dense, lexical=lexical, alpha=alpha, evidence=share)


def _off(column: Column) -> bool:
    return bool(len(column)) and bool(np.isnan(column).all())


def _tm2c2(candidates: Candidates, _rrf_k: int) -> tuple[Column, Column]:
    dense_range = candidates.dense_best + 1.0
    dense = (candidates.dense + 1.0) / dense_range if dense_range > 0 else np.zeros_like(candidates.dense)
    best = candidates.lexical_best
    lexical = candidates.lexical / best if best > 0 else candidates.lexical * 0.0
    return dense, lexical


def _minmax(candidates: Candidates, _rrf_k: int) -> tuple[Column, Column]:
    def scaled(column: Column) -> Column:
        if not len(column):
            return column
        low, high = column.min(), column.max()
        return (column - low) / (high - low) if high > low else column * 0.0 + 1.0

    return scaled(candidates.dense), scaled(candidates.lexical)


def _zscore(candidates: Candidates, _rrf_k: int) -> tuple[Column, Column]:
    def scaled(column: Column) -> Column:
        if not len(column):
            return column
        if column.max() == column.min():  # their standard deviation may be a rounding error above 0
            return column * 0.0
        standard: Column = (column - column.mean()) / column.std()
        return standard

    return scaled(candidates.dense), scaled(candidates.lexical)


def _rrf(candidates: Candidates, rrf_k: int) -> tuple[Column, Column]:
    def scaled(column: Column) -> Column:
        if _off(column):
            return column
        # Equal scores share the best of their ranks, so that ties do not depend on the order of the candidates.
        ordered = np.sort(-column)
        rank = np.searchsorted(ordered, -column, side="left") + 1
        return (rrf_k + 1) / (rrf_k + rank)

    return scaled(candidates.dense), scaled(candidates.lexical)


def _dpr(candidates: Candidates, _rrf_k: int) -> tuple[Column, Column]:
    return candidates.dense, candidates.lexical


_NORMALISERS: dict[Method, Callable[[Candidates, int], tuple[Column, Column]]] = {
    "tm2c2": _tm2c2,
    "minmax": _minmax,
    "zscore": _zscore,
    "rrf": _rrf,
    "dpr": _dpr,
}
