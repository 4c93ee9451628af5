"""The processes of an installation as threads of a test: a reader that follows, searches and is judged; a worker that dies.

Each has an assembly of its own over the same stores, as a real process has; with Milvus Lite one process is both. What goes
wrong anywhere is told to the `Record`. Knows nothing of what is published.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from sqlalchemy import select

from indexers.reconcile import verify
from indexers.worker import LEASE, Worker
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.documents import Change
from pipeline.encoding.encoder import Encoder, FloatArray
from pipeline.errors import NotReady
from pipeline.folder import FolderLock
from pipeline.index.filters import Filter
from pipeline.ingest import Ingest, KnownVectors
from pipeline.korean.morphemes import Analyser
from pipeline.parts import Parts, PartsHere, recipe_of, settings_with
from pipeline.passages import AnalysedPassage
from pipeline.retrieval.query import MODES, SearchRequest
from pipeline.settings import Settings
from pipeline.storage import leases, manifests, readers, tables
from pipeline.storage.database import StateDatabase
from pipeline.storage.manifests import Recipe
from tests.fakes import FakeEncoder
from tests.live_model import CATEGORIES, COMMON, Floors, Model, Sight

_DIM = 32
_POLL_SECONDS = 0.02
_BETWEEN_READS = 0.005  # the readers leave the two cores to the worker now and then
_REPORT_SECONDS = 0.5
_PATIENCE = 180.0  # seconds for a thread to end
_LEASE_SECONDS = 600.0  # what a dead worker's lease still has: nobody may wait for it
_SNAPSHOT = "resident.safetensors"
_EVIDENCE = 8  # rows of a table


class Killed(BaseException):
    """What no `except Exception` may catch: the process is gone."""


class WordEncoder(FakeEncoder):
    """FakeEncoder by words and thirty times as quick: texts that share words get nearer vectors."""

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for place, text in enumerate(texts):
            for word in text.split():
                vectors[place] += _direction(word)
            vectors[place] /= np.linalg.norm(vectors[place]) or 1.0
        return vectors


class SameParts(PartsHere):
    """Parts whose encoder no recipe changes: the settings cannot name a fake one."""

    def following(self, recipe: Recipe) -> Parts:
        settings = settings_with(self.settings, recipe)
        same = recipe_of(settings) == recipe_of(self.settings)
        return self if same else SameParts(settings, self.analyser, self.encoder)


@dataclass(slots=True)
class Record:
    """What the processes did, and what was wrong. Thread-safe enough: counts are read at the end."""

    reads: Counter[str] = field(default_factory=Counter)
    deaths: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Fate:
    """Where the worker dies at its next chance; None: it lives."""

    place: str | None = None

    def strikes(self, place: str) -> bool:
        if self.place != place:
            return False
        self.place = None
        return True


DEATHS = ("before the rows", "half the rows", "before the commit", "after the commit")


class ErrorLog(logging.Handler):
    """Logged errors are troubles: a worker and a loading index go on after what they did not expect."""

    def __init__(self, record: Record) -> None:
        super().__init__(logging.ERROR)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        self._record.troubles.append(f"{record.name}: {self.format(record)}")


class Mortal(Ingest):
    """An ingest that dies where its fate says."""

    def __init__(self, ordinary: Ingest, fate: Fate, record: Record) -> None:
        super().__init__(
            passages=ordinary._passages,
            encoder=ordinary._encoder,
            collection=ordinary._collection,
            store=ordinary._store,
            grace_seconds=ordinary._grace_seconds,
            carries=ordinary._carries,
        )
        self._ordinary = ordinary
        self._fate = fate
        self._record = record

    def put(self, analysed: Sequence[list[AnalysedPassage]], known: KnownVectors) -> tuple[FloatArray, int]:
        self._die("before the rows")
        passages = [one.passage for one in chain.from_iterable(analysed)]
        if len(passages) > 1 and self._fate.place == "half the rows":
            super().put([[one] for one in [*chain.from_iterable(analysed)][: len(passages) // 2]], known)
            self._die("half the rows")
        written = super().put(analysed, known)
        self._die("before the commit")
        return written

    def _tell(self, batch: Sequence[Change], analysed: Sequence[list[AnalysedPassage]], *rest: object) -> None:
        self._die("after the commit")
        self.observer = self._ordinary.observer
        super()._tell(batch, analysed, *rest)  # type: ignore[arg-type]  # as it was given

    def _die(self, place: str) -> None:
        if self._fate.strikes(place):
            self._record.deaths[place] += 1
            raise Killed(place)


class Process:
    """An assembly and its threads: `searchers` that read, where there are any, and a worker, where it `works`."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        analyser: Analyser,
        model: Model,
        record: Record,
        *,
        searchers: int,
        works: bool,
        told: bool = False,
    ) -> None:
        self.name = name
        self.settings = settings
        self.fate = Fate()
        self.nap = 0.0
        self.progress = threading.Condition()  # something was committed or applied
        self.worker: Worker | None = None
        self._analyser = analyser
        self._model = model
        self._record = record
        self._searchers = searchers
        self.works = works
        self._told = told
        self._floors: Floors = {}
        self._assembly: Assembly | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seed = 0

    @property
    def answers(self) -> bool:
        return self._searchers > 0

    @property
    def assembly(self) -> Assembly:
        assert self._assembly is not None, f"{self.name} is down"
        return self._assembly

    @property
    def snapshot(self) -> Path:
        return self.settings.data_dir / _SNAPSHOT

    # ---- life

    def start(self) -> None:
        self._stop.clear()
        self._assembly = opened(self.settings, self._analyser)
        self._assembly.connect()
        targets: list[Callable[[], None]] = [self._follow] if self.answers else []
        targets += [self._search] * self._searchers
        targets += [self._work] if self.works else []
        self._threads = [
            threading.Thread(target=self._guarded(target), name=self.name, daemon=True) for target in targets
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self.worker is not None:
            self.worker.wake()
        for thread in self._threads:
            thread.join(_PATIENCE)
            assert not thread.is_alive(), f"{self.name} does not end"
        if self._assembly is not None:
            self._assembly.close()
            self._assembly = None

    def wake(self) -> None:
        if self.worker is not None:
            self.worker.wake()

    def applied(self, seq: int) -> bool:
        """Whether the change accepted as `seq` is in what this process answers."""
        return self.assembly.connected.follower.has_applied(seq)

    # ---- reading

    def read(self, chance: random.Random) -> None:
        """A search, judged. One without an answer (the index is not open yet) is none."""
        category = chance.choice(CATEGORIES) if chance.random() < 0.2 else None
        request = SearchRequest.checked(
            f"{COMMON} 소식 이야기", limit=100, mode=chance.choice(MODES), filter_=Filter(category=category)
        )
        with self._model.lock:
            floors = dict(self._floors)
        began = time.monotonic()
        try:
            connected = self.assembly.connected
            result = connected.searcher.search(request)
        except NotReady:
            return
        took = time.monotonic() - began
        loading = self.settings.engine in result.degraded
        # Through Milvus an article is promised to be there for as long as its old rows are sure to be: see `milvus_engine.py`.
        # While an engine loads, words find what is loaded so far on a server without sparse vectors: see `StandIn`.
        grace = self.settings.indexers.grace_seconds
        whole = request.mode != "lexical" and took < grace if loading else self._resident or took < grace / 2
        seen = {hit.article_id: Sight.of(hit) for hit in result.hits}
        after, wrong = self._model.judge(
            seen, floors, seq=result.seq, asked=lambda a: category in {None, a.category}, whole=whole
        )
        with self._model.lock:
            self._floors |= {a: max(seq, self._floors.get(a, 0)) for a, seq in after.items()}
        self._record.reads["while loading" if loading else "judged" if whole else "slower than the grace"] += 1
        told = f"{self.name}, {request.mode}, {category}, up to {result.seq}, {dict(result.degraded)}"
        if wrong:
            told += f"; {self._evidence(connected, [one.split(':')[0] for one in wrong])}"
        self._record.violations += [f"{one} [{told}]" for one in wrong]
        self._record.violations += [
            f"the {leg} leg failed [{told}]" for leg in ("dense", "lexical") if leg in result.degraded
        ]

    def _evidence(self, connected: Connected, ids: Sequence[str]) -> str:
        """Where the engine, the collections and these articles stand just after a wrong answer: it may never come again."""
        follower = connected.follower
        revisions = connected.engine()[0].revisions()
        collections, articles, inbox, changes = (
            tables.collections.c,
            tables.articles.c,
            tables.inbox.c,
            tables.changes.c,
        )
        of_inbox, of_log = inbox.article_id.in_(ids), changes.article_id.in_(ids)
        asked = {
            "collections": select(collections.name, collections.state, collections.position),
            "registry": select(articles.id, articles.revision, articles.passages).where(articles.id.in_(ids)),
            "inbox": select(inbox.article_id, inbox.seq, inbox.state, inbox.settled_at)
            .where(of_inbox)
            .order_by(inbox.seq),
            "log": select(changes.position, changes.article_id, changes.revision, changes.created_at)
            .where(of_log)
            .order_by(changes.position),
        }
        with self.assembly.database.read() as connection:
            found = {
                name: [tuple(row) for row in connection.execute(query)][-_EVIDENCE:] for name, query in asked.items()
            }
        return (
            f"{connected.name} at {follower.position} (seq {follower.seq}, behind {follower.behind}), now "
            f"{self.assembly.connected.name}, engine {[(i, revisions.get(i)) for i in ids]}, {found}"
        )

    @property
    def _resident(self) -> bool:
        return self.settings.engine == "resident"

    def disagreements(self) -> list[str]:
        """Where registry, collection and engine differ from the model, every passage held against one made anew."""
        connected, store = self.assembly.connected, self.assembly.store
        engine, _ = connected.engine()
        newest = self._model.newest()
        shown = [(state.seq, state.article) for state in newest.values() if state.article is not None]
        revisions = {article.id: seq for seq, article in shown}
        expected = {one.passage.id: one.passage for made in connected.parts.passages.of(shown) for one in made}
        ids = list(expected)
        pairs: list[tuple[str, object, object]] = [
            ("differences", verify(store, connected, repair=False), []),
            ("statuses", {i: store.state(i).status for i in newest}, {i: self._model.status(i) for i in newest}),
            ("the registry's revisions", store.visible()[2], revisions),
            ("the engine's revisions", engine.revisions(), revisions),
            ("rows", sorted(row[0] for row in connected.collection.iterate_ids()), sorted(ids)),
            ("stored passages", {p.id: p for p in connected.collection.get(ids)}, expected),
            ("passages in the engine", engine.passages(ids), expected),
        ]
        return [f"{self.name}: {what}: {_told(got, due)}" for what, got, due in pairs if got != due]

    # ---- threads

    def _guarded(self, target: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                target()
            except Exception as error:  # noqa: BLE001 - whatever it is, the test should say it
                self._record.troubles.append(f"{self.name}: {target.__name__}: {error!r}")
                self._stop.set()

        return run

    def _follow(self) -> None:
        assembly, report_due = self.assembly, 0.0
        assembly.connected.load()
        if self._told:
            assembly.connected.told_by_ingest()
        while not self._stop.is_set():
            nap, self.nap = self.nap, 0.0
            self._stop.wait(nap or _POLL_SECONDS)
            began = time.monotonic()
            assembly.catch_up()
            self._announce()
            if began > report_due:
                position = assembly.connected.follower.position
                readers.report(assembly.database, self.name, assembly.newest, position)
                report_due = began + _REPORT_SECONDS
        readers.leave(assembly.database, self.name)

    def _search(self) -> None:
        self._seed += 1
        chance = random.Random(f"{self.name} {self._seed}")
        while not self._stop.wait(_BETWEEN_READS):
            self.read(chance)

    def _work(self) -> None:
        database = self.assembly.database
        while not self._stop.is_set():
            self.worker = Worker(
                self.assembly.store,
                lambda: Mortal(self.assembly.ingest(), self.fate, self._record),
                alone=True,
                poll_seconds=_POLL_SECONDS,
                on_commit=self._announce,
            )
            try:
                self.worker.run(self._stop)
            except Killed:  # its lease is not given back, as if the process had been killed
                leases.acquire(database, LEASE, "the dead one's", _LEASE_SECONDS, alone=True)

    def _announce(self) -> None:
        with self.progress:
            self.progress.notify_all()


def opened(settings: Settings, analyser: Analyser, *, alone: bool = True) -> Assembly:
    """An assembly around a fake encoder; not `alone` it uses the folder beside the one that holds it."""
    lock = FolderLock.take(settings.data_dir, "a test") if settings.milvus_is_lite and alone else None
    encoder: Encoder = WordEncoder(_DIM)
    database = StateDatabase.open(settings.state_url)
    in_use = manifests.active(database)
    chosen = settings_with(settings, in_use.recipe if in_use is not None else {})
    return Assembly(chosen, database, SameParts(chosen, analyser, encoder), lock)


@cache
def _direction(word: str) -> FloatArray:
    seed = int.from_bytes(word.encode(), "big")
    return np.random.default_rng(seed).standard_normal(_DIM).astype(np.float32)


def _told(got: object, due: object) -> str:
    """What differs, for mappings by key."""
    if not isinstance(got, dict) or not isinstance(due, dict):
        return f"{got}, expected {due}"
    differing = [key for key in got.keys() | due.keys() if got.get(key) != due.get(key)]
    return "; ".join(f"{key}: {got.get(key)}, expected {due.get(key)}" for key in differing)
