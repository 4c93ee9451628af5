"""Whoever goes away while he waits: what is done for him alone is given up. Knows nothing of what that is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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


async def unless_gone(future: asyncio.Future[Result], gone: Gone) -> Result:
    """The result of `future`, which is cancelled where `gone` returns before. Raises ClientDisconnect then."""
    loop = asyncio.get_running_loop()
    watching: list[asyncio.Task[None]] = []

    async def watch() -> None:
        await gone()
        future.cancel()

    due = loop.call_later(_WATCHED_SECONDS, lambda: watching.append(loop.create_task(watch())))
    try:
        return await future
    except asyncio.CancelledError:
        if watching and watching[0].done():
            raise ClientDisconnect from None
        raise
    finally:
        due.cancel()
        for task in watching:
            task.cancel()
