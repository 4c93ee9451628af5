"""pipeline/index/packing.py"""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import Passage
from pipeline.index.packing import packed, unpacked

_SPANS = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=8).map(tuple)
_TEXT = st.text(max_size=40)
_TEXTS = st.lists(_TEXT, max_size=8).map(tuple)
_TERMS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" "), min_size=1, max_size=10), max_size=8
).map(tuple)

_PASSAGES = st.builds(
    Passage,
    article_id=_TEXT,
    revision=st.integers(0, 2**62),
    ordinal=st.integers(0, 10**6),
    title=_TEXT,
    text=_TEXT,
    terms=_TERMS,
    term_spans=_SPANS,
    title_terms=_TEXTS,
    sentence_spans=_SPANS,
    url=st.none() | _TEXT,
    category=st.none() | _TEXT,
    series=st.none() | _TEXT,
    tags=_TEXTS,
    source=st.none() | _TEXT,
    published_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    quality=st.none() | st.floats(0, 1),
)


@given(_PASSAGES)
def test_a_passage_comes_back_equal(passage: Passage) -> None:
    back = unpacked(packed(passage))
    assert back == passage
    assert (back.id, back.content_hash) == (passage.id, passage.content_hash)


def test_packing_makes_a_real_passage_smaller() -> None:
    text = "전세대출 금리는 은행마다 달라요. " * 20
    passage = Passage(
        article_id="a",
        revision=1,
        ordinal=0,
        title="전세대출",
        text=text,
        terms=("전세", "대출") * 60,
        term_spans=tuple((place, place + 2) for place in range(120)),
        title_terms=("전세",),
        sentence_spans=((0, len(text)),),
        published_at=datetime(2026, 3, 2, tzinfo=UTC),
    )
    assert len(packed(passage)) < len(text.encode())
