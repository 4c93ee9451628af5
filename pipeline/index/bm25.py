"""The BM25 formulas, each written once: numbers in, numbers out.

    variant   idf(t)                                    part of a document that holds t (tf times, length dl)
    lucene    ln(1 + (N - df + .5) / (df + .5))         tf / (tf + K)
    okapi     ln((N - df + .5) / (df + .5)), floored    (k1 + 1) tf / (tf + K)
    l         ln((N + 1) / (df + .5))                   tf (k1 + 1) (c + delta) / (k1 + c + delta), c = k1 tf / K
    plus      ln((N + 1) / df)                          delta + (k1 + 1) tf / (tf + K); delta without the term

    K = k1 (1 - b + b dl / avgdl); a score is the sum of weight(t) idf(t) part(t, document) over the query's terms.

`lucene` is Kamphuis, de Vries, Boytsov, Lin: "Which BM25 do you mean? A large-scale reproducibility study of scoring
variants", ECIR 2020, with exact lengths; it has no factor (k1 + 1), as Lucene since 8.0: ranks are the same, scores lower.
`okapi`, `l` and `plus` are rank_bm25's, from its code, not from the papers: a negative Okapi idf becomes epsilon
times the average idf of the vocabulary (before flooring), and `l` is multiplied by tf, so that only `plus` scores
documents without a term.

Knows nothing about terms, postings or where the numbers come from.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rank_bm25 import BM25L, BM25Okapi, BM25Plus

from pipeline.errors import InvalidInput, shown

Variant = Literal["lucene", "okapi", "l", "plus"]
Scores = NDArray[np.float64]
Counts = NDArray[np.float64]
Frequencies = NDArray[np.int64]

_LUCENE = {"k1": 1.2, "b": 0.75}  # Lucene's BM25Similarity
_RANK_BM25 = {"okapi": BM25Okapi, "l": BM25L, "plus": BM25Plus}
_TINY = np.finfo(np.float64).tiny  # keeps 0 / (0 + K) at 0 where K is 0: erased postings, k1 = 0, b = 1


class Formula:
    """One variant with its parameters.

    `k1` >= 0, `b` in 0..1; `epsilon` is for okapi alone, `delta` for l and plus. What is None takes the variant's own
    default: Lucene's, or the one in the signature of rank_bm25's class. Raises InvalidInput for anything else.
    """

    def __init__(
        self,
        variant: Variant = "lucene",
        *,
        k1: float | None = None,
        b: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
    ) -> None:
        self.variant = variant
        self._parameters = _checked_parameters(variant, {"k1": k1, "b": b, "epsilon": epsilon, "delta": delta})

    @property
    def parameters(self) -> Mapping[str, float]:
        """`k1`, `b` and, where the variant has them, `epsilon` or `delta`, as they are in force."""
        return dict(self._parameters)

    def norms(self, lengths: NDArray[np.integer], average_length: float) -> Scores:
        """float64, like `lengths`: K of the formulas (K / k1 for `l`), at least the smallest positive number."""
        slope, start = self.norm_line(average_length)
        norms: Scores = np.maximum(lengths * slope + start, _TINY)
        return norms

    def norm_line(self, average_length: float) -> tuple[float, float]:
        """K is a straight line over a document's length: its slope, and its value at a length of 0."""
        k1, b = self._parameters["k1"], self._parameters["b"]
        scale = 1.0 if self.variant == "l" else k1
        return scale * b / (average_length or 1.0), scale * (1.0 - b)

    @property
    def shape(self) -> Scores:
        """float64 (3,), as `lexical_kernels.add_scores` takes it: 1 for `l` else 0, k1, delta (0 where the variant has none)."""
        delta = self._parameters.get("delta", 0.0)
        return np.array([self.variant == "l", self._parameters["k1"], delta], dtype=np.float64)

    def part(self, tf: Counts, norms: Scores) -> Scores:
        """What a term adds to documents that hold it `tf` times, 0 for tf 0, before `factors`."""
        if self.variant != "l":
            return tf / (norms + tf)
        _, k1, delta = self.shape
        c = tf / norms
        part: Scores = tf * (c + delta) / np.maximum(k1 + c + delta, _TINY)
        return part

    def factors(self, weights: Scores, idf: Scores) -> Scores:
        """float64 (terms,): weight times idf, times (k1 + 1) but for `lucene`."""
        return weights * idf * (1.0 if self.variant == "lucene" else self._parameters["k1"] + 1.0)

    def attainable(self, weights: Scores, idf: Scores) -> Scores:
        """float64 (terms,): what each term gives a document that says it over and over: `factors` times what `part` tends to. `l` has
        no limit there and is taken at one occurrence's scale."""
        most = 1.0 + (self._parameters["delta"] / (self._parameters["k1"] + 1.0) if self.variant == "plus" else 0.0)
        return self.factors(weights, np.maximum(idf, 0.0)) * most

    def base(self, weights: Scores, idf: Scores) -> float:
        """What every document scores whether it holds the terms or not: 0 but for `plus`."""
        return float((weights * idf).sum() * self._parameters["delta"]) if self.variant == "plus" else 0.0

    def idf(self, df: Frequencies, documents: int, average_idf: float) -> Scores:
        """float64, like `df` (all in 1..`documents`). `average_idf` is that of the vocabulary; only okapi reads it."""
        match self.variant:
            case "lucene":
                return np.log1p((documents - df + 0.5) / (df + 0.5))
            case "l":
                return np.log((documents + 1) / (df + 0.5))
            case "plus":
                return np.log((documents + 1) / df)
            case "okapi":
                raw = _raw_okapi_idf(df, documents)
                return np.where(raw < 0, self._parameters["epsilon"] * average_idf, raw)

    def average_idf(self, df: Frequencies, documents: int) -> float:
        """Mean Okapi idf, before flooring, of the terms with `df` > 0; 0.0 for variants that do not ask for it."""
        if self.variant != "okapi" or not df.any():
            return 0.0
        # Frequencies are few beside terms: one logarithm a frequency, not a term.
        terms = np.bincount(df)
        terms[:1] = 0
        distinct = np.flatnonzero(terms)
        return float(np.average(_raw_okapi_idf(distinct, documents), weights=terms[distinct]))


def _raw_okapi_idf(df: Frequencies, documents: int) -> Scores:
    # A difference of logarithms, as rank_bm25 has it: exactly 0, not a hair below, where half the documents hold the term.
    idf: Scores = np.log(documents - df + 0.5) - np.log(df + 0.5)
    return idf


def _checked_parameters(variant: str, given: Mapping[str, float | None]) -> dict[str, float]:
    if variant not in get_args(Variant):
        raise InvalidInput(
            f"variant should be one of {', '.join(get_args(Variant))}, is {shown(variant)}", "choose one"
        )
    parameters = dict(_LUCENE) if variant == "lucene" else _rank_bm25_defaults(variant)
    for name, value in given.items():
        if value is None:
            continue
        if name not in parameters:
            raise InvalidInput(f"BM25 variant {variant!r} has no parameter {name!r}, {value} was given", "leave it out")
        if not 0 <= value < math.inf or (name == "b" and value > 1):
            rule = "in 0..1" if name == "b" else "finite and >= 0"
            raise InvalidInput(f"BM25 parameter {name!r} should be {rule}, is {value}", "correct it")
        parameters[name] = float(value)
    return parameters


def _rank_bm25_defaults(variant: str) -> dict[str, float]:
    """The numeric defaults of rank_bm25's class, read from its signature so that the two cannot drift apart."""
    signature = inspect.signature(_RANK_BM25[variant].__init__)
    return {
        name: float(parameter.default)
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.default, int | float)
    }
