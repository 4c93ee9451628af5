"""Whether the registry, the collection, the change log and the resident index agree: finds each difference, and mends it.

It runs beside writers: what looks different is looked at again, and only what still differs, with the same visible
revision, is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from sqlalchemy import exists, func, insert, select

from pipeline.connected import Connected
from pipeline.documents import Change
from pipeline.errors import NotReady
from pipeline.storage import manifests, signals
from pipeline.storage.articles import CHANGES, ArticleStore
from pipeline.storage.tables import articles, changes, inbox, leftovers

_TOGETHER = 50  # articles looked at again, or written anew, at a time
_Rows = Mapping[str, Mapping[int, int]]  # article → revision → rows


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that does not agree; `mended` says whether it does now."""

    article_id: str
    told: str
    mended: bool = False

    def __str__(self) -> str:
        return f"{self.article_id}: {self.told}{' (mended)' if self.mended else ''}"


def verify(
    store: ArticleStore, connected: Connected, *, repair: bool, on_progress: Callable[[int], None] = lambda _rows: None
) -> list[Difference]:
    """Every difference that is there; with `repair` each is mended. An index that is not loaded here is not looked at.

    Raises StoreUnavailable.
    """
    in_use = manifests.active(store.database)
    if in_use is None or in_use.name != connected.name:
        raise NotReady(f"the collection {connected.name!r} is not in use any more", "compare again")
    rows = _rows_of(connected, on_progress)
    return [
        *_lacking(store, connected, rows, repair=repair),
        *_surplus(store, connected, rows, repair=repair),
        *_stuck(store, repair=repair),
        *_unlogged(store, repair=repair),
        *_resident(connected, repair=repair),
    ]


def _rows_of(connected: Connected, on_progress: Callable[[int], None]) -> _Rows:
    rows: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for number, (_, article_id, revision) in enumerate(connected.collection.iterate_ids(), start=1):
        rows[article_id][revision] += 1
        if not number % 1000:
            on_progress(1000)
    return rows


def _lacking(store: ArticleStore, connected: Connected, rows: _Rows, *, repair: bool) -> Iterable[Difference]:
    """Visible articles without all of their rows."""
    _, _, visible = store.visible()
    counts = store.visible_passages(visible, collection=connected.name)
    suspects = [a for a, (revision, n) in counts.items() if rows.get(a, {}).get(revision, 0) != n]
    for some in _parts(suspects):
        found: dict[str, Difference] = {}
        for change in store.shown_of(some):
            ids = [f"{change.article_id}#{change.seq}#{n}" for n in range(counts[change.article_id][1])]
            held = len(connected.collection.get(ids))
            still = store.visible_passages([change.article_id], collection=connected.name).get(change.article_id)
            if still == counts[change.article_id] and held < len(ids):
                told = f"{len(ids) - held} of {len(ids)} passages of revision {change.seq} are not in the collection"
                found[change.article_id] = Difference(change.article_id, told, mended=repair)
        if repair and found:
            _write_again(connected, store.shown_of(list(found)))
            for article_id in found:
                _log_again(store, article_id)  # every index reads it again
        yield from found.values()


def _write_again(connected: Connected, shown: Sequence[Change]) -> None:
    connected.ingest.put(connected.ingest.analyse(shown), {})


def _surplus(store: ArticleStore, connected: Connected, rows: _Rows, *, repair: bool) -> Iterable[Difference]:
    """Rows of revisions that nobody sees, nobody is about to show, and nobody is about to delete."""
    _, _, visible = store.visible()
    suspects = [a for a, revisions in rows.items() if set(revisions) != {visible.get(a)}]
    for some in _parts(suspects):
        with store.database.read() as connection:  # of one moment: what is replaced between two looks is only under way
            spared = set(
                connection.execute(select(leftovers.c.article_id).where(leftovers.c.article_id.in_(some))).scalars()
            )
            waiting = select(inbox.c.article_id).where(inbox.c.article_id.in_(some), inbox.c.state == "queued")
            spared |= set(connection.execute(waiting).scalars())
            seen = select(articles.c.id, articles.c.revision).where(articles.c.id.in_(some))
            shown = {row.id: row.revision for row in connection.execute(seen)}
        keep = {a: shown.get(a) for a in some if a not in spared}
        held = connected.collection.revisions_of(list(keep)) if keep else set()
        surplus = {a: [r for r in rows[a] if r != kept and (a, r) in held] for a, kept in keep.items()}
        surplus = {a: revisions for a, revisions in surplus.items() if revisions}
        if repair and surplus:
            connected.collection.delete_replaced({a: (keep[a], max(revisions) + 1) for a, revisions in surplus.items()})
        for article_id, revisions in surplus.items():
            count = sum(rows[article_id][revision] for revision in revisions)
            yield Difference(article_id, f"{count} rows of replaced revisions {sorted(revisions)}", mended=repair)


def _stuck(store: ArticleStore, *, repair: bool) -> Iterable[Difference]:
    """Articles that are said to wait, without a change that waits."""
    waits = exists().where(inbox.c.seq == articles.c.accepted_seq, inbox.c.state == "queued")
    query = select(articles.c.id, articles.c.accepted_seq).where(articles.c.status == "queued", ~waits)
    with store.database.read() as connection:
        found = connection.execute(query).all()
    for row in found:
        if repair:
            store.requeue(row.id)
        yield Difference(row.id, f"change {row.accepted_seq} is said to wait and is not in the inbox", mended=repair)


def _unlogged(store: ArticleStore, *, repair: bool) -> Iterable[Difference]:
    """Articles whose newest line in the change log is not of their visible revision."""
    newest = select(changes.c.article_id, func.max(changes.c.position).label("position")).group_by(changes.c.article_id)
    last = newest.subquery()
    logged = changes.alias()
    query = (
        select(articles.c.id, articles.c.revision, logged.c.revision.label("logged"))
        .join(last, last.c.article_id == articles.c.id)
        .join(logged, logged.c.position == last.c.position)
        .where(articles.c.revision.is_distinct_from(logged.c.revision))
    )
    with store.database.read() as connection:
        found = connection.execute(query).all()
    for row in found:
        if repair:
            _log_again(store, row.id)
        yield Difference(row.id, f"the change log says {row.logged}, visible is {row.revision}", mended=repair)


def _log_again(store: ArticleStore, article_id: str) -> None:
    with store.database.write() as connection:
        row = connection.execute(select(articles).where(articles.c.id == article_id)).one()
        values = {
            "article_id": row.id,
            "revision": row.revision,
            "seq": row.revision or 0,  # not the newest accepted one: that may still wait
            "created_at": datetime.now(UTC),
        }
        connection.execute(insert(changes).values(**values))
        signals.send(connection, CHANGES)


def _resident(connected: Connected, *, repair: bool) -> Iterable[Difference]:
    """Articles that the engine of this process shows otherwise than the registry says."""
    if not connected.follower.loaded:
        return
    connected.follower.catch_up()
    for article_id, (here, visible) in connected.follower.compare(repair=repair).items():
        yield Difference(article_id, f"the index in memory has revision {here}, visible is {visible}", mended=repair)


def _parts(ids: Iterable[str]) -> Iterable[list[str]]:
    rest = iter(ids)
    while part := list(islice(rest, _TOGETHER)):
        yield part
