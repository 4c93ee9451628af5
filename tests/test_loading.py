"""A collection that another process loads: the snapshot it leaves, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest

from pipeline import children
from pipeline.documents import Article
from pipeline.errors import NotReady
from pipeline.follower import Follower
from pipeline.index import lite, snapshot
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.index.snapshot import Place
from pipeline.loading import Order, load, load_apart
from tests import milvus_server
from tests.stores import EMBEDDED_ALONE
from tests.write_path import DIM, Stage

_LEXICAL = LexicalParameters(k1=1.1, title_weight=0.5)


def ordered(stage: Stage, folder: Path, *, name: str = "") -> Order:
    return Order(
        state_url=stage.store.database.engine.url.render_as_string(hide_password=False),
        milvus_uri=lite.address_of(stage.uri),
        milvus_token=milvus_server.TOKEN,
        name=name or stage.collection.name,
        dim=DIM,
        identity="여울의 첫 번째",
        lexical=_LEXICAL,
        path=folder / "next.safetensors",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where nothing else is."""
    made = tmp_path / "snapshots"
    made.mkdir()
    return made


def published(stage: Stage) -> None:
    stage.publish(*(Article(id=f"글{n}", title=f"제목 {n}", body="강을 건넌다. 비가 온다.") for n in range(12)))
    stage.publish(Article(id="글3", title="고친 제목", body="눈이 온다."))
    stage.delete("글5")


def test_it_leaves_the_engine_that_loading_here_would_have_made(stage: Stage, folder: Path) -> None:
    published(stage)
    order = ordered(stage, folder)
    assert load_apart(order, threading.Event())
    restored, loaded = ResidentEngine(DIM, _LEXICAL), ResidentEngine(DIM, _LEXICAL)
    follower = Follower(stage.store, stage.collection, loaded)
    follower.load()
    place = snapshot.restore(restored, order.path, lambda _: True)
    mark = stage.store.log_mark(follower.position)
    assert place == Place(order.identity, follower.position, mark, follower.seq)
    assert restored.revisions() == loaded.revisions() == stage.store.visible()[2]
    ids = sorted(i for i, _, _ in stage.collection.iterate_ids())
    assert restored.passages(ids) == loaded.passages(ids)
    assert list(folder.iterdir()) == [order.path]


def test_where_it_fails_its_log_says_why_and_nothing_is_left(
    stage: Stage, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotReady, match="the process that loads nowhere ended with 1"):
        load_apart(ordered(stage, folder, name="nowhere"), threading.Event())
    assert "nowhere cannot be loaded: there is no collection 'nowhere'" in capfd.readouterr().err
    assert list(folder.iterdir()) == []


def test_it_ends_when_nobody_waits_for_it(stage: Stage, folder: Path) -> None:
    ended = threading.Event()
    ended.set()
    assert not load_apart(ordered(stage, folder), ended)
    assert list(folder.iterdir()) == []


@EMBEDDED_ALONE  # it is about processors, all of which it takes; what is loaded from each pair of stores: the first test
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who starves")
def test_where_no_processor_is_ever_idle_it_is_loaded_all_the_same(
    stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(children, "_STARVED_SECONDS", 0.5)
    published(stage)
    order = ordered(stage, folder)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        for process in busy:  # beside one an idle process gets a fortieth, a nice one an eighth; other tests get more
            children.be_nice(process, 10)
        assert load_apart(order, threading.Event())
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert "no processor is ever idle" in caplog.text
    assert list(folder.iterdir()) == [order.path]


def test_it_leaves_off_where_the_process_that_asked_was_killed(
    stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(stage)
    parents = count(1000)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))  # the kernel gives an orphan another one
    with pytest.raises(NotReady, match="nobody waits"):
        load(ordered(stage, folder))
    assert list(folder.iterdir()) == []
