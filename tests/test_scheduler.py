"""The scheduler: each job at its time and once at a time, what is asked is done, and no job takes another down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from indexers import scheduler as module
from indexers.scheduler import LEASE, Plan, Scheduler
from indexers.sources.kinds import Every, parsed_schedule
from pipeline.errors import SourceUnavailable
from pipeline.storage import jobs, leases
from pipeline.storage.database import StateDatabase
from pipeline.storage.jobs import Job

_PATIENCE = 120.0  # seconds until a test gives up waiting
_LOOK = 0.02  # seconds
_SOON, _NEVER = Every(0.05), Every(86_400.0)


@pytest.fixture
def database(state_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(state_url)
    yield opened
    opened.close()


@contextmanager
def scheduling(
    database: StateDatabase, plans: Mapping[str, Plan], *, look_seconds: float = _LOOK, lease_seconds: float = 30.0
) -> Iterator[Scheduler]:
    scheduler = Scheduler(database, lambda: plans, look_seconds=look_seconds, lease_seconds=lease_seconds)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


class Work:
    """A job that counts its runs. With `hold` each lasts until it is let go, or told to end."""

    def __init__(self, *, hold: bool = False) -> None:
        self.begun = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.ended_early = threading.Event()
        self.at_once = 0
        self.most_at_once = 0
        self.runs = 0
        if not hold:
            self.let_go.set()

    def run(self, stop: threading.Event) -> dict[str, Any]:
        self.runs += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.release()
        while not self.let_go.wait(0.01):
            if stop.is_set():
                self.ended_early.set()
                break
        self.at_once -= 1
        return {"runs": self.runs}

    def began(self) -> bool:
        return self.begun.acquire(timeout=_PATIENCE)


def broken(_stop: threading.Event) -> dict[str, Any]:
    raise ValueError("a column is missing")


def away(_stop: threading.Event) -> dict[str, Any]:
    raise SourceUnavailable("the board", "connection refused")


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def found(database: StateDatabase, name: str) -> Job | None:
    return next((job for job in jobs.listed(database) if job.name == name), None)


def outcome(database: StateDatabase, name: str) -> str | None:
    job = found(database, name)
    return job.outcome if job is not None else None


def test_a_job_runs_again_and_again_and_its_row_says_what_came_of_it(database: StateDatabase) -> None:
    work = Work()
    with scheduling(database, {"prune": Plan(_SOON, work.run)}):
        assert all(work.began() for _ in range(3))
        eventually(lambda: outcome(database, "prune") == "done")
    job = jobs.find(database, "prune")
    assert job.counts["runs"] >= 3
    assert job.error is None
    assert job.started_at is not None
    assert job.next_at is not None


def test_a_job_that_takes_longer_than_its_interval_runs_once_at_a_time(database: StateDatabase) -> None:
    slow, fast = Work(hold=True), Work()
    with scheduling(database, {"slow": Plan(_SOON, slow.run), "fast": Plan(_SOON, fast.run)}):
        assert slow.began()
        jobs.request(database, "slow")
        assert all(fast.began() for _ in range(5))  # the slow one was due as often, and asked for too
        assert slow.runs == 1
        slow.let_go.set()
        assert slow.began()
    assert slow.most_at_once == 1


def test_failing_jobs_stop_none_of_the_others(database: StateDatabase, caplog: pytest.LogCaptureFixture) -> None:
    work = Work()
    plans = {"a": Plan(_SOON, broken), "b": Plan(_SOON, away), "c": Plan(_SOON, work.run)}
    with caplog.at_level(logging.WARNING), scheduling(database, plans):
        assert all(work.began() for _ in range(3))
        eventually(lambda: outcome(database, "a") == outcome(database, "b") == "failed")
        eventually(lambda: outcome(database, "c") == "done")
    assert jobs.find(database, "a").error == "ValueError: a column is missing"
    assert jobs.find(database, "b").error == str(SourceUnavailable("the board", "connection refused"))
    assert "a column is missing" in caplog.text


def test_a_paused_job_does_not_run_until_it_is_resumed(database: StateDatabase) -> None:
    jobs.ensure(database, {"a", "b"})
    jobs.pause(database, "a", True)
    paused, other = Work(), Work()
    with scheduling(database, {"a": Plan(_SOON, paused.run), "b": Plan(_SOON, other.run)}):
        assert all(other.began() for _ in range(3))
        assert (paused.runs, jobs.find(database, "a").next_at) == (0, None)
        jobs.pause(database, "a", False)
        assert all(paused.began() for _ in range(2))
        jobs.pause(database, "a", True)
        eventually(lambda: jobs.find(database, "a").next_at is None)
        eventually(lambda: outcome(database, "a") == "done")
        runs = paused.runs
        while other.begun.acquire(blocking=False):
            pass
        assert all(other.began() for _ in range(3))
        assert paused.runs <= runs + 1  # one may just have begun


def test_a_run_that_is_asked_for_happens_now_and_once_even_while_the_job_is_paused(database: StateDatabase) -> None:
    jobs.ensure(database, {"a"})
    jobs.pause(database, "a", True)
    work = Work()
    with scheduling(database, {"a": Plan(_NEVER, work.run, at_once=False)}):
        jobs.request(database, "a")
        assert work.began()
        eventually(lambda: outcome(database, "a") == "done")
        assert jobs.requests(database) == []
        assert jobs.find(database, "a").next_at is None
        jobs.request(database, "a")
        assert work.began()
    assert work.runs == 2


def test_a_request_is_obeyed_at_once_when_the_scheduler_is_woken(database: StateDatabase) -> None:
    work = Work()
    plans = {"a": Plan(_NEVER, work.run, at_once=False)}
    with scheduling(database, plans, look_seconds=_PATIENCE) as scheduler:
        eventually(lambda: found(database, "a") is not None)
        jobs.request(database, "a")
        scheduler.wake()
        assert work.begun.acquire(timeout=_PATIENCE / 2)


def test_jobs_come_and_go_and_change_their_times_with_the_plans(database: StateDatabase) -> None:
    first, second = Work(), Work()
    plans = {"a": Plan(_SOON, first.run)}
    with scheduling(database, plans):
        assert first.began()
        plans["b"] = Plan(_NEVER, second.run, at_once=False)
        eventually(lambda: found(database, "b") is not None)
        del plans["a"]
        eventually(lambda: found(database, "a") is None)
        runs = first.runs
        plans["b"] = Plan(_SOON, second.run, at_once=False)
        assert all(second.began() for _ in range(3))
        assert first.runs <= runs + 1  # one may just have begun


def test_a_job_goes_on_in_the_next_process_where_the_last_one_left_it(database: StateDatabase) -> None:
    """Otherwise a daily job would never run where a process lives for hours."""
    jobs.ensure(database, {"due", "later"})
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    jobs.planned(database, {"due": now - timedelta(hours=1), "later": later})
    due, not_due = Work(), Work()
    with scheduling(database, {"due": Plan(_NEVER, due.run), "later": Plan(_NEVER, not_due.run)}):
        assert due.began()
        eventually(lambda: (jobs.find(database, "due").next_at or now) > later)
    assert jobs.find(database, "later").next_at == later
    assert (due.runs, not_due.runs) == (1, 0)


def test_a_turn_by_cron_that_fell_between_two_processes_is_made_up_for(database: StateDatabase) -> None:
    jobs.ensure(database, {"missed", "first"})
    now = datetime.now(UTC)
    jobs.planned(database, {"missed": now - timedelta(minutes=5)})
    tomorrow = (now + timedelta(hours=12)).astimezone()
    nightly = parsed_schedule(f"{tomorrow.minute} {tomorrow.hour} * * *")
    missed, first = Work(), Work()
    with scheduling(database, {"missed": Plan(nightly, missed.run), "first": Plan(nightly, first.run)}):
        assert missed.began()
        eventually(lambda: jobs.find(database, "first").next_at is not None)
        eventually(lambda: jobs.find(database, "missed").next_at == jobs.find(database, "first").next_at)
    assert (missed.runs, first.runs) == (1, 0)


def test_a_job_that_is_not_for_the_start_waits_its_time_the_first_time(database: StateDatabase) -> None:
    at_once, waiting = Work(), Work()
    plans = {"a": Plan(_NEVER, at_once.run), "b": Plan(_NEVER, waiting.run, at_once=False)}
    with scheduling(database, plans):
        assert at_once.began()
        eventually(lambda: jobs.find(database, "b").next_at is not None)
    assert waiting.runs == 0


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ("30 9 * * 1", lambda at: (at.weekday(), at.hour, at.minute) == (0, 9, 30)),
        ("0 0 * * 0", lambda at: (at.weekday(), at.hour, at.minute) == (6, 0, 0)),
        ("*/20 * * * *", lambda at: at.minute in (0, 20, 40)),
        ("0 12 1,15 * *", lambda at: at.day in (1, 15) and at.hour == 12),
        ("0 0 1 * 5", lambda at: at.day == 1 or at.weekday() == 4),
    ],
)
def test_cron_is_in_the_machines_time_and_counts_weekdays_from_sunday(
    tmp_path: Any, fields: str, fits: Callable[[datetime], bool]
) -> None:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    jobs.ensure(database, {"a"})
    with scheduling(database, {"a": Plan(parsed_schedule(fields), Work().run)}):
        eventually(lambda: jobs.find(database, "a").next_at is not None)
    next_at = jobs.find(database, "a").next_at
    assert next_at is not None
    assert next_at > datetime.now(UTC) - timedelta(seconds=_PATIENCE)
    assert fits(next_at.astimezone())
    database.close()


def test_either_of_day_and_weekday_is_enough_as_in_cron(tmp_path: Any) -> None:
    """The 1st of a month and a Friday are rarely one day: with both asked for, the next time would be months away."""
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    jobs.ensure(database, {"a"})
    with scheduling(database, {"a": Plan(parsed_schedule("0 0 1 * 5"), Work().run)}):
        eventually(lambda: jobs.find(database, "a").next_at is not None)
    next_at = jobs.find(database, "a").next_at
    assert next_at is not None
    assert next_at < datetime.now(UTC) + timedelta(days=8)
    database.close()


def test_a_run_that_a_dead_process_left_is_shown_as_failed(database: StateDatabase) -> None:
    jobs.ensure(database, {"a"})
    jobs.started(database, "a")
    jobs.pause(database, "a", True)
    with scheduling(database, {"a": Plan(_NEVER, Work().run)}):
        eventually(lambda: outcome(database, "a") == "failed")
    assert jobs.find(database, "a").error == "the process ended while it ran"


def test_a_run_under_way_here_is_not_taken_for_one_of_a_dead_process(database: StateDatabase) -> None:
    slow, other = Work(hold=True), Work()
    with scheduling(database, {"slow": Plan(_NEVER, slow.run), "other": Plan(_SOON, other.run)}):
        assert slow.began()
        assert all(other.began() for _ in range(5))
        assert outcome(database, "slow") == "running"
        slow.let_go.set()
        eventually(lambda: outcome(database, "slow") == "done")


def test_of_two_schedulers_one_schedules_and_the_other_goes_on_when_it_ends(database: StateDatabase) -> None:
    first, second = Work(), Work()
    with scheduling(database, {"a": Plan(_SOON, first.run)}, lease_seconds=10 * _PATIENCE) as leading:
        assert first.began()
        with scheduling(database, {"a": Plan(_SOON, second.run)}):
            while first.begun.acquire(blocking=False):
                pass
            assert all(first.began() for _ in range(3))
            assert second.runs == 0
            leading.stop()
            assert second.began()
            runs = first.runs
            assert all(second.began() for _ in range(3))
            assert first.runs == runs


def test_a_scheduler_that_lost_its_lease_ends_its_runs(database: StateDatabase) -> None:
    work = Work(hold=True)
    with scheduling(database, {"a": Plan(_NEVER, work.run)}):
        assert work.began()
        assert leases.acquire(database, LEASE, "another process", 60, alone=True) is not None
        assert work.ended_early.wait(_PATIENCE)


def test_a_stop_ends_runs_that_can_be_ended_and_leaves_one_that_hangs(
    database: StateDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 3.0)
    obedient, let_go, began = Work(hold=True), threading.Event(), threading.Event()

    def hanging(_stop: threading.Event) -> dict[str, Any]:
        began.set()
        let_go.wait(_PATIENCE)
        return {}

    plans = {"a": Plan(_NEVER, obedient.run), "b": Plan(_NEVER, hanging)}
    with caplog.at_level(logging.WARNING, module.__name__), scheduling(database, plans):
        assert obedient.began()
        assert began.wait(_PATIENCE)
    assert obedient.ended_early.wait(_PATIENCE)
    eventually(lambda: outcome(database, "a") == "done")
    assert "left behind: b" in caplog.text
    let_go.set()
    eventually(lambda: outcome(database, "b") == "done")


def test_plans_that_cannot_be_made_are_asked_for_again(
    database: StateDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    work = Work()
    failures = iter([ValueError("not yet"), SourceUnavailable("the registry", "not yet")])

    def plans() -> Mapping[str, Plan]:
        for failure in failures:
            raise failure
        return {"a": Plan(_SOON, work.run)}

    scheduler = Scheduler(database, plans, look_seconds=_LOOK)
    with caplog.at_level(logging.WARNING, module.__name__):
        scheduler.start()
        assert work.began()
        scheduler.stop()
    assert "after an unexpected error" in caplog.text
    assert "nothing is scheduled for now" in caplog.text


def test_a_stop_while_a_run_is_just_being_submitted_ends_in_order(
    database: StateDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apscheduler looks for the job again when it has submitted it, in another place after its shutdown."""
    submit = module._OwnThreads._do_submit_job
    work = Work()
    unhandled: list[object] = []

    def slowly(*arguments: Any) -> None:
        submit(*arguments)
        time.sleep(0.2)

    monkeypatch.setattr(module._OwnThreads, "_do_submit_job", slowly)
    monkeypatch.setattr(threading, "excepthook", unhandled.append)
    jobs.ensure(database, {"a"})
    jobs.request(database, "a")
    with scheduling(database, {"a": Plan(_NEVER, work.run, at_once=False)}):
        assert work.began()
    assert unhandled == []
