"""Peers side by side: each in an environment and a process of its own, one after the other, and a table of what came out.

A peer that cannot be installed, or fails, is a row that says why. Knows nothing of passages and queries: they are in a folder
(`handover.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

from indexers.benchmarks.handover import HandedOver
from indexers.benchmarks.peers.measure import RESULT
from pipeline.errors import YeoulError

_SCRIPTS = Path(__file__).parent / "peers"
_INSTALL_SECONDS = 1800.0  # txtai brings torch
_LONGEST_SECONDS = 3600.0  # to build an index; the queries have a time of their own
_OURS = (
    "PYTHONPATH",
    "OPENBLAS_THREAD_TIMEOUT",
)  # of the environment: what Yeoul sets for itself does not touch a peer
YEOUL, FLOOR = "Yeoul", "floor"
_COLUMNS = (
    "peer | version | queries a second | p50 ms | p95 ms | p99 ms | with preparation, queries a second | build s | memory MB"
    " | near"
)


class NotMeasured(YeoulError):
    """A peer cannot be installed, or its script failed."""

    code = "not_measured"


@dataclass(frozen=True, slots=True)
class Peer:
    """`module` is its script in `peers/`, beside the file of what that needs."""

    name: str
    module: str


PEERS = (
    Peer("Milvus Lite", "milvus_lite_hybrid"),
    Peer("LanceDB", "lancedb_hybrid"),
    Peer("txtai", "txtai_hybrid"),
    Peer("rank_bm25 + numpy", "rank_bm25_numpy"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a peer did: `seconds` of each query, and of the `preparation` of a query (0 where that is among the former); `near`
    is the share of its answers that are among the best of either leg. `why` says that it failed, and how."""

    peer: str
    version: str = ""
    seconds: tuple[float, ...] = ()
    preparation: float = 0.0
    build_s: float = 0.0
    memory_mb: float = 0.0
    near: float = 0.0
    why: str = ""

    @property
    def p50(self) -> float:
        """Milliseconds."""
        return float(np.median(self.seconds)) * 1000

    def line(self) -> str:
        """Of the Markdown table."""
        if self.why:
            return f"| {self.peer} | not measured: {self.why.replace('|', '/')} {'| ' * (_COLUMNS.count('|') - 1)}|"
        mean = float(np.mean(self.seconds))
        p50, p95, p99 = np.percentile(np.array(self.seconds) * 1000, [50, 95, 99])
        return (
            f"| {self.peer} | {self.version} | {1 / mean:,.1f} | {p50:,.1f} | {p95:,.1f} | {p99:,.1f} "
            f"| {1 / (mean + self.preparation):,.1f} | {self.build_s:,.1f} | {self.memory_mb:,.0f} | {self.near:.0%} |"
        )


def of_peer(peer: Peer, handed: HandedOver, folder: Path, *, environments: Path, seconds: float) -> Row:
    """`peer` on the files of `folder`, in its environment, which is made where it is not there yet."""
    return _row(
        peer.name,
        lambda: answers(peer, python_of(peer, environments), folder, seconds),
        handed.near,
        preparation=float(np.mean(handed.preparation)),
    )


def of_own(name: str, measure: Callable[[], Mapping[str, Any]], handed: HandedOver) -> Row:
    """`measure`, a function that can be pickled, in a process of its own; it prepares its queries itself."""

    def seen() -> Mapping[str, Any]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure).result()

    return _row(name, seen, handed.near)


def _row(
    name: str, measure: Callable[[], Mapping[str, Any]], near: Sequence[Set[str]], *, preparation: float = 0.0
) -> Row:
    try:
        seen = measure()
    except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, the others are measured
        return Row(peer=name, why=" ".join(f"{error}".split()) or type(error).__name__)
    hits = [i in best for found, best in zip(seen["found"], near, strict=False) for i in found]  # some ran out of time
    return Row(
        peer=name,
        version=seen["version"],
        seconds=tuple(seen["seconds"]),
        preparation=preparation,
        build_s=seen["build_s"],
        memory_mb=seen["memory_mb"],
        near=float(np.mean(hits)) if hits else 0.0,
    )


def python_of(peer: Peer, environments: Path) -> Path:
    """The Python of the environment of `peer`, made on first use. Raises NotMeasured."""
    place = environments / peer.module
    needed, installed = _SCRIPTS / f"{peer.module}.txt", place / "installed.txt"
    python = place / "bin" / "python"
    if installed.exists() and installed.read_text() == needed.read_text():
        return python
    run = partial(_run, seconds=_INSTALL_SECONDS)
    run([sys.executable, "-m", "venv", "--clear", str(place)])
    run([str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install", "-r", str(needed)])
    installed.write_text(needed.read_text())
    return python


def answers(peer: Peer, python: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """What the script of `peer` saw, run by `python`, which has what that needs. Raises NotMeasured."""
    with TemporaryDirectory(prefix="yeoul-bench-") as place:
        script = [str(_SCRIPTS / "measure.py"), peer.module, str(folder), place, str(seconds)]
        _run([str(python), "-s", *script], seconds=_LONGEST_SECONDS + seconds)
        seen: dict[str, Any] = orjson.loads((Path(place) / RESULT).read_bytes())
    return seen


def _run(command: Sequence[str], *, seconds: float) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    try:
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=seconds)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise NotMeasured(said[-1] if said else f"{command[0]} ended with {error.returncode}") from error
    except subprocess.TimeoutExpired as error:
        raise NotMeasured(f"not done after {seconds:,.0f} s") from error


def table(rows: Sequence[Row], handed: HandedOver) -> str:
    """Markdown, with what a reader must know below it."""
    asked = len(handed.preparation)
    short = [f"{row.peer} {len(row.seconds):,}" for row in rows if not row.why and len(row.seconds) < asked]
    lines = [
        f"{handed.passages:,} passages, {asked:,} distinct queries, one after the other"
        + (f" (in the time there was: {', '.join(short)})" if short else ""),
        "",
        f"| {_COLUMNS} |",
        "|---" * (_COLUMNS.count("|") + 1) + "|",
        *(row.line() for row in rows),
        "",
        f"Peers are given the terms and the vector of a query ready made, which takes {np.mean(handed.preparation) * 1000:.1f} ms"
        f" a query here: *with preparation* adds it. {YEOUL} and the {FLOOR} do that themselves, within all of their figures.",
        "Memory is the most that the process ever had, building included. Near: how many of its ten answers are among the"
        " 100 best of one of the exact legs; less than nearly all of them means that it searched for something else.",
    ]
    p50 = {row.peer: row.p50 for row in rows if not row.why}
    if YEOUL in p50 and FLOOR in p50:
        lines += ["", f"{YEOUL} / {FLOOR}, p50: {p50[YEOUL]:.1f} / {p50[FLOOR]:.1f} ms = {p50[YEOUL] / p50[FLOOR]:.2f}"]
    return "\n".join(lines)
