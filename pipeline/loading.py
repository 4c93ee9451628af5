"""Loads a collection in a process of its own, at the lowest priority, and leaves a snapshot of the engine it made.

Loading is minutes of Python for a large collection: on a thread it would share the interpreter with the searches beside it,
and at equal priority the processor. Not for Milvus Lite inside this process.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from pipeline.children import be_nice, started, starves, step_back, stopped
from pipeline.errors import NotReady, YeoulError
from pipeline.follower import Follower
from pipeline.index import snapshot
from pipeline.index.collection import Collection
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.index.snapshot import Place
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
_STOP_SECONDS = 5.0
_NICENESS = 10  # of one that starved
_REFUSED = 1  # exit status: the reason was told


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to load: the collection `name` of dimension `dim`, `identity` in its snapshot, into the file `path`."""

    state_url: str
    milvus_uri: str
    milvus_token: str
    name: str
    dim: int
    identity: str
    lexical: LexicalParameters
    path: Path


def load_apart(order: Order, ended: threading.Event) -> bool:
    """Has a process write the snapshot of `order`; False where it was `ended` before. Raises NotReady where it failed.

    One that gets no processor, as others are always at work, is given up for one that is nice only.
    """
    for prepare in (step_back, _be_nice):
        process = started(__name__, stdin=subprocess.PIPE)
        try:
            prepare(process)  # by itself it could only after its imports, seconds of work
            _give(order, process)
            while process.poll() is None:
                if ended.wait(_LOOK_SECONDS):
                    return False
                if prepare is step_back and starves(process):
                    log.warning("no processor is ever idle: %s is loaded beside the searches", order.name)
                    break
            else:
                break
        finally:
            stopped(process, _STOP_SECONDS)
    if process.returncode:
        raise NotReady(
            f"the process that loads {order.name} ended with {process.returncode}",
            "its log says why; it is tried again",
        )
    return True


def _be_nice(process: subprocess.Popen[bytes]) -> None:
    be_nice(process, _NICENESS)


def _give(order: Order, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with process.stdin as told:  # not as an argument: everybody may read those, and there is a password in it
        told.write(orjson.dumps(asdict(order), default=str))


def load(order: Order) -> None:
    """Loads the collection and writes the snapshot. Raises what the stores raise, OSError where the disk refuses."""
    parent = os.getppid()

    def check(_rows: int) -> None:
        if os.getppid() != parent:
            raise NotReady("nobody waits for this snapshot any more", "the process that asked for it has ended")

    database = StateDatabase.open(order.state_url)
    try:
        collection = Collection.open(
            uri=order.milvus_uri, token=order.milvus_token, name=order.name, dim=order.dim, create=False
        )
        try:
            engine = ResidentEngine(order.dim, order.lexical)
            store = ArticleStore(database)
            follower = Follower(store, collection, engine)
            follower.load(check)
            place = Place(order.identity, follower.position, store.log_mark(follower.position), follower.seq)
            snapshot.save(engine, order.path, place)
        finally:
            collection.close()
    finally:
        database.close()


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits for this, and ends it
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    told = orjson.loads(sys.stdin.buffer.read())
    order = Order(**told | {"lexical": LexicalParameters(**told["lexical"]), "path": Path(told["path"])})
    try:
        load(order)
    except (YeoulError, OSError) as error:
        log.error("%s cannot be loaded: %s", order.name, error)  # noqa: TRY400 - what is the matter is told, not where
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
