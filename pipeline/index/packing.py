"""Passages as bytes, for keeping many of them in memory: compressed JSON, a quarter of the size of the objects.

LZ4 and not zlib, which makes little less of so short texts and takes ten times as long.
"""

from __future__ import annotations

import orjson
from pyarrow import Codec

from pipeline.documents import Passage, parsed_time
from pipeline.index.rows import differences, spans

FORMAT = 2  # of the bytes: raise it with every change, as they are kept on disk too
_LZ4 = Codec("lz4_raw")
_SIZE_BYTES = 4  # of the JSON: it stands before what is compressed, which does not tell it


def packed(passage: Passage) -> bytes:
    """`passage` as bytes; `unpacked` gives an equal one back."""
    published = passage.published_at.isoformat() if passage.published_at is not None else None
    fields = [
        passage.article_id,
        passage.revision,
        passage.ordinal,
        passage.title,
        passage.text,
        " ".join(passage.terms),
        *differences(passage.term_spans),
        passage.title_terms,
        *differences(passage.sentence_spans),
        passage.url,
        passage.category,
        passage.series,
        passage.tags,
        passage.source,
        published,
        passage.quality,
    ]
    data = orjson.dumps(fields)
    compressed: bytes = _LZ4.compress(data, asbytes=True)
    return len(data).to_bytes(_SIZE_BYTES, "little") + compressed


def unpacked(data: bytes) -> Passage:
    """The passage that `packed` made `data` of."""
    size = int.from_bytes(data[:_SIZE_BYTES], "little")
    fields = orjson.loads(_LZ4.decompress(data[_SIZE_BYTES:], size, asbytes=True))
    article_id, revision, ordinal, title, text, terms, starts, lengths, *rest = fields
    title_terms, sentence_starts, sentence_lengths, *rest = rest
    url, category, series, tags, source, published, quality = rest
    return Passage(
        article_id=article_id,
        revision=revision,
        ordinal=ordinal,
        title=title,
        text=text,
        terms=tuple(terms.split(" ")) if terms else (),
        term_spans=spans(starts, lengths),
        title_terms=tuple(title_terms),
        sentence_spans=spans(sentence_starts, sentence_lengths),
        url=url,
        category=category,
        series=series,
        tags=tuple(tags),
        source=source,
        published_at=parsed_time(published),
        quality=quality,
    )
