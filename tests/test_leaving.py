"""Waiting for what threads make: results in their order, nobody left in line, nothing left for the collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from api.leaving import results


class Made:
    """What can be seen to be freed."""


async def _never() -> None:
    await asyncio.Event().wait()


def _ended_by_a_thread(waiting: Coroutine[Any, Any, Any], *ends: Any) -> Any:
    """What `waiting` gives, while a thread calls `ends` one after the other."""

    async def both() -> Any:
        with ThreadPoolExecutor(1) as pool:
            asked = asyncio.ensure_future(waiting)
            await asyncio.sleep(0)
            for end in ends:
                pool.submit(end)
            return await asked

    return asyncio.run(both())


def test_results_come_in_the_order_of_who_asked() -> None:
    first, second = Future[int](), Future[int]()
    given = _ended_by_a_thread(
        results([first, second], _never), lambda: second.set_result(2), lambda: first.set_result(1)
    )
    assert given == [1, 2]


def test_nothing_asked_is_nothing_waited_for() -> None:
    assert asyncio.run(results([], _never)) == []


def test_an_error_is_raised() -> None:
    future = Future[int]()
    with pytest.raises(ValueError, match="spoilt"):
        _ended_by_a_thread(results([future], _never), lambda: future.set_exception(ValueError("spoilt")))


def test_who_goes_away_leaves_nothing_in_line() -> None:
    async def gone() -> None:
        return

    futures = [Future[int](), Future[int]()]
    with pytest.raises(ClientDisconnect):
        asyncio.run(results(futures, gone))
    assert all(future.cancelled() for future in futures)


def test_who_is_told_to_give_up_leaves_nothing_in_line() -> None:
    async def given_up(future: Future[int]) -> None:
        await asyncio.wait_for(results([future], _never), 0.01)

    future = Future[int]()
    with pytest.raises(TimeoutError):
        asyncio.run(given_up(future))
    assert future.cancelled()


def test_a_result_is_freed_as_soon_as_nobody_holds_it() -> None:
    def held() -> weakref.ref[Made]:
        future = Future[Made]()
        (made,) = _ended_by_a_thread(results([future], _never), lambda: future.set_result(Made()))
        return weakref.ref(made)

    gc.disable()  # what hangs in a circle would wait for it
    try:
        assert held()() is None
    finally:
        gc.enable()
