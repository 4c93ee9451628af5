"""The canary: an article that is published, changed and deleted through the path of all others, again and again.

How fast searches see it is measured where they are answered; here it is only sent on its way, and watched until it is
indexed. Knows nothing of indexes and of searches: none shows it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pipeline.documents import CANARY, Article
from pipeline.errors import Unavailable, YeoulError
from pipeline.storage.articles import ArticleStore
from pipeline.storage.rows import Accepted

_PATIENCE_SECONDS = 30.0  # fifteen times the objective: longer than this nobody believes in the next second
_LOOK_SECONDS = 0.05
_SOURCE = "canary"


class CanaryFailed(YeoulError):
    """The canary did not come through as it was sent."""

    code = "canary_failed"


class CanaryLate(Unavailable):
    """The canary was not indexed in time."""

    code = "canary_late"


def _nothing() -> None:
    pass


class Canary:
    """Sends the canary through `store`. `wake` tells the worker that something came into the inbox."""

    def __init__(
        self, store: ArticleStore, wake: Callable[[], None] = _nothing, *, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self._store = store
        self._wake = wake
        self._patience = patience_seconds

    def run(self, stop: threading.Event) -> dict[str, int]:
        """Publishes, changes and deletes it: the milliseconds from each acceptance until it was indexed. With `stop` those
        of the steps that were finished.

        Raises CanaryLate where a step takes longer than 30 s, CanaryFailed where it could not be indexed or another change
        came in between.
        """
        steps: dict[str, Callable[[], Accepted]] = {
            "publish_ms": lambda: self._store.accept(_article("방금 나왔습니다"), source=_SOURCE),
            "change_ms": lambda: self._store.accept(_article("방금 바뀌었습니다"), source=_SOURCE),
            "delete_ms": lambda: self._store.accept_delete(CANARY, source=_SOURCE),
        }
        counts: dict[str, int] = {}
        for name, step in steps.items():
            milliseconds = self._came_through(name.removesuffix("_ms"), step, stop)
            if milliseconds is None:
                break
            counts[name] = milliseconds
        return counts

    def _came_through(self, what: str, step: Callable[[], Accepted], stop: threading.Event) -> int | None:
        began = time.monotonic()
        accepted = step()
        self._wake()
        while not self._store.settled(accepted.seq):
            if time.monotonic() - began > self._patience:
                raise CanaryLate(
                    f"the canary's {what} (change {accepted.seq}) is not indexed after {self._patience:g} s"
                    f"{self._why_not()}",
                    "see whether a worker runs and what it logs; yeoul doctor says what is amiss",
                )
            if stop.wait(_LOOK_SECONDS):
                return None
        seconds = time.monotonic() - began
        self._check(what, accepted.seq)
        return round(1000 * seconds)

    def _check(self, what: str, seq: int) -> None:
        state = self._store.state(CANARY)
        if state.seq != seq:
            raise CanaryFailed(
                f"the canary's {what} (change {seq}) was superseded by change {state.seq}",
                "one scheduler at a time sends it: is another Yeoul at work on this database?",
            )
        if state.status == "failed":
            raise CanaryFailed(f"the canary's {what} cannot be indexed: {state.error}", "see the worker's log")

    def _why_not(self) -> str:
        error = self._store.state(CANARY).error
        return f": {error}" if error else ""


def _article(event: str) -> Article:
    body = f"카나리아가 {event}. {datetime.now(UTC).isoformat()}"  # the time makes each one a change
    return Article(id=CANARY, title="여울 카나리아", body=body)
