"""`kiwi-static`: a Korean encoder that needs no download, only Kiwi.

A text is the weighted sum of the vectors of its content morphemes, of length 1. The weights are SIF's (Arora et al.
2017, https://openreview.net/forum?id=SyK00v5xx): a / (a + p(morpheme)), so that frequent words say little. A form that
the table does not have (a name, a number, Latin) gets a fixed pseudo-random vector from its character 2- and 3-grams:
equal forms agree, similar ones nearly, all others are about orthogonal.

Knows nothing of indexes. Imports neither torch nor sentence_transformers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from kiwipiepy import Kiwi, Token
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.encoding.content import Content, ContentReader
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.kiwi_table import MorphemeTable
from pipeline.encoding.word_probabilities import default_probabilities
from pipeline.errors import EncoderFailed, InvalidInput

NAME = "kiwi-static"
_SIF_A = 3e-4  # the paper's range is 1e-4 to 1e-3; measured: notebooks/LOG.md, "a better table for nothing"
_TEXTS_AT_ONCE = 256  # a batch's sums stay in the processor's cache
_REMEMBERED_FORMS = 16_384  # unknown forms whose vector is kept: 10 MB


class WeightedTable:
    """A morpheme table and the weights of its rows: what makes vectors of content, without Kiwi."""

    def __init__(self, table: MorphemeTable, probabilities: FloatArray) -> None:
        """`probabilities` is p(morpheme id), float32 (V,), for the V rows of `table`; 0 gives the full weight of 1.

        Raises InvalidInput where the two lengths differ.
        """
        if probabilities.shape != table.vectors.shape[:1]:
            raise InvalidInput(
                f"word probabilities should be of shape {table.vectors.shape[:1]}, are {probabilities.shape}",
                "count them with the Kiwi model of the table (count_probabilities)",
            )
        self.table = table
        self.probabilities = np.ascontiguousarray(probabilities, dtype=np.float32)
        self.weights = (_SIF_A / (_SIF_A + self.probabilities)).astype(np.float32)  # (V,)
        self._vectors = np.asarray(table.vectors)  # without numpy's memmap class, which makes every use of it slower

    @cached_property
    def id(self) -> str:
        """`kiwi-static:<Kiwi model>:<table>:<weights>`, the last two as hexadecimal fingerprints."""
        weighted = hashlib.sha256(self.weights.astype("<f4").tobytes()).hexdigest()
        return f"{NAME}:{self.table.version}:{self.table.fingerprint[:12]}:{weighted[:8]}"

    @property
    def dim(self) -> int:
        return int(self._vectors.shape[1])

    def encode(self, content: Content) -> FloatArray:
        """The vectors of the texts whose content this is: float32 (content.texts, dim), unit rows."""
        ends = np.searchsorted(content.row_texts, np.arange(content.texts + 1))
        occurrences = csr_array(
            (self.weights[content.rows], content.rows, ends), shape=(content.texts, len(self._vectors))
        )
        sums: FloatArray = occurrences @ self._vectors  # each row is summed in the order of its text
        _add_by_owner(sums, unknown_vectors(content.forms, self.dim), content.form_texts)
        return unit_rows(sums)

    def encode_terms(self, texts: Sequence[Sequence[str]], rows_of_forms: Mapping[str, int]) -> FloatArray:
        """Vectors of texts given as their content forms, lower-cased, without tags: float32 (len(texts), dim), unit rows.

        A form stands for its row in `rows_of_forms`; quicker than Kiwi, but blind to homographs.
        """
        found = [(owner, term, rows_of_forms.get(term)) for owner, text in enumerate(texts) for term in text]
        rows = np.array([(row, owner) for owner, _, row in found if row is not None], dtype=np.int64).reshape(-1, 2)
        unknown = [(owner, term) for owner, term, row in found if row is None]
        owners = np.array([owner for owner, _ in unknown], dtype=np.int64)
        return self.encode(Content(len(texts), rows[:, 0], rows[:, 1], [term for _, term in unknown], owners))


class KiwiStaticEncoder:
    """A `MorphemeEncoder` over a morpheme table. Safe to use from several threads.

    Queries and passages are encoded alike. Unit float32 rows; a text without content gets the zero vector.
    """

    def __init__(self, kiwi: Kiwi, table: MorphemeTable, probabilities: FloatArray) -> None:
        """`table` and `probabilities` as `WeightedTable` takes them."""
        self._kiwi = kiwi
        self._weighted = WeightedTable(table, probabilities)
        self._reader = ContentReader(kiwi, len(table.vectors))

    @classmethod
    def open(
        cls,
        kiwi: Kiwi,
        *,
        cache_dir: Path | None = None,
        probabilities: FloatArray | None = None,
        progress: bool = False,
    ) -> KiwiStaticEncoder:
        """The encoder of `kiwi`; its table is derived once (some 8 s) and cached for the user, or in `cache_dir`.

        `probabilities` are those frozen in an index's manifest; None is the shipped table. Raises InvalidSetting where
        Kiwi runs a model without embeddings, EncoderFailed for another model than kiwi-static knows.
        """
        table = MorphemeTable.open(kiwi, cache_dir=cache_dir, progress=progress)
        return cls(kiwi, table, default_probabilities(table.version) if probabilities is None else probabilities)

    @property
    def id(self) -> str:
        return self._weighted.id

    @property
    def dim(self) -> int:
        return self._weighted.dim

    @property
    def max_tokens(self) -> int | None:
        """None: texts of any length are read whole."""
        return None

    @property
    def kiwi(self) -> Kiwi:
        return self._kiwi

    @property
    def table(self) -> MorphemeTable:
        return self._weighted.table

    @property
    def probabilities(self) -> FloatArray:
        """p(morpheme id), float32 (V,): what an index freezes in its manifest."""
        return self._weighted.probabilities

    @property
    def weighted_vectors(self) -> FloatArray:
        """The table times the weights, (V, dim), a copy; rows that are no content are 0. What training starts from."""
        weights = np.where(self._reader.is_row, self._weighted.weights, np.float32(0))
        weighted: FloatArray = self.table.vectors * weights[:, None]
        return weighted

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return self.encode_morphemes(self.analyse(texts))

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        return self.encode_morphemes(self.analyse(texts))

    def encode_morphemes(self, texts: Sequence[Sequence[Token]]) -> FloatArray:
        """Vectors of analysed texts (every morpheme of Kiwi, in order): float32 (len(texts), dim), unit rows."""
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            content = self._reader.read(texts[start : start + _TEXTS_AT_ONCE])
            vectors[start : start + _TEXTS_AT_ONCE] = self._weighted.encode(content)
        return vectors

    def encode_terms(self, texts: Sequence[Sequence[str]]) -> FloatArray:
        """As `WeightedTable.encode_terms`; a form stands for the most probable content morpheme written so."""
        return self._weighted.encode_terms(texts, self._rows_of_forms)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Kiwi's morphemes of each text."""
        return [len(tokens) for tokens in self.analyse(texts)]

    def analyse(self, texts: Sequence[str]) -> list[list[Token]]:
        """Kiwi's morphemes of each text. Raises EncoderFailed for a text that is not Unicode (a lone surrogate)."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:  # Kiwi itself would fail later, when a form is read
                raise EncoderFailed(f"a text is not Unicode: {error}", "remove lone surrogates from it") from error
        return list(self._kiwi.tokenize(iter(texts)))  # the iterable form: on Kiwi's threads, without the GIL

    def rows_of_forms(self) -> dict[str, int]:
        """Lower-cased form → the row of the table that it stands for where nothing else is known; made anew (.1 s)."""
        return self._reader.rows_of_forms(self.probabilities)

    @cached_property
    def _rows_of_forms(self) -> dict[str, int]:
        return self.rows_of_forms()


def unknown_vectors(forms: Sequence[str], dim: int) -> FloatArray:
    """The fixed unit vectors of forms that a table does not have: float32 (len(forms), dim)."""
    vectors = np.empty((len(forms), dim), dtype=np.float32)
    for number, form in enumerate(forms):
        signs, length = _signs(form, dim)
        vectors[number] = signs.astype(np.float64) / length
    return vectors


def unit_rows(rows: FloatArray) -> FloatArray:
    """`rows` with length 1, zero rows unchanged."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return unit.astype(np.float32, copy=False)


def _add_by_owner(sums: FloatArray, rows: FloatArray, owners: NDArray[np.int64]) -> None:
    """Adds each row to the sum of its owner; `owners` ascend. A sum does not depend on what else is in the batch."""
    if len(owners):
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        sums[owners[starts]] += np.add.reduceat(rows, starts, axis=0)


@lru_cache(maxsize=_REMEMBERED_FORMS)
def _signs(form: str, dim: int) -> tuple[NDArray[np.int16], float]:
    """Sum of the n-grams' vectors, int16 (dim,), and its length, or 1.0 for a sum of 0; an n-gram's vector is its BLAKE2b hash
    read as signs, one a bit. Of a form so long that a sum could leave -32767..32767, the sum is cut there.

    Integers, so it is the same on every machine.
    """
    marked = f"<{form}>"
    grams = [marked[start : start + n] for n in (2, 3) for start in range(len(marked) - n + 1)]
    bits = np.stack([np.unpackbits(np.frombuffer(_hashed(gram, dim), np.uint8)) for gram in grams])[:, :dim]
    signs = np.clip(2 * bits.sum(axis=0, dtype=np.int64) - len(grams), -32767, 32767)
    return signs.astype(np.int16), max(float(np.sqrt(np.sum(signs * signs))), 1.0)


def _hashed(gram: str, dim: int) -> bytes:
    """At least `dim` bits: BLAKE2b gives 512 at a time."""
    data = gram.encode("utf-8", "surrogatepass")
    blocks = [hashlib.blake2b(data, salt=block.to_bytes(8, "little")).digest() for block in range(-(-dim // 512))]
    return b"".join(blocks)
