"""A crash anywhere in the write path loses nothing and leaves nothing behind: going on ends as an undisturbed run does."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select

from indexers.worker import Worker
from pipeline.documents import Article, Change, Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.index.collection import Collection
from pipeline.ingest import Ingest, Written
from pipeline.passages import AnalysedPassage
from pipeline.storage import leases
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import Lease
from pipeline.storage.tables import inbox, leftovers
from tests.command_line import Outcome, Shell, finished
from tests.write_path import Stage

_SAMPLES = Path(__file__).parent.parent / "pipeline" / "samples" / "articles.jsonl"
_DIM = 256  # of kiwi-static
_KILLS = 4  # in one life of a folder
_SEED = 20_260_302

Content = dict[str, list[tuple[str, str]]]


class Killed(BaseException):
    """What no `except Exception` may catch: the process is gone."""


# ---- in this process: killed at a chosen place


class CutShort(Ingest):
    """Dies at the next chance between writing the rows and the commit, where it is told to."""

    dies = False

    def write(self, batch: list[Change], analysed: list[list[AnalysedPassage]], lease: Lease) -> Written:  # type: ignore[override]
        if self.dies:
            self.put(analysed, {})
            raise Killed
        return super().write(batch, analysed, lease)


def cut_short(stage: Stage) -> CutShort:
    ordinary = stage.ingest()
    return CutShort(
        passages=ordinary._passages,
        encoder=stage.encoder,
        collection=stage.collection,
        store=stage.store,
        grace_seconds=0.0,
    )


def article(article_id: str, body: str) -> Article:
    return Article(id=article_id, title="제목", body=body)


def restarted(stage: Stage) -> None:
    """A new worker drains and sweeps, as after a restart: whoever has the folder does not wait for a dead one's lease."""
    assert leases.acquire(stage.store.database, "worker", "the dead one's", 60) is not None
    worker = Worker(stage.store, stage.ingest, alone=True)
    worker.drain()
    worker.sweep()


def test_between_rows_and_commit_the_old_revision_stays_and_the_new_one_comes_after_a_restart(stage: Stage) -> None:
    stage.publish(article("가", "옛 본문입니다."), article("나", "지울 글입니다."))
    stage.store.accept(article("가", "새 본문입니다.\n\n둘째 단락입니다."))
    stage.store.accept_delete("나")
    dying = cut_short(stage)
    dying.dies = True
    with pytest.raises(Killed):
        Worker(stage.store, lambda: dying).drain()
    assert stage.shown("가") == ["옛 본문입니다."]
    assert stage.shown("나") == ["지울 글입니다."]
    assert stage.store.queue_length() == 2
    restarted(stage)
    assert "둘째 단락입니다." in "\n".join(stage.shown("가"))
    assert stage.rows() == {("가", 3): len(stage.shown("가"))}
    assert stage.store.counts() == {"indexed": 1, "deleted": 1}


def test_rows_of_a_change_that_was_superseded_while_the_worker_was_dead_are_swept(stage: Stage) -> None:
    stage.store.accept(article("가", "첫째."))
    dying = cut_short(stage)
    dying.dies = True
    with pytest.raises(Killed):
        Worker(stage.store, lambda: dying).drain()
    assert set(stage.rows()) == {("가", 1)}
    stage.store.accept(article("가", "둘째."))
    restarted(stage)
    assert set(stage.rows()) == {("가", 2)}
    assert stage.shown("가") == ["둘째."]


def test_rows_of_an_article_deleted_while_the_worker_was_dead_are_swept(stage: Stage) -> None:
    stage.store.accept(article("가", "첫째."))
    dying = cut_short(stage)
    dying.dies = True
    with pytest.raises(Killed):
        Worker(stage.store, lambda: dying).drain()
    stage.store.accept_delete("가")
    restarted(stage)
    assert not stage.rows()
    assert stage.store.state("가").status == "deleted"


def test_half_a_batch_of_rows_is_completed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    upsert = stage.collection.upsert

    def half(passages: list[Passage], vectors: FloatArray) -> None:
        upsert(passages[: len(passages) // 2], vectors[: len(passages) // 2])
        raise Killed

    bodies = {f"글{n}": f"{n}번째 본문입니다." for n in range(6)}
    stage.store.accept_many([article(name, body) for name, body in bodies.items()], source="test")
    with monkeypatch.context() as context:
        context.setattr(type(stage.collection), "upsert", lambda _, passages, vectors: half(passages, vectors))
        with pytest.raises(Killed):
            Worker(stage.store, stage.ingest).drain()
    assert len(stage.rows()) == 3
    assert stage.store.visible()[2] == {}
    restarted(stage)
    assert {name: stage.shown(name) for name in bodies} == {name: [body] for name, body in bodies.items()}
    assert sum(stage.rows().values()) == 6


# ---- real processes: killed (-9) at random moments


def test_an_index_killed_at_random_moments_ends_as_an_undisturbed_one(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    cache = pytestconfig.cache
    table = {"YEOUL_ENCODER__CACHE_DIR": str(cache.mkdir("kiwi-static"))} if cache is not None else {}
    settings = {**table, "YEOUL_INDEXERS__GRACE_SECONDS": "0"}
    shells = [Shell(tmp_path / name, settings) for name in ("calm", "stormy")]
    for shell in shells:
        shell.folder.mkdir()
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        calm = pool.submit(shells[0].run, "index", str(_SAMPLES))
        calm.result().done()
    whole = time.monotonic() - start
    chance = random.Random(_SEED)
    for kill in range(_KILLS):
        killed(shells[1], chance.uniform((kill + 1) / (_KILLS + 2), 1.1) * whole)
    last = shells[1].run("index", str(_SAMPLES))
    assert last.code == 0, last
    assert state(shells[1]) == state(shells[0])
    calm_answer, stormy_answer = (searched(shell) for shell in shells)
    assert calm_answer == stormy_answer


def killed(shell: Shell, seconds: float) -> Outcome:
    """`yeoul index`, killed after `seconds` unless it was faster."""
    process = shell.start("index", str(_SAMPLES))
    time.sleep(seconds)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    return finished(process)


def searched(shell: Shell) -> list[tuple[str, float]]:
    """Articles with their scores, by what the next process has: a snapshot of the killed ones, or the collection."""
    answer = shell.run("search", "월세 세액공제", "--limit", "100", "--json").done().json
    assert answer["degraded"] == []
    return [(item["article_id"], item["score"]) for item in answer["items"]]


def state(shell: Shell) -> tuple[Content, dict[str, int], int, int, int]:
    """What an index holds, without its numbers: visible passages by content, counts, queue, rows too many, leftovers."""
    folder = shell.folder / ".yeoul"
    database = StateDatabase.open(f"sqlite:///{folder / 'state.db'}")
    collection = Collection.open(uri=str(folder / "milvus.db"), name="yeoul_1", dim=_DIM, create=False)
    try:
        store = ArticleStore(database)
        position, settled, visible = store.visible()
        content: Content = {}
        for article_id, (revision, count) in store.visible_passages(visible).items():
            passages = collection.get([f"{article_id}#{revision}#{n}" for n in range(count)])
            assert len(passages) == count, article_id
            content[article_id] = [(p.title, p.text) for p in passages]
        rows = Counter((article_id, revision) for _, article_id, revision in collection.iterate_ids())
        needless = sum(n for (article_id, revision), n in rows.items() if visible.get(article_id) != revision)
        with database.read() as connection:
            assert settled == connection.execute(select(func.max(inbox.c.seq))).scalar()
            left = connection.execute(select(func.count()).select_from(leftovers)).scalar_one()
        assert position >= len(visible)
        return content, store.counts(), store.queue_length(), needless, left
    finally:
        collection.close()
        database.close()
