"""The line in which searches wait for their turn: answered together where the index is in memory, each by itself by Milvus.

Where it is full, the next search is refused before anything is done for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import answer
from api.leaving import Gone, results
from api.telemetry import Metrics
from pipeline.connected import Connected
from pipeline.encoding.batcher import Batcher
from pipeline.errors import NotReady, Overloaded
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import SearchResult
from pipeline.settings import ApiSettings

SEARCH_PATH = "/v1/search"
_SEARCH_ROUTE = SimpleNamespace(path=SEARCH_PATH)  # what the figures call it
_IN_MEMORY = 2  # threads: the queries of one batch are read, mostly in another process, while the one before is scored
_BESIDE_SECONDS = 0.01  # for those who were answered just now and ask again: reading may take half as long as scoring
_BY_MILVUS = 16  # threads: they mostly wait


class Searches:
    """Answers searches by what is `connected` when their turn comes. Thread-safe."""

    def __init__(self, settings: ApiSettings, connected: Callable[[], Connected], metrics: Metrics) -> None:
        self._connected = connected
        self._metrics = metrics
        scoring = threading.Lock()  # two threads would wait for each other at every step of the interpreter
        self._in_memory = self._batcher(settings, _IN_MEMORY, settings.search_batch, scoring)
        self._by_milvus = self._batcher(settings, _BY_MILVUS, 1)

    @property
    def waiting(self) -> int:
        """How many stand in line for those before them."""
        return self._in_memory.waiting + self._by_milvus.waiting

    def refusal(self) -> Overloaded | None:
        """Why a search would be refused now; None where nothing is open yet: its own answer says why."""
        try:
            return self._in_force().refusal()
        except NotReady:
            return None

    async def result(self, request: SearchRequest, gone: Gone) -> SearchResult:
        """What `Searcher.search` gives or raises; whoever gives up waiting for it is not searched for. `gone` returns when
        nobody waits any more. Raises Overloaded, ClientDisconnect."""
        (result,) = await results([self._in_force().submit(request)], gone)
        return result

    def close(self) -> None:
        """Ends after the searches under way; the others are refused."""
        self._in_memory.close()
        self._by_milvus.close()

    def _in_force(self) -> Batcher[SearchRequest, SearchResult]:
        return self._in_memory if self._connected().answers_from_memory else self._by_milvus

    def _batcher(
        self, settings: ApiSettings, threads: int, most: int, turn: AbstractContextManager[object] | None = None
    ) -> Batcher[SearchRequest, SearchResult]:
        def answered(requests: Sequence[SearchRequest]) -> list[SearchResult | Exception]:
            return self._connected().searcher.search_many(requests, turn)

        return Batcher(
            answered,
            name="a search",
            most=most,
            waiting=settings.search_queue,
            patience=settings.search_patience_seconds,
            threads=threads,
            beside=_BESIDE_SECONDS if most > 1 else 0.0,
            observe=self._metrics.batch,
        )


class Refusing:
    """ASGI middleware: answers 429 to searches that would be refused, at a tenth of what it costs to look at them first."""

    def __init__(self, app: ASGIApp, refusal: Callable[[], Overloaded | None]) -> None:
        self._app = app
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == SEARCH_PATH and (refused := self._refusal()) is not None:
            scope["route"] = _SEARCH_ROUTE
            await answer(refused)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
