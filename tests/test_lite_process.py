"""Milvus Lite in a process of its own: nobody is left behind, nothing is lost, whoever dies."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path

import pytest

from pipeline.documents import Passage
from pipeline.errors import StoreUnavailable
from pipeline.index import lite
from pipeline.index.collection import Collection
from tests.faults import until
from tests.test_collection import DIM, passage, vectors_for

_PATIENCE = 120.0  # seconds
_USERS, _KILLS = 3, 3
_HOLDER = """
import sys, time
from pathlib import Path
from pipeline.index import lite
from pipeline.index.collection import Collection
from tests.test_collection import DIM, passage, vectors_for

with lite.apart(Path(sys.argv[1])) as process:
    collection = Collection.open(uri=sys.argv[1], name="t", dim=DIM)
    collection.upsert([passage("두루미")], vectors_for(1))
    print(process.pid, flush=True)
    time.sleep(600)
"""


_NEIGHBOUR = """
import sys
from pathlib import Path
from pipeline.index import lite
from pipeline.index.collection import Collection
from tests.test_collection import DIM, passage, vectors_for

folder, address, number = sys.argv[1:]
with lite.beside(Path(folder), address):
    collection = Collection.open(uri=folder, name="t", dim=DIM)
    for n in range(int(number)):
        collection.upsert([passage(f"느시-{n}")], vectors_for(1))
        assert collection.get([passage(f"느시-{n}").id])
    collection.close()
"""
_ROWS = 50  # of each of two processes at once


def opened(folder: Path) -> Collection:
    return Collection.open(uri=str(folder), name="t", dim=DIM)


def stored(folder: Path) -> list[Passage]:
    """What a user inside this process finds in the folder."""
    collection = opened(folder)
    try:
        return collection.get([passage("두루미").id, passage("느시").id])
    finally:
        collection.close()


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_it_ends_with_the_block_and_leaves_everything_to_the_next_user(folder: Path) -> None:
    with lite.apart(folder) as process:
        collection = opened(folder)
        pid = process.pid
        assert pid is not None
        assert pid != os.getpid()
        collection.upsert([passage("두루미")], vectors_for(1))
        os.kill(pid, signal.SIGTERM)  # told to all of a service at once: who uses it is not ready yet
        os.kill(pid, signal.SIGINT)
        collection.upsert([passage("느시")], vectors_for(1))
        collection.close()
    assert not alive(pid)
    assert [file for wal in folder.rglob("wal") for file in wal.iterdir()] == []  # all of it is in its place
    assert stored(folder) == [passage("두루미"), passage("느시")]


def test_killed_again_and_again_it_is_started_anew_and_keeps_what_it_took(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Users who ask at once for a collection that is only being opened must not open it twice: rows would be lost."""
    kept: list[Passage] = []
    with lite.apart(folder) as process:
        opened(folder).close()
        stop = threading.Event()
        users = [threading.Thread(target=_write, args=(folder, n, kept, stop)) for n in range(_USERS)]
        for user in users:
            user.start()
        for _ in range(_KILLS):
            before, pid = len(kept), process.pid
            until(lambda: len(kept) >= before + 5 * _USERS, _PATIENCE, "nobody gets on")  # noqa: B023
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            until(lambda: process.pid != pid, _PATIENCE, "it is not started again")  # noqa: B023
        before = len(kept)
        until(lambda: len(kept) >= before + 5 * _USERS, _PATIENCE, "nobody gets on")
        stop.set()
        for user in users:
            user.join()
    collection = opened(folder)
    assert collection.get([one.id for one in kept]) == kept
    collection.close()
    said = {record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR}
    assert said == {"Milvus Lite ended (exit status -9): it is started again"}


def _write(folder: Path, user: int, kept: list[Passage], stop: threading.Event) -> None:
    """Writes one row after the other through a client of its own, and notes those that were taken."""
    collection = opened(folder)
    for n in count():
        if stop.is_set():
            break
        one = passage(f"{user}-{n}")
        try:
            collection.upsert([one], vectors_for(1))
            assert collection.get([one.id]) == [one]
        except StoreUnavailable as error:
            assert error.hint  # noqa: PT017 - it is a thread's
            time.sleep(0.01)
        else:
            kept.append(one)
    collection.close()


def test_it_dies_with_the_process_that_started_it(folder: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as said:
        pid = int(said.readline())
    assert alive(pid)
    holder.kill()
    holder.wait()
    until(lambda: not alive(pid), _PATIENCE, "Milvus Lite is left behind")
    assert stored(folder) == [passage("두루미")]


def test_another_process_uses_it_at_the_same_time_at_its_address(folder: Path) -> None:
    with lite.apart(folder) as process:
        collection = opened(folder)
        arguments = [sys.executable, "-c", _NEIGHBOUR, str(folder), process.address(), str(_ROWS)]
        with subprocess.Popen(arguments) as neighbour:
            for n in range(_ROWS):
                one = passage(f"두루미-{n}")
                collection.upsert([one], vectors_for(1))
                collection.flush()
                assert collection.get([one.id]) == [one]
            assert neighbour.wait(_PATIENCE) == 0
        assert collection.count() == 2 * _ROWS
        collection.close()
    with lite.beside(folder, f"unix:{folder}.gone"), pytest.raises(StoreUnavailable) as told:
        opened(folder)
    assert "still there" in told.value.hint


def test_a_folder_that_cannot_be_used_is_said_and_tried_again(folder: Path) -> None:
    folder.write_text("no folder", encoding="utf-8")
    with lite.apart(folder) as process:
        with pytest.raises(StoreUnavailable, match=r"store\.db"):
            opened(folder)
        folder.unlink()

        def ready() -> bool:
            try:
                return bool(process.address())
            except StoreUnavailable:
                return False

        until(ready, _PATIENCE, "it is not tried again")
        opened(folder).close()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps of memory are looked at on Linux only")
def test_the_vectors_of_a_flat_index_are_mapped_not_read(folder: Path) -> None:
    passages = [passage(f"느시-{n}") for n in range(_ROWS)]
    vectors = vectors_for(_ROWS)
    for _ in range(2):  # the index is built and written, then found on disk
        with lite.apart(folder) as process:
            collection = opened(folder)
            collection.upsert(passages, vectors)
            collection.flush()
            collection.close()
    with lite.apart(folder) as process:
        collection = opened(folder)
        ids, products = collection.search_dense(vectors[7], 3)
        maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
        collection.close()
    assert ids[0] == passages[7].id
    assert products[0] == pytest.approx(1.0, abs=1e-5)
    assert ".flat.idx" in maps
