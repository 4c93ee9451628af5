"""What the words of a query prove: the evidence that the weight of the dense leg follows.

A query whose words hardly occur (a paraphrase) has a best BM25 that says nothing, and dividing by it would make noise a 1.
Two signs tell: how much of the attainable BM25 the best passage has, and how rare the rarest word is that it shares with the
query or that is a synonym of the query's. Compounds count as rare whatever their parts are. A name or a number in common is proof at a small share; 돈 or 받다 in common is none. Measured: README, "Decisions".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.index.engine import Candidates

_NO_EVIDENCE, _ENOUGH_EVIDENCE = 0.1, 0.15  # shares of the attainable BM25, where a rare word is shared
_ALLOWANCE = 0.24  # how much more is asked for where only common words are
_COMMON = 3e-5  # p of a word that is as common as rare: one in 33,000 content morphemes


def rarities(terms: Iterable[str], probabilities: Mapping[str, float]) -> dict[str, float]:
    """How rare each term is in the language, 0..1: a / (a + p(term)), the form of SIF's weights (Arora et al. 2017)."""
    return {term: _COMMON / (_COMMON + probabilities.get(term, 0.0)) for term in terms}


def evidence(candidates: Candidates) -> float:
    """The best lexical score as a share of what the query could attain, 0..1; 1 where that is not known."""
    attainable = candidates.lexical_attainable
    return min(1.0, candidates.lexical_best / attainable) if attainable > 0 else 1.0


def adapted(alpha: float, share: float, rarest: float = 1.0) -> float:
    """`alpha` where the words prove enough, 1 where they prove nothing, evenly in between.

    `share` is that of `evidence`, `rarest` the rarity (0..1) of the rarest shared word. Nothing is proved at a share of .1
    and below; enough from .15 on with a rare word, from .39 on with none.
    """
    enough = _ENOUGH_EVIDENCE + _ALLOWANCE * (1.0 - rarest)
    if share >= enough:
        return alpha
    trust = max(0.0, (share - _NO_EVIDENCE) / (enough - _NO_EVIDENCE))
    return 1.0 + (alpha - 1.0) * trust
