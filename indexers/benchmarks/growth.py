"""What becomes of searches and of memory as the index grows: the same engine after so many passages, and then so many more.

And the dense leg alone over vectors that are made up, where no corpus is large enough.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from indexers.benchmarks.load import percentile
from indexers.benchmarks.memory import rss_of
from indexers.benchmarks.queries import Walk
from indexers.benchmarks.report import Bars, Lines, ms, table
from pipeline.documents import Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.evaluation.corpus_index import System
from pipeline.index.engine import EngineQuery
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.retrieval.query import SearchRequest

_WARM_UP = 20  # searches after each growth
_CHUNK = 20_000  # made-up passages at a time: some 20 MB of vectors
_DENSE_SEARCHES = 50
_SEED = 12
_MB = 1_000_000

Asked = TypeVar("Asked")
Batches = Iterable[tuple[list[Passage], FloatArray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The engine with so many passages. Milliseconds of a search; MB of the engine as it counts itself, and of the whole
    process; `seconds` of adding the passages since the size before."""

    passages: int
    p50: float
    p99: float
    engine: float
    process: float
    added: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """`engine_slope` and `process_slope`: MB a thousand passages, least squares over all sizes; NaN of one. `dense`: the dense
    leg alone over made-up vectors."""

    searches: int
    queries: int
    sizes: tuple[Size, ...]
    engine_slope: float
    process_slope: float
    dense: Size | None = None

    def table(self) -> str:
        """Markdown."""
        rows = [_told(f"{size.passages:,}", size) for size in self.sizes]
        if self.dense is not None:
            rows.append(_told(f"{self.dense.passages:,} random vectors, the dense leg alone", self.dense))
        headings = ["passages", "search p50", "p99", "engine", "process, RSS", "added", "passages a second"]
        slopes = (
            f"Memory of 1,000 passages more: {self.engine_slope:.2f} MB in the engine, {self.process_slope:.2f} MB of RSS. "
            f"{self.searches:,} searches a row, {self.queries:,} different queries."
        )
        return f"{table(headings, rows)}\n\n{slopes}"

    def panels(self) -> list[Lines | Bars]:
        """A picture: latency and memory by size, without the made-up vectors."""
        sizes = self.sizes
        times = {"p50": [(s.passages, s.p50) for s in sizes], "p99": [(s.passages, s.p99) for s in sizes]}
        memory = {"engine": [(s.passages, s.engine) for s in sizes], "RSS": [(s.passages, s.process) for s in sizes]}
        return [
            Lines(title="one search", x="passages", y="ms", lines=times),
            Lines(title="memory", x="passages", y="MB", lines=memory),
        ]


def _told(name: str, size: Size) -> list[str]:
    memory = [f"{size.engine:,.0f} MB", f"{size.process:,.0f} MB"]
    return [name, ms(size.p50), ms(size.p99), *memory, f"{size.seconds:.1f} s", f"{size.added / size.seconds:,.0f}"]


def measured(
    batches: Batches,
    system: System,
    queries: Sequence[str],
    *,
    sizes: Sequence[int],
    searches: int,
    made_up: int = 0,
) -> Figures:
    """An engine that grows by `batches` to each of `sizes`, or until they end, and `searches` each time; then as many
    `made_up` vectors in another one."""
    walk = Walk(queries)
    grown = _grown(batches, system, walk, sorted(set(sizes)), searches)
    return Figures(
        searches=searches,
        queries=len(queries),
        sizes=grown,
        engine_slope=slope([(size.passages, size.engine) for size in grown]),
        process_slope=slope([(size.passages, size.process) for size in grown]),
        dense=dense_alone(system.encoder.dim, made_up, device=system.device) if made_up else None,
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By which y grows with a thousand of x: least squares, NaN of one point."""
    if len(points) < 2:
        return float("nan")
    x, y = np.array(points).T
    return float(np.polyfit(x / 1000, y, 1)[0])


def _grown(batches: Batches, system: System, walk: Walk, sizes: Sequence[int], searches: int) -> tuple[Size, ...]:
    engine = ResidentEngine(system.encoder.dim, system.lexical, device=system.device)
    searcher = system.searcher(engine)
    parts = _cut(batches, sizes)
    found: list[Size] = []
    for size in sizes:
        before, seconds = engine.count, 0.0
        while engine.count < size and (part := next(parts, None)) is not None:
            begin = time.perf_counter()
            engine.add(*part)
            seconds += time.perf_counter() - begin
        if engine.count == before:
            break  # there were no more
        asked = [SearchRequest.checked(query) for query in walk.some(_WARM_UP + searches)]
        found.append(_size(engine, _timed(searcher.search, asked), engine.count - before, seconds))
    return tuple(found)


def _cut(batches: Batches, sizes: Sequence[int]) -> Iterator[tuple[list[Passage], FloatArray]]:
    """The same passages in parts, none of which goes across one of `sizes`, up to the last of these."""
    held, ends = 0, list(sizes)
    for passages, vectors in batches:
        start = 0
        while start < len(passages) and ends:
            n = min(len(passages) - start, ends[0] - held)
            yield passages[start : start + n], vectors[start : start + n]
            start, held = start + n, held + n
            if held == ends[0]:
                del ends[0]


def dense_alone(dim: int, passages: int, *, device: str = "cpu") -> Size:
    """An engine of so many random unit vectors without words, and searches of its dense leg. They are made and taken in some
    thousands at a time, so that there is one copy of them all."""
    random = np.random.default_rng(_SEED)
    engine = ResidentEngine(dim, LexicalParameters(), device=device)
    seconds = 0.0
    while (missing := passages - engine.count) > 0:
        n = min(_CHUNK, missing)
        vectors = _unit(random, n, dim)
        made = [_wordless(engine.count + number) for number in range(n)]
        begin = time.perf_counter()
        engine.add(made, vectors)
        seconds += time.perf_counter() - begin
    asked = [EngineQuery(vector=vector, terms=None) for vector in _unit(random, _WARM_UP + _DENSE_SEARCHES, dim)]
    return _size(engine, _timed(engine.search, asked), passages, seconds)


def _unit(random: np.random.Generator, n: int, dim: int) -> FloatArray:
    vectors: FloatArray = random.standard_normal((n, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _wordless(number: int) -> Passage:
    return Passage(
        article_id=f"r{number}",
        revision=1,
        ordinal=0,
        title="",
        text="",
        terms=(),
        term_spans=(),
        title_terms=(),
        sentence_spans=(),
    )


def _size(engine: ResidentEngine, took: Sequence[float], added: int, seconds: float) -> Size:
    return Size(
        passages=engine.count,
        p50=percentile(took, 50),
        p99=percentile(took, 99),
        engine=engine.memory_bytes / _MB,
        process=rss_of(os.getpid()),
        added=added,
        seconds=seconds,
    )


def _timed(search: Callable[[Asked], object], asked: Sequence[Asked]) -> list[float]:
    """Milliseconds of each, but for the first ones, which warm up."""
    taken = []
    for one in asked:
        begin = time.perf_counter()
        search(one)
        taken.append((time.perf_counter() - begin) * 1000)
    return taken[_WARM_UP:]
