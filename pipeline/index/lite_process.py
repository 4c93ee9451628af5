"""Milvus Lite in a process of its own, for a process that answers searches: its Python would take turns with theirs.

It listens on a socket that only its owner can open. It ends when it is told to, having written everything to disk, and at once
when the process that started it dies; when it dies itself it is started again, and its users go on.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import orjson

from pipeline.children import be_nice, started
from pipeline.errors import StoreUnavailable
from pipeline.memory import give_back

if TYPE_CHECKING:
    from milvus_lite.db import MilvusLite
    from milvus_lite.index.brute_force import BruteForceIndex

log = logging.getLogger(__name__)

UNUSABLE = "check that milvus.uri names a folder that can be written and that the disk is not full"
# Every failed call is raised with its cause; the libraries would also print it, with a traceback.
NOISY = ("pymilvus", "milvus_lite.adapter", "milvus_lite.server_manager", "grpc._server")

_START_SECONDS = 30.0
_STOP_SECONDS = 60.0  # it writes what it holds in memory
_AGAIN_SECONDS = (0.2, 5.0)  # until it is started again: at first, and at most while it ends again and again
_LONG_LIFE_SECONDS = 60.0  # after which an end is the first one
_STOP = b"stop"
_NICENESS = 5  # searches go first, which do without it, as they do where the indexers are a process of their own
# What pyarrow and the C library free goes back to the system instead of being kept: 734 → 542 MB with 102,000 passages.
_MEMORY = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072"}
_MESSAGE_BYTES = 256 * 2**20


class LiteProcess:
    """The process for `folder`; it starts at once and is ready when `address` gives something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place = tempfile.TemporaryDirectory(prefix="yeoul-")  # a socket's path has to be short
        self._socket = Path(self._place.name) / "milvus-lite"
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._why = ""  # it does not answer
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Milvus Lite", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return self._process.pid if self._process is not None else None

    def address(self) -> str:
        """Its URI, once it answers. Raises StoreUnavailable, which says why, where it does not."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or self._why, _START_SECONDS):
                raise self.away(f"it is not ready after {_START_SECONDS:g} s")
            if not self._ready:
                raise self.away(self._why)
            return f"unix:{self._socket}"

    def away(self, why: str) -> StoreUnavailable:
        """The error of a call that failed for `why`."""
        if self._ready:
            return StoreUnavailable("collection", str(self._folder), why, UNUSABLE)
        return StoreUnavailable(
            "collection",
            str(self._folder),
            f"its process does not run: {self._why or why}",
            f"it is tried again; {UNUSABLE}",
        )

    def stop(self) -> None:
        """Ends it; everything is on disk then."""
        with self._changed:  # one that is being started just now is seen
            self._stopping.set()
            process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError, ValueError), process.stdin as told:  # it has ended already
                told.write(_STOP)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("Milvus Lite does not end after %g s: killed, its log has everything", _STOP_SECONDS)
                process.kill()
        self._thread.join()
        self._place.cleanup()

    def _run(self) -> None:
        first, most = _AGAIN_SECONDS
        rest = first
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                why = self._once()
            except Exception as error:  # noqa: BLE001 - no memory for a process, say: there may be some later
                why = str(error) or type(error).__name__
            if self._stopping.is_set():
                return
            with self._changed:
                self._ready, self._why = False, why
                self._changed.notify_all()
            log.error("Milvus Lite ended (%s): it is started again", why)
            rest = first if time.monotonic() - begun > _LONG_LIFE_SECONDS else min(2 * rest, most)
            self._stopping.wait(rest)

    def _once(self) -> str:
        """Starts it and waits for its end; gives the reason."""
        with self._changed:
            if self._stopping.is_set():
                return ""
            self._socket.unlink(missing_ok=True)
            arguments = (str(self._folder), str(self._socket))
            self._process = started(
                __name__, *arguments, environment=_MEMORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        with self._process as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            told: dict[str, Any] = orjson.loads(line) if line else {}
            be_nice(process, _NICENESS)  # from now on: until now somebody waited for it
            with self._changed:
                self._ready, self._why = bool(told.get("ready")), ""
                self._changed.notify_all()
            status = process.wait()
            return str(told.get("why") or f"exit status {status}")


# ---- in the process


def _main(folder: str, socket: str) -> int:
    says = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and the like are for who started this, and ends it in order
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    told_to_end = threading.Event()
    threading.Thread(target=_listen, args=(told_to_end,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        store = _opened(folder)
        at_work = ThreadPoolExecutor(1)  # one request at a time: see `lite.turn`
        server = _serving(store, socket, at_work)
    except Exception as error:  # noqa: BLE001 - whatever it is, who started this has to say it
        says.write(orjson.dumps({"why": " ".join(str(error).split()) or type(error).__name__}) + b"\n")
        return 1
    gc.freeze()
    give_back()
    with says:
        says.write(orjson.dumps({"ready": True}) + b"\n")
    told_to_end.wait()
    server.stop(grace=2).wait()
    at_work.shutdown()  # a request of another process may be cancelled and go on
    store.close()
    return 0


def _listen(told_to_end: threading.Event) -> None:
    if not sys.stdin.buffer.read(1):
        os._exit(1)  # nobody is there any more; the next one waits for the folder, and its log has everything
    told_to_end.set()


def _opened(folder: str) -> MilvusLite:
    """Every collection is open and loaded before anybody asks: two who ask for one at once would open it twice, and who had
    loaded it does not know that this is a new process."""
    from milvus_lite.db import MilvusLite  # noqa: PLC0415 - it takes a second
    from milvus_lite.index.brute_force import BruteForceIndex  # noqa: PLC0415

    # A flat index on disk is the vectors once more, which the rows have: as a map it takes no memory until it is searched.
    BruteForceIndex.load = classmethod(_mapped)
    store = MilvusLite(folder)
    for name in store.list_collections():
        try:
            store.get_collection(name).load()
        except Exception:
            log.exception("the collection %s cannot be opened", name)
    return store


def _mapped(index: type[BruteForceIndex], path: str, metric: str, dim: int) -> BruteForceIndex:
    """What `BruteForceIndex.load` gives."""
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"the index {path} should be of shape (rows, {dim}), is {vectors.shape}")
    return index(vectors, metric)


def _serving(store: MilvusLite, socket: str, at_work: ThreadPoolExecutor) -> grpc.Server:
    """As `milvus_lite.adapter.grpc.server`, which opens the store itself, and a port to everybody on this machine."""
    from milvus_lite.adapter.grpc.servicer import MilvusServicer  # noqa: PLC0415
    from pymilvus.grpc_gen import milvus_pb2_grpc  # noqa: PLC0415

    sizes = [(f"grpc.max_{way}_message_length", _MESSAGE_BYTES) for way in ("receive", "send")]
    server = grpc.server(at_work, options=sizes)
    milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(store), server)
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    return server


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
