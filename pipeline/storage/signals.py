"""Wake-ups between processes: PostgreSQL's LISTEN and NOTIFY.

A signal says "look", never what there is to see, and it may be lost: who listens also looks from time to time. SQLite has
none. Knows nothing of what is signalled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, select

from pipeline.storage.database import StateDatabase

if TYPE_CHECKING:
    from pipeline.storage import postgres

log = logging.getLogger(__name__)

_PREFIX = "yeoul_"  # channels belong to a whole database, which others may use too
_LOOK_S = 0.4  # between two looks whether to stop
_JOIN_S = 0.9  # a thread that is just connecting is left to end by itself
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


def send(connection: Connection, channel: str) -> None:
    """Wakes whoever listens on `channel` when the transaction is committed; on SQLite nobody."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(_PREFIX + channel, "")))


class Listener:
    """Calls back for signals, from a thread of its own, between `start` and `stop`.

    A callback should only set an event or the like: it is called for a channel once for any number of signals that came
    together, and for every channel whenever listening begins, because something may have been missed before.
    """

    def __init__(self, database: StateDatabase, channels: Mapping[str, Callable[[], None]]) -> None:
        self._engine = database.engine
        self._callbacks = {_PREFIX + channel: callback for channel, callback in channels.items()}
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to listen, in the background; a server that is away is waited for. Nothing happens on SQLite."""
        if self._engine.dialect.name != "postgresql" or self._thread is not None:
            return
        self._stopping = threading.Event()  # a thread that outlived `stop` keeps the one that ends it
        self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends listening, within a second. Nothing is called back after that."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None

    def _run(self, stopping: threading.Event) -> None:
        from pipeline.storage import postgres  # noqa: PLC0415 - see there

        pause = _FIRST_RETRY_S
        while not stopping.is_set():
            try:
                with postgres.own_connection(self._engine) as connection:
                    for channel in self._callbacks:
                        connection.execute(f'LISTEN "{channel}"'.encode())
                    pause = _FIRST_RETRY_S
                    self._listen(connection, stopping)
            except postgres.Lost as error:
                why = " ".join(str(error).split())  # PostgreSQL tells it in several lines
                log.warning("no signals from the state database (%s): trying again in %.1f s", why, pause)
                stopping.wait(pause)
                pause = min(pause * 2, _LAST_RETRY_S)

    def _listen(self, connection: postgres.Connection, stopping: threading.Event) -> None:
        awake = set(self._callbacks)
        while not stopping.is_set():
            for channel in sorted(awake):
                if not stopping.is_set():
                    self._callbacks[channel]()
            awake = {notice.channel for notice in connection.notifies(timeout=_LOOK_S, stop_after=1)}
            if awake:
                awake |= {notice.channel for notice in connection.notifies(timeout=0)}
