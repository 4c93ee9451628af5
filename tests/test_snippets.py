"""Snippets over generated passages: what is shown, what is marked, and that nothing of the text becomes markup."""

from __future__ import annotations

import html
import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import Passage, Span
from pipeline.retrieval.snippets import SNIPPET_CHARS, hits_in_text, matched_spans, matched_terms, snippet

_WORDS = st.sampled_from(
    ["대출", "금리", "전세", "<b>", "a&b", "</mark>", "<mark>", '"이자"', "😀", "서류를", "x" * 60, "&lt;"]
)
_SENTENCES = st.lists(_WORDS, min_size=1, max_size=25).map(" ".join).map("{}.".format)
_WEIGHTS = st.dictionaries(_WORDS, st.floats(0.1, 3), max_size=5)


def _passage(sentences: list[str], title: str = "제목") -> Passage:
    """A passage whose terms are its words, one sentence a line."""
    text = "\n".join(sentences)
    words = [(match.group().removesuffix("."), match.start()) for match in re.finditer(r"\S+", text)]
    starts = [sum(len(sentence) + 1 for sentence in sentences[:place]) for place in range(len(sentences))]
    return Passage(
        article_id="a",
        revision=1,
        ordinal=0,
        title=title,
        text=text,
        terms=tuple(word for word, _ in words),
        term_spans=tuple((start, start + len(word)) for word, start in words),
        title_terms=tuple(title.split()),
        sentence_spans=tuple((start, start + len(s)) for start, s in zip(starts, sentences, strict=True)),
    )


_PASSAGES = st.lists(_SENTENCES, max_size=8).map(_passage)


def _read(shown: str) -> tuple[str, list[str]]:
    """(the text that a browser shows, its marked parts); fails on any other markup."""
    parts = re.split(r"<mark>(.*?)</mark>", shown)
    assert not re.search("[<>]", "".join(parts)), shown
    text = html.unescape("".join(parts))
    return text, [html.unescape(part) for part in parts[1::2]]


def _place(passage: Passage, text: str) -> Span:
    """Where the shown text stands in the passage; its ellipses say truly whether something is left out."""
    flat = passage.text.replace("\n", " ")
    body = text.removeprefix("…").removesuffix("…")
    places = [m.start() for m in re.finditer(f"(?={re.escape(body)})", flat)]
    fitting = [
        start
        for start in places
        if (start > 0) == text.startswith("…") and (start + len(body) < len(flat)) == text.endswith("…")
    ]
    assert fitting, (text, flat)
    return fitting[0], fitting[0] + len(body)


@given(_PASSAGES, _WEIGHTS)
def test_a_snippet_is_a_piece_of_the_text_escaped_but_for_marks(passage: Passage, weights: dict[str, float]) -> None:
    text, marked = _read(snippet(passage, weights))
    start, end = _place(passage, text)
    assert end - start <= SNIPPET_CHARS
    assert end - start == min(len(passage.text), SNIPPET_CHARS) or end == len(passage.text)
    assert all(part.strip() for part in marked)


@given(_PASSAGES, _WEIGHTS)
def test_marks_are_the_matched_terms_of_the_window(passage: Passage, weights: dict[str, float]) -> None:
    _, marked = _read(snippet(passage, weights))
    assert bool(marked) == bool(weights.keys() & set(passage.terms))
    terms = weights.keys() & set(passage.terms)
    for part in marked:
        assert any(part in term for term in terms), "a mark at the window's edge may be cut"
    for part in marked[1:-1]:
        assert part in terms


@given(_PASSAGES, _WEIGHTS)
def test_the_window_holds_the_most_of_the_query(passage: Passage, weights: dict[str, float]) -> None:
    """Against every window that starts at a match, tried one by one."""

    def value(start: int, end: int) -> float:
        inside = {
            term
            for term, (left, right) in zip(passage.terms, passage.term_spans, strict=True)
            if start <= left and right <= end
        }
        return sum(weights[term] for term in inside & weights.keys())

    best = max((value(start, start + SNIPPET_CHARS) for start, _ in passage.term_spans), default=0.0)
    _, marked = _read(snippet(passage, weights))
    assert sum(weights[term] for term in weights.keys() & set(marked)) >= best - 1e-9


@given(_PASSAGES, _WEIGHTS)
def test_matched_spans_are_apart_and_cover_each_match(passage: Passage, weights: dict[str, float]) -> None:
    spans = matched_spans(hits_in_text(passage, weights))
    assert all(left[1] < right[0] for left, right in pairwise(spans))
    for term, (start, end) in zip(passage.terms, passage.term_spans, strict=True):
        assert (term in weights) <= any(left <= start and end <= right for left, right in spans)


def test_a_compound_and_its_parts_make_one_mark() -> None:
    passage = Passage(
        article_id="a",
        revision=1,
        ordinal=0,
        title="",
        text="전세대출이에요",
        terms=("전세", "전세대출", "대출"),
        term_spans=((0, 2), (0, 4), (2, 4)),
        title_terms=(),
        sentence_spans=((0, 7),),
    )
    assert snippet(passage, {"전세": 1, "대출": 1, "전세대출": 0.5}) == "<mark>전세대출</mark>이에요"
    assert snippet(passage, {"대출": 1}) == "전세<mark>대출</mark>이에요"


def test_a_snippet_starts_with_the_sentence_of_its_match() -> None:
    passage = _passage(["앞 문장은 길지 않아요." * 10, "전세 대출을 알아봐요.", "끝 문장도 이어져요." * 20])
    assert snippet(passage, {"전세": 1.0}).startswith("…<mark>전세</mark> 대출을")


def test_without_a_match_the_likely_sentence_is_shown_from_its_beginning() -> None:
    passage = _passage(["첫 문장이에요." * 20, "둘째 문장이 " * 40 + "길어요.", "셋째예요." * 30])
    second = passage.sentence_spans[1]
    assert snippet(passage, {}, likely=second).startswith("…둘째 문장이 둘째")
    assert snippet(passage, {"없는말": 1.0}).startswith("첫 문장이에요.")


@pytest.mark.parametrize("likely", [None, (0, 0)])
def test_a_passage_of_a_title_alone_has_an_empty_snippet(likely: Span | None) -> None:
    passage = _passage([], title="전세 대출")
    assert snippet(passage, {"전세": 1.0}, likely=likely) == ""
    assert matched_terms(passage, {"대출": 1.0, "없음": 1.0, "전세": 1.0}) == ["대출", "전세"]


def test_a_passage_full_of_matches_is_shown_in_an_instant() -> None:
    passage = _passage(["가 나 " * 2_000])
    start = time.thread_time()
    shown = snippet(passage, {"가": 1.0, "나": 1.0})
    assert time.thread_time() - start < 4.0  # 0.1 s here; quadratic in the matches it took 10 s
    assert shown.count("<mark>") == SNIPPET_CHARS // 2
