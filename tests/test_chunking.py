"""Pieces over generated texts, with a token counter that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.chunking import MAX_PIECE_CHARS, Piece, TokenCounter, chunk, sentence_spans, title_budget
from pipeline.cleaning import CleanText, clean
from pipeline.documents import Span
from pipeline.korean.morphemes import Analyser

_SENTENCES = st.sampled_from(
    [
        "대출 금리를 낮춰 달라고 요구할 수 있어요.",
        "월세는 연말정산에서 공제돼요. 😀 증빙을 챙기세요!",
        "네.",
        "보이스피싱을 당하면 112에 전화하고 은행에 지급정지를 신청한 뒤 경찰서에서 사건사고사실확인원을 받아 제출해요.",
        "이율은 3.5%예요",
        "# 신청 방법",
        "## 준비할 서류는 무엇일까요",
        "- 신분증과 통장",
        "| 은행 | 금리 |",
        "ISA(Individual Savings Account) 계좌 https://example.com/a?b=c",
        "가나다라마바사아자차카타파하" * 4,
        "",
    ]
)
_BODIES = st.lists(_SENTENCES, max_size=14).map("\n\n".join)
_BUDGETS = st.integers(1, 60)
_FORMATS = st.sampled_from(["text", "markdown"])


def _letters(clean_text: CleanText) -> TokenCounter:
    """A token for each character that is no space."""
    return lambda spans: [sum(not char.isspace() for char in clean_text.text[start:end]) for start, end in spans]


def _halves(clean_text: CleanText) -> TokenCounter:
    """As a subword tokenizer: words cut from the left into fours; so a whole can have more tokens than its parts."""
    return lambda spans: [
        sum(-(-(len(word) + 3) // 4) for word in clean_text.text[start:end].split()) for start, end in spans
    ]


def _morphemes_of(analyser: Analyser, clean_text: CleanText) -> TokenCounter:
    starts = [token.start for token in next(analyser.analyse([clean_text.text]))]
    return lambda spans: [sum(start <= place < end for place in starts) for start, end in spans]


def _chunked(
    analyser: Analyser, clean_text: CleanText, count: TokenCounter, budget: int, title_tokens: int = 0, overlap: int = 1
) -> list[Piece]:
    (morphemes,) = analyser.analyse([clean_text.text])
    return chunk(clean_text, morphemes, count, budget=budget, title_tokens=title_tokens, overlap=overlap)


def _spans(analyser: Analyser, clean_text: CleanText) -> list[Span]:
    return sentence_spans(clean_text, next(analyser.analyse([clean_text.text])))


@settings(max_examples=80, deadline=None)
@given(
    body=_BODIES,
    format_=_FORMATS,
    budget=_BUDGETS,
    overlap=st.integers(0, 3),
    counter=st.sampled_from([_letters, _halves]),
)
def test_no_piece_with_title_and_heading_is_above_the_budget(
    analyser: Analyser,
    body: str,
    format_: str,
    budget: int,
    overlap: int,
    counter: Callable[[CleanText], TokenCounter],
) -> None:
    text = clean(body, format_)  # type: ignore[arg-type]
    title_tokens = title_budget(budget)
    count = counter(text)
    for piece in _chunked(analyser, text, count, budget, title_tokens, overlap):
        spans = [(piece.start, piece.end), *([piece.heading] if piece.heading is not None else [])]
        indivisible = piece.end - piece.start == 1 and piece.heading is None
        assert sum(count(spans)) + title_tokens <= budget or indivisible
        assert piece.end - piece.start <= MAX_PIECE_CHARS


@settings(max_examples=80, deadline=None)
@given(body=_BODIES, format_=_FORMATS, budget=_BUDGETS, overlap=st.integers(0, 3))
def test_pieces_hold_every_sentence_in_order_and_each_brings_a_new_one(
    analyser: Analyser, body: str, format_: str, budget: int, overlap: int
) -> None:
    text = clean(body, format_)  # type: ignore[arg-type]
    pieces = _chunked(analyser, text, _letters(text), budget, overlap=overlap)
    covered = 0
    for piece in pieces:
        assert (piece.start, piece.end) == (piece.sentences[0][0], piece.sentences[-1][1])
        assert all(left[1] <= right[0] for left, right in pairwise(piece.sentences))
        assert not text.text[covered : piece.start].strip(), "something between two pieces is lost"
        assert piece.end > covered, "a piece only repeats the one before"
        covered = piece.end
    assert not text.text[covered:].strip()
    for before, after in pairwise(pieces):
        assert len(set(before.sentences) & set(after.sentences)) <= overlap


@settings(max_examples=50, deadline=None)
@given(body=_BODIES, format_=_FORMATS, budget=_BUDGETS)
def test_only_what_is_too_long_is_cut(analyser: Analyser, body: str, format_: str, budget: int) -> None:
    text = clean(body, format_)  # type: ignore[arg-type]
    whole = _spans(analyser, text)
    count = _letters(text)
    for piece in _chunked(analyser, text, count, budget):
        for start, end in set(piece.sentences) - set(whole):
            (around,) = [span for span in whole if span[0] <= start and end <= span[1]]
            assert count([around])[0] > budget * 3 / 4  # the other quarter is the heading's at most


@settings(max_examples=50, deadline=None)
@given(body=_BODIES, format_=_FORMATS)
def test_sentences_cover_the_text_and_none_crosses_a_block(analyser: Analyser, body: str, format_: str) -> None:
    text = clean(body, format_)  # type: ignore[arg-type]
    spans = _spans(analyser, text)
    ends = [(0, 0), *spans, (len(text.text), len(text.text))]
    assert all(not text.text[left[1] : right[0]].strip() for left, right in pairwise(ends))
    for start, end in spans:
        assert sum(block.start <= start and end <= block.end for block in text.blocks) == 1
        assert text.text[start:end] == text.text[start:end].strip() != ""


@settings(max_examples=40, deadline=None)
@given(body=_BODIES, budget=_BUDGETS)
def test_the_same_text_gives_the_same_pieces(analyser: Analyser, body: str, budget: int) -> None:
    text = clean(body, "markdown")
    assert _chunked(analyser, text, _letters(text), budget) == _chunked(analyser, text, _letters(text), budget)


PARAGRAPH = "대출을 갈아타면 이자를 아낄 수 있어요. 조건을 먼저 확인하세요. 서류는 앱에서 내요. 결과는 문자로 와요. "


def test_the_heading_stands_in_front_of_each_piece_under_it(analyser: Analyser) -> None:
    text = clean(f"머리말이에요.\n\n# 갈아타기\n\n{PARAGRAPH * 4}\n\n# 해지\n\n{PARAGRAPH * 4}", "markdown")
    pieces = _chunked(analyser, text, _letters(text), 90, overlap=0)
    headings = [block.span for block in text.blocks if block.kind == "heading"]
    assert len(pieces) > 4
    for piece in pieces:
        above = [span for span in headings if span[1] <= piece.start]
        own = any(span == piece.sentences[0] for span in headings)
        assert piece.heading == (above[-1] if above and not own else None)
        assert piece.sentences[-1] not in headings, "a heading belongs to what follows it"


def test_overlap_is_as_asked_where_it_fits(analyser: Analyser) -> None:
    text = clean(PARAGRAPH * 12)
    for overlap in range(3):
        pieces = _chunked(analyser, text, _letters(text), 160, overlap=overlap)
        assert len(pieces) > 2
        for before, after in pairwise(pieces):
            assert before.sentences[len(before.sentences) - overlap :] == after.sentences[:overlap]


@pytest.mark.parametrize(
    ("body", "format_"),
    [
        ("가" * 10_000, "text"),
        ("a" * 10_000, "text"),
        ("대출 " * 3_333, "text"),
        ("금리가 오르고 " * 1_250 + "내렸다.", "text"),
        ("😀" * 3_000, "text"),
        ("|가|나|\n|-|-|\n" + "|대출|3.5|\n" * 500, "markdown"),
        ("|" + "대출|" * 500 + "\n" + "|" + "-|" * 500 + "\n" + "|" + "금리|" * 500, "markdown"),
        ("\n".join(f"- 항목 {n}번" for n in range(800)), "markdown"),
        ("```\n" + "for x in range(10):\n    print(x)\n" * 300 + "```", "markdown"),
        ("# " + "긴 제목 " * 60 + "\n\n본문이에요.", "markdown"),
        ("\n\n".join(f"# 제목 {n}" for n in range(300)), "markdown"),
    ],
    ids=[
        "word",
        "latin word",
        "no full stop",
        "one sentence",
        "emoji",
        "table",
        "wide table",
        "list",
        "code",
        "big heading",
        "headings alone",
    ],
)
@pytest.mark.parametrize("budget", [20, 256])
def test_long_things_survive_whole_within_the_budget(analyser: Analyser, body: str, format_: str, budget: int) -> None:
    text = clean(body, format_)  # type: ignore[arg-type]
    count = _letters(text)
    pieces = _chunked(analyser, text, count, budget)
    assert all(count([(piece.start, piece.end)])[0] <= budget for piece in pieces)
    letters = [place for piece in pieces for place in range(piece.start, piece.end)]
    assert {place for place, char in enumerate(text.text) if not char.isspace()} <= set(letters)


def test_a_text_without_a_sentence_gives_no_piece(analyser: Analyser) -> None:
    text = clean(" \n ")
    assert _chunked(analyser, text, _letters(text), 100) == []


def test_offsets_count_characters_not_utf16_units(analyser: Analyser) -> None:
    text = clean("😀😀 대출이에요. 👍🏽 금리예요. 끝났어요.")
    assert [text.text[start:end] for start, end in _spans(analyser, text)] == [
        "😀😀 대출이에요.",
        "👍🏽 금리예요.",
        "끝났어요.",
    ]


def _fits(pieces: Sequence[Piece], count: TokenCounter, budget: int) -> bool:
    return all(tokens <= budget for tokens in count([(piece.start, piece.end) for piece in pieces]))


def test_kiwi_morphemes_can_be_the_tokens(analyser: Analyser) -> None:
    text = clean(PARAGRAPH * 20)
    count = _morphemes_of(analyser, text)
    pieces = _chunked(analyser, text, count, 64)
    assert _fits(pieces, count, 64)
    assert sum(count([(piece.start, piece.end)])[0] for piece in pieces[:-1]) > 32 * (len(pieces) - 1), "half empty"
