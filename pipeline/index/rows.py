"""Passages as rows of the collection, and back without loss. Knows the names and limits of the fields, not pymilvus.

What is searched or filtered has a field of its own; the rest of the analysis (offsets, title terms) is one JSON text,
offsets as differences: a third of the size of pairs, and read back by C loops alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from operator import add
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.documents import MAX_FIELD_CHARS, MAX_ID_CHARS, MAX_TAGS, MAX_TITLE_CHARS, MAX_URL_CHARS, Passage, Span
from pipeline.errors import TooLarge
from pipeline.index.expressions import decoded, encoded, microseconds, moment_of

Row = dict[str, Any]

ID = "id"
ARTICLE_ID = "article_id"
REVISION = "revision"
DENSE = "dense"  # the vector
LEXICAL = "lexical"  # the sparse vector that Milvus computes from `terms`; never read back
TERMS = "terms"

_BYTES_A_CHAR = 4  # of UTF-8 at most; a character that expressions.encoded() encodes takes 3
_NUMBERS_BYTES = 42  # "#revision#ordinal": two signs and two 64-bit numbers of at most 20 digits
_MAX_TEXT_BYTES = 65_535  # the most that a Milvus VARCHAR holds

# Largest size in bytes of each text field: a server counts UTF-8 bytes, Milvus Lite counts characters.
TEXT_BYTES = {
    ID: MAX_ID_CHARS * _BYTES_A_CHAR + _NUMBERS_BYTES,
    ARTICLE_ID: MAX_ID_CHARS * _BYTES_A_CHAR,
    "title": MAX_TITLE_CHARS * _BYTES_A_CHAR,
    "text": _MAX_TEXT_BYTES,
    TERMS: _MAX_TEXT_BYTES,
    "analysis": _MAX_TEXT_BYTES,
    "url": MAX_URL_CHARS * _BYTES_A_CHAR,
    "category": MAX_FIELD_CHARS * _BYTES_A_CHAR,
    "series": MAX_FIELD_CHARS * _BYTES_A_CHAR,
    "source": MAX_FIELD_CHARS * _BYTES_A_CHAR,
}
TAG_BYTES = MAX_FIELD_CHARS * _BYTES_A_CHAR
TAG_COUNT = MAX_TAGS
INTEGERS = (REVISION, "published_at")
FLOATS = ("quality",)

_BATCH_ROWS = 1_000  # larger batches are no faster
_BATCH_BYTES = 16_000_000  # a quarter of the 64 MB that servers take in one message

# What makes a Passage again. Article id, revision and ordinal are read from the id: fewer fields, faster reads.
PASSAGE_FIELDS = (
    ID, "title", "text", TERMS, "analysis", "url", "category", "series", "tags", "source", "published_at", "quality",
)  # fmt: skip

_NO_QUALITY = -1.0  # stored for a missing quality, which is 0..1 where there is one


def row_of(passage: Passage, vector: NDArray[np.float32]) -> tuple[Row, int]:
    """The row of `passage` with its float32 `vector`, and its size in bytes.

    Raises TooLarge naming the field that Milvus cannot hold.
    """
    row: Row = {
        ID: encoded(passage.id),
        ARTICLE_ID: encoded(passage.article_id),
        "title": passage.title,
        "text": passage.text,
        TERMS: " ".join(passage.terms),
        "analysis": _analysis(passage),
        "url": encoded(passage.url),
        "category": encoded(passage.category),
        "series": encoded(passage.series),
        "source": encoded(passage.source),
    }
    size = sum(_checked_size(passage, name, row[name]) for name in row)
    row |= {
        "tags": [encoded(tag) for tag in passage.tags],
        REVISION: passage.revision,
        "published_at": microseconds(passage.published_at),
        "quality": _NO_QUALITY if passage.quality is None else passage.quality,
        DENSE: vector,
    }
    return row, size + sum(map(len, row["tags"])) * _BYTES_A_CHAR + vector.nbytes


def batches(passages: Sequence[Passage], vectors: NDArray[np.float32]) -> Iterator[list[Row]]:
    """The rows of `passages`, cut where a message would grow too large. Raises TooLarge as `row_of` does."""
    batch: list[Row] = []
    bytes_so_far = 0
    for passage, vector in zip(passages, vectors, strict=True):
        row, size = row_of(passage, vector)
        if batch and (len(batch) == _BATCH_ROWS or bytes_so_far + size > _BATCH_BYTES):
            yield batch
            batch, bytes_so_far = [], 0
        batch.append(row)
        bytes_so_far += size
    if batch:
        yield batch


def chunks(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """`ids` in order, at most `size` at a time."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def passage_of(row: Mapping[str, Any]) -> Passage:
    """The passage of which `row` (at least PASSAGE_FIELDS) was made."""
    article_id, revision, ordinal = parts_of(row[ID])
    starts, lengths, sentence_starts, sentence_lengths, title_terms = orjson.loads(row["analysis"])
    terms = row[TERMS]
    return Passage(
        article_id=article_id,
        revision=revision,
        ordinal=ordinal,
        title=row["title"],
        text=row["text"],
        terms=tuple(terms.split(" ")) if terms else (),
        term_spans=spans(starts, lengths),
        title_terms=tuple(title_terms),
        sentence_spans=spans(sentence_starts, sentence_lengths),
        url=decoded(row["url"]),
        category=decoded(row["category"]),
        series=decoded(row["series"]),
        tags=tuple(decoded(tag) or "" for tag in row["tags"]),
        source=decoded(row["source"]),
        published_at=moment_of(row["published_at"]),
        quality=None if row["quality"] == _NO_QUALITY else row["quality"],
    )


def to_text(passages: Sequence[Passage], vectors: NDArray[np.float32]) -> str:
    """The rows of `passages` with `vectors`, float32 (len(passages), dim), as JSON; `from_text` reads it."""
    made = [row_of(passage, vector)[0] for passage, vector in zip(passages, vectors, strict=True)]
    return orjson.dumps(made, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def from_text(text: str) -> tuple[list[Passage], NDArray[np.float32]]:
    """The passages and their vectors, float32 (n, dim), of which `to_text` made `text`: the same, bit by bit."""
    made = orjson.loads(text)
    return [passage_of(row) for row in made], np.array([row[DENSE] for row in made], dtype=np.float32)


def id_of(row: Mapping[str, Any]) -> str:
    """The passage id of `row`."""
    return decoded(row[ID]) or ""


def parts_of(stored_id: str) -> tuple[str, int, int]:
    """Article id, revision and ordinal of a stored passage id."""
    article_id, revision, ordinal = (decoded(stored_id) or "").rsplit("#", 2)
    return article_id, int(revision), int(ordinal)


def _analysis(passage: Passage) -> str:
    starts, lengths = differences(passage.term_spans)
    sentence_starts, sentence_lengths = differences(passage.sentence_spans)
    return orjson.dumps([starts, lengths, sentence_starts, sentence_lengths, passage.title_terms]).decode()


def differences(spans: tuple[Span, ...]) -> tuple[list[int], list[int]]:
    """How far each span starts after the one before it (negative for a part after its whole), and its length."""
    starts = [start for start, _ in spans]
    return [a - b for a, b in zip(starts, [0, *starts], strict=False)], [end - start for start, end in spans]


def spans(distances: list[int], lengths: list[int]) -> tuple[Span, ...]:
    """The spans of which `differences` gave these."""
    starts = list(accumulate(distances))
    return tuple(zip(starts, map(add, starts, lengths), strict=True))


def _checked_size(passage: Passage, name: str, text: str) -> int:
    size = len(text.encode())
    if size > TEXT_BYTES[name]:
        raise TooLarge(f"field {name!r} of passage {passage.id}", size, TEXT_BYTES[name], "bytes")
    return size
