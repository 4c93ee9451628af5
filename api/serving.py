"""How the application is served by uvicorn: in this process, or by several workers on one port.

Workers are processes of uvicorn's supervisor: one that dies is started again, SIGHUP has each replaced in turn, and they end
with their parent, which answers nothing itself. Each has all parts for itself. Knows nothing of what is served.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from multiprocessing.synchronize import Event
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from api.telemetry import SHARED_FOLDER, forget_the_dead
from pipeline.errors import InvalidSetting, ManifestMismatch, Unavailable, YeoulError
from pipeline.memory import keep_for_good
from pipeline.settings import Settings
from pipeline.storage.database import StateDatabase

if TYPE_CHECKING:
    from pipeline.assembly import Assembly

_KEEP_ALIVE_SECONDS = 75  # longer than clients and balancers keep an idle connection: one that is used is never closed
_HUNG_SECONDS = 30  # a worker that says nothing for so long is killed; Kiwi's start holds the interpreter for some
_AGAIN_SECONDS = 1.0  # until one that could not open its parts is started again
_HOW: dict[str, Any] = {
    "loop": "uvloop",
    "http": "httptools",
    "log_level": "warning",
    "access_log": False,  # at this level nothing is written, yet put together
    "timeout_keep_alive": _KEEP_ALIVE_SECONDS,
    "proxy_headers": False,  # who may write without a key is decided by the real peer
}


def serve(application: FastAPI, host: str, port: int) -> None:
    """Serves in this process, until SIGTERM or Ctrl-C."""
    uvicorn.run(application, host=host, port=port, workers=1, **_HOW)


def serve_by_workers(settings: Settings, workers: int, host: str, port: int) -> None:
    """Serves by so many processes, until SIGTERM or Ctrl-C, and leaves none behind.

    Raises InvalidSetting where the store belongs to one process, StoreUnavailable where the state database does not answer;
    SystemExit where the first workers cannot start: they have said why.
    """
    if settings.milvus_is_lite:
        rule = f"1 with Milvus Lite ({settings.milvus_uri}), which belongs to one process; more need a Milvus server (milvus.uri)"
        raise InvalidSetting("api.workers", workers, rule)
    StateDatabase.open(settings.state_url).close()  # migrated once, and what is amiss is said once
    answering = multiprocessing.get_context("spawn").Event()
    with tempfile.TemporaryDirectory(prefix="yeoul-") as figures:
        os.environ[SHARED_FOLDER] = figures
        config = uvicorn.Config(
            partial(worker, settings, answering),
            factory=True,
            host=host,
            port=port,
            workers=workers,
            timeout_worker_healthcheck=_HUNG_SECONDS,
            **_HOW,
        )
        supervisor = _Supervisor(config, [config.bind_socket()])
        logging.getLogger("uvicorn.error").setLevel(logging.INFO)  # here alone: it tells of workers that died
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise SystemExit(1)


class _Supervisor(Multiprocess):
    def keep_subprocess_alive(self) -> None:
        for process in self.processes:
            process.child_conn.close()  # the worker's: open here, the answer of one that died would be waited for
        super().keep_subprocess_alive()


def worker(settings: Settings, answering: Event) -> FastAPI:
    """The application of a worker, its parts open. `answering`: some worker got as far as the collection. Before that one that
    cannot start ends them all; afterwards it is tried again until it can, as its port is that of the others."""
    from api.app import create_app  # noqa: PLC0415 - the parent, which imports this module too, should stay small

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    forget_the_dead()
    try:
        assembly = _opened(settings, answering)
    except YeoulError as error:
        print(f"yeoul: {error}", file=sys.stderr)  # noqa: T201 - as the command says it
        if not answering.is_set():
            sys.exit(STARTUP_FAILURE)
        time.sleep(_AGAIN_SECONDS)
        sys.exit(1)
    return create_app(settings, assembly=assembly, on_stop=assembly.close)


def _opened(settings: Settings, answering: Event) -> Assembly:
    from pipeline.assembly import Assembly  # noqa: PLC0415 - as above

    assembly = Assembly.open(settings, command="yeoul serve")
    keep_for_good()
    try:
        assembly.connect()
        answering.set()
    except Unavailable:
        pass  # it is tried again while the process is up and says why it is not ready
    except ManifestMismatch:
        if answering.is_set():  # a dictionary was changed since they started
            assembly.close()
            raise
    return assembly


def _end_with_parent() -> None:
    """Uvicorn's workers would go on without it for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
