"""The line in which searches wait for their turn: answered together where the index is in memory, each by itself by Milvus.

There they are read in one thread, mostly by another process, and scored in another: while one batch is scored the next
searches are read as they come, and whatever is read by then is the next batch. Where the line is full, the next search is
refused before anything is done for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import answer
from api.leaving import Gone, results
from api.telemetry import Metrics
from pipeline.connected import Connected
from pipeline.encoding.batcher import Batch, Batcher
from pipeline.errors import NotReady, Overloaded
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import Question, Searcher, SearchResult
from pipeline.settings import ApiSettings

SEARCH_PATH = "/v1/search"
_SEARCH_ROUTE = SimpleNamespace(path=SEARCH_PATH)  # what the figures call it
_BY_MILVUS = 16  # threads: they mostly wait

_Read = tuple[Searcher, Question]  # a question goes to the index that it was read for, should another one come between


class Searches:
    """Answers searches by what is `connected` when their turn comes. Thread-safe."""

    def __init__(self, settings: ApiSettings, connected: Callable[[], Connected], metrics: Metrics) -> None:
        self._connected = connected
        self._metrics = metrics
        self._scoring: Batcher[_Read, SearchResult] = Batcher(
            _answers,
            name="the scoring of a search",
            most=settings.search_batch,
            observe=metrics.answered,
        )
        self._reading: Batcher[SearchRequest, SearchResult] = Batcher(
            self._read,
            name="a search",
            most=settings.search_batch,
            waiting=settings.search_queue,
            patience=settings.search_patience_seconds,
            then=self._scoring,
            observe=metrics.waited,
        )
        self._by_milvus: Batcher[SearchRequest, SearchResult] = Batcher(
            self._by_itself,
            name="a search",
            most=1,
            waiting=settings.search_queue,
            patience=settings.search_patience_seconds,
            threads=_BY_MILVUS,
            observe=self._observe,
        )

    @property
    def waiting(self) -> int:
        """How many stand in line for those before them; who is read already is nearly there."""
        return self._reading.waiting + self._by_milvus.waiting

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
        """Ends after the batch that is being scored; the others are refused."""
        self._reading.close()
        self._scoring.close()
        self._by_milvus.close()

    def _in_force(self) -> Batcher[SearchRequest, SearchResult]:
        return self._reading if self._connected().answers_from_memory else self._by_milvus

    def _read(self, requests: Sequence[SearchRequest]) -> list[_Read]:
        searcher = self._connected().searcher
        return [(searcher, question) for question in searcher.questions(requests)]

    def _by_itself(self, requests: Sequence[SearchRequest]) -> list[SearchResult | Exception]:
        return self._connected().searcher.search_many(requests)

    def _observe(self, batch: Batch) -> None:
        self._metrics.waited(batch)
        self._metrics.answered(batch)


def _answers(read: Sequence[_Read]) -> list[SearchResult | Exception]:
    found: dict[int, SearchResult | Exception] = {}
    for searcher in dict.fromkeys(searcher for searcher, _ in read):  # one, but while the index in use changes
        places = [place for place, (reader, _) in enumerate(read) if reader is searcher]
        found |= zip(places, searcher.answer([read[place][1] for place in places]), strict=True)
    return [found[place] for place in range(len(read))]


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
