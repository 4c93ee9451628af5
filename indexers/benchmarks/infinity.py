"""`infinity-emb`, the peer of `/v1/embeddings`: an HTTP server in an environment of its own, on the same model.

It is started as its command line starts it; only the model, the device and the address are chosen.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from indexers.benchmarks.comparison import NotMeasured, Peer, python_of
from indexers.benchmarks.deployment import free_port

NAME = "infinity-emb"
MODEL = "measured"  # what it calls the model
PATH = "/embeddings"
Started = tuple[str, int]  # the address of a server that is ready, and its process

_PEER = Peer(NAME, "infinity_server")
_START_SECONDS = 300.0
_STOP_SECONDS = 20.0


def install(environments: Path) -> None:
    """Makes its environment where there is none yet. Raises NotMeasured: before something is measured for minutes."""
    python_of(_PEER, environments)


@contextmanager
def infinity(model: Path, *, device: str, environments: Path) -> Iterator[Started]:
    """A server of the SentenceTransformer in `model`. Raises NotMeasured."""
    python = python_of(_PEER, environments)
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [
        str(python.with_name("infinity_emb")), "v2", "--model-id", str(model), "--served-model-name", MODEL,
        "--engine", "torch", "--device", device, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=environment | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            if not _ready(process, url):
                log.seek(0)
                said = log.read().decode(errors="replace").strip().splitlines()
                raise NotMeasured(f"{NAME} was not ready: {said[-1] if said else 'it said nothing'}")
            yield url, process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == httpx2.codes.OK:
                return True
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    return False
