"""Milvus Lite in a process of its own, for a process that answers searches: its Python would take turns with theirs.

It ends when it is told to, having written everything to disk, and at once when the process that started it dies; when it dies
itself it is started again, at the same address.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from pipeline.children import started
from pipeline.errors import StoreUnavailable

log = logging.getLogger(__name__)

UNUSABLE = "check that milvus.uri names a folder that can be written and that the disk is not full"

_HOST = "127.0.0.1"
_START_SECONDS = 30.0
_STOP_SECONDS = 60.0  # it writes what it holds in memory
_AGAIN_SECONDS = (0.2, 5.0)  # after it ended by itself: at first, and at most while it cannot be started
_STOP = b"stop"


class LiteProcess:
    """The process for `folder`; it starts at once and is ready when `address` gives something."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 0  # 0: any that is free
        self._process: subprocess.Popen[bytes] | None = None
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
        """Its URI, once it answers. Raises StoreUnavailable, which says why, where it cannot be started."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._port or self._why, _START_SECONDS):
                self._why = f"it was not ready after {_START_SECONDS:g} s"
            if not self._port:
                raise StoreUnavailable("collection", str(self._folder), self._why, UNUSABLE)
            return f"http://{_HOST}:{self._port}"

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

    def _run(self) -> None:
        rest, most = _AGAIN_SECONDS
        while not self._stopping.is_set():
            status = self._once()
            rest = min(2 * rest, most) if self._why else _AGAIN_SECONDS[0]
            if not self._stopping.is_set():
                log.error("Milvus Lite ended (%s): it is started again", self._why or f"exit status {status}")
                self._stopping.wait(rest)

    def _once(self) -> int:
        """Starts it and waits for its end; gives its exit status."""
        arguments = (str(self._folder), str(self._port))
        with self._changed:
            if self._stopping.is_set():
                return 0
            self._process = started(__name__, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with self._process as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            told: dict[str, Any] = orjson.loads(line) if line else {"why": "it ended before it was ready"}
            with self._changed:
                self._port, self._why = told.get("port", self._port), told.get("why", "")
                self._changed.notify_all()
            return process.wait()


def _main(folder: str, port: str) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and the like are for who started this, and ends it in order
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.CRITICAL, format="%(levelname)s %(name)s: %(message)s")
    from milvus_lite.adapter.grpc.server import start_server_in_thread  # noqa: PLC0415 - after the signals: it takes seconds

    says = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the library prints
    try:
        server, store, bound = start_server_in_thread(folder, _HOST, int(port))
        if int(port):  # clients have loaded what they use, and do not know of the restart
            for name in store.list_collections():
                store.get_collection(name).load()
    except Exception as error:  # noqa: BLE001 - whatever it is, who started this has to say it
        says.write(orjson.dumps({"why": " ".join(str(error).split()) or type(error).__name__}) + b"\n")
        return 1
    gc.freeze()
    with says:
        says.write(orjson.dumps({"port": bound}) + b"\n")
    if not sys.stdin.buffer.read(1):
        os._exit(1)  # nobody is there any more; the next one waits for the folder, and the log has everything
    server.stop(grace=2).wait()
    store.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
