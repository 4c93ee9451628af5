"""Character bigrams: the lexical field that forgives spacing and one wrong letter.

A word is a run of letters and digits; 여울뱅크 gives 여울, 울뱅, 뱅크, and a word of one character gives itself.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from operator import add

_WORD = re.compile(r"\w+")
_REMEMBERED_WORDS = 65_536  # a third of a text's words were met before in the same article: some 20 MB
_LONGEST_REMEMBERED = 20  # characters: a longer run is data, and would make them more


def bigrams(text: str) -> list[str]:
    """The bigrams of `text`, lower-cased, in order, with repetitions."""
    words = _WORD.findall(text.lower())
    return list(chain.from_iterable(_of_word(w) if len(w) <= _LONGEST_REMEMBERED else _made(w) for w in words))


def _made(word: str) -> tuple[str, ...]:
    return tuple(map(add, word, word[1:])) if len(word) > 1 else (word,)


_of_word = lru_cache(maxsize=_REMEMBERED_WORDS)(_made)
