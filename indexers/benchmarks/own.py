"""Yeoul in process, and the floor below it: what the same parts need at least for both legs of a query.

The floor is one analysis by Kiwi, one encoding, bm25s compiled by numba, one product by torch, and an addition: no variants of
words, no bigrams, no title field, no synonyms, no snippets, no exact score for what only one leg found. Each function is run in
a process of its own (`comparison.py`), by the loop that measures the peers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indexers.benchmarks.handover import Material, understood
from indexers.benchmarks.peers.measure import SHOWN, Ask, Handed, measured
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System
from pipeline.index.resident import ResidentEngine
from pipeline.retrieval.query import SearchRequest

_CANDIDATES = 100  # a leg of the floor, as the peers have
_TRIES = 20  # for each number of threads
_PAUSE_SECONDS = 0.002  # between them, as long as Kiwi's work: after it threads sleep


def yeoul(opened: Callable[[], System], material: Material, cache_dir: Path, seconds: float) -> dict[str, Any]:
    """What `measured` saw of `Searcher.search` over a resident engine."""
    system = opened()

    def build() -> Ask:
        engine = ResidentEngine(system.encoder.dim, system.lexical, device=system.device)
        for passages, vectors in material.passages(system, ArrayCache(cache_dir)):
            engine.add(passages, vectors)
        searcher = system.searcher(engine)

        def ask(number: int) -> list[str]:
            found = searcher.search(SearchRequest.checked(material.queries[number], limit=SHOWN))
            return [hit.passage.id for hit in found.hits]

        return ask

    return {"version": version("yeoul"), **measured(build, len(material.queries), seconds)}


def floor(opened: Callable[[], System], folder: Path, seconds: float) -> dict[str, Any]:
    """What `measured` saw of the floor over the files of `folder`. Raises ImportError where bm25s or numba is missing."""
    import bm25s  # noqa: PLC0415 - of the test extra: the product does without it
    import torch  # noqa: PLC0415 - a second to import

    system, handed = opened(), Handed.read(folder, folder)

    def build() -> Ask:
        index = bm25s.BM25(k1=system.lexical.k1, b=system.lexical.b, method="lucene", backend="numba")
        numbers: dict[str, int] = {}
        terms = [[numbers.setdefault(term, len(numbers)) for term in line.split()] for line in handed.terms]
        index.index((terms, numbers), show_progress=False)
        matrix = torch.from_numpy(handed.vectors)
        most = min(_CANDIDATES, len(handed.ids))
        one = torch.from_numpy(handed.query_vectors[0])
        torch.set_num_threads(
            _quickest(lambda: (matrix @ one).topk(most), torch.set_num_threads, torch.get_num_threads())
        )

        def ask(number: int) -> list[str]:
            words, vector = understood(handed.queries[number], system)
            best = (matrix @ torch.from_numpy(vector)).topk(most)
            scores = dict(zip(best.indices.tolist(), (best.values * system.fusion.alpha).tolist(), strict=True))
            if known := [word for word in words if word in numbers]:
                rows, found = index.retrieve([known], k=most, show_progress=False)
                scale = (1 - system.fusion.alpha) / float(found[0, 0])
                for row, score in zip(rows[0].tolist(), (found[0] * scale).tolist(), strict=True):
                    scores[row] = scores.get(row, 0.0) + score
            return [handed.ids[row] for row in sorted(scores, key=scores.__getitem__, reverse=True)[:SHOWN]]

        return ask

    packages = ("bm25s", "numba", "torch", "kiwipiepy")
    seen = measured(build, len(handed.queries), seconds)
    return {"version": ", ".join(f"{name} {version(name)}" for name in packages), **seen}


def _quickest(work: Callable[[], object], set_threads: Callable[[int], None], most: int) -> int:
    """1 or `most`, with whichever `work` takes less: where others use the machine, two threads wait for each other."""
    taken = {}
    for threads in (1, most):
        set_threads(threads)
        taken[threads] = 0.0
        for _ in range(_TRIES):
            time.sleep(_PAUSE_SECONDS)
            begin = time.perf_counter()
            work()
            taken[threads] += time.perf_counter() - begin
    return min(taken, key=taken.__getitem__)
