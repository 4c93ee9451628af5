"""Stand-ins for what a test must control: an encoder that counts its work, a collection whose store can go away."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import EncoderFailed, StoreUnavailable
from pipeline.index.collection import Collection

_GRAMS = (2, 3)  # characters


class FakeEncoder:
    """Texts that share character n-grams get nearer vectors, as a real encoder gives for texts that share words.

    `encoded` keeps every passage that was encoded; a passage that contains `poison` makes the whole call fail.
    """

    max_tokens: int | None = None

    def __init__(self, dim: int = 32, *, poison: str | None = None) -> None:
        self.dim = dim
        self.id = f"fake:{dim}"
        self.poison = poison
        self.encoded: list[str] = []

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for place, text in enumerate(texts):
            for gram in _grams(text):
                vectors[place] += _direction(gram, self.dim)
            vectors[place] /= np.linalg.norm(vectors[place]) or 1.0
        return vectors

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        if self.poison is not None and any(self.poison in text for text in texts):
            raise EncoderFailed(f"no vector for a text with {self.poison!r}", "take it out")
        self.encoded += texts
        return self.encode_queries(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]


class InterruptibleCollection(Collection):
    """A real collection that can be cut off: while `away` it raises what a store that is down makes it raise.

    It knows the ids that were written through it, so that `empty` need not look for them.
    """

    away = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.written: set[str] = set()

    def upsert(self, passages: Sequence[Passage], vectors: FloatArray) -> None:
        if self.away:
            raise StoreUnavailable("collection", "test", "cut off", "plug it in")
        self.written.update(passage.id for passage in passages)
        super().upsert(passages, vectors)

    def empty(self) -> None:
        """Deletes what was written; no later read shows it, whatever its level: the ids will be given again."""
        if self.written:
            self.delete(sorted(self.written))
            self.written.clear()
            assert self.count() == 0  # Strong: a Bounded read that comes later is of a later moment


def _grams(text: str) -> list[str]:
    joined = " ".join(text.split())
    return [joined[i : i + n] for n in _GRAMS for i in range(len(joined) - n + 1)]


def _direction(gram: str, dim: int) -> FloatArray:
    return np.random.default_rng(zlib.crc32(gram.encode())).standard_normal(dim).astype(np.float32)
