"""A storm over live indexing: random publishes, edits, deletes, source runs, rebuilds, crashes and restarts under reads.

Every operation is told to the model (`live_model.py`), every answer of every reader is held against it, and at the end all
stores must agree with it, passage by passage. The processes are threads (`live_processes.py`) over real stores.
"""

from __future__ import annotations

import logging
import math
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from indexers.running import run_source
from indexers.sources.source import Batch, Cursor, Found, Known
from pipeline.documents import Article
from pipeline.errors import ArticleNotFound, OlderRevision, YeoulError
from pipeline.korean.morphemes import Analyser
from pipeline.settings import Settings
from pipeline.storage import manifests, sources
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.rows import Accepted
from pipeline.storage.tables import leftovers
from tests.live_model import CATEGORIES, Answer, Model, composed
from tests.live_processes import DEATHS, ErrorLog, Process, Record
from tests.live_rebuilds import RECIPES, Rebuilds, back, builder, to_chunking

_ARTICLES = 24  # their passages stay below the candidates of a search: every answer shows every article
_CANDIDATES = 1000
_LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)  # dated articles: a minute a version from here on
_PATIENCE = 180.0  # seconds; what takes longer hangs
_LOOK_SECONDS = 0.02
_QUEUE = 3  # changes; most operations wait until fewer are queued, else most of them would be superseded unseen
_ANY = 1_000_000
_SOURCE = "원천"
_WEIGHTS = {
    "publish": 34,
    "recategorise": 7,
    "repeat": 5,
    "delete": 9,
    "delete again": 3,
    "hide": 4,
    "older": 5,
    "dated": 6,
    "bulk": 9,
    "source run": 6,
    "read own write": 5,
    "nap": 2,
    "crash": 3,
    "restart": 0.6,
    "prune": 1.5,
    "rebuild": 0.7,
    "rollback": 0.4,
    "drop kept": 0.3,
}


@dataclass(frozen=True, slots=True)
class Site:
    """Where the stores are, and which processes stand on them. `told`: the worker's commits go straight into its engine."""

    folder: Path
    engines: tuple[str, ...]
    grace_seconds: float = 0.5
    milvus: dict[str, Any] = field(default_factory=dict)
    database_url: str = ""
    told: bool = False
    prefix: str = field(default_factory=lambda: f"storm_{time.time_ns()}")

    def settings(self, name: str, engine: str) -> Settings:
        """Of the process `name`."""
        max_tokens, overlap = RECIPES[0]
        return Settings.model_validate(
            {
                "data_dir": self.folder / (name if self.shared else "data"),
                "database_url": self.database_url,
                "engine": engine,
                "milvus": {"collection": self.prefix, **self.milvus},
                "chunking": {"max_tokens": max_tokens, "overlap_sentences": overlap},
                "fusion": {"candidates": _CANDIDATES},
                "indexers": {"grace_seconds": self.grace_seconds, "poll_seconds": _LOOK_SECONDS},
            }
        )

    @property
    def shared(self) -> bool:
        """Whether several processes can open the stores."""
        return bool(self.database_url)


class Stuck(AssertionError):
    """Something that should happen within seconds did not within minutes."""


@dataclass(frozen=True, slots=True)
class ListedSource:
    """A source that has these batches."""

    batches: Sequence[Batch]

    def read(self, _cursor: Cursor, _known: Known) -> Iterator[Batch]:
        yield from self.batches


class Storm:
    """Operations drawn by `seed`. `run` them, then `settle`; what was wrong stands in `record`."""

    def __init__(self, site: Site, analyser: Analyser, *, seed: int) -> None:
        self.record = Record()
        self._errors = ErrorLog(self.record)
        self.operations: Counter[str] = Counter()
        self._analyser = analyser
        self._chance = random.Random(seed)
        self._model = Model()
        self._numbers = iter(range(1, 1_000_000))
        self._of_source: set[str] = set()
        common = {"analyser": analyser, "model": self._model, "record": self.record}
        kinds = [("reader", engine) for engine in site.engines]
        self._processes = [
            Process(
                f"{kind}-{engine}",
                site.settings(f"{kind}-{engine}", engine),
                searchers=1 if site.shared else 2,
                works=not site.shared,
                told=site.told,
                **common,  # type: ignore[arg-type]  # as they are named
            )
            for kind, engine in kinds
        ]
        if site.shared:
            settings = site.settings("writer", "resident")
            self._processes.append(Process("writer", settings, searchers=0, works=True, **common))  # type: ignore[arg-type]
        self._readers = [process for process in self._processes if process.answers]
        self._worker = next(process for process in self._processes if process.works)
        self._database = StateDatabase.open(self._worker.settings.state_url)
        self._store = ArticleStore(self._database)
        self._rebuilds = Rebuilds(partial(builder, site.settings("builder", "resident"), analyser), self.record)
        sources.add(self._database, _SOURCE, "folder", {}, "1h")

    def __enter__(self) -> Storm:
        logging.getLogger().addHandler(self._errors)
        for process in reversed(self._processes):  # who works makes the collection
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rebuilds.stop()
        for process in self._processes:
            process.stop()
        self._database.close()
        logging.getLogger().removeHandler(self._errors)

    @property
    def wrong(self) -> list[str]:
        return self.record.violations + self.record.troubles

    @property
    def rebuilds(self) -> Counter[str]:
        """How rebuilds and rollbacks ended."""
        return self._rebuilds.outcomes

    def run(self, count: int, *, seconds: float = math.inf) -> None:
        """About `count` operations, each kind once at least, for so long and as long as nothing is wrong."""
        end = time.monotonic() + seconds
        share = count / sum(_WEIGHTS.values())
        deck = [name for name, weight in _WEIGHTS.items() for _ in range(max(1, round(weight * share)))]
        self._chance.shuffle(deck)
        for name in deck:
            if self.wrong or time.monotonic() > end:
                return
            getattr(self, f"_{name.replace(' ', '_')}")()
            self.operations[name] += 1
            self._pace()

    def settle(self) -> None:
        """Everything is indexed, applied and swept, and agrees with the model."""
        self._rebuilds.join()
        self._await(lambda: not self._store.queue_length(), "the inbox is not drained")
        for process in self._readers:
            self._await(partial(self._is_up_to_date, process), f"{process.name} is not up to date")
        self._await(self._is_swept, "old rows are not swept")
        for process in self._readers:
            self.record.violations += process.disagreements()

    # ---- operations on articles

    def _publish(self) -> None:
        self._push(self._version(self._any()))

    def _recategorise(self) -> None:
        article = self._present()
        if article is not None:
            self._push(replace(article, category=self._chance.choice(CATEGORIES), updated_at=None))

    def _repeat(self) -> None:
        article = self._present()
        if article is not None:
            self._push(article)

    def _delete(self) -> None:
        self._push_delete(self._any())

    def _delete_again(self) -> None:
        gone = [i for i, state in self._model.newest().items() if state.article is None]
        self._push_delete(self._chance.choice(gone) if gone else "없는글")

    def _hide(self) -> None:
        self._push(self._version(self._any(), visible=False))

    def _older(self) -> None:
        """Older than everything, unless nothing of the article is known."""
        self._push(self._version(self._any(), updated_at=_LONG_AGO))

    def _dated(self) -> None:
        """Articles that are only pushed with a time: some of them older than what is known."""
        number = next(self._numbers)
        minutes = number + self._chance.choice((-40, 0, 0, 0))
        article_id = f"날짜{self._chance.randrange(3)}"
        self._push(self._version(article_id, updated_at=_LONG_AGO + timedelta(minutes=max(0, minutes))))

    def _bulk(self) -> None:
        batch = [self._version(self._any()) for _ in range(self._chance.randint(2, 8))]
        batch.append(self._version(batch[0].id))
        with self._model.lock:
            for article, answer in zip(batch, self._store.accept_many(batch, source="bulk"), strict=True):
                self._compare(article.id, article, answer)
        self._worker.wake()

    def _source_batch(self, ids: Sequence[str]) -> Batch:
        fresh, gone = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        found = [
            Found(article=self._version(i, updated_at=self._chance.choice((None, None, _LONG_AGO))), key=i)
            for i in fresh
        ]
        return Batch(found=found, removed=gone, cursor={"batch": next(self._numbers)})

    def _source_run(self) -> None:
        ids = self._chance.sample([f"글{n:02}" for n in range(_ARTICLES)], 8)
        batches = [self._source_batch(ids[:5]), self._source_batch(ids[5:])]
        expected: Counter[Answer | str] = Counter()
        with self._model.lock:
            known = sources.find(self._database, _SOURCE)
            counts = run_source(self._store, known, ListedSource(batches), queue_limit=0, stop=threading.Event())
            for batch in batches:
                for found in batch.found:
                    expected[
                        self._noted(found.article.id, found.article, owned=found.article.id in self._of_source)
                    ] += 1
                for article_id in batch.removed:
                    if article_id in self._of_source:
                        self._of_source.discard(article_id)
                        expected["deleted" if self._noted(article_id, None, owned=False) == "queued" else ""] += 1
        told = {"accepted": "queued", "unchanged": "unchanged", "older": "older", "deleted": "deleted"}
        if any(counts[name] != expected[what] for name, what in told.items()):
            self.record.violations.append(f"the source's run counted {counts}, expected was {dict(expected)}")
        self._worker.wake()

    def _noted(self, article_id: str, article: Article | None, *, owned: bool) -> Answer:
        answer = self._model.expected(article_id, article)
        if article is not None and (answer != "older" or owned):
            self._of_source.add(article_id)
        self._model.record(article_id, article, answer, self._store.state(article_id).seq)
        return answer

    def _read_own_write(self) -> None:
        """Waits until a change is applied at each reader, then reads: the answer says so, and has it."""
        article_id = self._any()
        if self._chance.random() < 0.5:
            self._push(self._version(article_id))
        else:
            self._push_delete(article_id)
        state = self._model.newest().get(article_id)
        for process in self._readers:
            if state is not None:
                self._await(partial(process.applied, state.seq), f"{state.seq} is not applied by {process.name}")
                process.read(self._chance)

    # ---- operations on processes

    def _nap(self) -> None:
        self._chance.choice(self._readers).nap = self._chance.uniform(0.1, 1.5)

    def _crash(self) -> None:
        self._worker.fate.place = self._chance.choice(DEATHS)

    def _prune(self) -> None:
        self._store.prune(0)

    def _restart(self) -> None:
        """With the snapshot, with none, or with one from an earlier life."""
        process = self._chance.choice(self._processes)
        if process.works and process.answers:
            self._rebuilds.stop()  # it is of this process
        process.stop()
        kept = process.snapshot.with_suffix(".kept")
        how = self._chance.choice(("as it is", "none", "an old one"))
        if how == "none":
            process.snapshot.unlink(missing_ok=True)
        elif how == "an old one" and kept.exists():
            shutil.copy(kept, process.snapshot)
        if process.snapshot.exists() and not kept.exists():
            shutil.copy(process.snapshot, kept)
        process.start()

    # ---- operations on the whole index

    def _rebuild(self) -> None:
        max_tokens, overlap = self._chance.choice(RECIPES)
        self._rebuilds.begin(partial(to_chunking, max_tokens, overlap))

    def _rollback(self) -> None:
        self._rebuilds.begin(back)

    def _drop_kept(self) -> None:
        """Once every reader has left them."""
        in_use = manifests.active(self._database)
        if in_use is not None and all(p.assembly.connected.name == in_use.name for p in self._readers):
            self._rebuilds.drop_kept()

    # ---- what operations are made of

    def _any(self) -> str:
        return f"글{self._chance.randrange(_ARTICLES):02}"

    def _present(self) -> Article | None:
        articles = [s.article for i, s in self._model.newest().items() if s.article is not None and i.startswith("글")]
        return self._chance.choice(articles) if articles else None

    def _version(self, article_id: str, **fields: object) -> Article:
        category = self._chance.choice(CATEGORIES)
        return composed(self._chance, article_id, next(self._numbers), category=category, **fields)

    def _push(self, article: Article) -> None:
        with self._model.lock:
            try:
                answer: Accepted | YeoulError = self._store.accept(article)
            except OlderRevision as error:
                answer = error
            self._compare(article.id, article, answer)
        self._worker.wake()

    def _push_delete(self, article_id: str) -> None:
        with self._model.lock:
            try:
                answer: Accepted | YeoulError = self._store.accept_delete(article_id)
            except ArticleNotFound as error:
                answer = error
            self._compare(article_id, None, answer)
        self._worker.wake()

    def _compare(self, article_id: str, article: Article | None, answer: Accepted | YeoulError) -> None:
        """Notes an acceptance, where it is what the model expects."""
        expected = self._model.expected(article_id, article)
        got: dict[type, Answer] = {OlderRevision: "older", ArticleNotFound: "unknown"}
        told = got.get(type(answer)) or ("unchanged" if isinstance(answer, Accepted) and answer.unchanged else "queued")
        if told != expected:
            self.record.violations.append(f"{article_id}: a change was {told}, expected was {expected}")
        seq = answer.seq if isinstance(answer, Accepted) else 0
        self._model.record(article_id, article, told, seq)

    def _pace(self) -> None:
        """Mostly waits until little is queued; sometimes until nothing is, sometimes for nothing."""
        most = self._chance.choices((_QUEUE, 0, _ANY), (60, 10, 30))[0]
        self._await(lambda: self._store.queue_length() <= most, "the inbox is not drained")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _PATIENCE
        while not condition() and not self.wrong:
            if time.monotonic() > until:
                raise Stuck(f"{what} after {_PATIENCE:g} s")
            with self._worker.progress:
                self._worker.progress.wait(_LOOK_SECONDS)

    # ---- the end

    def _is_up_to_date(self, process: Process) -> bool:
        in_use = manifests.active(self._database)
        assert in_use is not None
        connected = process.assembly.connected
        return connected.name == in_use.name and process.applied(self._store.settled_up_to())

    def _is_swept(self) -> bool:
        with self._database.read() as connection:
            return not connection.execute(select(func.count()).select_from(leftovers)).scalar_one()
