"""LanceDB's hybrid search: inner products of every vector (no approximate index) and its full-text index over Kiwi's terms,
merged by its default, RRFReranker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lancedb
import pyarrow as pa
from lancedb.rerankers import RRFReranker

if TYPE_CHECKING:
    from indexers.benchmarks.peers.measure import Ask, Handed

PACKAGES = ("lancedb",)
_CANDIDATES = 100  # a leg, which LanceDB has as many of as answers
_SHOWN = 10


def opened(handed: Handed) -> Ask:
    dim = handed.vectors.shape[1]
    rows = pa.table(
        {
            "id": handed.ids,
            "title": handed.titles,
            "text": handed.texts,
            "terms": handed.terms,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(handed.vectors.ravel()), dim),
        }
    )
    table = lancedb.connect(handed.place / "lancedb").create_table("passages", rows)
    table.create_fts_index("terms", base_tokenizer="whitespace", stem=False, remove_stop_words=False)
    reranker = RRFReranker()

    def ask(number: int) -> list[str]:
        query = table.search(query_type="hybrid", vector_column_name="vector", fts_columns="terms")
        query = query.vector(handed.query_vectors[number]).text(handed.query_terms[number])
        found = query.distance_type("dot").rerank(reranker).select(["id"]).limit(_CANDIDATES).to_arrow()
        return list(found["id"].to_pylist()[:_SHOWN])

    return ask
