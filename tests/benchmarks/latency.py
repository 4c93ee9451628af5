"""How long a search takes on an index that exists: in process, through HTTP, from the shell; and how long a start takes.

    python tests/benchmarks/latency.py FOLDER [QUERIES.jsonl]

FOLDER is where `yeoul index` was run (it holds `.yeoul`). Queries are distinct and come one after the other (no load
beside them); each path answers all of them after five that warm it up. Prints a Markdown table of medians.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

from pipeline import settings
from pipeline.assembly import Assembly
from pipeline.retrieval.query import SearchRequest

_WARM_UP = 5
_SAMPLES = Path(__file__).parents[2] / "pipeline" / "samples" / "queries.jsonl"
_READY_SECONDS = 120.0


def main() -> None:
    os.chdir(sys.argv[1])
    source = Path(sys.argv[2]) if len(sys.argv) > 2 else _SAMPLES
    queries = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    rows = [*_in_process(queries), *_through_http(queries), _from_the_shell(queries[0])]
    print("| path | p50 | p95 |\n|---|---|---|")
    for name, p50, p95 in rows:
        print(f"| {name} | {p50} | {p95} |")


def _in_process(queries: list[str]) -> list[tuple[str, str, str]]:
    start = time.perf_counter()
    assembly = Assembly.open(settings.load(), command="latency benchmark")
    try:
        connected = assembly.connect()
        connected.load()
        ready = time.perf_counter() - start
        passages = connected.engine()[0].count
        took = []
        for query in [*queries[:_WARM_UP], *queries]:
            begin = time.perf_counter()
            connected.searcher.search(SearchRequest.checked(query))
            took.append(time.perf_counter() - begin)
    finally:
        assembly.close()
    return [_row(f"search in process, {passages:,} passages", took), ("open and load in process", f"{ready:.1f} s", "")]


def _through_http(queries: list[str]) -> list[tuple[str, str, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = time.perf_counter()
    server = subprocess.Popen([Path(sys.executable).parent / "yeoul", "serve", "--port", str(port)])
    try:
        ready = _wait_until_ready(port, start)
        connection = http.client.HTTPConnection("127.0.0.1", port)
        took = []
        for query in [*queries[:_WARM_UP], *queries]:
            begin = time.perf_counter()
            connection.request("GET", "/v1/search?" + urllib.parse.urlencode({"q": query}))
            response = connection.getresponse()
            response.read()
            took.append(time.perf_counter() - begin)
            assert response.status == 200, (query, response.status)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return [_row("search through HTTP", took), ("yeoul serve to ready", f"{ready:.1f} s", "")]


def _wait_until_ready(port: int, start: float) -> float:
    while time.perf_counter() - start < _READY_SECONDS:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return time.perf_counter() - start
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"yeoul serve is not ready after {_READY_SECONDS:.0f} s")


def _from_the_shell(query: str) -> tuple[str, str, str]:
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run(
            [Path(sys.executable).parent / "yeoul", "search", query, "--json"], capture_output=True, check=True
        )
        took.append(time.perf_counter() - begin)
    return "yeoul search from the shell", f"{statistics.median(took):.1f} s", ""


def _row(name: str, took: list[float]) -> tuple[str, str, str]:
    measured = sorted(took[_WARM_UP:])
    return name, f"{statistics.median(measured) * 1000:.1f} ms", f"{measured[int(len(measured) * 0.95)] * 1000:.1f} ms"


if __name__ == "__main__":
    main()
