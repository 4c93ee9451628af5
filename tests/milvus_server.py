"""A real Milvus server for the tests: the standalone binary of the PyPI package `milvus`, on 127.0.0.1 with free ports.

The package needs an old setuptools, so it lives in a virtual environment of its own, found through the environment
variable YEOUL_TEST_MILVUS_SERVER (the python of that environment). Knows nothing about pytest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from pipeline.index import collection

_VARIABLE = "YEOUL_TEST_MILVUS_SERVER"
_DEFAULT_PYTHON = Path(".cache/milvus-server/bin/python")  # below the root of the repository; git ignores it
_STARTUP_SECONDS = 300  # 9 s on an idle machine with two cores; a busy one takes several times that
_STOP_SECONDS = 2  # its data is thrown away, so there is no need to wait for its own end, which takes over 10 s
_POLL_SECONDS = 0.1
_HOW = "how"  # the file below the data that says how the server is started: its binary and its health port
_PORT_KEYS = (
    "etcd_port",
    "proxy_port",
    "proxy_internal_port",
    "root_coord_port",
    "query_coord_port",
    "query_node_port",
    "index_coord_port",
    "index_node_port",
    "data_coord_port",
    "data_node_port",
)
# Runs in the other environment: unpacks the binary, writes the configuration, says where the binary is.
_PREPARE = """
import sys
from milvus import MilvusServer, MilvusServerConfig, _initialize_data_files
ports = dict(pair.split("=") for pair in sys.argv[2:])
server = MilvusServer(MilvusServerConfig(data_dir=sys.argv[1], **ports))
server.config.set("authorization_enabled", True)
server.config.resolve()
_initialize_data_files(sys.argv[1])
print(server.get_milvus_executable_path())
"""

# Its embedded etcd: without a file of its own it takes the ports 2379 and 2380 on whatever machine it runs.
_ETCD = """
name: default
data-dir: {data}
listen-client-urls: http://127.0.0.1:{client}
advertise-client-urls: http://127.0.0.1:{client}
listen-peer-urls: http://127.0.0.1:{peer}
initial-advertise-peer-urls: http://127.0.0.1:{peer}
initial-cluster: default=http://127.0.0.1:{peer}
log-outputs: [{data}.log]
"""

_CONNECT_SECONDS = 15.0  # instead of three, which a busy machine may take

TOKEN = "root:Milvus"  # the account that a new server has; authorization is on, so that tokens are tested too
CURE = (
    "a real Milvus server is not installed; create it with: python3 -m venv .cache/milvus-server && "
    ".cache/milvus-server/bin/pip install 'milvus==2.3.5' 'setuptools<81' "
    f"(or set {_VARIABLE} to the python of an environment that has it)"
)


def server_python() -> Path | None:
    """The python that has the package `milvus`; None where there is none."""
    named = os.environ.get(_VARIABLE)
    python = Path(named) if named else Path(__file__).parent.parent / _DEFAULT_PYTHON
    if not python.exists():
        return None
    seen = subprocess.run([python, "-c", "import milvus"], capture_output=True, check=False)
    return python if seen.returncode == 0 else None


@contextlib.contextmanager
def patiently() -> Iterator[None]:
    """Within the block a connection to a server that is up may take long; one that is down is noticed later."""
    before, collection._CONNECT_SECONDS = collection._CONNECT_SECONDS, _CONNECT_SECONDS
    try:
        yield
    finally:
        collection._CONNECT_SECONDS = before


def start(data_dir: Path, *, session_seconds: int | None = None) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts a server with its data in `data_dir`, its own, and waits until it is healthy: its uri and its process.

    `session_seconds`: how long after a SIGKILL it serves no collection, 30 unless told. Raises RuntimeError with the end of
    its log where it does not come up in time.
    """
    python = server_python()
    if python is None:
        raise RuntimeError(CURE)
    try:
        return _started(python, data_dir, session_seconds)
    except RuntimeError:  # somebody else may have taken a port that was free a moment ago
        shutil.rmtree(data_dir)
        return _started(python, data_dir, session_seconds)


def _started(python: Path, data_dir: Path, session_seconds: int | None) -> tuple[str, subprocess.Popen[bytes]]:
    data_dir.mkdir(parents=True, exist_ok=True)
    *ports, health_port, peer_port = _free_ports(len(_PORT_KEYS) + 2)
    pairs = [f"{key}={port}" for key, port in zip(_PORT_KEYS, ports, strict=True)]
    prepared = subprocess.run(
        [python, "-c", _PREPARE, str(data_dir), *pairs], capture_output=True, check=True, text=True
    )
    binary = Path(prepared.stdout.strip())
    _configure(data_dir, client_port=ports[_PORT_KEYS.index("etcd_port")], peer_port=peer_port)
    if session_seconds is not None:
        _shorten_sessions(data_dir, session_seconds)
    (data_dir / _HOW).write_text(f"{binary}\n{health_port}\n", encoding="utf-8")
    return f"http://127.0.0.1:{ports[_PORT_KEYS.index('proxy_port')]}", restart(data_dir)


def restart(data_dir: Path) -> subprocess.Popen[bytes]:
    """Starts the server of `data_dir` again, after its end, with the same data on the same ports: its process.

    After a SIGKILL it is healthy long before it serves a collection: the sessions of the killed one have to run out.
    """
    binary, health_port = (data_dir / _HOW).read_text(encoding="utf-8").splitlines()
    process = _run(Path(binary), data_dir, int(health_port))
    try:
        _wait_until_healthy(process, int(health_port), data_dir)
    except BaseException:
        stop(process)
        raise
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends this server, and only this one."""
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _run(binary: Path, data_dir: Path, health_port: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": str(health_port),
        "MILVUS_RUN_DIR": str(data_dir / "run"),
        "LD_LIBRARY_PATH": f"{binary.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}",
    }
    with (data_dir / "milvus.log").open("wb") as log:
        return subprocess.Popen(
            [binary, "run", "standalone"], cwd=data_dir, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, data_dir: Path) -> None:
    until = time.monotonic() + _STARTUP_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as answer,
        ):
            if b"OK" in answer.read():
                return
        time.sleep(_POLL_SECONDS)
    log = (data_dir / "milvus.log").read_bytes()[-2_000:].decode(errors="replace")
    raise RuntimeError(f"the Milvus server was not healthy within {_STARTUP_SECONDS} s; its log ends with:\n{log}")


def _configure(data_dir: Path, *, client_port: int, peer_port: int) -> None:
    """Gives etcd its own ports, and every `ip:` without a value the loopback address to announce."""
    etcd = data_dir / "configs" / "etcd.yaml"
    etcd.write_text(_ETCD.format(data=data_dir / "etcd", client=client_port, peer=peer_port), encoding="utf-8")
    configuration = data_dir / "configs" / "milvus.yaml"
    lines = configuration.read_text(encoding="utf-8").splitlines()
    bound = [line.split("ip:")[0] + "ip: 127.0.0.1" if line.strip().startswith("ip:") else line for line in lines]
    at = bound.index("etcd:") + 1
    bound[at:at] = ["  config:", f"    path: {etcd}"]
    configuration.write_text("\n".join(bound) + "\n", encoding="utf-8")


def _shorten_sessions(data_dir: Path, seconds: int) -> None:
    configuration = data_dir / "configs" / "milvus.yaml"
    text = re.sub(r"(?m)^( +session:\n +ttl: )\d+", rf"\g<1>{seconds}", configuration.read_text(encoding="utf-8"))
    configuration.write_text(text, encoding="utf-8")


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
