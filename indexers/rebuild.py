"""Blue and green: a new collection from the stored articles while writes and searches go on, checked, then put in use.

The rows of the new collection are written beside the one in use and catch up with the change log; every process that answers
loads it; it must give the golden queries much the same answers; then the worker is held up for a moment, the rest of the
log is written, and one transaction puts it in use. The old one is kept, and a rollback is the same in the other direction.
A rebuild that was broken off goes on where it stopped.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from indexers.golden import Overlap, compared, overlap_table
from indexers.worker import LEASE
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.documents import CANARY, Change, passage_id
from pipeline.errors import LogPruned, NotReady, Unavailable, YeoulError
from pipeline.ingest import KnownVectors, known_vectors
from pipeline.storage import leases, manifests, readers
from pipeline.storage.manifests import KnownCollection, Recipe
from pipeline.storage.rows import LogEntry

_TOGETHER = 4  # articles: whoever writes into the same store waits some 10 ms for its turn
_SEALED_TOGETHER = 160  # articles: what Milvus Lite holds in memory is slow to read
_LOG_ENTRIES = 500
_BEHIND = 50  # changes; with fewer to write processes may load
# Through what has changed, each pass shorter than the one before, until so few changes are left for the worker's wait.
_PASSES, _FEW = 10, 5
_ATTEMPTS = 2  # of writing what a collection has lost
_LOOK_SECONDS = 0.2
_LINE = 5  # searches that wait in a process: then it has no time to spare, which a rebuild takes, nice as it is
_LONGEST_PAUSE_SECONDS = 20.0  # until it goes on all the same for a while, lest it never ends
_REPLAY_SECONDS = 2.0  # between two looks at what changed, while processes load: many changes at a time cost less
_SECONDS_A_PASSAGE = 0.02  # for a process that answers to load one, beside its searches, ten times over
_SEEN_SECONDS = 60.0  # for this process to change over after the switch: loading is over by then

_at_work = threading.Lock()  # one rebuild a process


class RebuildRefused(YeoulError):
    """A check before the switch found what a person should see; the collection in use stays in use."""

    code = "rebuild_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What must hold before the switch. `min_overlap`: share of the ten best articles that old and new have in common, on
    average over the golden queries; `wait_seconds`, and a while for each passage: how long processes that answer are waited
    for."""

    queries: Sequence[str] = ()
    min_overlap: float = 0.5
    wait_seconds: float = 300.0


Tell = Callable[[str], None]


class Rebuild:
    """Carries one collection to where it can be put in use, in a process that answers nobody: for those that do it would be a
    burden, and it is nice to them."""

    def __init__(self, assembly: Assembly, *, tell: Tell, stopped: Callable[[], bool]) -> None:
        self._assembly = assembly
        self._store = assembly.store
        self._database = assembly.database
        self._tell = tell
        self._stopped = stopped
        self._holder = f"rebuild:{time.time_ns()}"
        self._lease: leases.Lease | None = None
        self._line_due = 0.0  # monotonic: the next look whether searches wait
        self._replay_due = 0.0  # monotonic: the next look at what changed, while this waits

    def to_recipe(self, recipe: Recipe, conditions: Conditions) -> None:
        """Builds the index anew as `recipe` says and puts it in use. Raises RebuildRefused and what the stores raise."""
        with self._alone():
            known, fresh = self._begun(recipe)
            self._carry(known, conditions, fresh=fresh)

    def back(self, conditions: Conditions) -> None:
        """Puts the collection in use that was before, with all changes since. Raises RebuildRefused where none is kept."""
        with self._alone():
            begun = [k for k in manifests.known(self._database, "building", "ready") if k.left_at is not None]
            kept = next(iter([*begun, *manifests.known(self._database, "kept")]), None)
            if kept is None:
                raise RebuildRefused("no collection is kept that could be used again", "yeoul rebuild makes a new one")
            self._tell(f"back to {kept.name}, complete up to line {kept.position:,} of the change log")
            try:
                self._carry(kept, conditions, fresh=False)
            except leases.LeaseLost:
                raise
            except BaseException:
                manifests.set_state(self._database, kept.name, "kept")
                raise

    def prune(self) -> list[str]:
        """Drops the collections that were kept and those that were given up; gives their names."""
        with self._alone():
            names = []
            for known in manifests.known(self._database, "kept", "building", "ready"):
                self._drop(known)
                names.append(known.name)
            return names

    # ---- the way of one collection

    def _carry(self, known: KnownCollection, conditions: Conditions, *, fresh: bool) -> None:
        """`fresh`: nobody has written into the collection before."""
        target = self._assembly.opened(known, create=known.last_article == "")
        try:
            self._fill(target, known)
            self._follow(target)
            self._check(target, conditions)
            self._switch(target)
        except leases.LeaseLost:  # the collection is another one's by now
            raise
        except BaseException:
            manifests.set_state(self._database, known.name, "building")  # nobody need have it in memory any longer
            raise
        else:
            self._tidy(target, fresh=fresh)
        finally:
            target.close()
        self._tell(f"{known.name} is in use; the one before is kept: yeoul rollback, or yeoul rebuild --prune")
        try:
            self._until(lambda: self._assembly.connected.name == known.name, _SEEN_SECONDS, "the switch was not seen")
        except (Unavailable, RebuildRefused) as error:  # it is done: tried again, a rollback would go back
            self._tell(f"this process has not changed over to it: {error}")

    def _begun(self, recipe: Recipe) -> tuple[KnownCollection, bool]:
        """The rebuild for `recipe` that was broken off, or a new one, and whether it is new; those for other recipes are given
        up."""
        parts = self._assembly.parts.following(recipe)
        oldest = self._store.oldest_position()
        for known in manifests.known(self._database, "building", "ready"):
            in_reach = known.position is not None and known.position >= oldest
            if in_reach and known.manifest.identity() == parts.manifest.identity() and known.recipe == recipe:
                self._tell(f"going on with {known.name}")
                return known, False
            self._drop(known)
        prefix = self._assembly.settings.milvus.collection
        name = manifests.fresh_name(self._database, prefix)
        return manifests.begin(self._database, name, parts.manifest, recipe), True

    def _fill(self, target: Connected, known: KnownCollection) -> None:
        """Writes every visible article, in order of id, from where an earlier rebuild stopped.

        Ids that come after the last one of now are left to the log: where ids count up, there would be no end to them.
        """
        last, done, encoded = known.last_article, 0, 0
        total, end = self._store.shown_end()
        while last is not None and (some := self._store.shown(after=last, up_to=end, limit=_TOGETHER)):
            self._check_stop()
            self._let_searches_go_first()
            counts, fresh = self._put(target, some)
            last, done, encoded = some[-1].article_id, done + len(some), encoded + fresh
            manifests.advance(self._database, target.name, counts, last_article=last)
            if done % _SEALED_TOGETHER < _TOGETHER:
                self._tell(f"{done:,} of {total:,} articles")
                target.ingest.flush()
        if last is not None:
            self._tell(f"{done:,} articles written, {encoded:,} passages encoded")
        self._replay(target)
        target.ingest.flush()
        self._compare_counts(target)
        manifests.advance(self._database, target.name, {}, filled=True)

    def _compare_counts(self, target: Connected) -> None:
        """Says how many articles and passages old and new have, and writes what the new collection has lost.

        Raises RebuildRefused where it loses it again.
        """
        ids = self._store.visible()[2].keys() - {CANARY}
        for attempt in range(_ATTEMPTS):
            counts = self._store.visible_passages(ids, collection=target.name)
            lacking = _lacking_rows(target, counts)
            if not lacking:
                break
            self._tell(f"{len(lacking):,} articles lack passages in {target.name}, such as {lacking[0]!r}")
            if attempt == _ATTEMPTS - 1:
                raise RebuildRefused(
                    f"{target.name} has lost passages of {len(lacking):,} articles twice",
                    "see the log of the vector store; then yeoul rebuild --prune, and yeoul rebuild",
                )
            for start in range(0, len(lacking), _TOGETHER):
                some = self._store.shown_of(lacking[start : start + _TOGETHER])
                self._put(target, [c for c in some if c.seq == counts[c.article_id][0]])  # the log tells of the others
        before = self._assembly.connected.name
        for name, found in ((before, self._store.visible_passages(ids)), (target.name, counts)):
            self._tell(f"{name}: {len(found):,} articles, {sum(n for _, n in found.values()):,} passages")

    def _follow(self, target: Connected) -> None:
        """Writes what changes, until every process that answers has loaded the collection."""
        while self._replay(target) >= _BEHIND:
            self._check_stop()

    def _replay(self, target: Connected) -> int:
        """Writes what the log says since the collection's place in it; gives the number of articles."""
        place = manifests.bound(self._database, target.name)
        written = 0
        while place is not None:
            self._check_stop()
            entries, changed, stale = self._lacking(target, place)
            for start in range(0, len(changed), _TOGETHER):
                counts, _ = self._put(target, changed[start : start + _TOGETHER])
                manifests.advance(self._database, target.name, counts)
            target.collection.delete(stale)
            written += len(changed)
            if entries:
                place = entries[-1].position
                manifests.advance(self._database, target.name, {}, position=place)
            if len(entries) < _LOG_ENTRIES:
                break  # its end as it was: with the worker held up nothing is added
        return written

    def _lacking(self, target: Connected, place: int) -> tuple[list[LogEntry], list[Change], list[str]]:
        """The log after `place`, at most so much of it, what is visible of its articles and not in the collection, and the ids
        of rows that are there and not visible."""
        try:
            entries, _ = self._store.log_since(place, _LOG_ENTRIES)
        except LogPruned as error:
            raise RebuildRefused(
                f"{target.name} was last in use before the change log begins ({error.message})",
                "yeoul rebuild makes a new one",
            ) from error
        ids = sorted({entry.article_id for entry in entries})
        there = self._store.visible_passages(ids, collection=target.name)  # since it was filled
        others = [article_id for article_id in ids if article_id not in there]
        stale = [
            passage_id(article_id, revision, number)
            for article_id, (revision, passages) in manifests.counted(self._database, target.name, others).items()
            for number in range(passages)
        ]
        return entries, self._store.shown_of(others), stale

    def _put(self, target: Connected, shown: Sequence[Change]) -> tuple[dict[str, tuple[int, int]], int]:
        """Writes these articles: id → (revision, passages), and how many passages were encoded."""
        analysed = target.ingest.analyse(shown)
        _, encoded = target.ingest.put(analysed, self._known_vectors(target, shown))
        counts = {c.article_id: (c.seq, len(made)) for c, made in zip(shown, analysed, strict=True)}
        return counts, encoded

    def _known_vectors(self, target: Connected, shown: Sequence[Change]) -> KnownVectors:
        """Of the collection in use, where it was built in the same way: another dictionary changes vectors too."""
        in_use = self._assembly.connected
        if in_use.manifest.identity() != target.manifest.identity() or in_use.name == target.name:
            return {}
        counts = self._store.visible_passages([change.article_id for change in shown])
        return known_vectors(lambda ids: in_use.collection.read(ids, newest=False), counts)

    def _check(self, target: Connected, conditions: Conditions) -> None:
        """Waits until every process that answers has loaded the collection, and compares answers."""
        name, seconds = target.name, conditions.wait_seconds + target.collection.count() * _SECONDS_A_PASSAGE
        self._until(
            lambda: self._assembly.coming(name) is not None, seconds, f"{name} is not loaded here", target=target
        )
        self._until(
            lambda: all(reader.collection == name for reader in readers.alive(self._database)),
            seconds,
            f"not every process that answers has loaded {name}",
            target=target,
        )
        coming = self._assembly.coming(name)
        assert coming is not None
        overlaps = []
        self._replay_due = 0.0
        for query in conditions.queries or self._titles():
            self._check_stop()
            self._keep_level(target, coming)
            overlaps.append(compared(self._assembly.connected.searcher, coming.searcher, query))
        for line in overlap_table(overlaps):
            self._tell(line)
        mean = Overlap.mean(overlaps)
        if overlaps and mean < conditions.min_overlap:
            raise RebuildRefused(
                f"old and new have {mean:.2f} of their ten best articles in common, {conditions.min_overlap:.2f} are asked for",
                "look at the queries above; yeoul rebuild --min-overlap 0 puts it in use all the same",
            )

    def _keep_level(self, target: Connected, coming: Connected | None = None) -> None:
        """Now and then writes what changed, and has it loaded where `coming` is `target` as it is loaded here."""
        if time.monotonic() >= self._replay_due:
            self._replay(target)
            if coming is not None:
                self._assembly.connected.follower.catch_up()
                coming.follower.catch_up()
            self._replay_due = time.monotonic() + _REPLAY_SECONDS

    def _titles(self) -> list[str]:
        """Titles of articles, evenly drawn: golden queries where nobody has given any."""
        ids = sorted(self._store.visible()[2].keys() - {CANARY})
        drawn = ids[:: max(1, len(ids) // 50)][:50]
        return [
            c.article.title for c in self._store.shown_of(drawn) if c.article is not None and c.article.title.strip()
        ]

    def _switch(self, target: Connected) -> None:
        """Holds the worker up, writes the last changes, and puts the collection in use."""
        for _ in range(_PASSES):
            if self._replay(target) <= _FEW:
                break
        lease = leases.acquire(self._database, LEASE, self._holder, leases.SECONDS, alone=True)
        assert lease is not None  # it is taken over from whoever has it
        with leases.kept(self._database, lease, leases.SECONDS):  # some milliseconds of work, mostly
            self._replay(target)
            position = manifests.switch(self._database, target.name, lease)
        self._tell(f"put in use at line {position:,} of the change log")

    def _tidy(self, target: Connected, *, fresh: bool) -> None:
        """What remains after the switch. It is done whether this is or not: a rebuild that failed here would be tried again."""
        try:
            target.collection.switch_alias(self._assembly.settings.milvus.collection)
            if not fresh:
                self._leave_to_the_sweep(target)
        except Unavailable as error:
            self._tell(f"the alias or old rows were left as they are ({error}): yeoul verify --repair deletes the rows")

    def _leave_to_the_sweep(self, target: Connected) -> None:
        """Rows that nobody has counted: of an attempt that was cut short, or not swept yet when the collection left use."""
        _, _, visible = self._store.visible()
        rows = target.collection.iterate_ids()
        stale = sorted({article_id for _, article_id, revision in rows if visible.get(article_id) != revision})
        self._store.leave(stale, grace_seconds=self._assembly.settings.indexers.grace_seconds)

    # ---- around it

    def _let_searches_go_first(self) -> None:
        """Waits while searches stand in line in a process that answers: being nice does not give back caches and disks. Only
        while the collection is filled: what changes has to be written faster than it comes."""
        if time.monotonic() < self._line_due:
            return
        end = time.monotonic() + _LONGEST_PAUSE_SECONDS
        while any(r.waiting >= _LINE for r in readers.alive(self._database)) and time.monotonic() < end:
            self._check_stop()
            time.sleep(_LOOK_SECONDS)
        self._line_due = time.monotonic() + readers.REPORT_SECONDS

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the lease of rebuilds. Raises RebuildRefused where another one is at work."""
        embedded = self._assembly.lock is not None  # no other process can be at it
        if not _at_work.acquire(blocking=False):
            raise RebuildRefused("another rebuild is at work", "wait for its end")
        try:
            lease = leases.acquire(self._database, "rebuild", self._holder, leases.SECONDS, alone=embedded)
            if lease is None:
                raise RebuildRefused("another rebuild is at work", "wait for its end")
            self._lease = lease
            with leases.kept(self._database, lease, leases.SECONDS):
                yield
        finally:
            _at_work.release()

    def _drop(self, known: KnownCollection) -> None:
        try:
            collection = self._assembly.collection_of(known)
        except NotReady:
            pass  # it was never made
        else:
            try:
                collection.drop()
            finally:
                collection.close()
        manifests.set_state(self._database, known.name, "dropped")

    def _until(
        self, condition: Callable[[], bool], seconds: float, what: str, *, target: Connected | None = None
    ) -> None:
        """Waits; a `target` is written meanwhile what changes. Raises RebuildRefused, which says `what`, after `seconds`."""
        end = time.monotonic() + seconds
        while not condition():
            self._check_stop()
            if target is not None:
                self._keep_level(target)
            if time.monotonic() > end:
                raise RebuildRefused(
                    f"{what} after {seconds:g} s", "see the logs of the processes that answer; try again"
                )
            self._assembly.catch_up()
            time.sleep(_LOOK_SECONDS)

    def _check_stop(self) -> None:
        """Raises RebuildRefused, and LeaseLost where this slept for so long that another rebuild goes on with it."""
        if self._stopped():
            raise RebuildRefused("stopped", "yeoul rebuild goes on where it was")
        if self._lease is not None:
            leases.check(self._database, self._lease)


def _lacking_rows(target: Connected, counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """The articles of which the collection has fewer rows than `counts` (article → (revision, passages)) says."""
    rows = Counter((article_id, revision) for _, article_id, revision in target.collection.iterate_ids())
    return sorted(a for a, (revision, passages) in counts.items() if rows[a, revision] < passages)
