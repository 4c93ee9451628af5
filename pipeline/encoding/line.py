"""One line before a model: the texts of all who have something encoded in this process meet in its batches.

Searches go first, then who asks for embeddings, then what is indexed; a search waits for one batch at most. Knows the model's
encoder and the batcher, and nothing of who asks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import IntEnum
from operator import attrgetter

import numpy as np

from pipeline.encoding.batcher import Batch, Batcher
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.encoding.sentence import Prepared, Prompts, SentenceEncoder, Task

_AT_ONCE = 2_048  # texts of one call that stand in line together: enough for batches of like length
_LINGER_SECONDS = 0.002  # for those who were answered just now and ask again: a tenth of what a batch takes

_COST = attrgetter("cost")

Observe = Callable[[Batch], None]


class Urgency(IntEnum):
    """Whose texts; the lower, the sooner."""

    SEARCH = 0
    EMBEDDING = 1
    INDEXING = 2


class Line:
    """The batches of one model. Its thread ends with the last who holds it."""

    def __init__(self, encoder: SentenceEncoder, *, waiting: int) -> None:
        """`waiting` texts may wait for embeddings; those of searches and of the indexer are bounded where they come from."""
        self.encoder = encoder
        self.batcher: Batcher[Prepared, FloatArray] = Batcher(
            lambda batch: list(encoder.rows(batch)),  # nothing of this object, which else would never end
            name="an embedding",
            most=encoder.batch_size,
            waiting=waiting,
            linger=_LINGER_SECONDS if encoder.batch_size > 1 else 0.0,
            threads=encoder.workers,
            cost=_COST,
            budget=encoder.batch_tokens,
        )
        weakref.finalize(self, self.batcher.close)


class LinedEncoder:
    """A `SentenceEncoder` for many threads: what they give it at the same time is encoded together. An `Encoder`."""

    def __init__(self, line: Line, urgency: Urgency = Urgency.INDEXING) -> None:
        self._line = line
        self._encoder = line.encoder
        self._urgency = urgency

    @property
    def id(self) -> str:
        return self._encoder.id

    @property
    def dim(self) -> int:
        return self._encoder.dim

    @property
    def max_tokens(self) -> int | None:
        return self._encoder.max_tokens

    @property
    def prompts(self) -> Prompts:
        return self._encoder.prompts

    @property
    def observe(self) -> Observe:
        """Is told of each batch; its priority is an `Urgency`."""
        return self._line.batcher.observe

    @observe.setter
    def observe(self, observe: Observe) -> None:
        self._line.batcher.observe = observe

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, "query")

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        return self._encoded(texts, "document")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._encoder.count_tokens(texts)

    def prepared(self, texts: Sequence[str], task: Task) -> list[Prepared | None]:
        """For `embedded`; None for a blank text."""
        return self._encoder.prepared(texts, task)

    def embedded(self, prepared: Sequence[Prepared]) -> list[Future[FloatArray]]:
        """The unit vectors of texts that somebody asked for, to come, (dim,) each; a future that is cancelled costs nothing.
        Raises Overloaded; the futures EncoderFailed."""
        return self._line.batcher.submit_all(prepared, priority=Urgency.EMBEDDING)

    def urgently(self) -> LinedEncoder:
        """The same encoder for searches, in the same line."""
        return LinedEncoder(self._line, Urgency.SEARCH)

    def _encoded(self, texts: Sequence[str], task: Task) -> FloatArray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), _AT_ONCE):
            prepared = self.prepared(texts[start : start + _AT_ONCE], task)
            written = [(start + place, one) for place, one in enumerate(prepared) if one is not None]
            futures = self._line.batcher.submit_all([one for _, one in written], priority=self._urgency, bounded=False)
            try:
                for (place, _), future in zip(written, futures, strict=True):
                    vectors[place] = future.result()
            finally:
                for future in futures:
                    future.cancel()  # those behind one that failed
        return vectors


def for_searches(encoder: Encoder) -> Encoder:
    """`encoder`, ahead of those who have something else encoded, where there is a line."""
    return encoder.urgently() if isinstance(encoder, LinedEncoder) else encoder
