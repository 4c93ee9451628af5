"""Jobs as rows: what the scheduler reports, and what is asked of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.errors import JobNotFound
from pipeline.storage import jobs
from pipeline.storage.database import StateDatabase
from pipeline.storage.jobs import Job

NAMES = {"canary", "prune", "source:공지"}


@pytest.fixture
def database(state_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(state_url)
    jobs.ensure(opened, NAMES)
    yield opened
    opened.close()


def test_rows_are_made_for_jobs_and_deleted_with_them(database: StateDatabase) -> None:
    jobs.pause(database, "canary", True)
    jobs.ensure(database, {"canary", "reconcile"})
    assert [(job.name, job.paused) for job in jobs.listed(database)] == [("canary", True), ("reconcile", False)]


def test_a_new_job_has_never_run(database: StateDatabase) -> None:
    assert jobs.find(database, "prune") == Job(
        name="prune",
        paused=False,
        requested_at=None,
        started_at=None,
        finished_at=None,
        next_at=None,
        outcome="never",
        counts={},
        error=None,
    )


def test_a_run_is_told_from_its_begin_to_its_end(database: StateDatabase) -> None:
    before = datetime.now(UTC)
    jobs.started(database, "prune")
    running = jobs.find(database, "prune")
    assert (running.outcome, running.finished_at) == ("running", None)
    jobs.finished(database, "prune", {"deleted": 3, "told": ["글이 없습니다"]}, None)
    done = jobs.find(database, "prune")
    assert (done.outcome, done.counts, done.error) == ("done", {"deleted": 3, "told": ["글이 없습니다"]}, None)
    assert done.started_at is not None
    assert done.finished_at is not None
    assert before <= done.started_at <= done.finished_at <= datetime.now(UTC)


def test_a_new_run_forgets_what_became_of_the_last(database: StateDatabase) -> None:
    jobs.started(database, "prune")
    jobs.finished(database, "prune", {}, "the place does not answer")
    assert (jobs.find(database, "prune").outcome, jobs.find(database, "prune").error) == (
        "failed",
        "the place does not answer",
    )
    jobs.started(database, "prune")
    assert (jobs.find(database, "prune").outcome, jobs.find(database, "prune").error) == ("running", None)


def test_a_request_lasts_until_a_run_begins_and_one_during_a_run_until_the_next(database: StateDatabase) -> None:
    jobs.started(database, "prune")
    jobs.request(database, "source:공지")
    jobs.request(database, "prune")
    assert jobs.requests(database) == ["source:공지", "prune"]
    jobs.finished(database, "prune", {}, None)
    assert jobs.requests(database) == ["source:공지", "prune"]
    jobs.started(database, "prune")
    assert jobs.requests(database) == ["source:공지"]


def test_a_clock_that_is_behind_loses_no_request(database: StateDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks and who runs may be on two machines."""
    jobs.started(database, "prune")
    jobs.finished(database, "prune", {}, None)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(minutes=5)

    monkeypatch.setattr(jobs, "datetime", Behind)
    jobs.request(database, "prune")
    assert jobs.requests(database) == ["prune"]


@pytest.mark.parametrize("name", ["source:공지", "source:새것"])
def test_a_run_by_hand_is_told_also_of_a_job_that_nobody_has_scheduled_yet(database: StateDatabase, name: str) -> None:
    begun = datetime.now(UTC)
    jobs.noted(database, name, begun, {"deleted": 2}, None)
    job = jobs.find(database, name)
    assert (job.outcome, job.counts, job.started_at, job.paused) == ("done", {"deleted": 2}, begun, False)
    assert job.finished_at is not None
    jobs.noted(database, name, datetime.now(UTC), {}, "weg")
    job = jobs.find(database, name)
    assert (job.outcome, job.counts, job.error) == ("failed", {}, "weg")


def test_only_what_runs_can_be_interrupted(database: StateDatabase) -> None:
    jobs.started(database, "prune")
    jobs.interrupted(database, "prune")
    jobs.interrupted(database, "canary")
    assert (jobs.find(database, "prune").outcome, jobs.find(database, "prune").error) == (
        "failed",
        "the process ended while it ran",
    )
    assert jobs.find(database, "canary").outcome == "never"


def test_the_next_time_is_noted_and_taken_back(database: StateDatabase) -> None:
    at = datetime(2026, 8, 1, 3, tzinfo=UTC)
    jobs.planned(database, {"prune": at, "canary": at})
    jobs.planned(database, {"canary": None})
    assert [job.next_at for job in jobs.listed(database)] == [None, at, None]


def test_a_job_that_is_gone_takes_its_end_and_its_plan_with_it(database: StateDatabase) -> None:
    jobs.started(database, "source:공지")
    jobs.ensure(database, {"prune"})
    jobs.finished(database, "source:공지", {}, None)
    jobs.planned(database, {"source:공지": datetime.now(UTC)})
    assert [job.name for job in jobs.listed(database)] == ["prune"]


def test_an_unknown_name_is_refused_by_name(database: StateDatabase) -> None:
    for ask in (
        lambda: jobs.find(database, "없는 일"),
        lambda: jobs.request(database, "없는 일"),
        lambda: jobs.pause(database, "없는 일", True),
        lambda: jobs.started(database, "없는 일"),
    ):
        with pytest.raises(JobNotFound, match="'없는 일'"):
            ask()
