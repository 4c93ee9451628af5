"""Dynamic batching against a model: every item is answered once, in batches that keep every bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encoding.batcher import Batch, Batcher
from pipeline.errors import Overloaded, Unavailable
from tests.faults import until

PATIENCE = 60.0  # seconds; only a test that fails waits for so long


@dataclass
class Work:
    """Doubles numbers; holds the batches that it saw. With a `gate` a batch begins when that is open."""

    gate: threading.Event | None = None
    batches: list[list[int]] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(numbers))
        self.begun.release()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        return [2 * number for number in numbers]


@contextmanager
def batcher(work: Callable[[Sequence[int]], Sequence[int | Exception]], **options: Any) -> Iterator[Batcher[int, int]]:
    made: Batcher[int, int] = Batcher(work, **{"name": "a test", "most": 4, "waiting": 100, **options})
    try:
        yield made
    finally:
        made.close()


@contextmanager
def held(**options: Any) -> Iterator[tuple[Batcher[int, int], Work]]:
    """A batcher whose first batch, the number 0, is under way and stays so until the gate is opened."""
    work = Work(gate=threading.Event())
    assert work.gate is not None
    with batcher(work, **options) as made:
        first = made.submit(0)
        assert work.begun.acquire(timeout=PATIENCE)
        try:
            yield made, work
        finally:
            work.gate.set()
            assert first.result(PATIENCE) == 0


def opened(work: Work, futures: Sequence[Future[int]]) -> list[int]:
    assert work.gate is not None
    work.gate.set()
    return [future.result(PATIENCE) for future in futures]


def test_what_waits_meanwhile_is_one_batch_and_the_rest_the_next() -> None:
    with held() as (made, work):
        assert opened(work, [made.submit(number) for number in range(1, 7)]) == [2, 4, 6, 8, 10, 12]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_urgent_items_go_first_in_their_order() -> None:
    with held(most=2) as (made, work):
        passages = [made.submit(number, priority=1) for number in (11, 12, 13)]
        queries = [made.submit(number) for number in (1, 2, 3)]
        opened(work, [*passages, *queries])
    assert work.batches == [[0], [1, 2], [3], [11, 12], [13]]


@given(costs=st.lists(st.integers(1, 40), min_size=1, max_size=30), most=st.integers(1, 8), budget=st.integers(1, 100))
@settings(max_examples=50, deadline=None)
def test_padded_batches_keep_the_budget_and_lose_nobody(costs: list[int], most: int, budget: int) -> None:
    with held(most=most, cost=lambda number: costs[number - 1] if number else 1, budget=budget) as (made, work):
        numbers = range(1, len(costs) + 1)
        assert opened(work, [made.submit(number) for number in numbers]) == [2 * number for number in numbers]
    assert sorted(number for batch in work.batches[1:] for number in batch) == list(numbers)
    for batch in work.batches[1:]:
        padded = len(batch) * max(costs[number - 1] for number in batch)
        assert len(batch) <= most
        assert padded <= budget or len(batch) == 1  # one that is too large by itself goes by itself


def test_a_batch_is_of_items_of_like_cost_beginning_with_the_oldest() -> None:
    costs = {0: 1, 1: 100, 2: 8, 3: 96, 4: 10, 5: 99}
    with held(most=3, cost=costs.__getitem__, budget=300) as (made, work):
        opened(work, [made.submit(number) for number in (1, 2, 3, 4, 5)])
    assert [sorted(batch) for batch in work.batches] == [[0], [1, 3, 5], [2, 4]]


def test_what_is_given_up_before_its_turn_is_not_worked_on_and_frees_its_place() -> None:
    with held(waiting=2) as (made, work):
        given_up, kept = made.submit(1), made.submit(2)
        with pytest.raises(Overloaded):
            made.submit(3)
        assert given_up.cancel()
        assert opened(work, [kept, made.submit(4)]) == [4, 8]
        with pytest.raises(CancelledError):
            given_up.result(PATIENCE)
    assert work.batches == [[0], [2, 4]]


def test_beyond_the_bound_more_is_refused_at_once_with_a_time_to_come_again() -> None:
    with held(waiting=3) as (made, work):
        waiting = [made.submit(number) for number in (1, 2, 3)]
        with pytest.raises(Overloaded, match="3 wait for a test already") as refused:
            made.submit(4)
        assert refused.value.retry_after >= 1
        assert made.waiting == 3
        assert opened(work, waiting) == [2, 4, 6]


def test_of_a_crowd_who_waited_for_too_long_is_refused_instead_of_served_late() -> None:
    with held(most=2, patience=0.05) as (made, work):
        late = [made.submit(number) for number in (1, 2, 3)]
        time.sleep(0.06)
        assert work.gate is not None
        work.gate.set()
        for future in late[:2]:
            with pytest.raises(Overloaded):
                future.result(PATIENCE)
        assert late[2].result(PATIENCE) == 6  # by then it was no crowd any more
    assert work.batches == [[0], [3]]


def test_nobody_joins_a_crowd_whose_first_has_waited_for_too_long() -> None:
    with held(most=2, patience=0.05) as (made, work):
        waiting = [made.submit(number) for number in (1, 2, 3)]
        time.sleep(0.06)
        with pytest.raises(Overloaded, match="3 wait"):
            made.submit(4)
        assert waiting[0].cancel()  # with two it is no crowd
        joined = made.submit(5)
        assert work.gate is not None
        work.gate.set()
        assert joined.result(PATIENCE) == 10


def test_after_a_stall_those_who_fit_into_a_batch_are_served() -> None:
    with held(most=2, patience=0.05) as (made, work):
        waiting = [made.submit(number) for number in (1, 2)]
        time.sleep(0.06)
        assert opened(work, waiting) == [2, 4]


def test_many_are_taken_or_refused_together_and_only_those_that_are_bounded() -> None:
    with held(most=2, waiting=2) as (made, work):
        waiting = made.submit_all([1, 2, 3], priority=1)  # one by itself would be taken
        for refused in ([4], [4, 5]):
            with pytest.raises(Overloaded):
                made.submit_all(refused)
        assert made.waiting == 3
        waiting += made.submit_all([6, 7], priority=1, bounded=False)
        assert opened(work, waiting) == [2, 4, 6, 12, 14]
        assert opened(work, made.submit_all([8, 9, 10], bounded=False)) == [16, 18, 20]  # refuse nobody, either


def test_the_least_urgent_have_their_turn_though_others_keep_coming_but_not_before_the_most_urgent() -> None:
    for urgent, turns in ((1, [[1], [2], [3], [11], [4], [5]]), (0, [[1], [2], [3], [4], [5], [11]])):
        with held(most=1) as (made, work):
            later = made.submit(11, priority=2)
            opened(work, [later, *(made.submit(number, priority=urgent) for number in (1, 2, 3, 4, 5))])
        assert work.batches[1:] == turns


def test_the_exception_of_an_item_is_its_own() -> None:
    def work(numbers: Sequence[int]) -> list[int | Exception]:
        return [ValueError(str(number)) if number == 2 else number for number in numbers]

    with batcher(work) as made:
        futures = [made.submit(number) for number in (1, 2, 3)]
        assert futures[0].result(PATIENCE) == 1
        assert futures[2].result(PATIENCE) == 3
        with pytest.raises(ValueError, match="2"):
            futures[1].result(PATIENCE)


def test_one_item_that_breaks_the_work_breaks_it_for_no_other() -> None:
    gate = threading.Event()

    def work(numbers: Sequence[int]) -> list[int]:
        assert gate.wait(PATIENCE)
        if 2 in numbers:
            raise RuntimeError("out of memory")
        return list(numbers)

    with batcher(work) as made:
        first = made.submit(0)
        futures = [made.submit(number) for number in (1, 2, 3)]
        gate.set()
        assert first.result(PATIENCE) == 0
        assert [futures[0].result(PATIENCE), futures[2].result(PATIENCE)] == [1, 3]
        with pytest.raises(RuntimeError, match="out of memory"):
            futures[1].result(PATIENCE)


def test_under_load_a_batch_lingers_for_more_and_without_load_it_does_not() -> None:
    with held(most=3, linger=PATIENCE) as (made, work):
        pair = [made.submit(number) for number in (1, 2)]
        opened(work, pair)  # of several items: there is load, and the next one waits for its third
        lingering = [made.submit(number) for number in (3, 4, 5)]
        assert [future.result(PATIENCE / 2) for future in lingering] == [6, 8, 10]
    assert work.batches == [[0], [1, 2], [3, 4, 5]]


def test_a_batch_that_is_full_by_its_cost_does_not_linger() -> None:
    with held(most=100, linger=PATIENCE, cost=lambda _number: 10, budget=20) as (made, work):
        opened(work, [made.submit(number) for number in (1, 2)])
        assert [future.result(PATIENCE / 2) for future in made.submit_all([3, 4])] == [6, 8]
    assert work.batches == [[0], [1, 2], [3, 4]]


def test_what_is_made_goes_on_to_the_next_batcher_with_whatever_waits_there() -> None:
    with held() as (second, work), batcher(lambda numbers: [number + 1 for number in numbers], then=second) as first:
        asked = [first.submit(1)]
        until(lambda: second.waiting == 1, PATIENCE, "the first one was not handed on")
        asked.append(first.submit(2))  # made while the second batcher works
        until(lambda: second.waiting == 2, PATIENCE, "the second one was not handed on")
        assert opened(work, asked) == [4, 6]
    assert work.batches == [[0], [2, 3]]


def test_no_more_is_begun_than_makes_a_whole_batch_of_what_waits_in_the_next_batcher() -> None:
    early = Work()
    with held(most=3) as (second, work), batcher(early, then=second, most=3, waiting=3) as first:
        asked = [first.submit(1)]
        until(lambda: second.waiting == 1, PATIENCE, "not handed on")
        with first._lock:  # they come together
            asked += first.submit_all([2, 3, 4])
        until(lambda: second.waiting == 3, PATIENCE, "not handed on")
        asked += first.submit_all([5, 6])
        with pytest.raises(Overloaded):
            first.submit(7)
        assert early.batches == [[1], [2, 3]]
        assert opened(work, asked) == [4, 8, 12, 16, 20, 24]
    assert early.batches == [[1], [2, 3], [4, 5, 6]]
    assert work.batches == [[0], [2, 4, 6], [8, 10, 12]]


def test_what_waits_for_the_last_step_can_still_be_given_up() -> None:
    with held() as (second, work), batcher(list, then=second) as first:
        given_up, kept = first.submit_all([1, 2])
        until(lambda: second.waiting == 2, PATIENCE, "not handed on")
        assert given_up.cancel()
        assert opened(work, [kept]) == [4]
    assert work.batches == [[0], [2]]


def test_whatever_the_work_ends_by_the_next_batch_is_worked_on() -> None:
    class Panic(BaseException):
        """As some libraries in other languages end."""

    def work(numbers: Sequence[int]) -> list[int | Exception]:
        if 1 in numbers:
            raise Panic("out of everything")
        return list(numbers)

    with batcher(work, most=1) as made:
        with pytest.raises(RuntimeError, match="Panic: out of everything"):
            made.submit(1).result(PATIENCE)
        assert made.submit(2).result(PATIENCE) == 2


def test_what_cannot_be_made_or_handed_on_is_told_to_who_asked() -> None:
    def odd(numbers: Sequence[int]) -> list[int | Exception]:
        return [number if number % 2 else ValueError(f"{number} is even") for number in numbers]

    def nothing(_numbers: Sequence[int]) -> list[int | Exception]:
        raise RuntimeError("nothing works")

    with batcher(nothing) as second, batcher(odd, then=second) as first:
        with pytest.raises(ValueError, match="2 is even"):
            first.submit(2).result(PATIENCE)
        with pytest.raises(RuntimeError, match="nothing works"):
            first.submit(1).result(PATIENCE)
        second.close()
        with pytest.raises(Unavailable):
            first.submit(3).result(PATIENCE)


def test_several_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def work(numbers: Sequence[int]) -> list[int]:
        both.wait(PATIENCE)
        return list(numbers)

    with batcher(work, most=1, threads=2) as made:
        assert [f.result(PATIENCE) for f in [made.submit(1), made.submit(2)]] == [1, 2]


def test_each_batch_is_told_of_with_its_waits() -> None:
    seen: list[Batch] = []
    with held(observe=seen.append) as (made, work):
        opened(work, [made.submit(1), made.submit(2)])
    assert [len(batch.waits) for batch in seen] == [1, 2]
    assert all(wait >= 0 for batch in seen for wait in batch.waits)
    assert seen[1].waits[0] >= seen[1].waits[1]


def test_what_waits_at_the_end_is_refused_and_what_is_asked_later_too() -> None:
    work = Work(gate=threading.Event())
    assert work.gate is not None
    made: Batcher[int, int] = Batcher(work, name="a test", most=1, waiting=10)
    under_way, waiting = made.submit(1), made.submit(2)
    assert work.begun.acquire(timeout=PATIENCE)
    closing = threading.Thread(target=made.close)
    closing.start()
    with pytest.raises(Unavailable, match="not done any more"):
        waiting.result(PATIENCE)
    work.gate.set()
    closing.join(PATIENCE)
    assert under_way.result(PATIENCE) == 2
    with pytest.raises(Unavailable):
        made.submit(3)


@given(numbers=st.lists(st.integers(0, 1_000), max_size=200), threads=st.integers(1, 3), most=st.integers(1, 16))
@settings(max_examples=20, deadline=None)
def test_whoever_asks_from_many_threads_gets_his_own_answer(numbers: list[int], threads: int, most: int) -> None:
    answers: dict[int, int] = {}
    with batcher(Work(), most=most, threads=threads, waiting=1_000) as made:

        def ask(place: int) -> None:
            answers[place] = made.submit(numbers[place]).result(PATIENCE)

        asking = [threading.Thread(target=ask, args=(place,)) for place in range(len(numbers))]
        for each in asking:
            each.start()
        for each in asking:
            each.join()
    assert answers == {place: 2 * number for place, number in enumerate(numbers)}
