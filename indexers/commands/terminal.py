"""What commands share: lines to people, progress bars, Ctrl-C, the state database.

A command imports what it needs when it runs: Kiwi, torch and the vector store together take seconds to start.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline import settings as configuration

if TYPE_CHECKING:
    from pipeline.storage.articles import ArticleStore


def tell(line: str) -> None:
    print(line, file=sys.stderr)


def fail(message: str) -> NoReturn:
    print(f"yeoul: {message}", file=sys.stderr)
    raise SystemExit(1)


@contextmanager
def bar(label: str, unit: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere; gives the function that advances it."""
    from tqdm import tqdm

    with tqdm(desc=label, unit=f" {unit}", total=total, disable=not sys.stderr.isatty()) as shown:
        yield shown.update


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that the batch under way is finished; the second one interrupts at once."""
    stop = threading.Event()

    def interrupted(_signal: int, _frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def articles_opened() -> Iterator[ArticleStore]:
    """The state database's articles: open to several processes at once."""
    from pipeline.storage.articles import ArticleStore
    from pipeline.storage.database import StateDatabase

    database = StateDatabase.open(configuration.load().state_url)
    try:
        yield ArticleStore(database)
    finally:
        database.close()
