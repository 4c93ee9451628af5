"""pipeline/korean/bigrams.py"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.korean.bigrams import bigrams, bigrams_of_all


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


@given(st.lists(st.text() | st.text(st.sampled_from("가나 a_9İ\n\0!"), max_size=12), max_size=5))
def test_many_texts_at_once_give_what_each_gives(texts: list[str]) -> None:
    spelled, which, lengths = bigrams_of_all(texts)
    assert len(set(spelled)) == len(spelled)
    found = iter(spelled[place] for place in which)
    assert [[next(found) for _ in range(length)] for length in lengths] == [bigrams(text) for text in texts]
    assert not list(found)
