"""Character bigrams: the lexical field that forgives spacing and one wrong letter.

A word is a run of letters and digits; 여울뱅크 gives 여울, 울뱅, 뱅크, and a word of one character gives itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from operator import add

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.intp]

_WORD = re.compile(r"\w+")
_REMEMBERED_WORDS = 65_536  # a third of a text's words were met before in the same article: some 20 MB
_LONGEST_REMEMBERED = 20  # characters: a longer run is data, and would make them more


def bigrams(text: str) -> list[str]:
    """The bigrams of `text`, lower-cased, in order, with repetitions."""
    words = _WORD.findall(text.lower())
    return list(chain.from_iterable(_of_word(w) if len(w) <= _LONGEST_REMEMBERED else _made(w) for w in words))


def bigrams_of_all(texts: Sequence[str]) -> tuple[list[str], Integers, Integers]:
    """What `bigrams` gives for each, in arrays: the distinct ones of all texts, which of them there are, one text after the other,
    and how many each text has, (len(texts),). For a thousand texts in less than half of the time."""
    lowered = [text.lower() for text in texts]
    codes = np.frombuffer("\n".join(lowered).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    in_word = _in_words(codes)
    next_in_word, before_in_word = np.append(in_word[1:], False), np.append(False, in_word[:-1])
    at = np.flatnonzero(
        in_word & (next_in_word | ~before_in_word)
    )  # where one begins: a pair, or a word of one character
    seconds = np.where(next_in_word, np.append(codes[1:], 0), 0)[at]  # int64
    pairs = codes[at].astype(np.int64) << 32 | seconds
    distinct, which = np.unique(pairs, return_inverse=True)
    spelled = [chr(pair >> 32) + (chr(pair & 0xFFFFFFFF) if pair & 0xFFFFFFFF else "") for pair in distinct.tolist()]
    ends = np.cumsum([len(text) + 1 for text in lowered], dtype=np.intp)
    return spelled, which, np.diff(np.searchsorted(at, ends), prepend=0)


def _in_words(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Of each character, whether words are made of such."""
    known = np.zeros(int(codes.max(initial=0)) + 1, dtype=bool)
    known[[code for code in np.unique(codes).tolist() if _WORD.match(chr(code))]] = True
    return known[codes]


def _made(word: str) -> tuple[str, ...]:
    return tuple(map(add, word, word[1:])) if len(word) > 1 else (word,)


_of_word = lru_cache(maxsize=_REMEMBERED_WORDS)(_made)
