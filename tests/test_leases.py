"""One holder of a duty at a time, and no commit by one that lost it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from pipeline.documents import Article
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease, LeaseLost
from pipeline.storage.rows import Indexed, Leftover

_LONG = 60.0  # seconds: does not run out during a test
_OVER = 0.0  # seconds: has run out at once
_ASKING = 4
_ROUNDS = 10


@pytest.fixture
def database(state_url: str) -> Iterator[StateDatabase]:
    opened = StateDatabase.open(state_url)
    yield opened
    opened.close()


def acquired(database: StateDatabase, holder: str, seconds: float = _LONG) -> Lease:
    lease = leases.acquire(database, "worker", holder, seconds)
    assert lease is not None
    return lease


def test_of_many_that_ask_at_once_one_gets_the_lease(database: StateDatabase) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: leases.acquire(database, "worker", f"holder {n}", _LONG), range(8)))
    assert sum(answer is not None for answer in answers) == 1


def test_leases_of_other_names_are_free(database: StateDatabase) -> None:
    acquired(database, "a")
    assert leases.acquire(database, "scheduler", "b", _LONG) is not None


def test_a_lease_that_ran_out_is_taken_over_with_a_higher_epoch(database: StateDatabase) -> None:
    first = acquired(database, "a", _OVER)
    second = acquired(database, "b")
    assert second.epoch > first.epoch
    with pytest.raises(LeaseLost, match="taken over"):
        leases.renew(database, first, _LONG)


def test_who_holds_a_lease_is_told_as_long_as_it_runs(database: StateDatabase) -> None:
    assert leases.holder(database, "worker") is None
    held = acquired(database, "a")
    assert leases.holder(database, "worker") == "a"
    leases.release(database, held)
    assert leases.holder(database, "worker") is None


def test_who_is_alone_takes_the_lease_of_a_killed_holder_at_once(database: StateDatabase) -> None:
    dead = acquired(database, "a")
    assert leases.acquire(database, "worker", "b", _LONG) is None
    alone = leases.acquire(database, "worker", "b", _LONG, alone=True)
    assert alone is not None
    with pytest.raises(LeaseLost, match="taken over"):
        leases.renew(database, dead, _LONG)


def test_a_renewed_lease_outlives_its_first_time(database: StateDatabase) -> None:
    lease = acquired(database, "a", 0.05)
    leases.renew(database, lease, _LONG)
    time.sleep(0.1)
    assert leases.acquire(database, "worker", "b", _LONG) is None


def test_a_released_lease_is_free_at_once_and_releasing_a_lost_one_harms_nobody(database: StateDatabase) -> None:
    first = acquired(database, "a")
    leases.release(database, first)
    acquired(database, "b")
    leases.release(database, first)
    assert leases.acquire(database, "worker", "c", _LONG) is None


def test_a_lost_lease_refuses_the_commit_and_nothing_of_it_is_visible(database: StateDatabase) -> None:
    store = ArticleStore(database)
    store.accept_many([Article(id=name, title="제목", body="본문") for name in ("가", "나")], source="test")
    changes = store.queued(9)
    lost = acquired(database, "a", _OVER)
    held = acquired(database, "b")
    with pytest.raises(LeaseLost):
        store.commit([Indexed(change, 1) for change in changes], lost, grace_seconds=0)
    with pytest.raises(LeaseLost):
        store.fail(changes[0], "왜냐하면", lost)
    assert store.visible() == (0, 0, {})
    assert store.queued(9) == changes
    assert store.counts() == {"queued": 2}
    assert store.due_leftovers() == []
    with pytest.raises(LeaseLost):
        store.forget_leftovers([Leftover("가", 0, 0, None, 1)], datetime.now(UTC), lost)
    store.commit([Indexed(change, 1) for change in changes], held, grace_seconds=0)
    assert store.visible()[2] == {"가": 1, "나": 2}


@pytest.mark.postgres
def test_of_many_processes_that_ask_for_a_new_lease_at_once_one_gets_it(postgres_url: str) -> None:
    """Each has connections of its own, ready: they meet at the row that is not there yet."""
    databases = [StateDatabase.open(postgres_url) for _ in range(_ASKING)]
    for number in range(_ROUNDS):
        together = threading.Barrier(_ASKING)

        def ask(database: StateDatabase, name: str = f"duty {number}", together: threading.Barrier = together) -> bool:
            database.ping()
            together.wait(timeout=_LONG)
            return leases.acquire(database, name, f"holder {id(database)}", _LONG) is not None

        with ThreadPoolExecutor(_ASKING) as pool:
            assert sorted(pool.map(ask, databases)) == [False] * (_ASKING - 1) + [True]
    for database in databases:
        database.close()


@pytest.mark.postgres
def test_on_postgresql_the_clock_of_the_holders_machine_does_not_matter(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = StateDatabase.open(postgres_url)
    acquired(database, "a")
    true_time = time.time()
    monkeypatch.setattr(time, "time", lambda: true_time + 2 * _LONG)  # another machine, whose clock is ahead
    assert leases.acquire(database, "worker", "b", _LONG) is None
    database.close()


def test_turns_are_taken_one_after_another(database: StateDatabase) -> None:
    inside, seen = 0, []

    def take(_: int) -> None:
        nonlocal inside
        with leases.turn(database, "first collection"):
            inside += 1
            seen.append(inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(_ASKING) as pool:
        list(pool.map(take, range(_ASKING)))
    assert seen == [1] * _ASKING
