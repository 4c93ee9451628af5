"""Settings → the parts of a running Yeoul, put together in one place for the command line, the API and notebooks.

`Assembly.open` starts what needs no collection (state database, Kiwi, encoder); `connect` opens the collection and checks
its manifest; `load` fills the engine. So a server can be up, say why it is not ready, and try again. `catch_up` follows the
change log, and a rebuild: what is about to be put in use is loaded beside and takes over when it is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial

from pipeline.connected import Connected, OnApplied
from pipeline.errors import NotReady, YeoulError
from pipeline.folder import FolderLock
from pipeline.index import lite
from pipeline.index.collection import Collection
from pipeline.ingest import Ingest
from pipeline.korean.morphemes import Analyser
from pipeline.parts import Parts, Starting, recipe_of, settings_with
from pipeline.processes import Processes
from pipeline.settings import Settings
from pipeline.storage import leases, manifests
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.manifests import KnownCollection
from pipeline.storage.rows import LogEntry

log = logging.getLogger(__name__)

_RETIRED_SECONDS = 30.0  # searches that began before a switch have long ended when the old collection is closed
_LOOK_SECONDS = 0.25  # between two looks for a collection that is about to be used; a switch itself is noticed at once
_FOLLOW_SECONDS = 2.0  # between two looks at what changed in a collection that nobody is answered from yet
_BUSY_SECONDS = 1.0  # after the last search
_REST = 4.0  # times the work before it, while searches come
_LONGEST_REST_SECONDS = 0.5
_RETRY_SECONDS = 5.0  # after a collection could not be loaded beside the one in use


class Assembly:
    """The parts, open. Those that stand on a collection exist after `connect`."""

    def __init__(self, settings: Settings, database: StateDatabase, parts: Parts, lock: FolderLock | None) -> None:
        self.settings = settings
        self.database = database
        self.store = ArticleStore(database)
        self.parts = parts
        self.lock = lock
        self._ends = ExitStack()  # what is ended last
        if lock is not None:
            self._ends.callback(lock.release)
        self.on_applied: OnApplied = lambda _entries, _now: None
        self._connected: Connected | None = None
        self._coming: _Coming | None = None
        self._retired: deque[tuple[float, Connected]] = deque()
        self._changing = threading.RLock()
        self._look_due = 0.0  # monotonic

    @classmethod
    def open(
        cls,
        settings: Settings,
        *,
        command: str,
        analyser: Callable[[], Analyser] | None = None,
        as_built: bool = False,
        apart: Processes | None = None,
        beside: str = "",
        progress: bool = False,
    ) -> Assembly:
        """Takes the data folder, opens the state database, starts Kiwi and the encoder.

        What the settings leave open and rows depend on is as the collection in use was built; `as_built`: also what they do
        not leave open. For one that answers searches, `apart` are the processes that Milvus Lite and what reads texts run in, and
        the folder, taken: they are this object's from now on. `beside`: the address of that Milvus Lite, for another process.
        `analyser` gives a Kiwi that was started before, for these settings.

        Raises FolderInUse where Milvus Lite's folder belongs to another process, and what the parts raise.
        """
        with ExitStack() as if_it_fails:
            lock, reading = None, None
            if apart is not None:
                lock, reading = apart.lock, apart.reading
                if_it_fails.callback(apart.close)
            elif (folder := lite.folder_of(settings.milvus_uri)) is not None:
                if beside:
                    if_it_fails.enter_context(lite.beside(folder, beside))
                else:
                    lock = FolderLock.take(settings.data_dir, command)
                    if_it_fails.callback(lock.release)
            with Starting(settings, analyser, apart=reading) as starting:
                database = StateDatabase.open(settings.state_url)
                in_use = manifests.active(database)
                recipe = in_use.recipe if in_use is not None else {}
                chosen = settings_with(settings, recipe, unless_given=not as_built)
                parts = starting.opened(chosen, progress=progress)
            assembly = cls(chosen, database, parts, lock)
            assembly._ends = if_it_fails.pop_all()
            return assembly

    @property
    def connected(self) -> Connected:
        """What answers now. Raises NotReady before `connect`."""
        if self._connected is None:
            raise NotReady(
                "the collection is not open yet", "wait until /readyz answers 200; yeoul doctor says what is amiss"
            )
        return self._connected

    @property
    def busy(self) -> bool:
        """Whether searches come: what can wait should then leave them the interpreter most of the time."""
        return time.monotonic() - self.connected.last_asked < _BUSY_SECONDS

    @property
    def newest(self) -> str:
        """The name of the newest collection that is loaded here: the one that answers, or one that is about to."""
        coming = self._coming
        return coming.known.name if coming is not None and coming.loaded else self.connected.name

    def connect(self, *, remake: bool = False, replaced: bool = False) -> Connected:
        """Opens the collection in use, or makes the first one; `remake`: also where one that held articles is lost, empty;
        `replaced`: also one built in another way, for a rebuild that puts another in its place.

        Raises StoreUnavailable, FolderInUse, ManifestMismatch; NotReady where the store has lost the collection.
        """
        with self._changing:
            if self._connected is None:
                self._connected = self._first(remake=remake, replaced=replaced)
            return self._connected

    def ingest(self) -> Ingest:
        """What writes into the collection in use, whichever that is now. Raises NotReady, StoreUnavailable."""
        with self._changing:
            connected, in_use = self.connected, manifests.active(self.database)
            if in_use is None or in_use.name == connected.name:
                return connected.ingest
            if (
                self._coming is not None
                and self._coming.known.name == in_use.name
                and self._coming.connected is not None
            ):
                return self._coming.connected.ingest
            if connected.follower.loaded:
                raise NotReady(f"the collection {in_use.name!r} is being opened", "it is used as soon as it is loaded")
            self._take_over(self.opened(in_use))  # a process that only writes
            while self._retired:
                self._close(self._retired.pop()[1])  # nobody asks it
            return self.connected.ingest

    def opened(self, known: KnownCollection, *, create: bool = False) -> Connected:
        """The parts around a collection that is not in use yet, nothing loaded."""
        parts = self.parts.following(known.recipe)
        known.manifest.check(parts.manifest)
        collection = self._collection(known.name, parts.encoder.dim, create=create)
        return Connected(parts, self.store, collection, known, on_applied=partial(self._applied, known.name))

    def catch_up(self) -> None:
        """Applies what changed to the engine that answers and to the one that is about to; changes over when it is time."""
        self._look_for_another()
        self.connected.follower.catch_up()
        if self._coming is not None:
            self._coming.follow()

    def coming(self, name: str) -> Connected | None:
        """The parts around the collection `name` that is about to be used, where it is loaded here; None before."""
        coming = self._coming
        return coming.connected if coming is not None and coming.loaded and coming.known.name == name else None

    def close(self) -> None:
        """Closes everything; may be called twice."""
        try:
            if self._coming is not None:
                self._give_up(self._coming)
            while self._retired:
                self._close(self._retired.pop()[1])
            if self._connected is not None:
                connected = self._connected
                try:
                    connected.save()
                finally:
                    self._connected = None
                    connected.close()
        finally:
            self.parts.close()
            self.database.close()
            self._ends.close()

    def _first(self, *, remake: bool, replaced: bool) -> Connected:
        known = self._to_keep_to()
        if known is None:
            with leases.turn(self.database, "first collection"):  # the processes of a deployment start at the same time
                known = self._to_keep_to()
                if known is None:
                    return self._made()
        if not replaced:
            known.manifest.check(self.parts.manifest)
        holds_articles = bool(self.store.counts().get("indexed"))
        try:
            collection = self._collection(known.name, self.parts.encoder.dim, create=remake or not holds_articles)
        except NotReady as error:
            raise NotReady(
                f"the state database says that articles stand in the collection {known.name!r}, but {self.settings.milvus_uri} has none",
                "set milvus.uri back, restore its data, or have it made again: yeoul verify --repair",
            ) from error
        return self._around(collection, known)

    def _to_keep_to(self) -> KnownCollection | None:
        """The collection in use; None where there is none yet, or nothing was ever put in and these settings make another one."""
        known = manifests.active(self.database)
        if known is None or (not self.store.counts() and known.manifest.identity() != self.parts.manifest.identity()):
            return None
        return known

    def _made(self) -> Connected:
        """Makes the first collection and puts it in use."""
        parts, prefix = self.parts, self.settings.milvus.collection
        name = manifests.fresh_name(self.database, prefix)
        collection = self._collection(name, parts.encoder.dim, create=True)
        known = manifests.activate(self.database, name, parts.manifest, recipe_of(self.settings))
        collection.switch_alias(prefix)
        return self._around(collection, known)

    def _around(self, collection: Collection, known: KnownCollection) -> Connected:
        return Connected(self.parts, self.store, collection, known, on_applied=partial(self._applied, known.name))

    def collection_of(self, known: KnownCollection) -> Collection:
        """The collection alone, whatever it was built with. Raises NotReady where there is none."""
        return self._collection(known.name, known.manifest.dim, create=False)

    def _collection(self, name: str, dim: int, *, create: bool) -> Collection:
        chosen = self.settings.milvus
        uri = self.settings.milvus_uri
        return Collection.open(uri=uri, token=chosen.token, name=name, dim=dim, index=chosen.index, create=create)

    def _applied(self, name: str, entries: Sequence[LogEntry], now: datetime) -> None:
        """Tells of what answers see now; not of what is loaded beside them."""
        here = self._connected
        if here is None or here.name == name:
            self.on_applied(entries, now)

    def _look_for_another(self) -> None:
        while self._retired and self._retired[0][0] < time.monotonic():
            self._close(self._retired.popleft()[1])
        if time.monotonic() < self._look_due and not self.connected.follower.behind:
            return
        self._look_due = time.monotonic() + _LOOK_SECONDS
        in_use, ready = self._in_use_and_ready()
        if in_use is None:
            return
        target = in_use if in_use.name != self.connected.name else ready
        coming = self._coming
        if coming is not None and (target is None or coming.known.name != target.name):
            self._give_up(coming)
        elif coming is None and target is not None:
            self._coming = _Coming(target, self.opened, lambda: self.busy)
        elif coming is not None and coming.failed_before(time.monotonic() - _RETRY_SECONDS):
            self._give_up(coming)
        elif coming is not None and coming.loaded and coming.known.name == in_use.name and coming.connected is not None:
            coming.connected.follower.catch_up()
            with self._changing:
                self._take_over(coming.connected)
                self._coming = None

    def _give_up(self, coming: _Coming) -> None:
        self._coming = None
        coming.end()
        if coming.connected is not None:
            self._close(coming.connected)

    def _close(self, connected: Connected) -> None:
        connected.close()
        if connected.parts is not self.parts:
            connected.parts.close()

    def _in_use_and_ready(self) -> tuple[KnownCollection | None, KnownCollection | None]:
        found = manifests.known(self.database, "active", "ready")
        by_state = {known.state: known for known in reversed(found)}  # the newest of a state wins
        return by_state.get("active"), by_state.get("ready")

    def _take_over(self, connected: Connected) -> None:
        before, self._connected = self._connected, connected
        self.parts = connected.parts
        connected.forget_apart()
        if before is not None:
            if before.ingest.observer is not None and connected.follower.loaded:
                connected.told_by_ingest()
            self._retired.append((time.monotonic() + _RETIRED_SECONDS, before))
        log.info("the collection %s answers now", connected.name)


class _Coming:
    """A collection that is opened and loaded on a thread, beside the one that answers."""

    def __init__(
        self, known: KnownCollection, opened: Callable[[KnownCollection], Connected], busy: Callable[[], bool]
    ) -> None:
        self.known = known
        self.connected: Connected | None = None
        self.loaded = False
        self._opened = opened
        self._busy = busy
        self._failed: float | None = None
        self._worked_since = time.monotonic()
        self._follow_due = 0.0  # monotonic
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load {known.name}", daemon=True)
        self._thread.start()

    def failed_before(self, moment: float) -> bool:
        """Whether loading failed, and that before `moment` (monotonic)."""
        return self._failed is not None and self._failed < moment

    def follow(self) -> None:
        """Applies what changed, now and then, once it is loaded: many changes at a time cost less."""
        if self.loaded and self.connected is not None and time.monotonic() >= self._follow_due:
            self._follow_due = time.monotonic() + _FOLLOW_SECONDS
            self.connected.follower.catch_up()

    def end(self) -> None:
        """Leaves off; what was opened is to be closed."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            connected = self.connected = self._opened(self.known)
            connected.searcher.warm_up()
            self._worked_since = time.monotonic()
            connected.load_beside(self._check, self._ended)
            self.loaded = not self._ended.is_set()
        except _Ended:
            return
        except YeoulError as error:
            log.warning("the collection %s cannot be loaded yet: %s", self.known.name, error)
            self._failed = time.monotonic()
        except Exception:
            log.exception("the collection %s cannot be loaded", self.known.name)
            self._failed = time.monotonic()

    def _check(self, _rows: int) -> None:
        """Rests longer than the last rows took while searches come: they share the interpreter with it."""
        worked = time.monotonic() - self._worked_since
        if self._ended.wait(min(_REST * worked, _LONGEST_REST_SECONDS) if self._busy() else 0.0):
            raise _Ended
        self._worked_since = time.monotonic()


class _Ended(Exception):
    """Nobody waits for this collection any more."""
