"""Articles and passages: every rule of their fields, their ids and hashes."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.documents import MAX_BODY_BYTES, Article, checked_id, parsed_time, passage_id, passage_parts
from pipeline.errors import InvalidArticle, TooLarge

GOOD = {"id": "a-1", "title": "전세대출", "body": "금리를 비교해요."}
_TEXT = st.text(max_size=30)
_IDS = st.text(st.characters(exclude_categories=["C"], exclude_characters="#/"), min_size=1, max_size=60).filter(
    str.strip
)
_MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 3),
    max_value=datetime(9999, 12, 29),
    timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)


@st.composite
def _mappings(draw: st.DrawFn) -> dict[str, Any]:
    body = draw(_TEXT)
    title = draw(_TEXT)
    assume(body.strip() or title.strip())
    optional = {
        "format": st.sampled_from(["text", "markdown", "html"]),
        "url": _TEXT,
        "category": _TEXT,
        "series": _TEXT,
        "tags": st.lists(_TEXT, max_size=5),
        "source": _TEXT,
        "published_at": _MOMENTS.map(datetime.isoformat),
        "updated_at": _MOMENTS.map(datetime.isoformat),
        "quality": st.floats(0, 1) | st.integers(0, 1),
        "visible": st.booleans(),
    }
    chosen = draw(st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in optional.items()}))
    return {"id": draw(_IDS), "title": title, "body": body, **chosen}


@given(_mappings())
def test_an_article_survives_the_way_through_json(mapping: dict[str, Any]) -> None:
    article = Article.from_mapping(mapping)
    back = Article.from_mapping(json.loads(json.dumps(article.to_mapping())))
    assert back == article
    assert back.content_hash == article.content_hash


@given(_mappings())
def test_what_was_sent_is_what_is_kept(mapping: dict[str, Any]) -> None:
    article = Article.from_mapping(mapping)
    for name, value in mapping.items():
        kept = getattr(article, name)
        if name == "id":
            assert kept == unicodedata.normalize("NFC", value)
        elif name == "tags":
            assert kept == tuple(dict.fromkeys(value or ()))
        elif name.endswith("_at"):
            assert kept == (datetime.fromisoformat(value) if value is not None else None)
            assert kept is None or kept.tzinfo is UTC
        elif value is not None:
            assert kept == value
        else:
            assert kept == Article.__dataclass_fields__[name].default


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("id", None, "1-200 characters"),
        ("id", 7, "1-200 characters"),
        ("id", " \t", "1-200 characters"),
        ("id", "가" * 201, "at most 200 characters (201 seen)"),
        ("id", "a#1", "'#' seen"),
        ("id", "a/1", "'/' seen"),
        ("id", "a\nb", r"'\n' seen"),
        ("id", "a\u0000", r"'\x00' seen"),
        ("id", "a\u202eb", "control characters"),
        ("id", "a\ud800", "lone surrogates"),
        ("title", 3, "a text"),
        ("title", "x" * 1001, "at most 1,000 characters (1,001 seen)"),
        ("title", "금리\udc80", "lone surrogates"),
        ("body", None, "a text"),
        ("body", ["a"], "a text"),
        ("body", "이자 \ud83d 이자", "lone surrogates"),
        ("format", "pdf", "one of text, markdown, html"),
        ("format", ["text"], "one of text, markdown, html"),
        ("url", 5, "a text"),
        ("url", "u" * 2001, "at most 2,000"),
        ("category", {"a": 1}, "a text"),
        ("category", "c" * 501, "at most 500"),
        ("series", True, "a text"),
        ("source", "\udfff", "lone surrogates"),
        ("tags", "대출", "a list of at most 50 texts"),
        ("tags", ["t"] * 51, "a list of at most 50 texts"),
        ("tags", ["대출", None], "without null"),
        ("tags", ["대출", 3], "a text"),
        ("published_at", "2026-03-02", "an RFC 3339 time with an offset"),
        ("published_at", "2026-03-02T09:00:00", "an RFC 3339 time with an offset"),
        ("published_at", 1_700_000_000, "an RFC 3339 time with an offset"),
        ("updated_at", "어제", "an RFC 3339 time with an offset"),
        ("updated_at", "2026-13-02T09:00:00Z", "an RFC 3339 time with an offset"),
        ("updated_at", "0001-01-01T00:00:00+09:00", "an RFC 3339 time with an offset"),
        ("updated_at", "9999-12-31T23:59:59-09:00", "an RFC 3339 time with an offset"),
        ("quality", 1.01, "0..1"),
        ("quality", -1, "0..1"),
        ("quality", float("nan"), "0..1"),
        ("quality", True, "0..1"),
        ("quality", "0.5", "0..1"),
        ("quality", 10**400, "0..1"),
        ("visible", "yes", "true or false"),
        ("visible", 1, "true or false"),
        ("autor", "김", "no such field"),
    ],
)
def test_a_bad_field_is_named_with_the_value_seen_and_the_cure(field: str, value: object, rule: str) -> None:
    with pytest.raises(InvalidArticle) as caught:
        Article.from_mapping(GOOD | {field: value})
    assert caught.value.field == field
    assert rule in caught.value.message
    assert f"correct {field!r}" in caught.value.hint
    str(caught.value).encode()  # it can be printed, whatever the value was
    if rule not in ("lone surrogates", "a text"):
        assert repr(value)[:40] in caught.value.message


def test_a_missing_id_and_a_missing_body_are_refused_by_name() -> None:
    for field in ("id", "body"):
        with pytest.raises(InvalidArticle, match=f"'{field}'"):
            Article.from_mapping({name: value for name, value in GOOD.items() if name != field})


def test_an_article_needs_a_title_or_a_body() -> None:
    with pytest.raises(InvalidArticle, match="title and body are both empty"):
        Article.from_mapping({"id": "a", "title": " ", "body": "\n"})
    assert Article.from_mapping({"id": "a", "title": "제목", "body": ""}).body == ""
    assert Article.from_mapping({"id": "a", "body": "본문"}).title == ""


def test_a_body_is_measured_in_bytes() -> None:
    fits = "가" * (MAX_BODY_BYTES // 3)
    assert Article.from_mapping(GOOD | {"body": fits}).body == fits
    with pytest.raises(TooLarge, match=r"5,000,001 bytes, at most 5,000,000"):
        Article.from_mapping(GOOD | {"body": fits + "abc"})


@pytest.mark.parametrize("value", ['o\'clock "x"', "a b", "금리.인하", "%2F", "..", "日本", "a:b;c\\d", "👍"])
def test_an_id_may_hold_anything_else(value: str) -> None:
    assert checked_id(value) == value


@given(_IDS)
def test_ids_are_nfc_and_checking_them_again_changes_nothing(value: str) -> None:
    spelt = unicodedata.normalize("NFD", value)
    once = checked_id(spelt)
    assert unicodedata.is_normalized("NFC", once)
    assert checked_id(once) == once == checked_id(value)


@given(_IDS, st.integers(1, 2**62), st.integers(0, 10**6))
def test_a_passage_id_can_be_taken_apart(article_id: str, revision: int, ordinal: int) -> None:
    assert passage_parts(passage_id(article_id, revision, ordinal)) == (article_id, revision, ordinal)


@given(_mappings(), _MOMENTS)
def test_the_content_hash_ignores_updated_at_and_nothing_else(mapping: dict[str, Any], moment: datetime) -> None:
    article = Article.from_mapping(mapping)
    assert replace(article, updated_at=moment).content_hash == article.content_hash
    others = {
        "id": article.id + "x",
        "title": article.title + "x",
        "body": article.body + "x",
        "format": "html" if article.format == "text" else "text",
        "url": (article.url or "") + "x",
        "category": (article.category or "") + "x",
        "series": (article.series or "") + "x",
        "tags": (*article.tags, "another"),
        "source": (article.source or "") + "x",
        "published_at": datetime(2001, 2, 3, tzinfo=UTC),
        "quality": 0.123,
        "visible": not article.visible,
    }
    for name, value in others.items():
        changed = replace(article, **{name: value})  # type: ignore[arg-type]
        assert changed == article or changed.content_hash != article.content_hash, name


@given(st.text())
def test_any_text_is_a_time_in_utc_or_none(text: str) -> None:
    moment = parsed_time(text)
    assert moment is None or moment.tzinfo is UTC


@given(_MOMENTS)
def test_times_keep_their_instant(moment: datetime) -> None:
    assert parsed_time(moment.isoformat()) == moment
