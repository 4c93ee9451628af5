"""The vectors of texts that somebody asked for: in the line of a SentenceTransformer, by any other encoder on a thread.

Who goes away while he waits is not encoded for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from starlette.concurrency import run_in_threadpool

from api.leaving import Gone, results
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.encoding.line import LinedEncoder
from pipeline.encoding.sentence import Task

_LONG_CHARS = 4_000  # together: a millisecond of a tokenizer, which the event loop can spare


async def embedded(encoder: Encoder, texts: Sequence[str], task: Task, gone: Gone) -> tuple[FloatArray, int]:
    """Unit vectors, float32 (len(texts), dim), and how many tokens the texts have. `gone` returns when nobody waits any more.

    Raises Overloaded, EncoderFailed, ClientDisconnect.
    """
    if not isinstance(encoder, LinedEncoder):
        return await run_in_threadpool(_by_itself, encoder, texts, task)
    if sum(map(len, texts)) < _LONG_CHARS:
        prepared = encoder.prepared(texts, task)
    else:
        prepared = await run_in_threadpool(encoder.prepared, texts, task)
    written = [(place, one) for place, one in enumerate(prepared) if one is not None]
    rows = await results(encoder.embedded([one for _, one in written]), gone)
    vectors = np.zeros((len(texts), encoder.dim), dtype=np.float32)
    for (place, _), row in zip(written, rows, strict=True):
        vectors[place] = row
    return vectors, sum(one.count for _, one in written)


def _by_itself(encoder: Encoder, texts: Sequence[str], task: Task) -> tuple[FloatArray, int]:
    encode = encoder.encode_queries if task == "query" else encoder.encode_passages
    return encode(texts), sum(encoder.count_tokens(texts))
