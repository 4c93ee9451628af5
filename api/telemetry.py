"""Figures for Prometheus: how long requests and stages of searches take, and where the index stands.

One registry an app, so that several can live in a process. Labels have few values: routes, not paths.

Where the environment has PROMETHEUS_MULTIPROC_DIR, a folder, the processes that share it are one to who scrapes: counters and
histograms are sums, also of processes that ended, and gauges what the worst of those alive put down.
Source: prometheus_client's documentation, "Multiprocess Mode".
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.encoding.batcher import Batch
from pipeline.encoding.line import Urgency

_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LOOP_LOOK_SECONDS = 0.25
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHOWN_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5)  # of freshness, to people
_METHODS = frozenset({"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_NO_ROUTE = "none"
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the variable of prometheus_client, read when it is imported


_OfSeveral = Literal["livemin", "livemax", "livemostrecent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """Where a process stands: visible passages, changes that wait, changes settled and not yet applied here, articles that
    could not be indexed, and whether freshness is beyond its objective."""

    ready: bool
    passages: int
    queued: int
    lag: int
    failed: int
    late: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """How long `count` changes took: `within` maps seconds to the share of them, 0..1, that took no longer."""

    change: str
    origin: str
    count: int
    within: Mapping[float, float]


class Metrics:
    """The figures of one app."""

    def __init__(self) -> None:
        self._registry = self._shown = CollectorRegistry()
        self.shared = SHARED_FOLDER in os.environ
        if self.shared:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        counter = partial(Counter, registry=self._registry)
        sizes = partial(Histogram, buckets=_SIZES, registry=self._registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=self._registry)
        self._requests = seconds(
            "yeoul_http_request_seconds", "Time to answer a request", ("method", "route", "status")
        )
        self._stages = seconds("yeoul_search_stage_seconds", "Time of a search's stage", ("stage",))
        self._waits = seconds("yeoul_search_wait_seconds", "Time a search waits for its turn")
        self._batches = sizes("yeoul_search_batch_size", "Searches that are answered together")
        self._worked = seconds("yeoul_search_batch_seconds", "Time of answering a batch that is read")
        self._encoder_waits = seconds(
            "yeoul_encoder_wait_seconds", "Time a text waits for the SentenceTransformer", ("urgency",)
        )
        self._encoder_batches = sizes("yeoul_encoder_batch_size", "Texts that it encodes together", ("urgency",))
        self._encoder_worked = seconds("yeoul_encoder_batch_seconds", "Time of its work on them", ("urgency",))
        self._loop_lag = seconds(
            "yeoul_event_loop_lag_seconds",
            "How much later than it wanted the event loop came to a task that waits for nothing else",
        )
        self._degraded = counter("yeoul_search_degraded", "Searches answered without a part", ("part",))
        self._fresh = seconds(
            "yeoul_freshness_seconds",
            "From the acceptance of a change to the moment when searches of this process see it",
            ("change", "origin"),
        )
        self._mended = counter("yeoul_index_mended", "Articles in memory that were not as the registry said")
        # To find a histogram by its labels takes longer than to observe; both have few.
        self._of_request = cache(lambda method, route, status: self._requests.labels(method, route, str(status)))
        self._of_stage = cache(self._stages.labels)
        self._ready = self._gauge("yeoul_ready", "1 when the index is loaded and the stores answer", "livemin")
        self._passages = self._gauge("yeoul_passages", "Passages that can be found", "livemin")
        self._queued = self._gauge("yeoul_inbox_queued", "Accepted changes that wait for the worker", "livemostrecent")
        self._failed = self._gauge(
            "yeoul_articles_failed", "Articles whose newest change could not be indexed", "livemostrecent"
        )
        self._lag = self._gauge("yeoul_follower_lag", "Settled changes not applied in this process", "livemax")
        self._late = self._gauge(
            "yeoul_freshness_late", "1 when freshness is beyond its objective or not known", "livemax"
        )

    def _gauge(self, name: str, told: str, of_several: _OfSeveral) -> Gauge:
        return Gauge(name, told, registry=self._registry, multiprocess_mode=of_several)

    def request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        self._of_request(method if method in _METHODS else "other", route, status).observe(seconds)

    def search(self, timings_ms: Mapping[str, float], degraded: Mapping[str, str]) -> None:
        for stage, milliseconds in timings_ms.items():
            self._of_stage(stage).observe(milliseconds / 1000)
        for part in degraded:
            self._degraded.labels(part).inc()

    def waited(self, batch: Batch) -> None:
        """Searches whose turn came together."""
        for seconds in batch.waits:
            self._waits.observe(seconds)

    def answered(self, batch: Batch) -> None:
        """Searches that were answered together."""
        self._batches.observe(len(batch.waits))
        self._worked.observe(batch.worked)

    def encoded(self, batch: Batch) -> None:
        """Texts that were encoded together."""
        urgency = Urgency(batch.priority).name.lower()
        waits = self._encoder_waits.labels(urgency)
        for seconds in batch.waits:
            waits.observe(seconds)
        self._encoder_batches.labels(urgency).observe(len(batch.waits))
        self._encoder_worked.labels(urgency).observe(batch.worked)

    async def watch_loop(self) -> None:
        """Measures the event loop that runs this, until it is cancelled: its lag is what every request waits beside its own."""
        while True:
            due = time.perf_counter() + _LOOP_LOOK_SECONDS
            await asyncio.sleep(_LOOP_LOOK_SECONDS)
            self._loop_lag.observe(max(0.0, time.perf_counter() - due))

    def fresh(self, *, change: str, origin: str, seconds: float) -> None:
        """A change (publish, delete) of a push or of the canary that searches see after `seconds`."""
        self._fresh.labels(change, origin).observe(seconds)

    def freshness(self) -> list[Spread]:
        """How the changes that this process has seen so far spread over time, by kind and origin; in their order."""
        counts: dict[tuple[str, str], dict[float, int]] = {}
        for metric in self._fresh.collect():
            for sample in metric.samples:
                if sample.name.endswith("_bucket"):
                    bounds = counts.setdefault((sample.labels["origin"], sample.labels["change"]), {})
                    bounds[float(sample.labels["le"])] = int(sample.value)
        return [
            Spread(change, origin, bounds[math.inf], {s: bounds[s] / bounds[math.inf] for s in _SHOWN_SECONDS})
            for (origin, change), bounds in sorted(counts.items(), reverse=True)
        ]

    def mended(self, articles: int) -> None:
        """So many articles of the index in memory differed from the registry, and were read anew."""
        self._mended.inc(articles)

    def put_down(self, gauges: Gauges) -> None:
        """Where this process stands, for a scrape that another one of those that share the figures may answer."""
        self._ready.set(gauges.ready)
        self._passages.set(gauges.passages)
        self._queued.set(gauges.queued)
        self._lag.set(gauges.lag)
        self._failed.set(gauges.failed)
        self._late.set(gauges.late)

    def exposition(self, gauges: Gauges) -> bytes:
        """The text format of Prometheus. May block, where figures are shared."""
        self.put_down(gauges)
        return generate_latest(self._shown)


def forget_the_dead() -> None:
    """Takes the gauges of processes that are not alive any more out of the shared figures; their counts stay."""
    for file in Path(os.environ[SHARED_FOLDER]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Telemetry:
    """ASGI middleware: measures every request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = int(HTTPStatus.INTERNAL_SERVER_ERROR)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        began = time.perf_counter()
        try:
            await self._app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            self._metrics.request(
                method=scope["method"], route=route, status=status, seconds=time.perf_counter() - began
            )
