"""A corpus → a resident engine that holds it, by the code that indexes articles, in a process that stores nothing.

Tokens and vectors are cached a corpus (not a pool of them), so that distractors shared by several data sets are analysed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.documents import Article, Passage
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.evaluation.cache import ArrayCache, Key
from pipeline.evaluation.datasets import Corpus
from pipeline.index import packing
from pipeline.index.fields import LexicalParameters
from pipeline.index.manifest import Manifest
from pipeline.index.packing import packed, unpacked
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters, Passages, encode
from pipeline.retrieval.searcher import FusionParameters, Searcher
from pipeline.retrieval.understanding import QueryReader

_BATCH_DOCUMENTS = 512  # analysed and encoded at a time: some megabytes of morphemes
_BATCH_PASSAGES = 4096  # taken from the cache at a time
_REVISION = 1  # of every document: nothing is ever replaced here
_CACHE_FORMAT = [1, packing.FORMAT]  # raise the first when the arrays in the cache change


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is evaluated: the parts and parameters that a running service is made of. `device` is where vectors live."""

    analyser: Analyser
    encoder: Encoder
    chunking: ChunkingParameters
    lexical: LexicalParameters
    fusion: FusionParameters
    device: str = "cpu"

    @property
    def manifest(self) -> Manifest:
        """That of an index made by these parts; `alpha` is the weight that is evaluated."""
        return Manifest(
            encoder=self.encoder.id,
            dim=self.encoder.dim,
            tokenizer=self.analyser.fingerprint,
            max_tokens=self.chunking.max_tokens,
            overlap_sentences=self.chunking.overlap_sentences,
            alpha=self.fusion.alpha,
        )

    @property
    def reader(self) -> QueryReader:
        return QueryReader(self.analyser, self.encoder)

    def searcher(self, engine: ResidentEngine) -> Searcher:
        """A searcher of these parts over `engine`, warmed up."""
        made = Searcher(reader=self.reader, encoder=self.encoder, engine=lambda: (engine, {}), fusion=self.fusion)
        made.warm_up()
        return made


def index(corpora: Sequence[Corpus], system: System, cache: ArrayCache, *, progress: bool = False) -> ResidentEngine:
    """A new engine over the passages of all `corpora`. Raises what Kiwi and the encoder raise."""
    engine = ResidentEngine(system.encoder.dim, system.lexical, device=system.device)
    documents = sum(map(len, corpora))
    with tqdm(total=documents, desc="indexing", unit=" documents", disable=None if progress else True) as bar:
        for corpus in corpora:
            for passages, vectors in prepared(corpus, system, cache):
                engine.add(passages, vectors)
                bar.update(sum(passage.ordinal == 0 for passage in passages))
    return engine


def prepared(corpus: Corpus, system: System, cache: ArrayCache) -> Iterator[tuple[list[Passage], FloatArray]]:
    """The passages of `corpus` with their vectors, a batch at a time; from the cache, or into it after the last batch."""
    key = _key(corpus, system)
    arrays = cache.load(key)
    if arrays is not None:
        yield from _unpacked(arrays)
        return
    data: list[bytes] = []
    vectors: list[FloatArray] = []
    for passages, batch in _made(corpus, system):
        data += map(packed, passages)
        vectors.append(batch)
        yield passages, batch
    cache.store(key, _packed(data, np.concatenate(vectors)))


def _made(corpus: Corpus, system: System) -> Iterator[tuple[list[Passage], FloatArray]]:
    maker = Passages(system.analyser, system.encoder, system.chunking)
    articles = (
        (_REVISION, Article(id=i, title=title, body=text))
        for i, title, text in zip(corpus.ids, corpus.titles, corpus.texts, strict=True)
    )
    while batch := list(islice(articles, _BATCH_DOCUMENTS)):
        analysed = [passage for parts in maker.of(batch) for passage in parts]
        yield [a.passage for a in analysed], encode(system.encoder, analysed)


def _key(corpus: Corpus, system: System) -> Key:
    identity: Mapping[str, object] = system.manifest.identity()
    return {**identity, "kind": "passages", "format": _CACHE_FORMAT, "corpus": corpus.content_hash}


def _packed(data: Sequence[bytes], vectors: FloatArray) -> dict[str, NDArray[np.generic]]:
    ends = np.cumsum([0, *map(len, data)], dtype=np.int64)
    return {"vectors": vectors, "passages": np.frombuffer(b"".join(data), dtype=np.uint8), "ends": ends}


def _unpacked(arrays: Mapping[str, NDArray[np.generic]]) -> Iterator[tuple[list[Passage], FloatArray]]:
    vectors, data = cast(FloatArray, arrays["vectors"]), arrays["passages"].tobytes()
    ends = arrays["ends"].tolist()
    for start in range(0, len(vectors), _BATCH_PASSAGES):
        limits = ends[start : start + _BATCH_PASSAGES + 1]
        passages = [unpacked(data[first:last]) for first, last in pairwise(limits)]
        yield passages, vectors[start : start + _BATCH_PASSAGES]
