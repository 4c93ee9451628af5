"""Hangul as characters: one composed form for every text, and queries typed in initial consonants.

Knows nothing about words, morphemes or keyboards.
"""

from __future__ import annotations

import unicodedata

# The 19 initial consonants, as a keyboard types them (compatibility jamo): clusters such as ㄳ never begin a syllable.
CHOSEONG = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_CONJOINING_CHOSEONG = "".join(chr(0x1100 + index) for index in range(len(CHOSEONG)))  # U+1100-1112, same order
_CHOSEONG_OF_ANY_KIND = frozenset(CHOSEONG + _CONJOINING_CHOSEONG)


def normalise(text: str) -> str:
    """`text` in NFC: syllables spelt as conjoining jamo (file names of macOS, some PDFs) become single characters.

    Compatibility jamo (ㄱ, ㅏ: what a keyboard types) stay as they are: NFC does not join them, and ㅋㅋ is a word.
    """
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def is_choseong_only(text: str) -> bool:
    """Whether `text` is nothing but initial consonants (ㄷㅊ for 대출) and white space, at least one consonant.

    Such a query has no syllable, so neither morphemes nor an encoder can read it.
    """
    consonants = "".join(text.split())
    return bool(consonants) and _CHOSEONG_OF_ANY_KIND.issuperset(consonants)
