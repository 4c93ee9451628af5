"""Figures for Prometheus: how long requests and stages of searches take, and where the index stands.

One registry an app, so that several can live in a process. Labels have few values: routes, not paths.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.encoding.batcher import Batch

_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_LOOP_LOOK_SECONDS = 0.25
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHOWN_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5)  # of freshness, to people
_METHODS = frozenset({"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_NO_ROUTE = "none"


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
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "yeoul_http_request_seconds",
            "Time to answer a request",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "yeoul_search_stage_seconds",
            "Time of a search's stage",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._waits = Histogram(
            "yeoul_search_wait_seconds",
            "Time a search waits for its turn",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "yeoul_search_batch_size", "Searches that are answered together", buckets=_SIZES, registry=self._registry
        )
        self._worked = Histogram(
            "yeoul_search_batch_seconds", "Time of the work on a batch", buckets=_SECONDS, registry=self._registry
        )
        self._loop_lag = Histogram(
            "yeoul_event_loop_lag_seconds",
            "How much later than it wanted the event loop came to a task that waits for nothing else",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._degraded = Counter(
            "yeoul_search_degraded", "Searches answered without a part", ("part",), registry=self._registry
        )
        self._fresh = Histogram(
            "yeoul_freshness_seconds",
            "From the acceptance of a change to the moment when searches of this process see it",
            ("change", "origin"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._mended = Counter(
            "yeoul_index_mended", "Articles in memory that were not as the registry said", registry=self._registry
        )
        self._late = Gauge(
            "yeoul_freshness_late", "1 when freshness is beyond its objective or not known", registry=self._registry
        )
        # To find a histogram by its labels takes longer than to observe; both have few.
        self._of_request = cache(lambda method, route, status: self._requests.labels(method, route, str(status)))
        self._of_stage = cache(self._stages.labels)
        self._ready = Gauge("yeoul_ready", "1 when the index is loaded and the stores answer", registry=self._registry)
        self._passages = Gauge("yeoul_passages", "Passages that can be found", registry=self._registry)
        self._queued = Gauge("yeoul_inbox_queued", "Accepted changes that wait for the worker", registry=self._registry)
        self._failed = Gauge(
            "yeoul_articles_failed", "Articles whose newest change could not be indexed", registry=self._registry
        )
        self._lag = Gauge("yeoul_follower_lag", "Settled changes not applied in this process", registry=self._registry)

    def request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        self._of_request(method if method in _METHODS else "other", route, status).observe(seconds)

    def search(self, timings_ms: Mapping[str, float], degraded: Mapping[str, str]) -> None:
        for stage, milliseconds in timings_ms.items():
            self._of_stage(stage).observe(milliseconds / 1000)
        for part in degraded:
            self._degraded.labels(part).inc()

    def batch(self, batch: Batch) -> None:
        """Searches that were answered together."""
        for seconds in batch.waits:
            self._waits.observe(seconds)
        self._batches.observe(len(batch.waits))
        self._worked.observe(batch.worked)

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

    def exposition(self, gauges: Gauges) -> bytes:
        """The text format of Prometheus."""
        self._ready.set(gauges.ready)
        self._passages.set(gauges.passages)
        self._queued.set(gauges.queued)
        self._lag.set(gauges.lag)
        self._failed.set(gauges.failed)
        self._late.set(gauges.late)
        return generate_latest(self._registry)


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
