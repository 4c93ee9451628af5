"""`yeoul index`: files into the inbox, and the inbox into the index."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from indexers.commands.terminal import bar, fail, interruptible, tell
from pipeline import settings as configuration
from pipeline.errors import FolderInUse
from pipeline.settings import Settings

if TYPE_CHECKING:
    from indexers.worker import Totals
    from pipeline.korean.morphemes import Analyser
    from pipeline.storage.articles import ArticleStore

_LOOK_SECONDS = 0.3  # between looks at an inbox that another process drains
_BULK_GC = (1_000_000, 20, 100)  # a bulk load makes millions of tuples and hardly a cycle: by default 8% of its time


def index(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders: .jsonl .csv .parquet .md .html, also .gz")],
) -> None:
    """Read articles from files and make them searchable."""
    from concurrent.futures import Future, ThreadPoolExecutor

    from indexers.bulk import submit
    from pipeline.korean.morphemes import Analyser
    from pipeline.storage.articles import ArticleStore
    from pipeline.storage.database import StateDatabase

    settings = configuration.load()
    database = StateDatabase.open(settings.state_url)
    try:
        store = ArticleStore(database)
        with ThreadPoolExecutor(1, thread_name_prefix="kiwi") as pool:
            starting: list[Future[Analyser]] = []  # as soon as there is something to index, while the rest is read

            def read(articles: int) -> None:
                advance(articles)
                if not starting and store.queue_length() and _folder_is_free(settings):
                    starting.append(pool.submit(Analyser.open, settings.user_words, synonyms=settings.synonyms))

            with bar("reading", "articles") as advance:
                report = submit(store, paths, on_problem=tell, on_progress=read)
            analyser = starting[0].result if starting else None
            to_do = report.accepted or store.queue_length()  # a server may have been quicker, and is named then
            totals = _drained(settings, store, report.last_seq, analyser) if to_do else None
        failed = store.failures(report.first_seq, report.last_seq) if report.first_seq else {}
        for article_id, error in failed.items():
            tell(f"{article_id}: {error}")
        print(
            f"{report.read:,} articles read: {report.accepted:,} new or changed, {report.unchanged:,} unchanged, "
            f"{report.refused:,} lines refused"
        )
        if totals is not None:
            print(
                f"{totals.articles:,} articles indexed as {totals.passages:,} passages, {totals.encoded:,} of them encoded; "
                f"{totals.deleted:,} deleted, {totals.failed:,} failed"
            )
    except KeyboardInterrupt:
        fail("stopped. What was accepted waits in the inbox: run the command again to go on")
    finally:
        database.close()
    if failed or (totals is not None and totals.failed) or (report.refused and not report.read):
        raise SystemExit(1)


def _drained(
    settings: Settings, store: ArticleStore, last_seq: int, analyser: Callable[[], Analyser] | None
) -> Totals | None:
    """Indexes what waits in the inbox, here or, where another process holds the folder, there (then None)."""
    from indexers.worker import Worker
    from pipeline.assembly import Assembly

    told = False
    while True:
        try:
            assembly = Assembly.open(settings, command="yeoul index", analyser=analyser, progress=sys.stderr.isatty())
            break
        except FolderInUse as error:
            if store.settled_up_to() >= last_seq:
                tell(f"indexed by the process that holds the folder ({error.holder})")
                return None
            if not told:
                tell(f"waiting for {error.holder}, which holds the folder; what was read is safe in the inbox")
                told = True
            time.sleep(_LOOK_SECONDS)
    try:
        connected = assembly.connect()
        if assembly.lock is not None:  # beside other processes the collection may be switched meanwhile
            connected.keep_up()
        gc.freeze()
        gc.set_threshold(*_BULK_GC)
        with bar("indexing", "articles", total=store.queue_length()) as advance, interruptible() as stop:
            worker = Worker(
                assembly.store,
                assembly.ingest,
                alone=assembly.lock is not None,
                attempts=1,  # somebody waits for the answer, and may run the command again
                on_progress=advance,
            )
            totals = worker.drain(stop)
        if stop.is_set():
            raise KeyboardInterrupt
        worker.sweep()
        return totals
    finally:
        assembly.close()


def _folder_is_free(settings: Settings) -> bool:
    """Whether this process would index itself: beside a server on the same folder it would start Kiwi for nothing."""
    from pipeline.folder import FolderLock

    try:
        if settings.milvus_is_lite:
            FolderLock.take(settings.data_dir, "yeoul index").release()
    except FolderInUse:
        return False
    return True
