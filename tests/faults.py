"""What clients are promised while processes die under them, and whether it was kept: writers, a ledger, and an audit.

A writer sends publishes, edits, deletes and bulks over HTTP to whichever process answers, and the ledger notes what was
acknowledged and what may have happened though nobody said so. Knows neither who is killed nor which stores there are.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2
import orjson
from sqlalchemy import func, select

from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import changes

_ARTICLES = 40  # of one writer: few, so that most of them are edited and deleted many times
_BULK = 12
_PARAGRAPHS = 4
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BETWEEN = 0.02  # seconds between two calls of a writer
_AWAY = 0.1  # seconds until a writer whose server is away asks again
_PATIENCE = 120.0  # seconds for one answer
_HITS = 20
_GIVEN_UP = 0.3  # share of the calls that are not sent again
_TAKEN = (httpx2.codes.OK, httpx2.codes.ACCEPTED)
_FILLER = "전세 보증금을 지키려면 전입신고와 확정일자를 받아야 합니다. 이사한 날 바로 주민센터에 가세요. "


@dataclass(frozen=True, slots=True)
class Version:
    """The content of an article with a word that no other content has."""

    number: int

    @property
    def word(self) -> str:
        """Latin letters alone: one morpheme, whatever stands around it."""
        rest, letters = self.number, ""
        for _ in range(5):
            rest, digit = divmod(rest, len(_LETTERS))
            letters += _LETTERS[digit]
        return f"zq{letters}"

    def fields(self) -> dict[str, str]:
        """One to four paragraphs, each with the word, so that an edit changes how many passages there are."""
        paragraph = f"{self.word} 소식을 전합니다. {_FILLER * 3}"
        return {"title": f"소식 {self.number}", "body": "\n\n".join([paragraph] * (1 + self.number % _PARAGRAPHS))}


@dataclass(slots=True)
class Promise:
    """What is known of an article: the content acknowledged last (None: deleted), and what was sent later unanswered."""

    kept: Version | None
    acknowledged: bool
    seq: int = 0
    possible: list[Version | None] = field(default_factory=list)

    def allowed(self) -> list[Version | None]:
        return [*([self.kept] if self.acknowledged else []), *self.possible]


class Ledger:
    """The promises of all articles. Thread-safe; one writer an article."""

    def __init__(self) -> None:
        self.promises: dict[str, Promise] = {}
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.last_seq = 0
        self.changed = threading.Condition()
        self.in_bulk = threading.Event()

    @property
    def acknowledged(self) -> int:
        return self.answers["acknowledged"]

    def keep(self, article_id: str, version: Version | None, seq: int) -> None:
        """The change was acknowledged: nothing that was sent before can come after it."""
        with self.changed:
            self.promises[article_id] = Promise(version, acknowledged=True, seq=seq)
            self.answers["acknowledged"] += 1
            self.last_seq = max(self.last_seq, seq)
            self.changed.notify_all()

    def doubt(self, versions: Mapping[str, Version | None]) -> None:
        """The changes were sent and not acknowledged: they may hold or not."""
        with self.changed:
            for article_id, version in versions.items():
                self.promises.setdefault(article_id, Promise(None, acknowledged=False)).possible.append(version)
                self.answers["unanswered"] += 1

    def refused(self, status: int, why: str) -> None:
        with self.changed:
            self.answers[str(status)] += 1
            if status != httpx2.codes.SERVICE_UNAVAILABLE:
                self.wrong.append(f"a writer was answered {status}: {why}")

    def await_more(self, calls: int, seconds: float) -> bool:
        """Whether so many changes more were acknowledged in time."""
        with self.changed:
            goal = self.acknowledged + calls
            return self.changed.wait_for(lambda: self.acknowledged >= goal, seconds)


class Writer:
    """Writes on a thread until it is stopped; what fails is sent again or given up, as chance has it."""

    numbers = count(1)  # of the versions, of all writers: a word is never used twice

    def __init__(self, name: str, urls: Sequence[str], headers: Mapping[str, str], ledger: Ledger, seed: int) -> None:
        self._name = name
        self._urls = list(urls)
        self._headers = dict(headers)
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the call under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        operations = (self._publish, self._publish, self._publish, self._delete, self._bulk)
        with httpx2.Client(headers=self._headers, timeout=_PATIENCE) as client:
            while not self._stopping.wait(_BETWEEN):
                try:
                    self._chance.choice(operations)(client)
                except Exception as error:  # noqa: BLE001 - a thread's error would be nobody's
                    self._ledger.wrong.append(f"{self._name}: {error!r}")
                    return

    def _publish(self, client: httpx2.Client) -> None:
        article_id, version = self._any(), Version(next(self.numbers))
        self._one(client, "PUT", article_id, version)

    def _delete(self, client: httpx2.Client) -> None:
        known = [a for a in self._ids() if (p := self._ledger.promises.get(a)) is not None and p.acknowledged]
        if known:
            self._one(client, "DELETE", self._chance.choice(known), None)

    def _one(self, client: httpx2.Client, method: str, article_id: str, version: Version | None) -> None:
        content = orjson.dumps(version.fields()) if version is not None else None
        while not self._stopping.is_set():
            answer = self._sent(client, method, f"/v1/articles/{article_id}", content, {article_id: version})
            if answer is not None and answer.status_code == httpx2.codes.ACCEPTED:
                self._ledger.keep(article_id, version, answer.json()["seq"])
            if answer is not None or self._chance.random() < _GIVEN_UP:
                return
            self._stopping.wait(_AWAY)

    def _bulk(self, client: httpx2.Client) -> None:
        versions = {a: Version(next(self.numbers)) for a in self._chance.sample(self._ids(), _BULK)}
        lines = [orjson.dumps({"id": a, **version.fields()}) for a, version in versions.items()]
        self._ledger.in_bulk.set()
        answer = self._sent(client, "POST", "/v1/articles:bulk", b"\n".join(lines), versions)
        if answer is None or answer.status_code != httpx2.codes.OK:
            return
        results = [orjson.loads(line) for line in answer.text.splitlines()]
        if len(results) != len(versions):
            self._ledger.wrong.append(f"{len(results)} lines answer {len(versions)}")
        for (article_id, version), result in zip(versions.items(), results, strict=False):
            if "seq" in result:
                self._ledger.keep(article_id, version, result["seq"])
            else:
                self._ledger.wrong.append(f"{article_id} was refused in a bulk: {result}")

    def _sent(
        self,
        client: httpx2.Client,
        method: str,
        path: str,
        content: bytes | None,
        versions: Mapping[str, Version | None],
    ) -> httpx2.Response | None:
        """The answer of one of the processes; None where none came. What is not acknowledged by it is noted."""
        try:
            answer = client.request(method, self._chance.choice(self._urls) + path, content=content)
        except httpx2.ConnectError:
            self._stopping.wait(_AWAY)
            return None  # nothing was sent
        except httpx2.TransportError:
            answer = None
        if answer is None or answer.status_code not in _TAKEN:
            self._ledger.doubt(versions)
        if answer is not None and answer.status_code not in _TAKEN:
            self._ledger.refused(answer.status_code, answer.text)
            self._stopping.wait(_AWAY)
        return answer

    def _ids(self) -> list[str]:
        return [f"{self._name}-{n}" for n in range(_ARTICLES)]

    def _any(self) -> str:
        return self._chance.choice(self._ids())


@contextmanager
def writing(
    urls: Sequence[str], headers: Mapping[str, str], ledger: Ledger, *, writers: int = 2, seed: int = 1
) -> Iterator[None]:
    """Writers at work within the block; what they sent last is answered or given up after it."""
    at_work = [Writer(f"{seed}-{n}", urls, headers, ledger, seed * 100 + n) for n in range(writers)]
    try:
        yield
    finally:
        for writer in at_work:
            writer.stop()


@dataclass(slots=True)
class Audit:
    """What an installation shows, against the ledger."""

    articles: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def of(self, url: str, headers: Mapping[str, str], ledger: Ledger) -> None:
        """Compares what the process at `url` says and finds with every promise; it has applied everything."""
        with httpx2.Client(base_url=url, headers=headers, timeout=_PATIENCE) as client:
            for article_id, promise in ledger.promises.items():
                self.articles += 1
                self._one(client, article_id, promise)

    def log(self, database: StateDatabase) -> None:
        """A change is shown once: no revision stands in the change log twice."""
        times = func.count()
        query = select(changes.c.article_id, changes.c.revision, times).where(changes.c.revision.is_not(None))
        query = query.group_by(changes.c.article_id, changes.c.revision).having(times > 1)
        with database.read() as connection:
            found = connection.execute(query).all()
        self.doubled += [f"{row[0]}: revision {row[1]} was shown {row[2]} times" for row in found]

    def _one(self, client: httpx2.Client, article_id: str, promise: Promise) -> None:
        answer = client.get(f"/v1/articles/{article_id}")
        state: dict[str, Any] = answer.json()
        if answer.status_code == httpx2.codes.NOT_FOUND and not promise.acknowledged:
            return  # no change of it was ever acknowledged
        if answer.status_code != httpx2.codes.OK:
            self.lost.append(f"{article_id}: {answer.status_code} {state}")
            return
        held = next((v for v in promise.allowed() if (v.fields()["body"] if v else None) == state["body"]), "another")
        expected = "indexed" if isinstance(held, Version) else "deleted"
        if held == "another" or state["status"] != expected:
            self.lost.append(f"{article_id}: promised was {promise}, is {state}")
            return
        shown = held if isinstance(held, Version) else None
        for version in {v for v in (shown, *promise.allowed()) if v is not None}:
            self._search(client, article_id, version, there=version == shown)

    def _search(self, client: httpx2.Client, article_id: str, version: Version, *, there: bool) -> None:
        answer = client.get("/v1/search", params={"q": version.word, "mode": "lexical", "limit": _HITS})
        if answer.status_code != httpx2.codes.OK:
            self.lost.append(f"{article_id}: a search was answered {answer.status_code}: {answer.text}")
            return
        hits = [item for item in answer.json()["items"] if item["article_id"] == article_id]
        texts = [item["snippet"].replace("<mark>", "").replace("</mark>", "") for item in hits]
        if len(hits) > 1:
            self.doubled.append(f"{article_id}: found {len(hits)} times by {version.word!r}")
        if any(version.word in text for text in texts) is not there:
            self.lost.append(f"{article_id}: {version.word!r} should {'' if there else 'not '}be found, is {texts}")


def await_seq(client: httpx2.Client, seq: int, seconds: float) -> None:
    """Waits until the process shows all changes up to `seq`; a search's `min_seq` waits for that one alone."""

    def shown() -> bool:
        answer = client.get("/v1/search", params={"q": "소식", "limit": 1})
        return answer.status_code == httpx2.codes.OK and bool(answer.json()["seq"] >= seq)

    until(shown, seconds, f"not all changes up to {seq} are shown")


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Waits for what no event tells: another process. Raises TimeoutError with `what`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} after {seconds:g} s")
        time.sleep(0.05)
