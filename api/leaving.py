"""Waiting for what threads make, as long as whoever asked for it is there. Knows nothing of what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

_WATCHED_SECONDS = 0.25  # a wait that takes longer is worth a look whether somebody still waits

Gone = Callable[[], Awaitable[None]]
Result = TypeVar("Result")


def gone_of(request: Request) -> Gone:
    """What returns when the client of `request`, whose body was read, has closed the connection."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


async def results(futures: Sequence[Future[Result]], gone: Gone) -> list[Result]:
    """The results of `futures`. The loop is woken once, by the last of them; nobody is left waiting in line where one raises,
    or where `gone` returns before. Raises ClientDisconnect then."""
    if not futures:
        return []
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    last, ended = len(futures), count(1)  # with `futures`, the callback and they would be a circle for the collector
    watching: list[asyncio.Task[None]] = []

    def end() -> None:
        if not done.done():
            done.set_result(None)

    def one_ended(_future: Future[Result]) -> None:
        if next(ended) == last:
            with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(end)

    async def watch() -> None:
        await gone()
        done.cancel()

    due = loop.call_later(_WATCHED_SECONDS, lambda: watching.append(loop.create_task(watch())))
    try:
        for future in futures:
            future.add_done_callback(one_ended)
        await done
        return [future.result() for future in futures]
    except asyncio.CancelledError:
        if watching and watching[0].done():
            raise ClientDisconnect from None
        raise
    finally:
        due.cancel()
        for task in watching:
            task.cancel()
        for future in futures:
            future.cancel()
