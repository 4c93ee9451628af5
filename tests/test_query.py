"""What a search request may hold, and what a cursor belongs to."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidQuery
from pipeline.index.filters import Filter
from pipeline.retrieval.query import MAX_QUERY_CHARS, SearchRequest


@given(st.text(max_size=600))
def test_any_text_is_one_line_of_nfc_or_refused_by_name(text: str) -> None:
    try:
        request = SearchRequest.checked(text)
    except InvalidQuery as error:
        message = str(error)
        assert "parameter 'q'" in message.encode().decode()
    else:
        assert 1 <= len(request.text) <= MAX_QUERY_CHARS
        assert unicodedata.is_normalized("NFC", request.text)
        assert "\n" not in request.text
        assert SearchRequest.checked(request.text) == request


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u200b\ufeff", "\x00", "\ud800", "\u3164"])
def test_a_query_without_a_visible_character_is_refused(text: str) -> None:
    with pytest.raises(InvalidQuery, match="'q' should be some text"):
        SearchRequest.checked(text)


def test_the_length_of_a_query_is_that_of_its_normalised_text() -> None:
    spelt = unicodedata.normalize("NFD", "각" * MAX_QUERY_CHARS)
    assert SearchRequest.checked(f"  {spelt}\u200b ").text == "각" * MAX_QUERY_CHARS
    with pytest.raises(InvalidQuery, match=r"at most 500 characters \(10,000 seen\)"):
        SearchRequest.checked("가" * 10_000)


def test_a_null_and_a_lone_surrogate_are_left_out() -> None:
    assert SearchRequest.checked("대출\x00 \ud83d금리").text == "대출 금리"


@pytest.mark.parametrize("limit", [0, -1, 101, 100_000])
def test_a_limit_outside_its_range_is_refused_with_the_range(limit: int) -> None:
    with pytest.raises(InvalidQuery, match=rf"'limit' should be in 1\.\.100, is {limit}\. correct 'limit'"):
        SearchRequest.checked("대출", limit=limit)


@pytest.mark.parametrize("mode", ["", "sparse", "HYBRID", "hybrid "])
def test_an_unknown_mode_is_refused_with_the_known_ones(mode: str) -> None:
    with pytest.raises(InvalidQuery, match="one of hybrid, dense, lexical"):
        SearchRequest.checked("대출", mode=mode)


def test_a_filter_value_without_meaning_in_unicode_is_refused_by_name() -> None:
    with pytest.raises(InvalidQuery, match="'tag' should be Unicode text"):
        SearchRequest.checked("대출", filter_=Filter(tag="a\udcff"))


def test_a_filter_value_is_data() -> None:
    value = "x' or 1 == 1 or category == \"대출"
    assert SearchRequest.checked("대출", filter_=Filter(category=value)).filter == Filter(category=value)


def test_a_question_is_all_that_decides_the_ranking_and_nothing_else() -> None:
    request = SearchRequest.checked("대출", filter_=Filter(category="금융"))
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    others = [
        replace(request, text="대출 금리"),
        replace(request, mode="dense"),
        replace(request, filter=Filter()),
        replace(request, filter=Filter(series="금융")),
        replace(request, filter=Filter(category="금융", since=moment)),
        replace(request, filter=Filter(category="금융", until=moment)),
    ]
    questions = {request.question("tm2c2", 0.2), request.question("tm2c2", 0.3), request.question("rrf", 0.2)}
    questions |= {other.question("tm2c2", 0.2) for other in others}
    assert len(questions) == 3 + len(others)
    same = replace(request, limit=50, cursor="x")
    assert same.question("tm2c2", 0.2) == request.question("tm2c2", 0.2)


def test_only_the_filter_without_a_condition_is_empty() -> None:
    assert Filter().empty
    assert not Filter(tag="").empty
