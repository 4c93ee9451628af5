"""A whole Yeoul as processes of its own, for measuring: one with everything in it, or API processes and indexers.

Everything listens on 127.0.0.1 and ends with the block that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import orjson

from pipeline.errors import YeoulError

_START_SECONDS = 300.0
_STOP_SECONDS = 20.0
_KEY = "benchmark-key"


class NotStarted(YeoulError):
    """A process of the deployment ended or was not ready in time."""

    code = "not_started"


@dataclass(slots=True)
class Running:
    """A process and, where it serves, its address."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    url: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        """Starts it, or starts it again."""
        with (self.folder / f"{self.arguments[0]}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "yeoul", *self.arguments],
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Ends it as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.folder / f"{self.arguments[0]}.log").read_bytes()[-2000:].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Deployment:
    """Processes that run together; `servers` answer HTTP, `indexers` is None where the one server indexes itself. Other
    commands run in `folder` with `environment`."""

    servers: tuple[Running, ...]
    indexers: Running | None
    folder: Path
    environment: Mapping[str, str]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {_KEY}"}

    def wait_ready(self, running: Running) -> None:
        """Raises NotStarted."""
        end = time.monotonic() + _START_SECONDS
        with httpx2.Client(timeout=5) as client:  # a new one for each look would take half a core from who starts
            while time.monotonic() < end:
                if running.process is not None and running.process.poll() is not None:
                    break
                with suppress(httpx2.TransportError):
                    if client.get(f"{running.url}/readyz").status_code == httpx2.codes.OK:
                        return
                time.sleep(0.1)
        raise NotStarted(
            f"yeoul {' '.join(running.arguments)} did not get ready", f"its log ends with: {running.log()}"
        )


@contextmanager
def deployed(
    folder: Path, *, database_url: str = "", milvus_uri: str = "", milvus_token: str = "", servers: int = 1
) -> Iterator[Deployment]:
    """A deployment in `folder`: without addresses one process with SQLite and Milvus Lite, else `servers` API processes and
    one of the indexers. Raises NotStarted."""
    deployment = prepared(
        folder, database_url=database_url, milvus_uri=milvus_uri, milvus_token=milvus_token, servers=servers
    )
    with ExitStack() as ended:
        for running in filter(None, [*deployment.servers, deployment.indexers]):
            running.start()
            ended.callback(running.stop)
        for running in deployment.servers:
            deployment.wait_ready(running)
        yield deployment


def prepared(
    folder: Path, *, database_url: str = "", milvus_uri: str = "", milvus_token: str = "", servers: int = 1
) -> Deployment:
    """What `deployed` runs, with nothing started."""
    environment = _environment(database_url, milvus_uri, milvus_token)
    ports = _free_ports(servers if milvus_uri else 1)
    serving = tuple(
        _process(["serve", "--port", str(port)], environment, folder / f"server-{n}", f"http://127.0.0.1:{port}")
        for n, port in enumerate(ports)
    )
    indexing = _process(["indexers", "run"], environment, folder / "indexers") if milvus_uri else None
    return Deployment(serving, indexing, serving[0].folder, serving[0].environment)


@contextmanager
def served(deployment: Deployment, **environment: str) -> Iterator[tuple[Running, float]]:
    """The one server of `deployment`, started with more variables in its environment, and the seconds until it was ready.
    Raises NotStarted."""
    (server,) = deployment.servers
    running = Running(server.arguments, {**server.environment, **environment}, server.folder, server.url)
    begin = time.monotonic()
    running.start()
    try:
        deployment.wait_ready(running)
        yield running, time.monotonic() - begin
    finally:
        running.stop()


def _process(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, url: str = "") -> Running:
    """A process that runs in `folder` and keeps there what is its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Running(arguments, {**environment, "YEOUL_DATA_DIR": str(folder / "data")}, folder, url)


def _environment(database_url: str, milvus_uri: str, milvus_token: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("YEOUL_")}
    cache = {name: os.environ[name] for name in ("YEOUL_ENCODER__CACHE_DIR",) if name in os.environ}
    given = {
        "YEOUL_DATABASE_URL": database_url,
        "YEOUL_MILVUS__URI": milvus_uri,
        "YEOUL_MILVUS__TOKEN": milvus_token,
        "YEOUL_API__KEYS": orjson.dumps([{"key": _KEY, "scopes": ["write", "admin"]}]).decode(),
        "YEOUL_API__WRITES_PER_MINUTE": "0",
        "YEOUL_API__WAIT_SECONDS": "60",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent),
        "PYTHONUTF8": "1",
    }
    return {**inherited, **cache, **given}


def free_port() -> int:
    """One that was free a moment ago."""
    return _free_ports(1)[0]


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
