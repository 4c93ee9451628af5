"""Character bigrams: the lexical field that forgives spacing and one wrong letter.

A word is a run of letters and digits; 여울뱅크 gives 여울, 울뱅, 뱅크, and a word of one character gives itself.
"""

from __future__ import annotations

import re
from operator import add

_WORD = re.compile(r"\w+")


def bigrams(text: str) -> list[str]:
    """The bigrams of `text`, lower-cased, in order, with repetitions."""
    found: list[str] = []
    for word in _WORD.findall(text.lower()):
        found += map(add, word, word[1:]) if len(word) > 1 else (word,)
    return found
