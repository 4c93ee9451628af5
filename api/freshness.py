"""Publish → searchable, delete → gone: measured here, in this process, for every push and for the canary.

The clock starts when a change is accepted (on the host that took it) and stops when a search of this process sees it, so the
hosts' clocks have to agree. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from api.telemetry import Metrics
from pipeline.documents import CANARY, passage_id
from pipeline.index.engine import Engine, EngineQuery
from pipeline.index.lexical_query import LexicalQuery
from pipeline.storage.acceptance import PUSH
from pipeline.storage.rows import LogEntry

log = logging.getLogger(__name__)

_MISSED_CANARIES = 3  # so many periods without one, and freshness is not known any more


@dataclass(frozen=True, slots=True)
class Freshness:
    """Where freshness stands. Seconds of the last canary (None: there was none yet); `late` says what is beyond the
    objective, "" where nothing is."""

    objective_seconds: float
    publish_seconds: float | None
    delete_seconds: float | None
    canary_at: datetime | None
    late: str


class FreshnessWatch:
    """Takes in what the follower applied. `shadow` gives the engine that holds the canary. Thread-safe."""

    def __init__(
        self,
        metrics: Metrics,
        shadow: Callable[[], Engine],
        *,
        objective_seconds: float,
        period_seconds: float,
        started: datetime | None = None,
    ) -> None:
        self._metrics = metrics
        self._shadow = shadow
        self._objective = objective_seconds
        self._period = period_seconds
        self._started = started or datetime.now(UTC)
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._canary_at: datetime | None = None

    def applied(self, entries: Sequence[LogEntry], now: datetime) -> None:
        """Lines of the change log that searches of this process see from `now` on."""
        for entry in entries:
            self._applied(entry, now)

    def _applied(self, entry: LogEntry, now: datetime) -> None:
        if entry.accepted_at is None or (entry.article_id != CANARY and entry.lane != PUSH):
            return  # a bulk load waits for its turn: its age says nothing
        change = "delete" if entry.revision is None else "publish"
        seconds = max(0.0, (now - entry.accepted_at).total_seconds())
        canary = entry.article_id == CANARY
        self._metrics.fresh(change=change, origin="canary" if canary else "push", seconds=seconds)
        if canary and self._is_right(entry):
            with self._lock:
                self._last[change], self._canary_at = seconds, now

    def state(self, now: datetime | None = None) -> Freshness:
        """Where freshness stands at `now`."""
        now = now or datetime.now(UTC)
        with self._lock:
            publish, gone, seen = self._last.get("publish"), self._last.get("delete"), self._canary_at
        return Freshness(self._objective, publish, gone, seen, self._late(publish, gone, seen, now))

    def _late(self, publish: float | None, gone: float | None, seen: datetime | None, now: datetime) -> str:
        if self._period and now - (seen or self._started) > timedelta(seconds=_MISSED_CANARIES * self._period):
            return f"no canary for {(now - (seen or self._started)).total_seconds():.0f} s, one is due every {self._period:g} s"
        for what, seconds in (("publish to searchable", publish), ("delete to gone", gone)):
            if seconds is not None and seconds > self._objective:
                return f"{what} took {seconds:.1f} s, the objective is {self._objective:g} s"
        return ""

    def _is_right(self, entry: LogEntry) -> bool:
        """Whether a search of the canary's own engine finds it as the log says."""
        engine = self._shadow()
        expected = set() if entry.revision is None else {passage_id(CANARY, entry.revision, 0)}
        passage = next(iter(engine.passages(list(expected)).values()), None)
        terms = LexicalQuery(terms=dict.fromkeys(passage.terms, 1.0) if passage is not None else {"카나리아": 1.0})
        found = set(engine.search(EngineQuery(vector=None, terms=terms)).passage_ids)
        if found == expected:
            return True
        log.error("the canary is not as it should be: found %s, expected %s", sorted(found), sorted(expected))
        return False
