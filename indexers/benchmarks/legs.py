"""Where the time of one search goes, in process and with nothing beside it: each part by itself, and each stage as the searcher
tells it, in every mode. Every query is asked once for as long as there are any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from indexers.benchmarks.load import percentile
from indexers.benchmarks.queries import Walk
from indexers.benchmarks.report import Bars, Lines, ms, table
from pipeline.encoding.encoder import FloatArray
from pipeline.evaluation.corpus_index import System
from pipeline.index.engine import EngineQuery
from pipeline.index.resident import ResidentEngine
from pipeline.retrieval.query import MODES, SearchRequest
from pipeline.retrieval.searcher import Searcher

_WARM_UP = 20  # searches
_WHOLE = "whole"
_STAGES = {"understand": "terms and vector", "legs": "both legs", "rank": "fusion and ranking", "show": "snippets"}

Percentiles = tuple[float, float]  # p50 and p95, milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """`parts`: what → its percentiles by itself; `modes`: mode → stage → percentiles."""

    passages: int
    queries: int
    searches: int
    parts: Mapping[str, Percentiles]
    modes: Mapping[str, Mapping[str, Percentiles]]

    def table(self) -> str:
        """Markdown."""
        searched = f"{self.passages:,} passages, {self.searches:,} searches a row, {self.queries:,} different queries"
        parts = table([searched, "p50", "p95"], [[name, *map(ms, both)] for name, both in self.parts.items()])
        stages = list(next(iter(self.modes.values())))
        rows = [[name, *(_both(self.modes[mode][name]) for mode in self.modes)] for name in stages]
        return f"{parts}\n\n{table(['one search, p50 / p95', *self.modes], rows)}"

    def panels(self) -> list[Lines | Bars]:
        """A picture of the medians."""
        parts = {"p50": {name: p50 for name, (p50, _) in self.parts.items()}}
        modes = {mode: {name: p50 for name, (p50, _) in stages.items()} for mode, stages in self.modes.items()}
        return [
            Bars(title=f"parts, {self.passages:,} passages", value="ms", bars=parts),
            Bars(title="one search, p50", value="ms", bars=modes),
        ]


def _both(values: Percentiles) -> str:
    return " / ".join(map(ms, values))


def measured(engine: ResidentEngine, system: System, queries: Sequence[str], searches: int) -> Figures:
    """`searches` of them for each row."""
    searcher = system.searcher(engine)
    walk = Walk(queries)
    for query in walk.some(_WARM_UP):
        searcher.search(SearchRequest.checked(query))
    return Figures(
        passages=engine.count,
        queries=len(queries),
        searches=searches,
        parts=_parts(engine, system, walk, searches),
        modes=_modes(searcher, walk, searches),
    )


def _parts(engine: ResidentEngine, system: System, walk: Walk, n: int) -> dict[str, Percentiles]:
    def vector(query: str) -> FloatArray:
        encoded: FloatArray = system.encoder.encode_queries([query])[0]
        return encoded

    def asking(query: str, *, dense: bool, lexical: bool) -> EngineQuery:
        return EngineQuery(
            vector=vector(query) if dense else None,
            terms=system.reader.terms(query) if lexical else None,
            candidates=system.fusion.candidates,
        )

    # What is timed, and what makes its argument of a query before the clock starts.
    parts: dict[str, tuple[Callable[[Any], object], Callable[[str], Any]]] = {
        "Kiwi: terms of the query": (system.analyser.query_terms, str),
        "terms as the lexical leg reads them": (system.reader.terms, str),
        "encoding, its Kiwi included": (vector, str),
        "dense leg": (engine.search, partial(asking, dense=True, lexical=False)),
        "lexical leg": (engine.search, partial(asking, dense=False, lexical=True)),
        "both legs": (engine.search, partial(asking, dense=True, lexical=True)),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(n):  # in turn: the speed of a machine changes
        for name, (work, made_of) in parts.items():
            asked = made_of(walk.take())
            begin = time.perf_counter()
            work(asked)
            taken[name].append((time.perf_counter() - begin) * 1000)
    return {name: _percentiles(values) for name, values in taken.items()}


def _modes(searcher: Searcher, walk: Walk, n: int) -> dict[str, dict[str, Percentiles]]:
    taken: dict[str, dict[str, list[float]]] = {mode: {} for mode in MODES}
    for _ in range(n):
        for mode, stages in taken.items():
            found = searcher.search(SearchRequest.checked(walk.take(), mode=mode))
            for stage, name in _STAGES.items():
                stages.setdefault(name, []).append(found.timings[stage])
            stages.setdefault(_WHOLE, []).append(found.took_ms)
    return {mode: {stage: _percentiles(values) for stage, values in stages.items()} for mode, stages in taken.items()}


def _percentiles(values: Sequence[float]) -> Percentiles:
    return percentile(values, 50), percentile(values, 95)
