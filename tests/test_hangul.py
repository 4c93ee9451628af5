"""pipeline/korean/hangul.py"""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.korean.hangul import CHOSEONG, is_choseong_only, normalise

_SYLLABLES = st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1)


@given(_SYLLABLES)
def test_syllables_spelt_as_jamo_become_syllables(text: str) -> None:
    spelt = unicodedata.normalize("NFD", text)
    assert spelt != text
    assert normalise(spelt) == text


@given(st.text())
def test_normalise_is_nfc(text: str) -> None:
    assert normalise(text) == unicodedata.normalize("NFC", text)


def test_jamo_typed_on_a_keyboard_stay_as_typed() -> None:
    assert normalise("ㅋㅋ ㅎㅏㄴ") == "ㅋㅋ ㅎㅏㄴ"


def test_choseong_are_the_initial_consonants_of_unicode_order() -> None:
    names = [unicodedata.name(chr(0x1100 + index)).removeprefix("HANGUL CHOSEONG ") for index in range(19)]
    assert [unicodedata.name(consonant).removeprefix("HANGUL LETTER ") for consonant in CHOSEONG] == names


@given(st.text(CHOSEONG + " \u3000\t", min_size=1))
def test_initial_consonants_and_blanks_are_choseong_only(text: str) -> None:
    assert is_choseong_only(text) == bool(text.strip())


@given(st.text(CHOSEONG), _SYLLABLES, st.text(CHOSEONG))
def test_one_syllable_is_enough_to_be_a_word(before: str, syllables: str, after: str) -> None:
    assert not is_choseong_only(before + syllables + after)


@pytest.mark.parametrize("text", ["", "  ", "ㄷㅊ 2024", "ㄳ", "ㅏ", "ㄷㅊ?", "loan"])
def test_other_characters_are_not_choseong_only(text: str) -> None:
    assert not is_choseong_only(text)


def test_conjoining_initial_consonants_count_too() -> None:
    assert is_choseong_only("\u1103\u110e")
