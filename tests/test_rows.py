"""Passages survive the way into rows and back; what Milvus parses holds no character that could end a literal."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import Passage
from pipeline.errors import TooLarge
from pipeline.index.expressions import any_of, decoded, encoded, equal, filter_expression, microseconds, moment_of
from pipeline.index.filters import Filter
from pipeline.index.rows import PASSAGE_FIELDS, batches, from_text, id_of, parts_of, passage_of, row_of, to_text

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_TERM = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" "), min_size=1, max_size=5)
_ARTICLE_ID = st.text(st.characters(exclude_categories=["C"], exclude_characters="#/"), min_size=1, max_size=30)
_SPANS = st.lists(
    st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)).map(lambda span: (min(span), max(span))), max_size=8
)
_MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999_999), timezones=st.just(UTC))
VECTOR = np.array([0.6, 0.8], dtype=np.float32)


@st.composite
def passages(draw: st.DrawFn) -> Passage:
    spans = draw(_SPANS)
    return Passage(
        article_id=draw(_ARTICLE_ID),
        revision=draw(st.integers(0, 2**63 - 1)),
        ordinal=draw(st.integers(0, 2**31)),
        title=draw(_TEXT),
        text=draw(_TEXT),
        terms=tuple(draw(st.lists(_TERM, min_size=len(spans), max_size=len(spans)))),
        term_spans=tuple(spans),
        title_terms=tuple(draw(st.lists(_TEXT, max_size=4))),
        sentence_spans=tuple(draw(_SPANS)),
        url=draw(st.none() | _TEXT),
        category=draw(st.none() | _TEXT),
        series=draw(st.none() | _TEXT),
        tags=tuple(draw(st.lists(_TEXT, max_size=4))),
        source=draw(st.none() | _TEXT),
        published_at=draw(st.none() | _MOMENTS),
        quality=draw(st.none() | st.floats(0, 1)),
    )


@given(passages())
def test_a_passage_comes_back_as_it_went(passage: Passage) -> None:
    row, size = row_of(passage, VECTOR)
    assert passage_of({name: row[name] for name in PASSAGE_FIELDS}) == passage
    assert parts_of(row["id"]) == (passage.article_id, passage.revision, passage.ordinal)
    assert id_of(row) == passage.id
    assert size >= len(passage.text.encode()) + VECTOR.nbytes


@given(st.lists(passages(), min_size=1, max_size=3), st.data())
def test_rows_as_text_come_back_as_they_went_bit_by_bit(some: list[Passage], data: st.DataObject) -> None:
    floats = st.floats(-1, 1, width=32)
    vectors = np.array([[data.draw(floats) for _ in range(5)] for _ in some], dtype=np.float32)
    found, of_them = from_text(to_text(some, vectors))
    assert found == some
    assert of_them.dtype == np.float32
    np.testing.assert_array_equal(of_them, vectors)


@given(st.none() | _TEXT)
def test_an_encoded_text_comes_back_and_holds_nothing_to_escape(value: str | None) -> None:
    assert decoded(encoded(value)) == value
    assert not re.search(r"""["'\\\x00-\x1f\x7f]""", encoded(value))


@given(st.none() | _TEXT, st.none() | _TEXT)
def test_different_texts_are_stored_differently(one: str | None, other: str | None) -> None:
    assert (encoded(one) == encoded(other)) == (one == other)


@given(st.none() | _MOMENTS)
def test_a_time_comes_back_to_the_microsecond(moment: datetime | None) -> None:
    assert moment_of(microseconds(moment)) == moment


def test_a_value_that_looks_like_an_expression_stays_between_its_quotes() -> None:
    assert equal("category", '" or 1==1') == 'category == "%22 or 1==1"'
    assert any_of("id", ["가#1#0", "'\\\n"]) == 'id in ["가#1#0", "%27%5C%0A"]'


def test_no_conditions_are_no_expression() -> None:
    assert filter_expression(None) == filter_expression(Filter()) == ""


def test_a_field_that_no_row_holds_is_named_with_its_size(plain: Passage) -> None:
    big = Passage(**{name: getattr(plain, name) for name in plain.__slots__} | {"terms": ("가" * 30_000,)})
    with pytest.raises(TooLarge, match=r"'terms' of passage 글#1#0 is 90,000 bytes, at most 65,535 are taken"):
        row_of(big, VECTOR)


@pytest.mark.parametrize(
    ("count", "text_bytes", "messages"), [(0, 9, 0), (1_000, 9, 1), (1_001, 9, 2), (600, 60_000, 3)]
)
def test_batches_keep_every_row_and_stay_small(plain: Passage, count: int, text_bytes: int, messages: int) -> None:
    some = [
        Passage(**{name: getattr(plain, name) for name in plain.__slots__} | {"ordinal": n, "text": "a" * text_bytes})
        for n in range(count)
    ]
    made = list(batches(some, np.tile(VECTOR, (count, 1))))
    assert len(made) == messages
    assert [id_of(row) for batch in made for row in batch] == [p.id for p in some]


@pytest.fixture
def plain() -> Passage:
    return Passage(
        article_id="글",
        revision=1,
        ordinal=0,
        title="",
        text="",
        terms=(),
        term_spans=(),
        title_terms=(),
        sentence_spans=(),
    )
