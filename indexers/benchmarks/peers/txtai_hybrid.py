"""txtai's hybrid index: an exact faiss index and its own BM25 over Kiwi's terms, their scores added half and half.

It is given the terms as its text, and the vector of each by them; content (its SQLite of texts) is off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from txtai import Embeddings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from indexers.benchmarks.peers.measure import Ask, Handed

PACKAGES = ("txtai", "faiss-cpu")
_SHOWN = 10


def opened(handed: Handed) -> Ask:
    rows = {terms: row for row, terms in enumerate(handed.terms)}
    queries = {terms: number for number, terms in enumerate(handed.query_terms)}
    asking = False

    def vectors(texts: list[str]) -> NDArray[np.float32]:
        if asking:
            return handed.query_vectors[[queries[text] for text in texts]]
        return handed.vectors[[rows[text] for text in texts]]

    embeddings = Embeddings(
        {
            "method": "external",
            "transform": vectors,
            "backend": "faiss",
            "faiss": {"components": "IDMap,Flat"},
            "hybrid": True,
            "scoring": {"method": "bm25", "terms": True, "normalize": True, "tokenizer": {"whitespace": True}},
        }
    )
    embeddings.index(zip(handed.ids, handed.terms, [None] * len(handed.ids), strict=True))
    asking = True

    def ask(number: int) -> list[str]:
        return [i for i, _ in embeddings.search(handed.query_terms[number], _SHOWN)]

    return ask
