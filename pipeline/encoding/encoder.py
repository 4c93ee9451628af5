"""What every encoder promises. The implementations are `kiwi_static.py` and `sentence.py`; nothing here loads a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from kiwipiepy import Token
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


class Encoder(Protocol):
    """Texts to unit vectors, in one space for queries and passages.

    A text without any content (empty, only punctuation for `kiwi-static`) gets the zero vector: its inner product with
    everything is 0, so it is neither near nor far.
    """

    @property
    def id(self) -> str:
        """Name and fingerprint, e.g. `kiwi-static:0.24.0:1f2e…`: two encoders with one id give the same vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def max_tokens(self) -> int | None:
        """Longest passage that is read whole, in this encoder's tokens with prompt and special tokens; None: no limit."""

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of questions: float32 (len(texts), dim), unit rows."""

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Vectors of passages: float32 (len(texts), dim), unit rows."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without prompt and special tokens."""


@runtime_checkable
class MorphemeEncoder(Encoder, Protocol):
    """An encoder that reads Kiwi's morphemes, so that text already analysed is not analysed again."""

    def encode_morphemes(self, texts: Sequence[Sequence[Token]]) -> FloatArray:
        """Vectors of analysed texts (every morpheme of Kiwi, in order): float32 (len(texts), dim), unit rows."""


@runtime_checkable
class TermEncoder(Encoder, Protocol):
    """An encoder that can make a vector of plain content forms: what is near a query is found without Kiwi."""

    def encode_terms(self, texts: Sequence[Sequence[str]]) -> FloatArray:
        """Vectors of texts given as their lower-cased content forms: float32 (len(texts), dim), unit rows."""
