"""The registry, the inbox and the change log against a plain model of what they promise."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import event

from pipeline.documents import Article, Change
from pipeline.errors import ArticleNotFound, OlderRevision
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease
from pipeline.storage.rows import Accepted, Indexed, Leftover

_START = datetime(2026, 1, 1, tzinfo=UTC)
_IDS = st.sampled_from(["가", "나", "다"])
_DAYS = st.integers(0, 4)


@dataclass(frozen=True)
class Known:
    """The model of one article."""

    article: Article | None  # the newest accepted one
    seq: int
    revision: int | None
    updated_at: datetime
    status: str


def article(article_id: str, *, day: int | None = None, body: str = "본문", visible: bool = True) -> Article:
    moment = _START + timedelta(days=day) if day is not None else None
    return Article(id=article_id, title="제목", body=body, updated_at=moment, visible=visible)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ArticleStore]:
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield ArticleStore(database)
    database.close()


@pytest.fixture
def lease(store: ArticleStore) -> Lease:
    held = leases.acquire(store.database, "worker", "test", 60)
    assert held is not None
    return held


def change_of(accepted: Accepted) -> Change:
    return Change(
        seq=accepted.seq, article_id=accepted.article_id, article=article(accepted.article_id), updated_at=_START
    )


def commit(store: ArticleStore, changes: list[Change], lease: Lease) -> None:
    store.commit([Indexed(change, 1) for change in changes], lease, grace_seconds=0)


class ArticlesAgainstModel(RuleBasedStateMachine):
    """Random changes, in random order with a worker's commits and failures, against `Known` and a list of queued seqs."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.store = ArticleStore(StateDatabase.open(f"sqlite:///{self._folder.name}/state.db"))
        held = leases.acquire(self.store.database, "worker", "test", 3600)
        assert held is not None
        self.lease = held
        self.known: dict[str, Known] = {}
        self.queued: list[int] = []
        self.last_seq = 0
        self.taken: list[Change] = []  # what a worker has read and not settled
        self.log: list[tuple[str, int | None]] = []

    def teardown(self) -> None:
        self.store.database.close()
        self._folder.cleanup()

    @rule(article_id=_IDS, day=st.none() | _DAYS, body=st.sampled_from(["하나", "둘"]), visible=st.booleans())
    def accept(self, article_id: str, day: int | None, body: str, visible: bool) -> None:
        given = article(article_id, day=day, body=body, visible=visible)
        before = self.known.get(article_id)
        if before is not None and given.updated_at is not None and given.updated_at < before.updated_at:
            with pytest.raises(OlderRevision):
                self.store.accept(given)
            return
        start = datetime.now(UTC)
        answer = self.store.accept(given)
        kept = self.store.state(article_id).updated_at
        if given.updated_at is not None:
            assert kept == given.updated_at
        else:
            assert start <= kept <= datetime.now(UTC)
        same = before is not None and before.article is not None and _content(before.article) == _content(given)
        if before is not None and same and before.status != "failed":
            assert answer == Accepted(article_id, before.seq, before.revision, before.status, unchanged=True)  # type: ignore[arg-type]
            self.known[article_id] = replace(before, updated_at=kept)
        else:
            self._accepted(article_id, given, answer, kept)

    @rule(article_id=_IDS)
    def delete(self, article_id: str) -> None:
        before = self.known.get(article_id)
        if before is None:
            with pytest.raises(ArticleNotFound):
                self.store.accept_delete(article_id)
            return
        answer = self.store.accept_delete(article_id)
        kept = self.store.state(article_id).updated_at
        assert kept >= before.updated_at
        if before.article is None and before.status != "failed":
            assert answer.unchanged
            assert answer.seq == before.seq
            self.known[article_id] = replace(before, updated_at=kept)
        else:
            self._accepted(article_id, None, answer, kept)

    @rule(limit=st.integers(1, 3), after=st.integers(0, 4))
    def take(self, limit: int, after: int) -> None:
        """A worker reads a batch; more may be accepted before it commits."""
        newest = sorted(
            known.seq for known in self.known.values() if known.status == "queued" and known.seq in self.queued
        )
        self.taken = self.store.queued(limit, after=after)
        assert [change.seq for change in self.taken] == [seq for seq in newest if seq > after][:limit]
        assert len({change.article_id for change in self.taken}) == len(self.taken)

    @precondition(lambda self: self.taken)
    @rule()
    def commit(self) -> None:
        commit(self.store, self.taken, self.lease)
        for change in self.taken:
            known = self.known[change.article_id]
            shown = change.seq if change.article is not None and change.article.visible else None
            if shown is not None or known.revision is not None:
                self.log.append((change.article_id, shown))
            self._settled(change)
            known = replace(known, revision=shown)
            if known.seq == change.seq:
                known = replace(known, status="deleted" if change.article is None else "indexed")
            self.known[change.article_id] = known
        self.taken = []

    @precondition(lambda self: self.taken)
    @rule()
    def fail(self) -> None:
        change = self.taken.pop(0)
        self.store.fail(change, "왜냐하면", self.lease)
        self._settled(change)
        if self.known[change.article_id].seq == change.seq:
            self.known[change.article_id] = replace(self.known[change.article_id], status="failed")

    @invariant()
    def the_registry_is_the_model(self) -> None:
        for article_id, known in self.known.items():
            state = self.store.state(article_id)
            assert (state.article, state.seq, state.revision, state.status) == (
                known.article, known.seq, known.revision, known.status,
            )  # fmt: skip
            assert state.error == ("왜냐하면" if known.status == "failed" else None)
        position, settled, visible = self.store.visible()
        assert visible == {name: known.revision for name, known in self.known.items() if known.revision is not None}
        assert settled == self.store.settled_up_to() == min(self.queued, default=self.last_seq + 1) - 1
        assert position == len(self.log)
        assert self.store.queue_length() == len(self.queued)
        assert sum(self.store.counts().values()) == len(self.known)

    @invariant()
    def seqs_are_settled_exactly_when_not_queued(self) -> None:
        for seq in range(1, self.last_seq + 1):
            assert self.store.progress(seq) != "unknown"
            assert self.store.settled(seq) == (seq not in self.queued)
        assert self.store.progress(self.last_seq + 1) == "unknown"
        assert not self.store.settled(self.last_seq + 1)

    @invariant()
    def the_log_replayed_from_any_position_gives_what_is_visible(self) -> None:
        _, _, visible = self.store.visible()
        for start in range(len(self.log) + 1):
            shown: dict[str, int | None] = dict(self.log[:start])
            entries, _ = self.store.log_since(start)
            for entry in entries:
                shown[entry.article_id] = entry.revision
            assert [entry.position for entry in entries] == list(range(start + 1, len(self.log) + 1))
            assert {name: revision for name, revision in shown.items() if revision is not None} == visible

    def _accepted(self, article_id: str, given: Article | None, answer: Accepted, kept: datetime) -> None:
        assert answer.seq > self.last_seq
        assert answer.status == "queued"
        assert not answer.unchanged
        before = self.known.get(article_id)
        revision = before.revision if before is not None else None
        assert answer.revision == revision
        self.known[article_id] = Known(given, answer.seq, revision, kept, "queued")
        self.queued.append(answer.seq)
        self.last_seq = answer.seq

    def _settled(self, change: Change) -> None:
        older = {c for c in self.queued if c <= change.seq and self._article_of[c] == change.article_id}
        self.queued = [seq for seq in self.queued if seq not in older]

    @property
    def _article_of(self) -> dict[int, str]:
        with self.store.database.read() as connection:
            rows = connection.exec_driver_sql("SELECT seq, article_id FROM inbox").all()
        return {row.seq: row.article_id for row in rows}


def _content(given: Article) -> Article:
    return replace(given, updated_at=None)


ArticlesAgainstModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_random_changes_agree_with_the_model = ArticlesAgainstModel.TestCase


def test_many_are_accepted_as_one_by_one_and_what_is_refused_comes_back(store: ArticleStore) -> None:
    batch = [article("가", day=2), article("나"), article("가", day=1, body="옛"), article("가", day=2)]
    first, second, refused, unchanged = store.accept_many(batch, source="files")
    assert isinstance(first, Accepted)
    assert isinstance(second, Accepted)
    assert isinstance(unchanged, Accepted)
    assert isinstance(refused, OlderRevision)
    assert (first.seq, second.seq, unchanged.seq, unchanged.unchanged) == (1, 2, 1, True)
    assert store.queue_length() == 2


def test_an_updated_at_ahead_of_the_clock_counts_as_now_and_locks_nothing(store: ArticleStore) -> None:
    store.accept(replace(article("가"), updated_at=datetime.now(UTC) + timedelta(days=365)))
    assert store.state("가").updated_at <= datetime.now(UTC)
    assert not store.accept(article("가", body="고침")).unchanged


def test_a_delete_leaves_the_state_and_an_older_article_does_not_come_back(store: ArticleStore, lease: Lease) -> None:
    store.accept(article("가", day=1))
    commit(store, store.queued(9), lease)
    store.accept_delete("가")
    commit(store, store.queued(9), lease)
    assert store.state("가").status == "deleted"
    assert store.state("가").article is None
    with pytest.raises(OlderRevision):
        store.accept(article("가", day=2))
    assert not store.accept(article("가")).unchanged


def test_settled_changes_keep_no_bodies(store: ArticleStore, lease: Lease) -> None:
    for body in ("하나", "둘", "셋"):
        store.accept(article("가", body=body))
    commit(store, store.queued(9), lease)
    with store.database.read() as connection:
        states = connection.exec_driver_sql("SELECT state, payload FROM inbox ORDER BY seq").all()
    assert [tuple(row) for row in states] == [("superseded", None), ("superseded", None), ("indexed", None)]


def test_shown_gives_what_is_visible_with_the_content_of_its_revision(store: ArticleStore, lease: Lease) -> None:
    names = sorted(f"글{n}" for n in range(25))
    store.accept_many([article(name) for name in names], source="files")
    commit(store, store.queued(99), lease)
    commit(store, [change_of(store.accept(article("글3", body="새 본문")))], lease)
    store.accept(article("글4", body="아직 안 보이는 본문"))
    store.accept_delete("글5")
    failed = store.accept(article("글6", body="색인할 수 없는 본문"))
    store.fail(change_of(failed), "독", lease)
    store.accept_delete("글7")
    commit(store, [c for c in store.queued(99) if c.article_id == "글7"], lease)
    first = store.shown(limit=10)
    rest = store.shown(after=first[-1].article_id, limit=99)
    shown = {change.article_id: (change.seq, change.article) for change in [*first, *rest]}
    assert sorted(shown) == sorted(set(names) - {"글7"})
    revisions = store.visible()[2]
    assert {name: seq for name, (seq, _) in shown.items()} == revisions
    bodies = {name: shown_article.body for name, (_, shown_article) in shown.items() if shown_article is not None}
    assert bodies == {name: "새 본문" if name == "글3" else "본문" for name in shown}
    assert sorted(c.article_id for c in store.shown_of(["글4", "글7", "없는 글"])) == ["글4"]
    number, last = store.shown_end()
    assert number == len(shown)
    assert [c.article_id for c in store.shown(after=first[-1].article_id, up_to=last, limit=99)] == [
        c.article_id for c in rest
    ]
    assert [c.article_id for c in store.shown(up_to=first[3].article_id)] == [c.article_id for c in first[:4]]


def test_of_an_empty_store_nothing_is_shown(store: ArticleStore) -> None:
    assert store.shown() == []
    assert store.shown_end() == (0, "")


def test_only_articles_that_may_have_old_rows_are_swept(store: ArticleStore, lease: Lease) -> None:
    store.accept_many([article("새"), article("고친")], source="files")
    commit(store, store.queued(9), lease)
    assert store.due_leftovers() == []
    edited = store.accept(article("고친", body="고침"))
    commit(store, store.queued(9), lease)
    assert store.due_leftovers() == [Leftover("고친", edited.seq - 1, 1, keep=edited.seq, before=edited.seq + 1)]


def test_an_article_superseded_before_its_first_commit_is_swept(store: ArticleStore, lease: Lease) -> None:
    """Its first revision's rows may stand: a worker may have died between writing them and the commit."""
    store.accept(article("가", body="하나"))
    second = store.accept(article("가", body="둘"))
    commit(store, store.queued(9), lease)
    assert store.due_leftovers() == [Leftover("가", 0, 0, keep=second.seq, before=second.seq + 1)]


def test_old_rows_stay_until_the_grace_of_the_last_change_is_over(store: ArticleStore, lease: Lease) -> None:
    for body in ("하나", "둘"):
        store.accept(article("가", body=body))
        store.commit([Indexed(change, 1) for change in store.queued(9)], lease, grace_seconds=60)
    store.accept(article("가", body="셋"))
    store.fail(store.queued(1)[0], "왜냐하면", lease)  # a failure makes nothing due earlier
    assert store.due_leftovers() == []


def test_what_was_pruned_stays_known_as_settled_though_older_numbers_are_pruned_later(
    store: ArticleStore, lease: Lease
) -> None:
    """A push overtakes a bulk load, and is pruned before it."""
    bulk, pushed = (store.accept(article(name)) for name in ("무더기", "급한 것"))
    last = store.accept(article("끝"))
    commit(store, [change for change in store.queued(9) if change.seq == pushed.seq], lease)
    assert store.prune(0) == (1, 1)
    commit(store, [change for change in store.queued(9) if change.seq == bulk.seq], lease)
    assert store.prune(0) == (1, 1)
    assert [store.progress(one.seq) for one in (bulk, pushed, last)] == ["settled", "settled", "queued"]


def test_a_revision_that_was_cut_short_is_looked_for_beside_the_one_that_is_known(
    store: ArticleStore, lease: Lease
) -> None:
    first = store.accept(article("가", body="하나"))
    commit(store, store.queued(9), lease)
    for body in ("둘", "셋"):
        last = store.accept(article("가", body=body))
    commit(store, store.queued(9), lease)
    keep = {"keep": last.seq, "before": last.seq + 1}
    assert sorted(store.due_leftovers(), key=lambda one: one.revision) == [
        Leftover("가", 0, 0, **keep),
        Leftover("가", first.seq, 1, **keep),
    ]


def test_an_article_that_was_edited_before_the_sweep_has_each_revision_swept(store: ArticleStore, lease: Lease) -> None:
    for body in ("하나", "둘", "셋"):
        last = store.accept(article("가", body=body))
        commit(store, store.queued(9), lease)
    assert [one.revision for one in store.due_leftovers()] == [last.seq - 2, last.seq - 1]
    store.forget_leftovers(store.due_leftovers()[:1], before=datetime.now(UTC))
    assert [one.revision for one in store.due_leftovers()] == [last.seq - 1]


def test_a_sweep_forgets_only_what_was_due_when_it_began(store: ArticleStore, lease: Lease) -> None:
    for body in ("하나", "둘"):
        store.accept(article("가", body=body))
        commit(store, store.queued(9), lease)
    before_it_was_due = datetime.now(UTC) - timedelta(seconds=30)
    store.forget_leftovers(store.due_leftovers(), before=before_it_was_due)
    assert [one.article_id for one in store.due_leftovers()] == ["가"]
    store.forget_leftovers(store.due_leftovers(), before=datetime.now(UTC))
    assert store.due_leftovers() == []


def test_a_long_queue_is_read_as_fast_as_a_short_one(store: ArticleStore) -> None:
    """By its plan: one search of an index for each row that is looked at, nothing sorted or scanned."""
    asked: list[tuple[str, tuple[object, ...]]] = []
    event.listen(
        store.database.engine, "before_cursor_execute", lambda _c, _u, text, values, *_: asked.append((text, values))
    )
    store.queued(64, after=7)
    statement, values = asked[-1]
    with store.database.read() as connection:
        plan = [row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert plan
    assert all("SEARCH" in step or "SUBQUERY" in step for step in plan), plan
