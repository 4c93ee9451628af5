"""The parts that stand on one open collection: what writes into it, the engine that follows it, the searcher that asks it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pipeline import memory
from pipeline.documents import CANARY
from pipeline.encoding.line import for_searches
from pipeline.errors import NotReady, Unavailable, YeoulError
from pipeline.folder import turn
from pipeline.follower import Follower
from pipeline.index import lite, snapshot
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine
from pipeline.index.milvus_engine import MilvusEngine, StandIn
from pipeline.index.resident import ResidentEngine, compile_all
from pipeline.index.snapshot import Place
from pipeline.ingest import Ingest
from pipeline.loading import Order, load_apart
from pipeline.parts import Parts, device_of, fusion_parameters, lexical_parameters
from pipeline.retrieval.searcher import Searcher
from pipeline.storage.articles import ArticleStore
from pipeline.storage.manifests import KnownCollection
from pipeline.storage.rows import LogEntry

log = logging.getLogger(__name__)

_SNAPSHOT = "resident.safetensors"
_SNAPSHOT_APART = "resident-next-{}.safetensors"  # of a collection that is about to be used
_FORGOTTEN_SECONDS = 3600.0  # such a file stays until it is used: an older one is of a process that was killed
# Processes that share a folder load in turn: the first one leaves a snapshot to the others.
_LOADING, _LOADING_NEXT = "loading", "loading-next"
_ROWS_BESIDE = 50  # read at a time beside a collection that answers: some 40 ms of work between two rests
_SAVE_SHARE = 50  # a snapshot is written anew when a fiftieth of the passages may have changed: catching up is cheap

OnApplied = Callable[[Sequence[LogEntry], datetime], None]


def _ignored(_entries: Sequence[LogEntry], _now: datetime) -> None:
    pass


class Connected:
    """The parts around `collection`, which `known` describes. Close it when nobody asks it any more."""

    def __init__(
        self,
        parts: Parts,
        store: ArticleStore,
        collection: Collection,
        known: KnownCollection,
        *,
        on_applied: OnApplied = _ignored,
    ) -> None:
        settings = parts.settings
        parameters = lexical_parameters(settings)
        self.parts = parts
        self.collection = collection
        self.manifest = known.manifest
        self._store = store
        self._snapshot = settings.data_dir / _SNAPSHOT
        self._apart: Path | None = None  # a snapshot made for this process and those that share its folder
        self._identity = f"{known.name} {known.created_at.isoformat()}"
        self._saved_position: int | None = None  # in the change log; None: there is no snapshot that fits
        self.ingest = Ingest(
            passages=parts.passages,
            encoder=parts.encoder,
            collection=collection,
            store=store,
            grace_seconds=settings.indexers.grace_seconds,
            carries=not settings.milvus_is_lite,
        )
        self._name = settings.engine
        self._engine: MilvusEngine | ResidentEngine
        if settings.engine == "resident":
            self._engine = ResidentEngine(collection.dim, parameters, device=device_of(settings))
        else:
            self._engine = MilvusEngine(collection, parameters)
        # Rows of a replaced revision are there for twice as long.
        self._sure_seconds = settings.indexers.grace_seconds / 2
        self.last_asked = -math.inf  # monotonic: when a search began last
        self._seen_position = 0  # the newest line of the log that an answer of the stand-in may have shown
        self._stand_in = StandIn(self._engine, collection, self._visible_now)
        self.shadow = ResidentEngine(collection.dim, parameters)  # the canary alone
        self.follower = Follower(
            store,
            collection,
            self._engine,
            shadow=self.shadow,
            with_rows=settings.engine == "resident",  # the milvus engine needs them in the collection
            on_applied=on_applied,
        )
        self.searcher = Searcher(
            reader=parts.reader,
            encoder=for_searches(parts.encoder),
            engine=self.engine,
            fusion=fusion_parameters(settings, known.manifest),
            seq=lambda: self.follower.seq,
        )

    @property
    def answers_from_memory(self) -> bool:
        """Whether searches wait for nothing but the processor now."""
        return isinstance(self._engine, ResidentEngine) and self.engine()[0] is self._engine

    @property
    def name(self) -> str:
        """The collection's."""
        return self.collection.name

    def engine(self) -> tuple[Engine, Mapping[str, str]]:
        """The engine that answers now. While it loads, Milvus answers, and the mapping says so by the engine's name."""
        self.last_asked = time.monotonic()
        if (
            self.follower.loaded
            and not isinstance(self._engine, ResidentEngine)
            and self.follower.age > self._sure_seconds
        ):
            with suppress(YeoulError):  # it was asleep: what it takes for visible may be swept by now
                self.follower.catch_up()
        if self.follower.loaded and self.follower.position >= self._seen_position:
            return self._engine, {}
        return self._stand_in, {self._name: f"the index is loading ({self._engine.count:,} passages so far)"}

    def _visible_now(self, article_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        """What the stand-in takes for visible. The engine takes over when it has seen as much: no answer goes back."""
        found = self._store.visible_passages(article_ids)
        found.pop(CANARY, None)  # its rows stand in the collection, but in no answer
        self._seen_position = max(self._seen_position, self._store.position())
        return found

    def load(self, on_progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Fills the engine, from the snapshot where there is one, else from the collection; Milvus answers meanwhile."""
        compile_all()
        if not isinstance(self._engine, ResidentEngine):
            self.follower.load(on_progress)
            return
        with turn(self._snapshot.parent, _LOADING, lambda: on_progress(0)):
            if not self._resume(self._snapshot):
                self.follower.load(on_progress)
                self.save()
        memory.give_back()

    def load_beside(self, rest: Callable[[int], None], ended: threading.Event) -> None:
        """Fills the engine beside searches of another collection: in a process of its own where that may open the collection,
        else here, with a `rest` after some rows. Leaves off when it is `ended`. Raises what the stores raise."""
        settings = self.parts.settings
        address = lite.address_of(settings.milvus_uri)
        if lite.folder_of(address) is not None or not isinstance(self._engine, ResidentEngine):
            self.follower.load(rest, batch=_ROWS_BESIDE)
            return
        path = self._apart = self._snapshot.with_name(_SNAPSHOT_APART.format(self.name))
        for file in path.parent.glob(_SNAPSHOT_APART.format("*") + "*"):
            with suppress(FileNotFoundError):  # another process is faster
                if file.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                    file.unlink()
        order = Order(
            state_url=settings.state_url,
            milvus_uri=address,
            milvus_token=settings.milvus.token,
            name=self.name,
            dim=self.collection.dim,
            identity=self._identity,
            lexical=lexical_parameters(settings),
            path=path,
        )
        with turn(path.parent, _LOADING_NEXT, lambda: rest(0)):
            if self._resume(path, rest):
                return
            if load_apart(order, ended) and not self._resume(path, rest):
                raise NotReady(f"the snapshot of {self.name} does not fit any more", "it is loaded again")

    def forget_apart(self) -> None:
        """The collection is in use, or given up: nobody needs the snapshot any more that was made for loading it."""
        if self._apart is not None:
            with suppress(OSError):
                self._apart.unlink(missing_ok=True)

    def keep_up(self) -> None:
        """For a writer that serves nothing: its own writes go into the engine, and at its end into the snapshot, so that
        the next process starts fast. Does nothing where a whole load would be needed first."""
        if not isinstance(self._engine, ResidentEngine):
            return
        position, seq, visible = self._store.visible()
        if self._resume(self._snapshot) or not visible:
            if not self.follower.loaded:
                self.follower.resume(position, seq)
            self.told_by_ingest()

    def told_by_ingest(self) -> None:
        """From now on what this process writes goes straight into its loaded engine."""
        self.ingest.observer = self.follower.tell
        if isinstance(self._engine, ResidentEngine):
            self.ingest.memory = self._engine.read

    def save(self) -> None:
        """Writes the resident engine to disk for the next start, where enough has changed since the last time."""
        engine, follower = self._engine, self.follower
        if not isinstance(engine, ResidentEngine) or not follower.loaded or not follower.whole:
            return
        try:
            follower.catch_up()
            enough = max(1, engine.count // _SAVE_SHARE) if self._saved_position is not None else 0
            if engine.count and follower.position - (self._saved_position or 0) >= enough:
                mark = self._store.log_mark(follower.position)
                snapshot.save(engine, self._snapshot, Place(self._identity, follower.position, mark, follower.seq))
                self._saved_position = follower.position
        except (OSError, Unavailable) as error:
            log.warning("no snapshot for a faster start: %s", error)

    def close(self) -> None:
        self.forget_apart()
        self.collection.close()

    def _resume(self, path: Path, rest: Callable[[int], None] | None = None) -> bool:
        if not isinstance(self._engine, ResidentEngine):
            return False
        place = snapshot.restore(self._engine, path, self._fits)
        if place is None:
            return False
        if path == self._snapshot:
            self._saved_position = place.position
        self.follower.resume(place.position, place.seq, rest)
        return True

    def _fits(self, place: Place) -> bool:
        """Whether a snapshot is of this collection and of a moment in this change log."""
        return place.collection == self._identity and place.mark == self._store.log_mark(place.position)
