"""Dynamic batching: what is asked at the same time is worked on together.

Whoever asks waits for a future; threads take what waits, the most urgent first, and give it to the work as one batch. Under
light load a batch is one item and nothing is waited for; while a batch is worked on, the next one gathers. What waits is
bounded in number and in time, so a crowd is refused at once instead of being served late.

Knows nothing of what is worked on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipeline.errors import Overloaded, Unavailable

log = logging.getLogger(__name__)

Given = TypeVar("Given")
Made = TypeVar("Made")

_RATE_SECONDS = 1.0  # over which the rate is remembered that says when to come again
_PASSED_OVER = (
    3  # batches, while less urgent items than theirs wait: then it is these items' turn, so that they do not starve
)
_CLOSED_HINT = "it is ending: ask another process, or again when it is back"


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of a batch of items of one `priority`. Seconds: `waits` of its items before, `worked` on all of them."""

    waits: Sequence[float]
    worked: float
    priority: int = 0


@dataclass(slots=True, eq=False)
class _Item(Generic[Given, Made]):
    given: Given
    cost: int
    priority: int
    since: float  # monotonic
    counts: bool  # among those of whom only so many may wait
    future: Future[Made]


class Batcher(Generic[Given, Made]):
    """Runs `work` on batches of what is asked. Thread-safe.

    `work` gives for each item what was made of it, or the exception for who asked. Where it raises, each item is tried by
    itself, so that one cannot spoil the others'.

    `most` items make a batch at most, and where `cost` is given, so many that their number times the greatest cost, which is
    what a padded batch comes to, is at most `budget`; items of like cost go together. `waiting` items may wait; where more than
    a batch of them do, who has waited for `patience` seconds is refused, so that a crowd is not served late but a stall harms
    nobody. `linger` seconds are waited for more of them where the batch before was of several. `threads` work at the same time.
    `observe` is told of each batch, and may be changed.

    With `then`, what is made goes on to that batcher, and its results are what was asked for: a step that may be done early,
    while another one works. No more is begun than makes a whole batch of what waits there, where it can still be cancelled.

    A batch is of one priority: 0 before all others; of these the lowest first, and every fourth time the highest.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Given]], Sequence[Any | Exception]],
        *,
        name: str,
        most: int,
        waiting: float = math.inf,
        patience: float = math.inf,
        linger: float = 0.0,
        threads: int = 1,
        cost: Callable[[Given], int] | None = None,
        budget: int = 0,
        then: Batcher[Any, Made] | None = None,
        observe: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        self._work = work
        self._name = name
        self._most = most
        self._waiting = waiting
        self._patience = patience
        self._linger = linger
        self._cost = cost
        self._budget = budget
        self._then = then
        self.observe = observe
        self._items: list[_Item[Given, Made]] = []  # in the order in which they came
        self._counted = 0  # of these
        self._passed_over = 0  # batches since the least urgent of those that wait were worked on
        self._lock = threading.RLock()  # the collector may close this wherever it runs
        self._came = threading.Condition(self._lock)  # items, or the end
        self._went = threading.Condition(self._lock)
        self._closed = False
        self._crowded = False  # the last batch was of several items
        self._done = 0.0  # items a second, lately
        self._done_at = time.monotonic()
        self._started: list[threading.Thread] = []  # with the first item
        self._to_start = [
            threading.Thread(target=self._run, name=f"{name} {number}", daemon=True) for number in range(threads)
        ]

    @property
    def waiting(self) -> int:
        """How many items wait for their batch."""
        return len(self._items)

    def refusal(self) -> Overloaded | None:
        """Why nothing more is taken now: as many wait as may, or the first of a crowd has waited for too long already."""
        items = self._items
        late = len(items) > self._most and time.monotonic() - items[0].since > self._patience
        return self._overloaded() if late or self._counted >= self._waiting else None

    def submit(self, given: Given, *, priority: int = 0) -> Future[Made]:
        """The future of what is made of `given`; cancelled before its batch, it costs nothing. Lower priorities go first.

        Raises Overloaded (`refusal`), Unavailable after `close`. The future raises what the work raises, and
        Overloaded where its turn did not come in time.
        """
        (future,) = self.submit_all([given], priority=priority)
        return future

    def submit_all(self, given: Sequence[Given], *, priority: int = 0, bounded: bool = True) -> list[Future[Made]]:
        """`submit` for each of `given`, or for none: they are refused where one by itself would be, however many they are. Those
        that are not `bounded` are never refused, and nobody because of them."""
        return self._take(given, [Future() for _ in given], priority=priority, bounded=bounded)

    def _take(
        self, given: Sequence[Given], futures: Sequence[Future[Made]], *, priority: int, bounded: bool
    ) -> list[Future[Made]]:
        now = time.monotonic()
        items: list[_Item[Given, Made]] = [
            _Item(each, self._cost(each) if self._cost else 1, priority, now, bounded, future)
            for each, future in zip(given, futures, strict=True)
        ]
        with self._lock:
            if self._closed:
                raise Unavailable(f"{self._name} is not done any more", _CLOSED_HINT)
            if bounded and self.refusal() is not None:
                self._keep([waiting for waiting in self._items if not waiting.future.cancelled()])
                if (refused := self.refusal()) is not None:
                    raise refused
            while self._to_start:
                self._to_start[-1].start()
                self._started.append(self._to_start.pop())
            self._items += items
            self._counted += len(items) if bounded else 0
            self._came.notify(len(items))
        return [item.future for item in items]

    def close(self) -> None:
        """Ends after the batches under way; what waits is refused."""
        with self._lock:
            self._closed = True
            left = self._items
            self._keep([])
            self._came.notify_all()
        for item in left:
            _fail(item.future, Unavailable(f"{self._name} is not done any more", _CLOSED_HINT))
        for thread in self._started:
            if thread is not threading.current_thread():  # where the collector runs just then
                thread.join()

    def _run(self) -> None:
        while self._somebody_waits():
            room = self._then._room() if self._then is not None else self._most
            batch = self._next(room)
            try:
                if batch:
                    self._work_on(batch)
            except BaseException as error:  # whatever it is: without this thread nobody would be answered any more
                log.exception("a batch of %s was given up", self._name)
                for item in batch:
                    _fail(item.future, RuntimeError(f"{self._name} ended by {type(error).__name__}: {error}"))

    def _somebody_waits(self) -> bool:
        """Waits for an item; False at the end."""
        with self._lock:
            self._came.wait_for(lambda: self._items or self._closed)
            return not self._closed

    def _room(self) -> int:
        """Waits until less than a batch waits; how many are missing to one."""
        with self._lock:
            self._went.wait_for(lambda: len(self._items) < self._most or self._closed)
            return max(1, self._most - len(self._items))

    def _next(self, room: int) -> list[_Item[Given, Made]]:
        """The items of the next batch, `room` at most, taken from those that wait."""
        with self._lock:
            if self._linger and self._crowded and not self._enough():
                self._came.wait_for(self._enough, self._linger)
            crowd = len(self._items) > self._most
            chosen = self._chosen(min(room, self._most))
            if chosen:
                self._crowded = len(chosen) > 1
            taken = set(map(id, chosen))
            self._keep([item for item in self._items if id(item) not in taken])
        return self._still_wanted(chosen, self._patience if crowd else math.inf)

    def _keep(self, items: list[_Item[Given, Made]]) -> None:
        self._items = items
        self._counted = sum(item.counts for item in items)
        self._went.notify_all()

    def _enough(self) -> bool:
        """Whether nothing is gained by waiting for more."""
        full = len(self._items) >= self._most or self._closed
        return full or (self._cost is not None and sum(item.cost for item in self._items) >= self._budget)

    def _chosen(self, most: int) -> list[_Item[Given, Made]]:
        """The oldest of the items whose turn it is, and those like it that fit beside it."""
        if not self._items:  # another thread took them meanwhile
            return []
        turn = self._turn({item.priority for item in self._items})
        first, *others = [item for item in self._items if item.priority == turn]
        if self._cost is None:
            return [first, *others[: most - 1]]
        chosen, greatest = [first], first.cost
        for item in sorted(others, key=lambda other: abs(other.cost - first.cost)):
            greatest = max(greatest, item.cost)
            if len(chosen) == most or (len(chosen) + 1) * greatest > self._budget:
                break
            chosen.append(item)
        return chosen

    def _turn(self, priorities: AbstractSet[int]) -> int:
        """Of which of the `priorities` the next batch is."""
        urgent, least = min(priorities), max(priorities)
        turn = least if urgent and self._passed_over >= _PASSED_OVER else urgent
        self._passed_over = 0 if turn == least else self._passed_over + 1
        return turn

    def _still_wanted(self, items: Sequence[_Item[Given, Made]], patience: float) -> list[_Item[Given, Made]]:
        """Those that were not given up; who waited for too long is refused."""
        now, wanted = time.monotonic(), []
        for item in items:
            if now - item.since > patience:
                _fail(item.future, self._overloaded())
            elif self._begins(item.future):
                wanted.append(item)
        return wanted

    def _begins(self, future: Future[Made]) -> bool:
        """False for one that was given up; after the beginning of the last step none can be."""
        return not future.cancelled() if self._then is not None else future.set_running_or_notify_cancel()

    def _work_on(self, items: Sequence[_Item[Given, Made]]) -> None:
        begun = time.monotonic()
        outcomes = self._outcomes([item.given for item in items])
        ended = time.monotonic()
        self._note(len(items), ended)
        self.observe(Batch([begun - item.since for item in items], ended - begun, items[0].priority))
        made = []
        for item, outcome in zip(items, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _fail(item.future, outcome)
            elif self._then is None:
                item.future.set_result(outcome)
            else:
                made.append((outcome, item.future))
        if self._then is not None and made:
            self._hand_on(made, self._then)

    def _hand_on(self, made: Sequence[tuple[Any, Future[Made]]], then: Batcher[Any, Made]) -> None:
        try:
            then._take([each for each, _ in made], [future for _, future in made], priority=0, bounded=False)
        except Unavailable as error:
            for _, future in made:
                _fail(future, error)

    def _outcomes(self, given: Sequence[Given]) -> Sequence[Made | Exception]:
        try:
            return self._work(given)
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            if len(given) == 1:
                return [error]
        return [outcome for each in given for outcome in self._outcomes([each])]

    def _note(self, items: int, now: float) -> None:
        with self._lock:
            passed = max(now - self._done_at, 1e-6)
            fading = math.exp(-passed / _RATE_SECONDS)
            self._done = self._done * fading + items / passed * (1 - fading)
            self._done_at = now

    def _overloaded(self) -> Overloaded:
        waiting = len(self._items)
        return Overloaded(self._name, waiting, waiting / self._done if self._done > 1 else 1.0)


def _fail(future: Future[Any], error: Exception) -> None:
    """Tells who asked, where he still waits."""
    if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
        future.set_exception(error)
