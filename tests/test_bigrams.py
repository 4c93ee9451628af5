"""pipeline/korean/bigrams.py"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.korean.bigrams import bigrams


@given(st.text())
def test_every_bigram_stands_in_the_text_within_one_word(text: str) -> None:
    for bigram in bigrams(text):
        assert bigram in text.lower()
        assert 1 <= len(bigram) <= 2
        assert all(char.isalnum() or char == "_" or not char.isascii() for char in bigram)


@given(st.lists(st.text(st.sampled_from("가나다라마bcd12"), min_size=2, max_size=8), max_size=5))
def test_words_give_their_neighbouring_pairs_in_order(words: list[str]) -> None:
    pairs = [word[place : place + 2] for word in words for place in range(len(word) - 1)]
    assert bigrams(" ".join(words)) == bigrams(", ".join(words)) == pairs


def test_a_word_of_one_letter_is_found_too() -> None:
    assert bigrams("돈 b 3!") == ["돈", "b", "3"]


def test_case_is_forgiven() -> None:
    assert bigrams("ISA") == bigrams("isa") == ["is", "sa"]


def test_spacing_and_one_wrong_letter_leave_shared_bigrams() -> None:
    assert set(bigrams("전세 대출")) < set(bigrams("전세대출"))
    assert set(bigrams("전세댸출갈아타기")) & set(bigrams("전세대출갈아타기"))
