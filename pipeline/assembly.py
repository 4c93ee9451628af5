"""Settings → the parts of a running Yeoul, put together in one place for the command line, the API and notebooks.

`Assembly.open` starts what needs no collection (state database, Kiwi, encoder); `connect` opens the collection and checks
its manifest; `load` fills the engine. So a server can be up, say why it is not ready, and try again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.encoding.encoder import Encoder
from pipeline.encoding.opening import open_encoder
from pipeline.errors import NotReady, Unavailable
from pipeline.folder import FolderLock
from pipeline.follower import Follower
from pipeline.index import snapshot
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine
from pipeline.index.fields import LexicalParameters
from pipeline.index.manifest import Manifest
from pipeline.index.milvus_engine import MilvusEngine, StandIn
from pipeline.index.resident import ResidentEngine
from pipeline.index.snapshot import Place
from pipeline.ingest import ChunkingParameters, Ingest, Passages
from pipeline.korean.morphemes import Analyser
from pipeline.retrieval.fusion import default_alpha
from pipeline.retrieval.searcher import FusionParameters, Searcher
from pipeline.settings import Settings
from pipeline.storage import manifests
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.manifests import ActiveCollection

log = logging.getLogger(__name__)

_SNAPSHOT = "resident.safetensors"
_GPU_SIGNS = ("/dev/nvidiactl", "/dev/dxg")  # the driver's device files on Linux and in WSL
_SAVE_SHARE = 50  # a snapshot is written anew when a fiftieth of the passages may have changed: catching up is cheap


class Assembly:
    """The parts, open. `collection`, `ingest`, `follower` and `searcher` exist after `connect`."""

    def __init__(
        self, settings: Settings, database: StateDatabase, analyser: Analyser, encoder: Encoder, lock: FolderLock | None
    ) -> None:
        self.settings = settings
        self.database = database
        self.store = ArticleStore(database)
        self.analyser = analyser
        self.encoder = encoder
        self.passages = passages_of(settings, analyser, encoder)
        self.lock = lock
        self._connected: Connected | None = None

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        command: str,
        analyser: Callable[[], Analyser] | None = None,
        progress: bool = False,
    ) -> Assembly:
        """Takes the data folder, opens the state database, starts Kiwi and the encoder.

        `analyser` gives a Kiwi that was started before, for these settings.

        Raises FolderInUse where Milvus Lite's folder belongs to another process, and what the parts raise.
        """
        lock = FolderLock.take(settings.data_dir, command) if settings.milvus_is_lite else None
        try:
            with ThreadPoolExecutor(1) as pool:
                starting = pool.submit(
                    analyser or (lambda: Analyser.open(settings.user_words, synonyms=settings.synonyms))
                )
                database = StateDatabase.open(settings.state_url)
                kiwi = starting.result()
            return cls(settings, database, kiwi, encoder_of(settings, kiwi, progress=progress), lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @property
    def connected(self) -> Connected:
        """Raises NotReady before `connect`."""
        if self._connected is None:
            raise NotReady(
                "the collection is not open yet", "wait until /readyz answers 200; yeoul doctor says what is amiss"
            )
        return self._connected

    def connect(self) -> Connected:
        """Opens the collection in use, or makes the first one. Raises StoreUnavailable, FolderInUse, ManifestMismatch."""
        if self._connected is None:
            self._connected = Connected.open(self)
        return self._connected

    def close(self) -> None:
        """Closes everything; may be called twice."""
        try:
            if self._connected is not None:
                connected, self._connected = self._connected, None
                try:
                    connected.save()
                finally:
                    connected.collection.close()
        finally:
            self.database.close()
            if self.lock is not None:
                self.lock.release()


class Connected:
    """The parts that stand on an open collection."""

    def __init__(self, assembly: Assembly, collection: Collection, active: ActiveCollection) -> None:
        settings = assembly.settings
        parameters = lexical_parameters(settings)
        self.collection = collection
        self.manifest = active.manifest
        self._store = assembly.store
        self._snapshot = settings.data_dir / _SNAPSHOT
        self._identity = f"{active.name} {active.created_at.isoformat()}"
        self._saved_position: int | None = None  # in the change log; None: there is no snapshot that fits
        self.ingest = Ingest(
            passages=assembly.passages,
            encoder=assembly.encoder,
            collection=collection,
            store=assembly.store,
            grace_seconds=settings.indexers.grace_seconds,
        )
        self._name = settings.engine
        self._engine: MilvusEngine | ResidentEngine
        if settings.engine == "resident":
            self._engine = ResidentEngine(collection.dim, parameters, device=device_of(settings))
        else:
            self._engine = MilvusEngine(collection, parameters)
        self._stand_in = StandIn(self._engine, collection, assembly.store.visible_passages)
        self.follower = Follower(assembly.store, collection, self._engine)
        self.searcher = Searcher(
            analyser=assembly.analyser,
            encoder=assembly.encoder,
            engine=self.engine,
            fusion=fusion_parameters(settings, active.manifest),
            seq=lambda: self.follower.seq,
        )

    @classmethod
    def open(cls, assembly: Assembly) -> Connected:
        settings, running = assembly.settings, running_manifest(assembly.settings, assembly.analyser, assembly.encoder)
        known = manifests.active(assembly.database)
        counts = assembly.store.counts()
        if known is not None and not counts and known.manifest.identity() != running.identity():
            known = None  # nothing was ever put in: there is nothing to keep to
        if known is not None:
            known.manifest.check(running)
        name = known.name if known is not None else manifests.fresh_name(assembly.database, settings.milvus.collection)
        holds_articles = known is not None and bool(counts.get("indexed"))
        try:
            collection = Collection.open(
                uri=settings.milvus_uri,
                token=settings.milvus.token,
                name=name,
                dim=assembly.encoder.dim,
                index=settings.milvus.index,
                create=not holds_articles,
            )
        except NotReady as error:
            raise NotReady(
                f"the state database says that articles stand in the collection {name!r}, but {settings.milvus_uri} has none",
                "set milvus.uri back, restore its data, or start over with an empty data_dir",
            ) from error
        if known is None:
            known = manifests.activate(assembly.database, name, running)
            collection.switch_alias(settings.milvus.collection)
        return cls(assembly, collection, known)

    def engine(self) -> tuple[Engine, Mapping[str, str]]:
        """The engine that answers now. While it loads, Milvus answers, and the mapping says so by the engine's name."""
        if self.follower.loaded:
            return self._engine, {}
        return self._stand_in, {self._name: f"the index is loading ({self._engine.count:,} passages so far)"}

    def load(self, on_progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Fills the engine, from the snapshot where there is one, else from the collection; Milvus answers meanwhile."""
        if not self._resume():
            self.follower.load(on_progress)
            self.save()

    def keep_up(self) -> None:
        """For a writer that serves nothing: its own writes go into the engine, and at its end into the snapshot, so that
        the next process starts fast. Does nothing where a whole load would be needed first."""
        if not isinstance(self._engine, ResidentEngine):
            return
        position, seq, visible = self._store.visible()
        if self._resume() or not visible:
            if not self.follower.loaded:
                self.follower.resume(position, seq)
            self.ingest.observer = self.follower.tell

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

    def _resume(self) -> bool:
        if not isinstance(self._engine, ResidentEngine):
            return False
        place = snapshot.restore(self._engine, self._snapshot, self._fits)
        if place is None:
            return False
        self._saved_position = place.position
        self.follower.resume(place.position, place.seq)
        return True

    def _fits(self, place: Place) -> bool:
        """Whether a snapshot is of this collection and of a moment in this change log."""
        return place.collection == self._identity and place.mark == self._store.log_mark(place.position)


def encoder_of(settings: Settings, analyser: Analyser, *, progress: bool = False) -> Encoder:
    """The encoder that the settings name."""
    chosen = settings.encoder
    return open_encoder(
        chosen.model,
        analyser.kiwi,
        device=chosen.device,
        batch_size=chosen.batch_size,
        query_prompt=chosen.query_prompt,
        passage_prompt=chosen.passage_prompt,
        cache_dir=chosen.cache_dir,
        progress=progress,
    )


def passages_of(settings: Settings, analyser: Analyser, encoder: Encoder) -> Passages:
    """The maker of passages that the settings describe."""
    return Passages(analyser, encoder, chunking_parameters(settings))


def chunking_parameters(settings: Settings) -> ChunkingParameters:
    return ChunkingParameters(settings.chunking.max_tokens, settings.chunking.overlap_sentences)


def lexical_parameters(settings: Settings) -> LexicalParameters:
    return LexicalParameters(**settings.lexical.model_dump())


def fusion_parameters(settings: Settings, manifest: Manifest) -> FusionParameters:
    """The fusion in force: the weight of the settings, or the one measured for the encoder."""
    chosen = settings.fusion
    return FusionParameters(
        method=chosen.method,
        alpha=manifest.alpha if chosen.alpha is None else chosen.alpha,
        rrf_k=chosen.rrf_k,
        candidates=chosen.candidates,
        adaptive=chosen.adaptive,
    )


def running_manifest(settings: Settings, analyser: Analyser, encoder: Encoder) -> Manifest:
    """What an index made now would be built with."""
    return Manifest(
        encoder=encoder.id,
        dim=encoder.dim,
        tokenizer=analyser.fingerprint,
        max_tokens=settings.chunking.max_tokens,
        overlap_sentences=settings.chunking.overlap_sentences,
        alpha=default_alpha(encoder.id),
    )


def device_of(settings: Settings) -> str:
    """`cpu` or `cuda`, where the resident vectors live."""
    if settings.encoder.device != "auto":
        return settings.encoder.device
    if not any(Path(sign).exists() for sign in _GPU_SIGNS):
        return "cpu"  # torch would say the same, after a second of importing
    import torch  # noqa: PLC0415 - a second to import: only where there may be a GPU

    return "cuda" if torch.cuda.is_available() else "cpu"
