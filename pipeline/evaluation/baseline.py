"""Plain Kiwi BM25, the ranking to beat: what a careful afternoon with Kiwi and BM25 gives.

Content morphemes of title and text as one field, documents unsplit, Lucene's idf with k1 1.2 and b .75; no compounds, no
bigrams, no second analysis of the query. Its rules stay as they are when those of the system change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import cast

import numpy as np
from kiwipiepy import Token
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.evaluation.cache import ArrayCache, Key
from pipeline.evaluation.datasets import Corpus, Dataset
from pipeline.index.lexical import LexicalIndex
from pipeline.korean.morphemes import Analyser

RANKED = 100  # documents a query: as deep as recall@100 looks
_TAGS = ("NN", "NR", "SL", "SN", "SH", "XR", "VV", "VA", "MAG", "W_")  # first characters of content tags
_K1, _B = 1.2, 0.75
_BATCH_DOCUMENTS = 512
_CACHE_FORMAT = 1  # raise it when the tags or the arrays change


def plain_rankings(
    dataset: Dataset, analyser: Analyser, cache: ArrayCache, *, progress: bool = False
) -> dict[str, list[str]]:
    """Query id → the ids of at most 100 documents, best first, equal scores in the order of the corpus."""
    index, ids = LexicalIndex(variant="lucene", k1=_K1, b=_B), [i for corpus in dataset.corpora for i in corpus.ids]
    index.reserve(len(ids))
    first = 0
    with tqdm(total=len(ids), desc="plain BM25", unit=" documents", disable=None if progress else True) as bar:
        for corpus in dataset.corpora:
            for documents in _documents(corpus, analyser, cache):
                index.add(np.arange(first, first + len(documents)), documents)
                first += len(documents)
                bar.update(len(documents))
    terms = _terms(analyser.analyse(dataset.queries.values()))
    return {
        query: [ids[row] for row in index.top(words, RANKED)[0].tolist()]
        for query, words in zip(dataset.queries, terms, strict=True)
    }


def _documents(corpus: Corpus, analyser: Analyser, cache: ArrayCache) -> Iterator[list[list[str]]]:
    """The terms of each document, a batch at a time; from the cache, or into it after the last batch."""
    key: Key = {
        "kind": "plain terms",
        "format": _CACHE_FORMAT,
        "tokenizer": analyser.fingerprint,
        "corpus": corpus.content_hash,
    }
    arrays = cache.load(key)
    if arrays is not None:
        yield from _unpacked(arrays)
        return
    numbers: dict[str, int] = {}
    rows: list[NDArray[np.int32]] = []
    texts = (f"{title}\n{text}" for title, text in zip(corpus.titles, corpus.texts, strict=True))
    terms = _terms(analyser.analyse(texts))
    while batch := list(islice(terms, _BATCH_DOCUMENTS)):
        rows += [np.array([numbers.setdefault(t, len(numbers)) for t in words], dtype=np.int32) for words in batch]
        yield batch
    cache.store(key, _packed(list(numbers), rows))


def _terms(analysed: Iterable[Sequence[Token]]) -> Iterator[list[str]]:
    return ([token.form.lower() for token in tokens if token.tag.startswith(_TAGS)] for tokens in analysed)


def _packed(vocabulary: Sequence[str], rows: Sequence[NDArray[np.int32]]) -> dict[str, NDArray[np.generic]]:
    return {
        "vocabulary": np.frombuffer("\0".join(vocabulary).encode(), dtype=np.uint8),
        "numbers": np.concatenate(rows),
        "ends": np.cumsum([0, *map(len, rows)], dtype=np.int64),
    }


def _unpacked(arrays: Mapping[str, NDArray[np.generic]]) -> Iterator[list[list[str]]]:
    vocabulary = arrays["vocabulary"].tobytes().decode().split("\0")
    numbers, ends = cast(NDArray[np.int32], arrays["numbers"]), arrays["ends"].tolist()
    for start in range(0, len(ends) - 1, _BATCH_DOCUMENTS):
        limits = ends[start : start + _BATCH_DOCUMENTS + 1]
        yield [[vocabulary[n] for n in numbers[first:last].tolist()] for first, last in pairwise(limits)]
