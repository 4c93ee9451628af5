"""What a notebook does: rank_bm25's scores of every passage and numpy's product with every vector, both divided by their
highest, half and half."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rank_bm25 import BM25Okapi

if TYPE_CHECKING:
    from indexers.benchmarks.peers.measure import Ask, Handed

PACKAGES = ("rank-bm25", "numpy")
_SHOWN = 10


def opened(handed: Handed) -> Ask:
    bm25 = BM25Okapi([terms.split() for terms in handed.terms])

    def ask(number: int) -> list[str]:
        lexical = bm25.get_scores(handed.query_terms[number].split())
        dense = handed.vectors @ handed.query_vectors[number]
        scores = lexical / (lexical.max() or 1.0) + dense / (abs(dense).max() or 1.0)
        shown = min(_SHOWN, len(scores))
        best = np.argpartition(-scores, shown - 1)[:shown]
        return [handed.ids[row] for row in best[np.argsort(-scores[best])]]

    return ask
