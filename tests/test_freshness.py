"""Freshness is measured where searches are answered: by pushes and by a canary that no reader ever sees."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.freshness import FreshnessWatch
from api.telemetry import Gauges, Metrics
from indexers.canary import Canary
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.documents import CANARY, Article
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.query import SearchRequest
from pipeline.settings import Settings
from pipeline.storage.acceptance import BULK, PUSH
from pipeline.storage.rows import LogEntry
from tests import small_corpus
from tests.api_server import assembly_of
from tests.fakes import FakeEncoder
from tests.write_path import running

_GAUGES = Gauges(ready=True, passages=0, queued=0, lag=0, failed=0, late=False)
_PATIENCE = 120.0
_STARTED = datetime(2026, 1, 1, tzinfo=UTC)
_PERIOD = 60.0


def measured(metrics: Metrics) -> dict[tuple[str, str], int]:
    """(change, origin) → how often, as Prometheus reads it."""
    text = metrics.exposition(_GAUGES).decode()
    return {
        (sample.labels["change"], sample.labels["origin"]): int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "yeoul_freshness_seconds_count"
    }


def test_what_people_are_shown_is_the_share_of_changes_within_some_seconds() -> None:
    metrics = Metrics()
    assert metrics.freshness() == []
    metrics.fresh(change="delete", origin="canary", seconds=0.2)
    for seconds in (0.05, 0.08, 0.3, 20):
        metrics.fresh(change="publish", origin="push", seconds=seconds)
    pushes, canary = metrics.freshness()
    assert (pushes.change, pushes.origin, pushes.count) == ("publish", "push", 4)
    assert pushes.within == {0.1: 0.5, 0.25: 0.5, 0.5: 0.75, 1: 0.75, 2.5: 0.75, 5: 0.75}
    assert (canary.change, canary.origin, canary.count) == ("delete", "canary", 1)
    assert (canary.within[0.1], canary.within[0.25]) == (0, 1)


class Service:
    """An assembly whose freshness is watched as `api/service.py` does it. `looks` has, after each commit, the articles that
    searches found, and how many articles and passages were counted."""

    def __init__(self, assembly: Assembly) -> None:
        self.assembly = assembly
        self.metrics = Metrics()
        self.watch = FreshnessWatch(
            self.metrics, lambda: assembly.connected.shadow, objective_seconds=60, period_seconds=3600
        )
        self.looks: list[tuple[set[str], dict[str, int], int]] = []
        self.shadowed: list[int] = []
        assembly.on_applied = self.watch.applied

    @contextmanager
    def working(self) -> Iterator[Worker]:
        worker = Worker(
            self.assembly.store, self.assembly.ingest, attempts=1, poll_seconds=0.02, on_commit=self._committed
        )
        with running(worker):
            yield worker

    def _committed(self) -> None:
        self.assembly.catch_up()
        connected = self.assembly.connected
        found = {
            hit.article_id
            for query in ("카나리아", "여울 카나리아가 방금 나왔습니다")
            for hit in connected.searcher.search(SearchRequest.checked(query, limit=100)).hits
        }
        self.looks.append((found, self.assembly.store.counts(), connected.engine()[0].count))
        self.shadowed.append(connected.shadow.count)


@pytest.fixture
def service(tmp_path: Path, analyser: Analyser, stores_of: Callable[[int], dict[str, Any]]) -> Iterator[Service]:
    encoder = FakeEncoder()
    settings = Settings.model_validate({"data_dir": tmp_path, **stores_of(encoder.dim)})
    assembly = assembly_of(settings, analyser, encoder)
    try:
        assembly.connect().load()
        assembly.connected.told_by_ingest()
        yield Service(assembly)
    finally:
        assembly.close()


def test_the_canary_is_measured_and_in_no_answer(service: Service) -> None:
    store = service.assembly.store
    with service.working() as worker:
        store.accept(Article(id="글", title="전세 보증금", body="여울에 방금 나왔습니다."))
        counts = Canary(store, worker.wake, patience_seconds=_PATIENCE).run(threading.Event())
    assert set(counts) == {"publish_ms", "change_ms", "delete_ms"}
    state = service.watch.state()
    assert state.publish_seconds is not None
    assert state.delete_seconds is not None
    assert 0 <= state.publish_seconds < _PATIENCE
    assert 0 <= state.delete_seconds < _PATIENCE
    assert (state.late, state.canary_at is not None) == ("", True)
    assert measured(service.metrics) == {("publish", "push"): 1, ("publish", "canary"): 2, ("delete", "canary"): 1}
    assert max(service.shadowed) == 1  # it was there to be found
    assert service.shadowed[-1] == 0
    assert service.looks[-1] == ({"글"}, {"indexed": 1}, 1)
    assert all(look == ({"글"}, {"indexed": 1}, 1) for look in service.looks)


def entry(
    revision: int | None, accepted_at: datetime | None, *, article_id: str = CANARY, lane: int = PUSH
) -> LogEntry:
    return LogEntry(1, article_id, revision, revision or 1, lane, accepted_at)


def test_what_takes_too_long_or_does_not_come_is_late(caplog: pytest.LogCaptureFixture) -> None:
    metrics, shadow = Metrics(), ResidentEngine(small_corpus.DIM, LexicalParameters())
    watch = FreshnessWatch(metrics, lambda: shadow, objective_seconds=2, period_seconds=_PERIOD, started=_STARTED)
    never = FreshnessWatch(metrics, lambda: shadow, objective_seconds=2, period_seconds=0, started=_STARTED)

    def late(seconds: float) -> str:
        return watch.state(_STARTED + timedelta(seconds=seconds)).late

    assert late(3 * _PERIOD) == ""
    assert late(3 * _PERIOD + 1) == "no canary for 181 s, one is due every 60 s"
    assert never.state(_STARTED + timedelta(days=1)).late == ""

    canary = small_corpus.passages(CANARY, 1, [["카나리아", "여울"]])
    shadow.apply({CANARY: 1}, canary, small_corpus.vectors(canary))
    watch.applied([entry(1, _STARTED + timedelta(seconds=170))], _STARTED + timedelta(seconds=172))
    assert (late(352), late(353)) == ("", "no canary for 181 s, one is due every 60 s")
    watch.applied([entry(1, _STARTED + timedelta(seconds=200))], _STARTED + timedelta(seconds=202.5))
    assert late(203) == "publish to searchable took 2.5 s, the objective is 2 s"
    watch.applied([entry(1, _STARTED + timedelta(seconds=210))], _STARTED + timedelta(seconds=211))
    assert late(212) == ""

    # A delete that the index does not show is none, and is told; the last canary stays the one before.
    watch.applied([entry(None, _STARTED + timedelta(seconds=220))], _STARTED + timedelta(seconds=220.1))
    assert watch.state(_STARTED + timedelta(seconds=221)).delete_seconds is None
    assert f"found ['{CANARY}#1#0'], expected []" in caplog.text
    assert late(392) == "no canary for 181 s, one is due every 60 s"
    shadow.apply({CANARY: None}, [], small_corpus.vectors([]))
    watch.applied([entry(None, _STARTED + timedelta(seconds=230))], _STARTED + timedelta(seconds=233))
    assert late(234) == "delete to gone took 3.0 s, the objective is 2 s"
    # So is an article that searches do not find.
    watch.applied([entry(2, _STARTED + timedelta(seconds=240))], _STARTED + timedelta(seconds=240.1))
    assert watch.state().publish_seconds == 1

    # A bulk load waits for its turn, and what came from before the times were kept has none: neither is measured.
    before = measured(metrics)
    watch.applied([entry(1, _STARTED, article_id="글", lane=BULK)], _STARTED + timedelta(seconds=90))
    watch.applied([entry(1, None, article_id="글")], _STARTED)
    assert measured(metrics) == before
    watch.applied([entry(1, _STARTED, article_id="글")], _STARTED + timedelta(seconds=90))
    assert measured(metrics) == before | {("publish", "push"): 1}
    assert late(234) == "delete to gone took 3.0 s, the objective is 2 s"  # a push tells nothing of the canary
