"""Milvus Lite's `hybrid_search`: FLAT inner products and its own BM25 over Kiwi's terms, merged by its RRFRanker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pymilvus import AnnSearchRequest, DataType, Function, FunctionType, MilvusClient, RRFRanker

if TYPE_CHECKING:
    from indexers.benchmarks.peers.measure import Ask, Handed

PACKAGES = ("pymilvus", "milvus-lite")
_NAME = "passages"
_BATCH = 1000  # rows an insert
_CANDIDATES = 100  # a leg
_SHOWN = 10
_LONGEST_TEXT = 65_535  # bytes, the most that a VARCHAR can have


def opened(handed: Handed) -> Ask:
    client = MilvusClient(str(handed.place / "milvus.db"))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, max_length=1000, is_primary=True)
    schema.add_field("title", DataType.VARCHAR, max_length=_LONGEST_TEXT)
    schema.add_field("text", DataType.VARCHAR, max_length=_LONGEST_TEXT)
    schema.add_field(
        "terms",
        DataType.VARCHAR,
        max_length=_LONGEST_TEXT,
        enable_analyzer=True,
        analyzer_params={"tokenizer": "standard"},
    )
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=handed.vectors.shape[1])
    schema.add_field("lexical", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(
        Function(
            name="bm25", function_type=FunctionType.BM25, input_field_names=["terms"], output_field_names=["lexical"]
        )
    )
    indexes = client.prepare_index_params()
    indexes.add_index("dense", index_type="FLAT", metric_type="IP")
    indexes.add_index("lexical", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    client.create_collection(_NAME, schema=schema, index_params=indexes)
    for start in range(0, len(handed.ids), _BATCH):
        rows = range(start, min(start + _BATCH, len(handed.ids)))
        client.insert(_NAME, [_row(handed, row) for row in rows])
    client.flush(_NAME)
    client.load_collection(_NAME)

    def ask(number: int) -> list[str]:
        legs = [
            AnnSearchRequest([handed.query_vectors[number].tolist()], "dense", {"metric_type": "IP"}, _CANDIDATES),
            AnnSearchRequest([handed.query_terms[number]], "lexical", {"metric_type": "BM25"}, _CANDIDATES),
        ]
        return [hit["id"] for hit in client.hybrid_search(_NAME, legs, RRFRanker(), limit=_SHOWN)[0]]

    return ask


def _row(handed: Handed, row: int) -> dict[str, object]:
    return {
        "id": handed.ids[row],
        "title": handed.titles[row],
        "text": handed.texts[row],
        "terms": handed.terms[row],
        "dense": handed.vectors[row].tolist(),
    }
