"""The scheduler: runs each job when it is due, one run of it at a time, and does what the jobs' rows ask of it.

Of all processes that could, the one that holds the lease schedules. What is planned is asked for again every second, so a
source that is added or removed is noticed without a restart. The only file that imports apscheduler. Knows no job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from indexers.sources.kinds import Cron, Schedule
from pipeline.errors import Unavailable, YeoulError
from pipeline.storage import jobs, leases
from pipeline.storage.database import StateDatabase
from pipeline.storage.jobs import Job
from pipeline.storage.leases import Lease, LeaseLost

log = logging.getLogger(__name__)

LEASE = "scheduler"
_LOOK_SECONDS = 1.0
_MISFIRE_SECONDS = 3600  # what was due while the machine slept is made up for, unless it is older than this
_END_SECONDS = 10.0  # for runs to end that were told to; one that hangs is left behind
_NOW = "now:"  # before the name of a job that runs once because it was asked for
_EACH_WEEKDAY = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")  # apscheduler's numbers begin with Monday

Counts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """When a job runs, and what it does: `run` ends soon after the event is set, and gives what it came to.

    `at_once`: a job that never ran runs at once; else when its time has passed for the first time.
    """

    schedule: Schedule
    run: Callable[[threading.Event], Counts] = field(compare=False)
    at_once: bool = True


class Scheduler:
    """Runs what `plans` gives by name, between `start` and `stop`. An error of a job is the outcome of its run and nothing
    more.

    `alone`: no other scheduler can be alive, so that a lease which a killed one left is not waited for.
    """

    def __init__(
        self,
        database: StateDatabase,
        plans: Callable[[], Mapping[str, Plan]],
        *,
        alone: bool = False,
        look_seconds: float = _LOOK_SECONDS,
        lease_seconds: float = leases.SECONDS,
    ) -> None:
        self._database = database
        self._plans = plans
        self._alone = alone
        self._look_seconds = look_seconds
        self._lease_seconds = lease_seconds
        self._holder = leases.new_holder()
        self._stopping = threading.Event()
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """A source or a job's row changed: look at once."""
        self._awake.set()

    def stop(self) -> None:
        """Tells the runs under way to end, and ends; one that does not within seconds is left behind."""
        self._stopping.set()
        self._awake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                lease = leases.acquire(self._database, LEASE, self._holder, self._lease_seconds, alone=self._alone)
                if lease is not None:
                    self._alone = False  # whoever takes it over from now on is alive
                    with leases.kept(self._database, lease, self._lease_seconds):
                        self._lead(lease)
            except LeaseLost as error:
                log.warning("%s", error)
            except Unavailable as error:
                log.warning("nothing is scheduled for now: %s", error)
            except Exception:
                log.exception("the scheduler goes on after an unexpected error")
            self._rest()

    def _lead(self, lease: Lease) -> None:
        """Schedules for as long as the lease holds. Raises LeaseLost."""
        timetable = _Timetable(self._database)
        try:
            while not self._stopping.is_set():
                leases.check(self._database, lease)
                timetable.look(self._plans())
                self._rest()
        finally:
            timetable.end()

    def _rest(self) -> None:
        self._awake.wait(self._look_seconds)
        if not self._stopping.is_set():
            self._awake.clear()


class _Timetable:
    """What is scheduled here while the lease is held."""

    def __init__(self, database: StateDatabase) -> None:
        self._database = database
        self._plans: dict[str, Plan] = {}
        self._ending = threading.Event()
        self._running: set[str] = set()
        self._changed = threading.Condition()  # guards `_running`
        self._scheduler = BackgroundScheduler(
            executors={"default": _OwnThreads()},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": _MISFIRE_SECONDS},
        )
        self._scheduler.start()

    def look(self, plans: Mapping[str, Plan]) -> None:
        """Brings everything in line with `plans` and the rows. Raises StoreUnavailable."""
        for name in self._plans.keys() - plans.keys():
            self._scheduler.remove_job(name)
            del self._plans[name]
        running_before = self._running_now()
        rows = {job.name: job for job in jobs.listed(self._database)}
        if rows.keys() != plans.keys():
            jobs.ensure(self._database, plans.keys())
            rows = {job.name: job for job in jobs.listed(self._database)}
        for name in rows:
            if rows[name].outcome == "running" and name not in running_before | self._running_now():
                jobs.interrupted(self._database, name)
        for name, plan in plans.items():
            self._plan(name, plan, rows[name])
        self._obey(rows)
        self._tell(rows)

    def end(self) -> None:
        """Nothing begins any more, and what runs is told to end."""
        self._ending.set()
        self._scheduler.remove_all_jobs()  # one that is just being submitted would be looked for after the shutdown
        self._scheduler.shutdown(wait=False)
        until = time.monotonic() + _END_SECONDS
        with self._changed:
            while self._running and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            if self._running:
                log.warning("still running, left behind: %s", ", ".join(sorted(self._running)))

    def _plan(self, name: str, plan: Plan, row: Job) -> None:
        """Schedules what is new; what runs at other times than before is scheduled anew."""
        known = self._plans.get(name)
        self._plans[name] = plan
        if known == plan:
            return
        trigger, first = _trigger(plan, row, anew=known is not None)
        self._scheduler.add_job(
            self._execute, trigger, [name], id=name, name=name, next_run_time=first, replace_existing=True
        )

    def _obey(self, rows: Mapping[str, Job]) -> None:
        for name, row in rows.items():
            is_paused = self._scheduler.get_job(name).next_run_time is None
            if row.paused and not is_paused:
                self._scheduler.pause_job(name)
            elif is_paused and not row.paused:
                self._scheduler.resume_job(name)
        for name in jobs.requests(self._database):
            if name in self._plans and name not in self._running_now():
                identity = _NOW + name
                self._scheduler.add_job(
                    partial(self._execute, asked=True),
                    None,
                    [name],
                    id=identity,
                    name=identity,
                    misfire_grace_time=None,
                    replace_existing=True,
                )

    def _tell(self, rows: Mapping[str, Job]) -> None:
        """Writes down when each runs next, where that changed."""
        times: dict[str, datetime | None] = {}
        for name, row in rows.items():
            at = self._scheduler.get_job(name).next_run_time
            next_at = at.astimezone(UTC) if at is not None else None
            if next_at != row.next_at:
                times[name] = next_at
        if times:
            jobs.planned(self._database, times)

    # ---- on the threads of the runs

    def _execute(self, name: str, *, asked: bool = False) -> None:
        """One run, from `started` to `finished`; where it was `asked` for, only if that is still so. Never raises."""
        with self._changed:
            plan = self._plans.get(name)
            if plan is None or name in self._running or self._ending.is_set():
                return  # a request stays one until a run begins
            self._running.add(name)
        try:
            if asked and name not in jobs.requests(self._database):
                return  # a run that began in between has answered it
            jobs.started(self._database, name)
            counts, error = self._outcome(name, plan.run)
            jobs.finished(self._database, name, counts, error)
        except YeoulError as error:
            log.warning("job %s: what became of it cannot be written down: %s", name, error)
        except Exception:
            log.exception("job %s: what became of it cannot be written down", name)
        finally:
            with self._changed:
                self._running.discard(name)
                self._changed.notify_all()

    def _outcome(self, name: str, run: Callable[[threading.Event], Counts]) -> tuple[Counts, str | None]:
        try:
            return run(self._ending), None
        except YeoulError as error:
            log.warning("job %s failed: %s", name, error)
            return {}, str(error)
        except Exception as error:
            log.exception("job %s failed", name)
            return {}, f"{type(error).__name__}: {error}"

    def _running_now(self) -> frozenset[str]:
        with self._changed:
            return frozenset(self._running)


class _OwnThreads(BaseExecutor):  # type: ignore[misc]  # apscheduler has no types
    """A thread a run, daemons: a place that hangs delays no other job, as in a pool it would, and no end of the process."""

    def _do_submit_job(self, job: Any, run_times: list[datetime]) -> None:
        threading.Thread(target=self._run, args=(job, run_times), name=job.name, daemon=True).start()

    def _run(self, job: Any, run_times: list[datetime]) -> None:
        try:
            events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
        except BaseException as error:  # noqa: BLE001 - apscheduler logs it
            self._run_job_error(job.id, error, error.__traceback__)
        else:
            self._run_job_success(job.id, events)


def _trigger(plan: Plan, row: Job, *, anew: bool) -> tuple[Any, datetime | None]:
    """What tells the times of the plan, and the first of them.

    A process that starts goes on where the one before ended: what was due meanwhile runs at once, and what is due later is
    not begun anew, or a daily job would never run where a process lives for hours.
    """
    now = datetime.now(UTC)
    if isinstance(plan.schedule, Cron):
        trigger = _cron_trigger(plan.schedule)
        missed = not anew and row.next_at is not None and row.next_at <= now
        first: datetime | None = now if missed else trigger.get_next_fire_time(None, now.astimezone())
    else:
        interval = timedelta(seconds=plan.schedule.seconds)
        due = row.next_at if row.next_at is not None else now if plan.at_once and not anew else now + interval
        first = min(max(due, now), now + interval)
        trigger = IntervalTrigger(seconds=plan.schedule.seconds, start_date=first)
    return trigger, None if row.paused else first


def _cron_trigger(cron: Cron) -> Any:
    times = {"minute": _listed(cron.minutes), "hour": _listed(cron.hours), "month": _listed(cron.months)}
    days = {"day": _listed(cron.days)} if cron.days is not None else None
    weekdays = (
        {"day_of_week": ",".join(_EACH_WEEKDAY[day] for day in cron.weekdays)} if cron.weekdays is not None else None
    )
    chosen = [kind for kind in (days, weekdays) if kind is not None] or [{}]
    triggers = [CronTrigger(**times, **kind) for kind in chosen]
    return triggers[0] if len(triggers) == 1 else OrTrigger(triggers)


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
