"""What `yeoul bench peers` gives to everybody: files with the same passages and queries, analysed and encoded as Yeoul does.

Peers get Kiwi's terms and the vector of a query ready made, which favours them: what that took here is `preparation`. Knows
nothing of who reads the files.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import orjson

from indexers.benchmarks.peers.measure import WARM_UP
from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray, MorphemeEncoder
from pipeline.errors import InvalidInput, InvalidQuery
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System, prepared
from pipeline.evaluation.datasets import Corpus, read_corpus, read_queries
from pipeline.index.lexical import LexicalIndex
from pipeline.korean.morphemes import terms_of
from pipeline.retrieval.query import SearchRequest

_SEED = 12  # of the order of the queries: folders are mixed, and every run asks the same
_NEAR = 100  # passages of a leg that a sane answer is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What all are measured on: documents of which the first `limit` passages are taken, and distinct queries, of which the
    first `WARM_UP` are for warming up."""

    corpus: Corpus
    limit: int
    queries: tuple[str, ...]

    @classmethod
    def read(cls, passages: Path, folders: Iterable[Path], *, limit: int, asked: int) -> Material:
        """The first documents of a `.jsonl(.gz)`, and `asked` queries of BEIR folders, drawn from all.

        Raises UnreadableSource for a file, InvalidInput where there are too few queries to measure anything.
        """
        corpus = read_corpus(passages)
        first = slice(limit)  # a document has a passage at least
        corpus = replace(corpus, ids=corpus.ids[first], titles=corpus.titles[first], texts=corpus.texts[first])
        texts = dict.fromkeys(text for folder in folders for text in read_queries(folder).values())
        queries = [text for text in texts if _can_be_asked(text)]
        if len(queries) <= WARM_UP:
            raise InvalidInput(
                f"more than {WARM_UP} distinct queries are needed, {len(queries)} are there", "give more --queries"
            )
        random.Random(_SEED).shuffle(queries)
        return cls(corpus=corpus, limit=limit, queries=tuple(queries[: WARM_UP + asked]))

    def passages(self, system: System, cache: ArrayCache) -> Iterator[tuple[list[Passage], FloatArray]]:
        """The passages with their vectors, a batch at a time; from the cache where they were made before."""
        left = self.limit
        for passages, vectors in prepared(self.corpus, system, cache):
            if left:  # not a break: the cache is written after the last batch
                yield passages[:left], vectors[:left]
            left = max(0, left - len(passages))


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """`preparation`: seconds that terms and vector of each measured query took. `near`: for each measured query, the ids of
    the 100 best passages of either leg, by exact scores."""

    passages: int
    preparation: tuple[float, ...]
    near: tuple[frozenset[str], ...]


def hand_over(
    material: Material,
    system: System,
    cache: ArrayCache,
    folder: Path,
    *,
    advance: Callable[[int], object] = lambda _: None,
) -> HandedOver:
    """Writes the files that `peers/measure.py` reads into `folder`; `advance` is told how many passages more are there."""
    index = LexicalIndex(variant=system.lexical.variant, k1=system.lexical.k1, b=system.lexical.b)
    ids: list[str] = []
    vectors: list[FloatArray] = []
    with (folder / "passages.jsonl").open("wb") as file:
        for passages, batch in material.passages(system, cache):
            terms = [[*p.title_terms, *p.terms] for p in passages]
            index.add(np.arange(len(ids), len(ids) + len(passages)), terms)
            ids += [p.id for p in passages]
            vectors.append(batch)
            for passage, words in zip(passages, terms, strict=True):
                line = {"id": passage.id, "title": passage.title, "text": passage.text, "terms": " ".join(words)}
                file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            advance(len(passages))
    matrix = np.concatenate(vectors)
    np.save(folder / "vectors.npy", matrix)
    asked, taken = _understood(material.queries, system)
    with (folder / "queries.jsonl").open("wb") as file:
        for text, (words, _) in zip(material.queries, asked, strict=True):
            line_terms = " ".join(words) or text  # some peers refuse an empty query
            file.write(orjson.dumps({"text": text, "terms": line_terms}, option=orjson.OPT_APPEND_NEWLINE))
    np.save(folder / "query_vectors.npy", np.stack([vector for _, vector in asked]))
    near = (frozenset(ids[row] for row in _near(index, matrix, *query)) for query in asked[WARM_UP:])
    return HandedOver(passages=len(ids), preparation=tuple(taken[WARM_UP:]), near=tuple(near))


def understood(text: str, system: System) -> tuple[list[str], FloatArray]:
    """The terms of one analysis of a query, and its vector, float32 (dim,): the least that both legs need."""
    encoder = system.encoder
    tokens = system.analyser.kiwi.tokenize(text)
    vectors = (
        encoder.encode_morphemes([tokens]) if isinstance(encoder, MorphemeEncoder) else encoder.encode_queries([text])
    )
    return [form for form, _, _ in terms_of(tokens)], vectors[0]


def _understood(texts: Sequence[str], system: System) -> tuple[list[tuple[list[str], FloatArray]], list[float]]:
    """Terms and vector of each text, and the seconds that each took."""
    found, taken = [], []
    for text in texts:
        begin = time.perf_counter()
        found.append(understood(text, system))
        taken.append(time.perf_counter() - begin)
    return found, taken


def _near(index: LexicalIndex, matrix: FloatArray, terms: Sequence[str], vector: FloatArray) -> set[int]:
    """Rows of the best passages of either leg."""
    products = matrix @ vector
    most = min(_NEAR, len(products))
    return {*np.argpartition(-products, most - 1)[:most].tolist(), *index.top(terms, most)[0].tolist()}


def _can_be_asked(text: str) -> bool:
    try:
        SearchRequest.checked(text)
    except InvalidQuery:
        return False
    return True
