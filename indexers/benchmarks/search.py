"""`yeoul serve` under searches, measured from outside: how many a second, how long they take, what happens when there are too
many, what it holds in memory, how long it takes to start.

The server has a data folder of its own that `yeoul index` filled; nothing is written while it is measured. Queries differ from
each other for as long as there are any; the row "over and over" tells what an answer kept from before would be worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexers.benchmarks import load
from indexers.benchmarks.deployment import Deployment, Running, served
from indexers.benchmarks.load import Answers, percentile
from indexers.benchmarks.memory import Memory, memory_of, rss_of, watched
from indexers.benchmarks.queries import Walk, path_of
from indexers.benchmarks.report import Bars, Lines, ms, table
from indexers.benchmarks.wrk import ClosedLoop, check_wrk, closed_loop

_STARTS = 3
_WARM_UP_SECONDS = 3.0
_FEW = 8  # queries that are asked over and over
_TIMES_CAPACITY = 4  # of the overload
_PROBES = 5  # seconds of a closed loop before an overload
_RECOVERED = 0.9  # of the rate before it
_RECOVERY_PATIENCE = 60.0  # seconds
_SNAPSHOT = "resident*.safetensors"  # in the data folder: what a server starts from


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured. `rate`: requests a second of the open loop, half of the closed loop's where it is None; `overload`:
    seconds, 0 for none; `against`: variables of the environment that the server is measured with, too, so many `rounds` each."""

    connections: int = 32
    seconds: float = 30.0
    rate: float | None = None
    overload: float = 0.0
    against: Mapping[str, str] = field(default_factory=dict)
    rounds: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A load. Milliseconds, of answers with 200, in a closed loop of all; `times` is how often each of the queries was asked; `outcomes`: statuses and
    errors → how many; `percentiles`: the 1st to the 99th."""

    name: str
    rate: float
    p50: float
    p95: float
    p99: float
    worst: float
    times: float
    outcomes: Mapping[str, int]
    percentiles: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overload:
    """More than the server can do. MB of RSS; `recovered`: seconds from the end of the load until a second of a closed loop had
    90% of the rate of such seconds before, None where it never had."""

    seconds: float
    rate: float
    refused: float  # share of 429
    without_retry_after: int  # of these
    before: float
    during: float
    after: float
    recovered: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The same closed loop without and with other variables in the environment, in turn: answers a second of each round."""

    against: str
    without: tuple[float, ...]
    with_it: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians; above 1: it is faster without the variables."""
        return statistics.median(self.without) / statistics.median(self.with_it)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run came to. `starts`: from what → seconds until it was ready; `memory`: when → MB, all processes together."""

    passages: int
    queries: int
    rows: tuple[Row, ...]
    starts: Mapping[str, float]
    memory: Mapping[str, Memory]
    overload: Overload | None = None
    comparison: Comparison | None = None

    def table(self) -> str:
        """Markdown."""
        loads = table(
            [f"yeoul serve, {self.passages:,} passages", "answers a second", "p50", "p95", "p99", "worst", "each query", "not answered"],
            [_told(row) for row in self.rows],
        )  # fmt: skip
        others = [
            *((f"start to ready, {name}", f"{seconds:.1f} s") for name, seconds in self.starts.items()),
            *((f"memory {when}, RSS / PSS", f"{m.rss:,.0f} / {m.pss:,.0f} MB") for when, m in self.memory.items()),
            *(_of_overload(self.overload) if self.overload is not None else ()),
            *(_of_comparison(self.comparison) if self.comparison is not None else ()),
        ]
        return f"{loads}\n\n{table(['', f'{self.queries:,} different queries'], others)}"

    def panels(self) -> list[Lines | Bars]:
        """A picture of it: how long the faster 1% to 99% of the answers took."""
        lines = {row.name: list(enumerate(row.percentiles, start=1)) for row in self.rows if row.percentiles}
        title = f"search through HTTP, {self.passages:,} passages"
        return [Lines(title=title, x="percent of the answers", y="ms", lines=lines, logarithmic=True)]


def _told(row: Row) -> list[str]:
    failed = [f"{name}: {count:,}" for name, count in sorted(row.outcomes.items()) if name != "200"]
    times = [ms(value) for value in (row.p50, row.p95, row.p99, row.worst)]
    return [row.name, f"{row.rate:,.1f}", *times, f"{row.times:.2f} times", ", ".join(failed) or "0"]


def _of_overload(seen: Overload) -> list[tuple[str, str]]:
    recovered = f"not within {_RECOVERY_PATIENCE:.0f} s" if seen.recovered is None else f"{seen.recovered:.1f} s"
    return [
        (f"overload, {seen.rate:,.0f} a second for {seen.seconds:.0f} s: refused with 429", f"{seen.refused:.1%}"),
        ("of these without Retry-After", f"{seen.without_retry_after:,}"),
        ("RSS before / at most / after", f"{seen.before:,.0f} / {seen.during:,.0f} / {seen.after:,.0f} MB"),
        (f"until {_RECOVERED:.0%} of the rate before", recovered),
    ]


def _of_comparison(seen: Comparison) -> list[tuple[str, str]]:
    return [
        ("answers a second as it is, by round", ", ".join(f"{rate:,.1f}" for rate in seen.without)),
        (f"with {seen.against}", ", ".join(f"{rate:,.1f}" for rate in seen.with_it)),
        ("ratio of the medians", f"{seen.ratio:.2f}"),
    ]


def measured(deployment: Deployment, *, passages: int, queries: Sequence[str], plan: Plan) -> Figures:
    """Starts the one server of `deployment`, whose folder holds `passages`, again and again. Raises NotStarted, NoWrk."""
    check_wrk()
    if plan.against:
        with served(deployment, **plan.against):
            pass  # a setting that is refused is told before anything is measured
    starts = _starts(deployment)
    with served(deployment) as (server, _):
        loaded = _Loaded(server, [path_of(query) for query in queries], plan)
        memory = {"at rest": memory_of(loaded.pid)}
        rows, overload = loaded.rows()
        memory["after the loads"] = memory_of(loaded.pid)
    return Figures(
        passages=passages,
        queries=len(queries),
        rows=tuple(rows),
        starts=starts,
        memory=memory,
        overload=overload,
        comparison=_compared(deployment, queries, plan) if plan.against else None,
    )


def _starts(deployment: Deployment) -> dict[str, float]:
    """Seconds until ready: with the snapshot that the last process left, the median of three, and without it."""
    seconds = {"with a snapshot": statistics.median(_start(deployment) for _ in range(_STARTS))}
    snapshots = list((deployment.folder / "data").glob(_SNAPSHOT))
    for file in snapshots:
        file.rename(_aside(file))
    seconds["without a snapshot"] = _start(deployment)
    for file in snapshots:
        _aside(file).replace(file)
    return seconds


def _start(deployment: Deployment) -> float:
    with served(deployment) as (_, seconds):
        return seconds


def _aside(file: Path) -> Path:
    return file.with_suffix(".aside")


class _Loaded:
    """A running server and the loads that `plan` names, one after the other."""

    def __init__(self, server: Running, paths: Sequence[str], plan: Plan) -> None:
        self._url = server.url
        self._walk = Walk(paths)
        self._plan = plan
        self.pid = server.process.pid if server.process is not None else 0

    def rows(self) -> tuple[list[Row], Overload | None]:
        self.closed(_WARM_UP_SECONDS)
        closed = self.closed(self._plan.seconds)
        again = closed_loop(
            self._url, self._walk.some(_FEW), connections=self._plan.connections, seconds=self._plan.seconds
        )
        rate = self._plan.rate or closed.rate / 2
        answers = load.open_loop(self._url, self._walk.take, rate=rate, seconds=self._plan.seconds)
        many = f"{self._plan.connections} connections"
        rows = [
            _of_wrk(f"closed loop, {many}", closed, len(self._walk.texts)),
            _of_wrk(f"{many}, {_FEW} queries over and over", again, _FEW),
            _of_answers(f"open loop, {rate:,.1f} a second", answers, len(self._walk.texts)),
        ]
        if not self._plan.overload:
            return rows, None
        row, overload = self._overloaded(closed.rate * _TIMES_CAPACITY)
        return [*rows, row], overload

    def closed(self, seconds: float) -> ClosedLoop:
        """The closed loop over the queries that come next."""
        found = closed_loop(
            self._url, self._walk.texts, connections=self._plan.connections, seconds=seconds, first=self._walk.place
        )
        self._walk.place += found.requests + self._plan.connections  # and those under way when the time was over
        return found

    def _overloaded(self, rate: float) -> tuple[Row, Overload]:
        connections = self._plan.connections
        windows = [  # as they are after it: each begins with all connections at once
            load.closed_loop(self._url, self._walk.take, connections=connections, seconds=load.WINDOW_SECONDS).rate
            for _ in range(_PROBES)
        ]
        before = rss_of(self.pid)
        with watched(self.pid) as peak:
            seen = load.overloaded(
                self._url,
                self._walk.take,
                rate=rate,
                seconds=self._plan.overload,
                connections=connections,
                full=statistics.median(windows) * _RECOVERED,
                patience=_RECOVERY_PATIENCE,
            )
        answers = seen.overload
        overload = Overload(
            seconds=self._plan.overload,
            rate=rate,
            refused=answers.outcomes.get("429", 0) / max(1, len(answers.asked)),
            without_retry_after=answers.refusals_without_retry_after,
            before=before,
            during=peak.rss,
            after=rss_of(self.pid),
            recovered=seen.seconds,
        )
        return _of_answers(f"overload, {rate:,.0f} a second", answers, len(self._walk.texts)), overload


def _of_wrk(name: str, found: ClosedLoop, queries: int) -> Row:
    return Row(
        name=name,
        rate=found.rate,
        p50=found.percentiles[49],
        p95=found.percentiles[94],
        p99=found.percentiles[98],
        worst=found.worst,
        times=found.requests / queries,
        outcomes=found.outcomes,
        percentiles=found.percentiles,
    )


def _of_answers(name: str, answers: Answers, queries: int) -> Row:
    took = answers.milliseconds()
    return Row(
        name=name,
        rate=answers.rate,
        p50=percentile(took, 50),
        p95=percentile(took, 95),
        p99=percentile(took, 99),
        worst=max(took, default=float("nan")),
        times=len(answers.asked) / queries,
        outcomes=answers.outcomes,
        percentiles=tuple(percentile(took, percent) for percent in range(1, 100)) if took else (),
    )


def _compared(deployment: Deployment, queries: Sequence[str], plan: Plan) -> Comparison:
    """The same queries each time, by a server that has just started."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for changed in (False, True) * plan.rounds:
        with served(deployment, **(plan.against if changed else {})) as (server, _):
            loaded = _Loaded(server, [path_of(query) for query in queries], plan)
            loaded.closed(_WARM_UP_SECONDS)
            rates[changed].append(loaded.closed(plan.seconds).rate)
    told = " ".join(f"{name}={value}" for name, value in plan.against.items())
    return Comparison(against=told, without=tuple(rates[False]), with_it=tuple(rates[True]))
