"""A whole service for tests: Milvus Lite in a folder, the worker, the app, and a real HTTP server, all in this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.encoding.encoder import Encoder
from pipeline.folder import FolderLock
from pipeline.korean.morphemes import Analyser
from pipeline.parts import PartsHere
from pipeline.settings import Settings
from pipeline.storage.database import StateDatabase
from tests.faults import await_seq, until

KEY = "key-of-a-writer"
READ_KEY = "key-of-a-reader"
_START_SECONDS = 120.0
_SETTLE_SECONDS = 120.0
_WAIT_SECONDS = 60  # what a busy machine may take for a change that a test waits for

ARTICLES: list[dict[str, Any]] = [
    {
        "id": "transfer",
        "title": "이체 한도를 올리는 방법",
        "category": "송금",
        "url": "https://example.com/transfer",
        "published_at": "2026-03-02T09:00:00+09:00",
        "body": "신분증을 촬영하고 영상 통화로 본인을 확인하면 하루 이체 한도를 5천만 원까지 높일 수 있습니다.",
    },
    {
        "id": "phishing",
        "title": "보이스피싱을 당했다면 30분 안에 할 일",
        "category": "안전",
        "published_at": "2026-05-20T09:00:00+09:00",
        "tags": ["사기", "신고"],
        "body": "돈을 보낸 직후라면 지급정지를 신청하세요. 경찰청 112로 전화하면 상대 계좌의 출금을 막을 수 있습니다.",
    },
    {
        "id": "script",
        "title": "<script>document.title='당함'</script> 꺾쇠 제목",
        "url": "javascript:alert(1)",
        "category": '"><img src=x onerror=alert(1)>',
        "body": "<img src=x onerror=\"document.title='당함'\"> 꺾쇠가 든 본문 & 기호는 글자로 남아야 합니다.",
    },
    *(
        {
            "id": f"savings-{n}",
            "title": f"적금 고르는 법 {n}",
            "category": "적금",
            "published_at": f"2025-0{n % 9 + 1}-01T00:00:00+09:00",
            "body": f"적금은 금리와 기간을 함께 봅니다. {n}번째 이야기에서는 우대 조건을 살펴봅니다.",
        }
        for n in range(25)
    ),
]


def settings_in(folder: Path, *, api: Mapping[str, Any] | None = None, **sections: Any) -> Settings:
    """Settings of a service in `folder`, without what the environment says."""
    if api is None:
        api = {"keys": [{"key": KEY, "scopes": ["write", "admin"]}, {"key": READ_KEY, "scopes": ["read"]}]}
    return Settings.model_validate(
        {
            "data_dir": folder,
            "indexers": {"poll_seconds": 0.2},
            "api": {"wait_seconds": _WAIT_SECONDS, **api},
            **sections,
        }
    )


def assembly_of(settings: Settings, analyser: Analyser, encoder: Encoder) -> Assembly:
    """An assembly around parts that are open already."""
    lock = FolderLock.take(settings.data_dir, "a test") if settings.milvus_is_lite else None
    parts = PartsHere(settings, analyser, encoder)
    return Assembly(settings, StateDatabase.open(settings.state_url), parts, lock)


class ApiServer:
    """A service that runs: its app, its parts and its address."""

    def __init__(self, app: FastAPI, assembly: Assembly, worker: Worker, port: int) -> None:
        self.app = app
        self.assembly = assembly
        self.worker = worker
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str | None = KEY) -> httpx2.Client:
        """A client that sends `key`."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=120)

    def publish(self, articles: Sequence[Mapping[str, Any]]) -> None:
        """Makes `articles` searchable."""
        with self.client() as client:
            answer = client.post("/v1/articles:bulk", content=b"\n".join(map(orjson.dumps, articles)))
            last = max(orjson.loads(line)["seq"] for line in answer.text.splitlines())
            client.get("/v1/search", params={"q": "x", "min_seq": last}).raise_for_status()

    def settle(self) -> None:
        """Waits until everything that was accepted is shown: what other tests left in the inbox changes the statistics."""
        store = self.assembly.store
        until(lambda: not store.queue_length(), _SETTLE_SECONDS, "the inbox is not empty")
        with self.client() as client:
            await_seq(client, store.settled_up_to(), _SETTLE_SECONDS)


@contextmanager
def running(settings: Settings, analyser: Analyser, encoder: Encoder) -> Iterator[ApiServer]:
    """A service on a free port, ready."""
    assembly = assembly_of(settings, analyser, encoder)
    stop = threading.Event()
    app = create_app(settings, assembly=assembly, wake=lambda: worker.wake())  # noqa: PLW0108 - made after the app
    worker = Worker(assembly.store, lambda: assembly.connect().ingest, attempts=1, on_commit=app.state.service.notify)
    draining = threading.Thread(target=worker.run, args=(stop,))
    draining.start()
    try:
        with _served(app) as port:
            server = ApiServer(app, assembly, worker, port)
            _wait_ready(server)
            yield server
    finally:
        stop.set()
        worker.wake()
        draining.join()
        assembly.close()


@contextmanager
def _served(app: FastAPI) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", http="httptools", proxy_headers=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _wait_ready(server: ApiServer) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with server.client() as client:
        while True:
            try:
                answer = client.get("/readyz")
                if answer.status_code == 200:
                    return
                why = answer.text
            except httpx2.TransportError as error:
                why = str(error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {_START_SECONDS} s: {why}")
            time.sleep(0.05)
