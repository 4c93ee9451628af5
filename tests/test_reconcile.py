"""Reconciling: what does not agree is told, what is only under way is not, and a repair leaves nothing to tell."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from indexers.reconcile import Difference, verify
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.documents import Article, Passage, passage_id
from pipeline.errors import NotReady
from pipeline.follower import Follower
from pipeline.index.engine import Engine
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.settings import Settings
from pipeline.storage import manifests
from pipeline.storage.tables import articles, changes, inbox, leftovers
from tests.api_server import assembly_of
from tests.fakes import FakeEncoder
from tests.stores import EMBEDDED_ALONE

_PATIENCE = 150.0
_LOOKS, _COMMITS = 10, 25  # at the stores while somebody writes, and what is committed meanwhile, at least
_ON_SERVERS = 4, 10  # each look takes several Strong reads there
_BODY = "\n\n".join(
    f"{{}} {n}번째 문단에서 전세 보증금과 확정일자를 차례로 살펴보면 됩니다 그렇습니다." for n in range(3)
)
_NO_VECTORS = np.zeros((0, 32), dtype=np.float32)

Damage = Callable[[Assembly], None]


def article(number: int, text: str = "처음으로") -> Article:
    return Article(id=f"글{number}", title=f"제목 {number}", body=_BODY.format(*[text] * 3))


def drain(assembly: Assembly) -> None:
    worker = Worker(assembly.store, assembly.ingest, attempts=1)
    worker.drain()
    worker.sweep()
    assembly.catch_up()


@pytest.fixture
def assembly(tmp_path: Path, analyser: Analyser, stores_of: Callable[[int], dict[str, Any]]) -> Iterator[Assembly]:
    """Articles 글0 .. 글4 of three passages each; 글1 is in its second revision, 글4 is deleted."""
    encoder = FakeEncoder()
    given = {"data_dir": tmp_path, "chunking": {"max_tokens": 16}, "indexers": {"grace_seconds": 0}}
    made = assembly_of(Settings.model_validate(given | stores_of(encoder.dim)), analyser, encoder)
    try:
        made.connect().load()
        made.store.accept_many([article(n) for n in range(5)], source="test")
        drain(made)
        made.store.accept(article(1, "다시"))
        made.store.accept_delete("글4")
        drain(made)
        assert made.store.visible()[2] == {"글0": 1, "글1": 6, "글2": 3, "글3": 4}
        assert made.connected.engine()[0].count == 12
        yield made
    finally:
        made.close()


def everything(assembly: Assembly) -> tuple[Any, ...]:
    """All that a repair could change."""
    with assembly.database.read() as connection:
        tables = [sorted(map(repr, connection.execute(select(t)))) for t in (articles, changes, inbox, leftovers)]
    rows = sorted(assembly.connected.collection.iterate_ids())
    return tables, rows, assembly.connected.engine()[0].revisions()


def assert_whole(assembly: Assembly, engine: Engine) -> None:
    """The engine holds every passage of what is visible, as it stands in the collection, and nothing else."""
    counts = assembly.store.visible_passages(assembly.store.visible()[2])
    ids = [passage_id(a, revision, n) for a, (revision, passages) in counts.items() for n in range(passages)]
    assert engine.revisions() == {a: revision for a, (revision, _) in counts.items()}
    assert engine.count == len(ids) == 12
    assert list(engine.passages(ids).values()) == assembly.connected.collection.get(ids)
    assert {text.article_id for text in engine.passages(ids).values()} == counts.keys()


def lose_rows(assembly: Assembly) -> None:
    assembly.connected.collection.delete(["글1#6#1", *(f"글2#3#{n}" for n in range(3))])


def keep_replaced_rows(assembly: Assembly) -> None:
    """Of an article that is shown and of one that is deleted."""
    collection = assembly.connected.collection
    passages, vectors = collection.read([f"글1#6#{n}" for n in range(3)])
    collection.upsert([replace(p, revision=2) for p in passages], vectors)
    collection.upsert([replace(p, article_id="글4", revision=5) for p in passages], vectors)


def spoil_the_registry(assembly: Assembly) -> None:
    """It forgets what waits, and the log has another revision."""
    with assembly.database.write() as connection:
        connection.execute(update(articles).where(articles.c.id == "글3").values(status="queued"))
        connection.execute(
            update(changes).where(changes.c.article_id == "글1", changes.c.revision == 6).values(revision=2)
        )


def show_something_else(assembly: Assembly) -> None:
    """One article is missing in memory, one is there in a replaced revision, one is there that is gone."""
    engine, collection = assembly.connected.engine()[0], assembly.connected.collection
    passages, vectors = collection.read([f"글1#6#{n}" for n in range(3)])
    engine.apply({"글0": None}, [], _NO_VECTORS)
    engine.apply({"글1": 2}, [replace(p, revision=2) for p in passages], vectors)
    engine.apply({"글4": 5}, [replace(p, article_id="글4", revision=5) for p in passages], vectors)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lose_rows,
            {
                "글1: 1 of 3 passages of revision 6 are not in the collection",
                "글2: 3 of 3 passages of revision 3 are not in the collection",
            },
        ),
        (keep_replaced_rows, {"글1: 3 rows of replaced revisions [2]", "글4: 3 rows of replaced revisions [5]"}),
        (
            spoil_the_registry,
            {
                "글3: change 4 is said to wait and is not in the inbox",
                "글1: the change log says 2, visible is 6",
            },
        ),
        (
            show_something_else,
            {
                "글0: the index in memory has revision None, visible is 1",
                "글1: the index in memory has revision 2, visible is 6",
                "글4: the index in memory has revision 5, visible is None",
            },
        ),
    ],
)
def test_each_difference_is_told_and_mended(assembly: Assembly, damage: Damage, told: set[str]) -> None:
    connected = assembly.connected
    assert verify(assembly.store, connected, repair=False) == []
    damage(assembly)
    elsewhere = ResidentEngine(connected.collection.dim, LexicalParameters())  # of a process that loads the damage
    follower = Follower(assembly.store, connected.collection, elsewhere)
    follower.load()
    before = everything(assembly)
    assert {str(one) for one in verify(assembly.store, connected, repair=False)} == told
    assert everything(assembly) == before

    mended = verify(assembly.store, connected, repair=True)
    assert {str(one) for one in mended} == {f"{one} (mended)" for one in told}
    assert verify(assembly.store, connected, repair=False) == []
    drain(assembly)  # what a repair put into the inbox
    follower.catch_up()
    assert verify(assembly.store, connected, repair=False) == []
    assert assembly.store.counts() == {"indexed": 4, "deleted": 1}
    assert_whole(assembly, connected.engine()[0])
    assert_whole(assembly, elsewhere)


def test_a_repair_beside_an_edit_that_waits_claims_nothing_of_the_edit(assembly: Assembly) -> None:
    follower = assembly.connected.follower
    lose_rows(assembly)
    waiting = assembly.store.accept(article(1, "고친 본문입니다."))
    assert verify(assembly.store, assembly.connected, repair=True)
    follower.catch_up()
    assert assembly.store.progress(waiting.seq) == "queued"
    assert not follower.has_applied(waiting.seq)
    drain(assembly)
    follower.catch_up()
    assert follower.has_applied(waiting.seq)


def test_beside_a_writer_nothing_is_told_that_is_only_under_way(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, commits = threading.Event(), count()
    committed = 0

    def wrote() -> None:
        nonlocal committed
        committed = next(commits) + 1

    worker = Worker(assembly.store, assembly.ingest, attempts=1, poll_seconds=0.01, sweep_seconds=0.01, on_commit=wrote)

    def write() -> None:
        for number in count():
            if stop.wait(0.005):
                return
            assembly.store.accept(article(number % 4, f"{number}번"))
            if number % 7 == 3:
                assembly.store.accept_delete(f"글{number % 4}")

    threads = [threading.Thread(target=worker.run, args=(stop,)), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    told: list[Difference] = []
    wanted = (_LOOKS, _COMMITS) if assembly.settings.milvus_is_lite else _ON_SERVERS
    looks, deadline = 0, time.monotonic() + _PATIENCE
    try:
        while (looks < wanted[0] or committed < wanted[1]) and time.monotonic() < deadline:
            told += verify(assembly.store, assembly.connected, repair=False)
            looks += 1
    finally:
        stop.set()
        worker.wake()
        for thread in threads:
            thread.join()
    assert told == []
    assert (looks >= wanted[0], committed >= wanted[1]) == (True, True)
    drain(assembly)
    assert verify(assembly.store, assembly.connected, repair=False) == []

    # The moments that a thread seldom meets: replaced and swept after the rows were listed, and just before they are read.
    collection, versions = assembly.connected.collection, count()
    read, listed = collection.get, collection.iterate_ids

    def replace_and_sweep() -> None:
        assembly.store.accept(article(0, f"{next(versions)}번째로 바뀐"))
        drain(assembly)

    def slow_list() -> Iterator[tuple[str, str, int]]:
        yield from list(listed())
        replace_and_sweep()

    def slow_read(ids: Sequence[str]) -> list[Passage]:
        replace_and_sweep()
        return read(ids)

    monkeypatch.setattr(collection, "iterate_ids", slow_list)
    monkeypatch.setattr(collection, "get", slow_read)
    assert verify(assembly.store, assembly.connected, repair=False) == []
    assert next(versions) == 2


@EMBEDDED_ALONE  # the registry alone says it
def test_a_collection_that_is_not_in_use_any_more_is_not_compared(assembly: Assembly) -> None:
    connected = assembly.connected
    lose_rows(assembly)
    manifests.activate(assembly.database, "another", connected.manifest, {})
    before = everything(assembly)
    for repair in (False, True):
        with pytest.raises(NotReady, match=f"{connected.name!r} is not in use any more"):
            verify(assembly.store, connected, repair=repair)
    assert everything(assembly) == before
