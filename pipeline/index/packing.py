"""Passages as bytes, for keeping many of them in memory: compressed JSON, a third of the size of the objects."""

from __future__ import annotations

import zlib
from itertools import chain

import orjson

from pipeline.documents import Passage, Span, parsed_time


def packed(passage: Passage) -> bytes:
    """`passage` as bytes; `unpacked` gives an equal one back."""
    published = passage.published_at.isoformat() if passage.published_at is not None else None
    fields = [
        passage.article_id,
        passage.revision,
        passage.ordinal,
        passage.title,
        passage.text,
        passage.terms,
        list(chain.from_iterable(passage.term_spans)),
        passage.title_terms,
        list(chain.from_iterable(passage.sentence_spans)),
        passage.url,
        passage.category,
        passage.series,
        passage.tags,
        passage.source,
        published,
        passage.quality,
    ]
    return zlib.compress(orjson.dumps(fields), level=1)


def unpacked(data: bytes) -> Passage:
    """The passage that `packed` made `data` of."""
    fields = orjson.loads(zlib.decompress(data))
    article_id, revision, ordinal, title, text, terms, term_spans, title_terms, sentence_spans, *rest = fields
    url, category, series, tags, source, published, quality = rest
    return Passage(
        article_id=article_id,
        revision=revision,
        ordinal=ordinal,
        title=title,
        text=text,
        terms=tuple(terms),
        term_spans=_pairs(term_spans),
        title_terms=tuple(title_terms),
        sentence_spans=_pairs(sentence_spans),
        url=url,
        category=category,
        series=series,
        tags=tuple(tags),
        source=source,
        published_at=parsed_time(published),
        quality=quality,
    )


def _pairs(flat: list[int]) -> tuple[Span, ...]:
    numbers = iter(flat)
    return tuple(zip(numbers, numbers, strict=True))
