"""Publish → searchable and delete → gone, measured from outside, on every API process, under a steady load.

Half of the pushes are new articles of a sentence, of which half are deleted again; the others correct one of the articles
of several passages that the index was filled with. Each push carries a word that no other article has; a search for it with
the push's `min_seq`, on every process, says when it is there. These 25 searches a second and process come on top of the load,
so they ask for words alone (`mode=lexical`), which costs the process less than half. Open loop: a push or a search begins at
its time, whether those before it have ended or not, and its clock does too, even where it waits for one of the clients.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import httpx2
import numpy as np
import orjson

from indexers.benchmarks.deployment import Deployment
from indexers.benchmarks.passages import edition, shipped

_CLIENTS = 48  # at once: pushes and searches that wait
_BULK = 200  # articles, some 600 passages
_LONGEST_WORK = 3600.0  # seconds
_WORD = "여울시험{}번"
_OBJECTIVES = {False: "150 / 1,000 ms", True: "300 / 2,000 ms"}  # by whether there are servers
_DELETED_EVERY = 4  # of the pushes, the article of every fourth is deleted again
_QUERIES = ("월세 세액공제", "전세 대출 갈아타기", "보이스피싱 신고", "해외 결제 수수료", "이체 한도", "연금저축")


@dataclass(slots=True)
class Load:
    """What was seen under a load. Seconds; `searches` are (begin, seconds) of the steady searches."""

    published: list[float] = field(default_factory=list)
    deleted: list[float] = field(default_factory=list)
    searches: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def filled(deployment: Deployment, passages: int) -> int:
    """Publishes variations of the shipped articles until there are `passages`; gives how many there are."""
    with httpx2.Client(base_url=deployment.servers[0].url, headers=deployment.headers, timeout=120) as client:
        last = 0
        for lines in _batches():
            answer = client.post("/v1/articles:bulk", content=b"\n".join(lines))
            answer.raise_for_status()
            last = max(orjson.loads(line)["seq"] for line in answer.text.splitlines())
            if _settled(client, last) >= passages:
                break
    return _passages(deployment, last)


def _batches() -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    for number in count(1):
        for article in shipped():
            lines.append(orjson.dumps(edition(article, number)))
            if len(lines) == _BULK:
                yield lines
                lines = []


def _settled(client: httpx2.Client, seq: int) -> int:
    while True:
        answer = client.get("/readyz").json()
        if answer.get("seq", 0) >= seq:
            return int(answer["passages"])
        time.sleep(0.1)


def _passages(deployment: Deployment, seq: int) -> int:
    held = []
    for server in deployment.servers:
        with httpx2.Client(base_url=server.url, headers=deployment.headers, timeout=120) as client:
            held.append(_settled(client, seq))
    return min(held)


class Driver:
    """Pushes and searches at a steady rate for a while, and looks at every process for what it pushed."""

    def __init__(self, deployment: Deployment, *, pushes_a_second: float, searches_a_second: float) -> None:
        self._deployment = deployment
        self._pushes = pushes_a_second
        self._searches = searches_a_second
        self._numbers = count(int(time.time()) % 1_000_000 * 1000)
        self._local = threading.local()
        self._clients: list[httpx2.Client] = []

    def run(self, seconds: float, ended: Callable[[], bool] = lambda: False) -> Load:
        """The load for so many seconds, or until `ended`; what it began is waited for."""
        load = Load()
        with ThreadPoolExecutor(_CLIENTS) as pool:
            beats = [
                threading.Thread(target=self._beat, args=(pool, rate, seconds, ended, partial(action, load)))
                for rate, action in ((self._pushes, self._push), (self._searches, self._search))
            ]
            for beat in beats:
                beat.start()
            for beat in beats:
                beat.join()
        self._local = threading.local()
        while self._clients:
            self._clients.pop().close()
        return load

    @staticmethod
    def _beat(
        pool: ThreadPoolExecutor,
        rate: float,
        seconds: float,
        ended: Callable[[], bool],
        action: Callable[[float], None],
    ) -> None:
        begin = time.perf_counter()
        for number in range(int(rate * seconds)):
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            if ended():
                return
            pool.submit(action, due)

    def _push(self, load: Load, begin: float) -> None:
        number = next(self._numbers)
        word = _WORD.format(number)
        article = _corrected(number, word) if number % 2 else _new(number, word)
        article_id = article.pop("id")
        try:
            seq = self._written("PUT", article_id, article)
            load.published.append(self._seen(word, article_id, seq, begin, load))
            if number % _DELETED_EVERY == 0:
                begin = time.perf_counter()
                seq = self._written("DELETE", article_id, None)
                load.deleted.append(self._seen(word, article_id, seq, begin, load, there=False))
        except (httpx2.HTTPError, KeyError, orjson.JSONDecodeError) as error:
            load.wrong.append(f"{article_id}: {error!r}")

    def _written(self, method: str, article_id: str, body: dict[str, Any] | None) -> int:
        server = self._deployment.servers[hash(article_id) % len(self._deployment.servers)].url
        answer = self._client.request(method, f"{server}/v1/articles/{article_id}", json=body)
        answer.raise_for_status()
        return int(answer.json()["seq"])

    def _seen(self, word: str, article_id: str, seq: int, begin: float, load: Load, *, there: bool = True) -> float:
        """Seconds until the last of the processes has it, or has it no more."""
        for server in self._deployment.servers:
            asked: dict[str, str | int] = {"q": word, "mode": "lexical", "limit": 3, "min_seq": seq}
            answer = self._client.get(f"{server.url}/v1/search", params=asked)
            answer.raise_for_status()
            found = article_id in [item["article_id"] for item in answer.json()["items"]]
            if found is not there:
                load.wrong.append(f"{article_id} is {'not there' if there else 'still there'} at {server.url}")
        return time.perf_counter() - begin

    def _search(self, load: Load, begin: float) -> None:
        number = next(self._numbers)
        server = self._deployment.servers[number % len(self._deployment.servers)].url
        try:
            answer = self._client.get(f"{server}/v1/search", params={"q": _QUERIES[number % len(_QUERIES)]})
            answer.raise_for_status()
            if not answer.json()["items"]:
                load.wrong.append("a search found nothing")
        except (httpx2.HTTPError, KeyError) as error:
            load.wrong.append(f"search: {error!r}")
        load.searches.append((begin, time.perf_counter() - begin))

    @property
    def _client(self) -> httpx2.Client:
        client: httpx2.Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = httpx2.Client(headers=self._deployment.headers, timeout=60)
            self._clients.append(client)
        return client


def _new(number: int, word: str) -> dict[str, Any]:
    return {"id": f"push-{number}", "title": f"새 소식 {number}", "body": f"{word} 이야기를 전합니다."}


def _corrected(number: int, word: str) -> dict[str, Any]:
    article = edition(shipped()[number // 2 % len(shipped())], 1)
    return article | {"body": f"{word} 이야기를 전합니다.\n\n{article['body']}"}


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds; NaN of nothing."""
    if not seconds:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return float(p50), float(p99)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run came to: milliseconds (p50, p99) and counts. `rebuild` is None where none was made."""

    passages: int
    servers: int
    publish: tuple[float, float]
    delete: tuple[float, float]
    search: tuple[float, float]
    pushes: int
    searches: int
    wrong: tuple[str, ...]
    rebuild: tuple[float, float, float] | None = None  # seconds it took; p99 of searches without it and during it

    def table(self) -> str:
        """Markdown."""
        rows = [
            ("publish → searchable", *self.publish, _OBJECTIVES[self.servers > 1]),
            ("delete → gone", *self.delete, _OBJECTIVES[self.servers > 1]),
            ("search beside it", *self.search, ""),
        ]
        where = (
            "yeoul serve with Milvus Lite" if self.servers == 1 else f"{self.servers} API processes and the indexers"
        )
        lines = [
            f"| {where}, {self.passages:,} passages, {self.pushes:,} pushes, {self.searches:,} searches | p50 | p99 | at most |",
            "|---|---|---|---|",
            *(f"| {name} | {p50:.0f} ms | {p99:.0f} ms | {most} |" for name, p50, p99, most in rows),
        ]
        if self.rebuild is not None:
            took, without, during = self.rebuild
            lines.append(
                f"| search during a rebuild of {took:.0f} s ({during / without:.1f} ×) | | {during:.0f} ms | 3 × |"
            )
        return "\n".join([*lines, f"| wrong or failed | {len(self.wrong)} | | 0 |"])


def measured(
    deployment: Deployment,
    *,
    passages: int,
    seconds: float,
    pushes_a_second: float = 20.0,
    searches_a_second: float = 20.0,
    rebuild: Callable[[], None] | None = None,
) -> Figures:
    """Fills the deployment and measures it under load; with `rebuild` a second time, while that runs."""
    held = filled(deployment, passages)
    driver = Driver(deployment, pushes_a_second=pushes_a_second, searches_a_second=searches_a_second)
    driver.run(3.0)  # warms up: connections, caches, the worker
    load = driver.run(seconds)
    wrong, during = list(load.wrong), None
    if rebuild is not None:
        again, took = _beside(rebuild, driver)
        wrong += again.wrong
        during = took, percentiles([s for _, s in load.searches])[1], percentiles([s for _, s in again.searches])[1]
    return Figures(
        passages=held,
        servers=len(deployment.servers),
        publish=percentiles(load.published),
        delete=percentiles(load.deleted),
        search=percentiles([s for _, s in load.searches]),
        pushes=len(load.published),
        searches=len(load.searches),
        wrong=tuple(wrong),
        rebuild=during,
    )


def _beside(work: Callable[[], None], driver: Driver) -> tuple[Load, float]:
    """The load for as long as `work` takes, and the seconds that took."""
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        load = driver.run(_LONGEST_WORK, ended=working.done)
        working.result()
    return load, time.monotonic() - begin
