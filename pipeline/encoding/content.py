"""Which morphemes of an analysed text carry its meaning, as rows of a morpheme table or as unknown forms.

Knows nothing of vectors and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from kiwipiepy import Kiwi, Token
from numpy.typing import NDArray

# Prefixes of Kiwi's tags, which may carry a suffix (VV-I): nouns, numerals and pronouns; verbs and adjectives with
# auxiliaries and copulas; adverbs and determiners; Latin, numbers, Chinese characters; roots and prefixes.
CONTENT_TAGS = ("N", "V", "M", "SL", "SN", "SH", "XR", "XPN")
_ID_OF = attrgetter("id")

_IGNORED, _ROW, _BY_FORM = 0, 1, 2  # what an id means: no content; a row of the table; look at tag and form


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Content morphemes of `texts` texts: `rows[i]` is a row of the table that text `row_texts[i]` contains (int64,
    ascending texts, in order of the text); `forms[i]` is a lower-cased unknown form in text `form_texts[i]`."""

    texts: int
    rows: NDArray[np.int64]
    row_texts: NDArray[np.int64]
    forms: list[str]
    form_texts: NDArray[np.int64]


class ContentReader:
    """Reads the content of texts for a table with the morphemes 0 .. size-1 of `kiwi`."""

    def __init__(self, kiwi: Kiwi, size: int) -> None:
        self._kiwi = kiwi
        self._size = size
        # One entry more: every id above the table. Bare tags (an empty form: SL, SN, an unknown noun) stand for any form.
        self._meaning = np.full(size + 1, _BY_FORM, dtype=np.int8)
        for number, morpheme in enumerate(map(kiwi.morpheme, range(size))):
            if morpheme.form:
                self._meaning[number] = _ROW if morpheme.tag.startswith(CONTENT_TAGS) else _IGNORED

    @property
    def is_row(self) -> NDArray[np.bool_]:
        """Which rows of the table content can refer to: (size,)."""
        rows: NDArray[np.bool_] = self._meaning[:-1] == _ROW
        return rows

    def read(self, texts: Sequence[Sequence[Token]]) -> Content:
        """The content of analysed texts (every morpheme of Kiwi)."""
        tokens = [token for text in texts for token in text]
        owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        ids = np.fromiter(map(_ID_OF, tokens), np.int64, len(tokens))
        meaning = self._meaning[np.minimum(ids, self._size)]
        known = meaning == _ROW
        places = [
            place
            for place in np.flatnonzero(meaning == _BY_FORM).tolist()
            if tokens[place].tag.startswith(CONTENT_TAGS)
        ]
        forms = [tokens[place].form.lower() for place in places]
        return Content(len(texts), ids[known], owners[known], forms, owners[np.array(places, dtype=np.int64)])

    def rows_of_forms(self, probabilities: NDArray[np.float32]) -> dict[str, int]:
        """Lower-cased form → the row of the most probable content morpheme that is written so."""
        rows: dict[str, int] = {}
        numbers = np.flatnonzero(self.is_row)
        for number in numbers[np.argsort(-probabilities[numbers], kind="stable")].tolist():
            rows.setdefault(self._kiwi.morpheme(number).form.lower(), number)
        return rows
