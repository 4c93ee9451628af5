"""Keeps an engine in step with the change log: loads what is visible, then applies what changed, whole articles.

Whoever owns it decides when to look (`catch_up`); two calls at a time wait for each other. The canary (the article that
measures freshness) goes into an engine of its own, `shadow`: it takes the same way and is in no answer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice

import numpy as np

from pipeline.documents import CANARY, Passage, passage_id
from pipeline.encoding.encoder import FloatArray
from pipeline.errors import LogPruned
from pipeline.index import rows
from pipeline.index.collection import Collection
from pipeline.index.engine import Engine, Revisions
from pipeline.memory import seldom_collected
from pipeline.storage import manifests, news
from pipeline.storage.articles import ArticleStore
from pipeline.storage.news import News
from pipeline.storage.rows import LogEntry

log = logging.getLogger(__name__)

_LOAD_BATCH = 2000  # rows; about 4 MB of vectors and text
_LOG_BATCH = 200
_FEW_ENTRIES = 20  # where there is a rest after some
_FETCHED_TOGETHER = 200  # passages of several articles in one read of the collection
_PUT_TOGETHER = 100  # passages; no search should wait for more of them
_REMEMBERED = 10_000  # changes; who asks for one asks within seconds
_NOT_TOLD = -1  # no revision: they count from 1
_NO_VECTORS: FloatArray = np.zeros((0, 0), dtype=np.float32)


class Follower:
    """The position of one engine in the change log. `seq`: all changes accepted up to it are applied here.

    A collection that is not in use has its rows up to some line of the log (`manifests.bound`): no further is followed.
    `with_rows`: those that came with a commit are taken from there, before the collection shows them. `on_applied` is told of
    the newest line of each article that was applied, some at a time, after it, with the time.
    """

    def __init__(
        self,
        store: ArticleStore,
        collection: Collection,
        engine: Engine,
        *,
        shadow: Engine | None = None,
        with_rows: bool = True,
        on_applied: Callable[[Sequence[LogEntry], datetime], None] = lambda _entries, _now: None,
    ) -> None:
        self._store = store
        self._collection = collection
        self._engine = engine
        self._shadow = shadow
        self._with_rows = with_rows
        self._on_applied = on_applied
        self._position = 0
        self._lock = threading.Lock()
        self._filled = False  # every visible passage of some moment is in the engine
        self._told: dict[str, int | None] = {}  # what this process wrote itself: article → revision in the engine
        self._recent: dict[int, None] = {}  # the newest changes that were applied here, also above `seq`; in order
        self._looked = -math.inf  # monotonic: up to then everything is applied
        self.seq = 0
        self.behind = False  # True: the log goes on beyond what the collection has rows for
        self.loaded = False
        self.whole = True  # False: applying an article broke off, the engine may hold half of it

    @property
    def position(self) -> int:
        """The last line of the change log that this engine has applied."""
        return self._position

    @property
    def age(self) -> float:
        """Seconds since the last look at the log that applied all there was."""
        return time.monotonic() - self._looked

    def has_applied(self, seq: int) -> bool:
        """Whether the change accepted as `seq` is known to be applied here. False does not say that it is not: a change that
        has no line in the log (superseded, failed) shows in `seq` alone."""
        return self.loaded and (seq <= self.seq or seq in self._recent)

    def load(self, on_progress: Callable[[int], None] = lambda _rows: None, *, batch: int = _LOAD_BATCH) -> None:
        """Fills the empty engine with every visible passage, and catches up with what changed meanwhile.

        `on_progress` is told of every `batch` rows. After a failure the engine is empty again, so that loading can be tried anew.
        """
        with self._lock:
            if not self._filled:
                self._fill(on_progress, batch)
        self.catch_up()
        self.loaded = True

    def resume(self, position: int, seq: int, on_progress: Callable[[int], None] | None = None) -> int:
        """Goes on from an engine that already holds what was visible at `position`; gives the entries applied since.
        `on_progress` is told of a few of them at a time."""
        with self._lock:
            self._position, self.seq, self._filled = position, seq, True
        applied = self.catch_up(on_progress)
        self.loaded = True
        return applied

    def catch_up(self, on_progress: Callable[[int], None] | None = None) -> int:
        """Applies the log from where this engine stands to its end; gives the number of entries applied. `on_progress` is told
        of a few of them at a time.

        Where the log does not reach back so far any more, what differs from the registry is read anew instead.
        """
        applied, batch = 0, _LOG_BATCH if on_progress is None else _FEW_ENTRIES
        while True:
            with self._lock:
                begun = time.monotonic()
                try:
                    new = self._news(batch)
                except LogPruned as error:
                    log.warning("%s", error)
                    applied += self._compare()
                    continue
                self.behind = new.behind
                replaced = self._apply_newest(new)
                if new.entries:
                    self._position = new.entries[-1].position
                    applied += len(new.entries)
                # What was replaced while this looked stands further on in the log: `seq` is not reached before that.
                if len(new.entries) < batch and not replaced:
                    if not new.behind:
                        self.seq = max(self.seq, new.seq)
                    self._looked = begun
                    return applied
            if on_progress is not None:
                on_progress(len(new.entries))

    def tell(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        """What this process committed itself, so that `catch_up` need not read it back from the collection."""
        with self._lock:
            self._put(revisions, passages, vectors)
            self._told |= revisions

    def compare(self, *, repair: bool) -> dict[str, tuple[int | None, int | None]]:
        """Where this engine differs from what was visible at its place of the log: article → (revision here, visible
        revision); with `repair` it does not any more."""
        with self._lock:
            position, visible = self._visible_now()
            found = _differences(self._engine.revisions(), visible)
            for entry in self._store.log_since(self._position, limit=_LOG_BATCH)[0]:
                found.pop(entry.article_id, None)  # it is only not applied yet
            if repair and found:
                self._compare()
        return found if position >= self._position else {}

    # ---- under the lock

    def _fill(self, on_progress: Callable[[int], None], batch: int) -> None:
        position, visible = self._visible_now()
        added: set[str] = set()
        try:
            with seldom_collected():
                for passages, vectors in self._read_ahead(self._ids_of(visible), batch):
                    added.update(passage.article_id for passage in passages)
                    self._engine.add(passages, vectors)
                    on_progress(len(passages))
        except BaseException:
            self._engine.apply(dict.fromkeys(added), [], _NO_VECTORS)
            raise
        self._position = position
        self._filled = True

    def _read_ahead(self, ids: Sequence[str], batch: int) -> Iterator[tuple[list[Passage], FloatArray]]:
        """The passages of `ids`, some at a time: the collection reads the next ones while these are taken in."""
        with ThreadPoolExecutor(1, "reading ahead") as pool:
            coming: Future[tuple[list[Passage], FloatArray]] | None = None
            for some in rows.chunks(ids, batch):
                read, coming = coming, pool.submit(self._collection.read, some)
                if read is not None:
                    yield read.result()
            if coming is not None:
                yield coming.result()

    def _ids_of(self, visible: Mapping[str, int]) -> list[str]:
        """The ids of all passages of these revisions that the collection has. One that was replaced since may be left out: the
        log says further on by what."""
        return [
            passage_id(article_id, revision, number)
            for article_id, (revision, count) in self._counts(visible).items()
            if revision == visible[article_id]
            for number in range(count)
        ]

    def _visible_now(self) -> tuple[int, dict[str, int]]:
        """(position, article → revision) of a moment that the collection has rows for; without the canary."""
        position, _, visible = self._store.visible()
        bound = manifests.bound(self._store.database, self._collection.name)
        visible.pop(CANARY, None)
        return (position if bound is None else min(position, bound)), visible

    def _news(self, batch: int) -> News:
        return news.since(
            self._store.database,
            self._position,
            batch,
            collection=self._collection.name,
            with_rows=self._with_rows,
        )

    def _apply_newest(self, new: News) -> int:
        """Applies of each article its newest entry; gives how many were replaced since: a later entry says by what."""
        newest = {entry.article_id: entry for entry in new.entries}
        unknown = [e for e in newest.values() if self._told.pop(e.article_id, _NOT_TOLD) != e.revision]
        replaced = {e.article_id for e in unknown if new.shown.get(e.article_id, (None, 0))[0] != e.revision}
        gone = {e.article_id: None for e in unknown if e.revision is None and e.article_id not in replaced}
        if gone:
            self._put(gone, [], _NO_VECTORS)
        wanted = {e.article_id: e.revision for e in unknown if e.revision is not None}
        left = self._take({a: revision for a, revision in wanted.items() if a not in replaced}, new)
        self._say(new, newest.keys() - left.keys() - replaced)  # what is read from the collection may take long
        replaced |= self._fetch(left, new.shown)
        self._say(new, left.keys() - replaced)
        return len(replaced)

    def _say(self, new: News, article_ids: Set[str]) -> None:
        """These articles are as the log says now. While loading nothing is said: it would say nothing of freshness."""
        entries = [entry for entry in new.entries if entry.article_id in article_ids]
        if self.loaded and entries:
            self._remember(entry.seq for entry in entries)
            self._on_applied(list({entry.article_id: entry for entry in entries}.values()), datetime.now(UTC))

    def _remember(self, applied: Iterable[int]) -> None:
        self._recent |= dict.fromkeys(applied)
        for seq in list(islice(self._recent, max(0, len(self._recent) - _REMEMBERED))):
            del self._recent[seq]

    def _compare(self) -> int:
        """Makes the engine equal to the registry, whatever it holds; gives the number of articles that differed.

        What is replaced while this looks keeps its old revision here until the log after `position` is applied: so `seq` is
        left to `catch_up`.
        """
        position, visible = self._visible_now()
        differing = _differences(self._engine.revisions(), visible)
        gone = {article_id: None for article_id, (_, shown) in differing.items() if shown is None}
        if gone:
            self._put(gone, [], _NO_VECTORS)
        self._told.clear()
        wanted = {article_id: shown for article_id, (_, shown) in differing.items() if shown is not None}
        self._fetch(wanted, self._counts(wanted))
        self._position = position
        return len(differing)

    def _take(self, wanted: Mapping[str, int], new: News) -> dict[str, int]:
        """Puts what came with the commits into the engine, some articles at a time; gives what is left of `wanted`."""
        left = dict(wanted)
        taken: dict[str, int | None] = {}
        passages: list[Passage] = []
        vectors: list[FloatArray] = []
        for article_id, (revision, text) in new.carried.items():
            if left.get(article_id) != revision:
                continue
            some, of_some = rows.from_text(text)
            if taken and len(passages) + len(some) > _PUT_TOGETHER:
                self._put(taken, passages, np.concatenate(vectors))
                taken, passages, vectors = {}, [], []
            taken[article_id] = left.pop(article_id)
            passages += some
            vectors.append(of_some)
        if taken:
            self._put(taken, passages, np.concatenate(vectors))
        return left

    def _fetch(self, wanted: Mapping[str, int], counts: Mapping[str, tuple[int, int]]) -> set[str]:
        """Reads these revisions from the collection into the engine, some articles at a time; gives those that are not
        visible any more. Until their next entry the engine shows what it has."""
        replaced: set[str] = set()
        part: dict[str, int] = {}
        passages = 0
        for article_id, revision in wanted.items():
            shown, count = counts.get(article_id, (None, 0))
            if shown != revision:
                replaced.add(article_id)
                continue
            if part and passages + count > _FETCHED_TOGETHER:
                replaced |= self._fetch_part(part, counts)
                part, passages = {}, 0
            part[article_id] = revision
            passages += count
        return replaced | self._fetch_part(part, counts)

    def _fetch_part(self, part: Mapping[str, int], counts: Mapping[str, tuple[int, int]]) -> set[str]:
        ids = [passage_id(a, revision, n) for a, revision in part.items() for n in range(counts[a][1])]
        if not ids:
            return set()
        passages, vectors = self._collection.read(ids)
        found: dict[str, int] = dict.fromkeys(part, 0)
        for passage in passages:
            found[passage.article_id] += 1
        lacking = {a for a, n in found.items() if n < counts[a][1]}
        still = self._counts(lacking)
        replaced = {a for a in lacking if still.get(a) != counts[a]}  # replaced, and their rows swept, meanwhile
        for article_id in lacking - replaced:
            log.error(
                "article %r lacks %d of %d passages in the collection: yeoul verify --repair mends it",
                article_id,
                counts[article_id][1] - found[article_id],
                counts[article_id][1],
            )
        kept = [i for i, p in enumerate(passages) if p.article_id not in replaced]
        revisions: dict[str, int | None] = {a: r for a, r in part.items() if a not in replaced}
        self._put(revisions, [passages[i] for i in kept], vectors[kept])
        return replaced

    def _counts(self, article_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
        return self._store.visible_passages(article_ids, collection=self._collection.name)

    def _put(self, revisions: Revisions, passages: Sequence[Passage], vectors: FloatArray) -> None:
        self.whole = False
        if CANARY in revisions:
            of_canary = [i for i, p in enumerate(passages) if p.article_id == CANARY]
            others = [i for i, p in enumerate(passages) if p.article_id != CANARY]
            if self._shadow is not None:
                self._shadow.apply({CANARY: revisions[CANARY]}, [passages[i] for i in of_canary], vectors[of_canary])
            revisions = {a: r for a, r in revisions.items() if a != CANARY}
            passages, vectors = [passages[i] for i in others], vectors[others]
        if revisions:
            self._engine.apply(revisions, passages, vectors)
        self.whole = True


def _differences(here: Mapping[str, int], visible: Mapping[str, int]) -> dict[str, tuple[int | None, int | None]]:
    both = here.keys() | visible.keys()
    return {a: (here.get(a), visible.get(a)) for a in both if here.get(a) != visible.get(a)}
