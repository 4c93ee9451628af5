"""The fields and indexes of a collection: how it is made, and whether one that is there is as it should be."""

from __future__ import annotations

import re
from typing import Any, Literal

from pymilvus import DataType, Function, FunctionType, MilvusClient

from pipeline.errors import ManifestMismatch
from pipeline.index import rows
from pipeline.index.rows import DENSE, ID, LEXICAL, TERMS

IndexKind = Literal["flat", "hnsw"]

READ_SECONDS = 10.0  # deadline of a read, retries included
BUILD_SECONDS = 300.0  # creating, loading, flushing: the server may have an index to build
_INDEXES: dict[IndexKind, dict[str, Any]] = {
    "flat": {"index_type": "FLAT"},
    "hnsw": {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}},  # Milvus's own recommendation
}
_FIRST_WITH_BM25 = (2, 5)  # the server version that brought BM25 functions


def create(client: MilvusClient, name: str, dim: int, index: IndexKind) -> bool:
    """Makes and loads the collection; gives whether it has the lexical field."""
    lexical = _has_bm25(client.get_server_version(timeout=READ_SECONDS))
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    for field, limit in rows.TEXT_BYTES.items():
        analysed = {"enable_analyzer": True, "analyzer_params": {"tokenizer": "standard"}}
        extra = analysed if lexical and field == TERMS else {}
        schema.add_field(field, DataType.VARCHAR, max_length=limit, is_primary=field == ID, **extra)
    for field in rows.INTEGERS:
        schema.add_field(field, DataType.INT64)
    for field in rows.FLOATS:
        schema.add_field(field, DataType.DOUBLE)
    schema.add_field(
        "tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=rows.TAG_COUNT, max_length=rows.TAG_BYTES
    )
    schema.add_field(DENSE, DataType.FLOAT_VECTOR, dim=dim)
    if lexical:
        schema.add_field(LEXICAL, DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            Function(
                name="bm25", function_type=FunctionType.BM25, input_field_names=[TERMS], output_field_names=[LEXICAL]
            )
        )
    client.create_collection(name, schema=schema, consistency_level="Bounded", timeout=BUILD_SECONDS)
    _make_indexes(client, name, index, lexical=lexical)
    client.load_collection(name, timeout=BUILD_SECONDS)
    return lexical


def check(client: MilvusClient, name: str, dim: int, index: IndexKind) -> tuple[IndexKind, bool]:
    """How the dense field of an existing collection is indexed (with `index` where whoever made the collection ended before it
    was), and whether it has the lexical field.

    Raises ManifestMismatch where its fields or its dimension are not those of `create`.
    """
    described = client.describe_collection(name, timeout=READ_SECONDS)
    fields = {field["name"]: field["params"] for field in described["fields"]}
    expected = {*rows.TEXT_BYTES, *rows.INTEGERS, *rows.FLOATS, "tags", DENSE}
    if set(fields) - {LEXICAL} != expected:
        raise ManifestMismatch({f"fields of {name}": (sorted(fields), sorted(expected))})
    if int(fields[DENSE]["dim"]) != dim:
        raise ManifestMismatch({f"dimension of {name}": (int(fields[DENSE]["dim"]), dim)})
    lexical = LEXICAL in fields
    if not all(client.list_indexes(name, field_name=field) for field in (DENSE, *([LEXICAL] if lexical else []))):
        _make_indexes(client, name, index, lexical=lexical)
    kind = client.describe_index(name, DENSE, timeout=READ_SECONDS)["index_type"]
    return ("hnsw" if kind == "HNSW" else "flat"), lexical


def _make_indexes(client: MilvusClient, name: str, index: IndexKind, *, lexical: bool) -> None:
    """Those that are there already stay."""
    indexes = client.prepare_index_params()
    indexes.add_index(DENSE, metric_type="IP", **_INDEXES[index])
    if lexical:
        indexes.add_index(LEXICAL, index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
    # By default pymilvus sleeps half a second an index before it looks; there is nothing to build yet, and loading waits.
    client.create_index(name, indexes, timeout=BUILD_SECONDS, sync=False)


def _has_bm25(version: str) -> bool:
    numbers = re.search(r"(\d+)\.(\d+)", version)
    return version.startswith("milvus_lite") or (
        numbers is not None and (int(numbers[1]), int(numbers[2])) >= _FIRST_WITH_BM25
    )
