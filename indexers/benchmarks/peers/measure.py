"""Measures one peer: `python measure.py PEER FOLDER PLACE SECONDS`, by the Python of the peer's own environment.

It reads what was handed over in FOLDER, has the module PEER beside it build its index, asks it every query after the other
for at most SECONDS, and writes into PLACE, which is its own, what it saw. Imports nothing of Yeoul and needs numpy alone; `own.py` measures by
the same loop. How many threads a library takes for a query is its own business. Knows nothing of the peers.
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULT = "result.json"
SHOWN = 10  # passages an answer has
WARM_UP = 5  # queries in front of the others, asked and not measured: what is made at the first search
_HIGHEST = "VmHWM:"  # the line of /proc/self/status with the most memory that was ever resident

Ask = Callable[[int], Sequence[str]]  # the number of a query → the ids of at most `SHOWN` passages, best first


@dataclass(frozen=True, slots=True)
class Handed:
    """What a peer is given. Terms are Kiwi's, with blanks between; vectors are float32 of length 1, a row a passage or query.

    The first `WARM_UP` queries are for warming up. `place` is a folder where a peer may write.
    """

    ids: list[str]
    titles: list[str]
    texts: list[str]
    terms: list[str]
    vectors: NDArray[np.float32]
    queries: list[str]
    query_terms: list[str]
    query_vectors: NDArray[np.float32]
    place: Path

    @classmethod
    def read(cls, folder: Path, place: Path) -> Handed:
        """What `handover.py` wrote."""
        passages, queries = _columns(folder / "passages.jsonl"), _columns(folder / "queries.jsonl")
        return cls(
            ids=passages["id"],
            titles=passages["title"],
            texts=passages["text"],
            terms=passages["terms"],
            vectors=np.load(folder / "vectors.npy"),
            queries=queries["text"],
            query_terms=queries["terms"],
            query_vectors=np.load(folder / "query_vectors.npy"),
            place=place,
        )


def _columns(path: Path) -> dict[str, list[str]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return {name: [row[name] for row in rows] for name in rows[0]}


def measured(build: Callable[[], Ask], queries: int, seconds: float) -> dict[str, Any]:
    """Seconds to build and seconds of each query, the ids found, and the most memory that the process had, in MB.

    One query at a time, the next when the last is answered; it stops after `queries`, or `seconds` of them.
    """
    begin = time.perf_counter()
    ask = build()
    built = time.perf_counter() - begin
    gc.collect()
    gc.freeze()  # as Yeoul does when it serves: no collection looks through an index that stays, which none of them would want
    for number in range(min(WARM_UP, queries)):
        ask(number)
    taken: list[float] = []
    found: list[list[str]] = []
    end = time.perf_counter() + seconds
    for number in range(WARM_UP, queries):
        begin = time.perf_counter()
        ids = ask(number)
        now = time.perf_counter()
        taken.append(now - begin)
        found.append(list(ids))
        if now > end:
            break
    return {"build_s": built, "memory_mb": _most_megabytes(), "seconds": taken, "found": found}


def _most_megabytes() -> float:
    """Of the kernel's own book where there is one: what `getrusage` says begins with the memory of the parent."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    line = next(line for line in status.splitlines() if line.startswith(_HIGHEST))
    return int(line.split()[1]) * 1024 / 1e6


def main(peer: str, folder: str, place: str, seconds: str) -> None:
    module = importlib.import_module(peer)
    handed = Handed.read(Path(folder), Path(place))
    seen = measured(lambda: module.opened(handed), len(handed.queries), float(seconds))
    version = ", ".join(f"{name} {metadata.version(name)}" for name in module.PACKAGES)
    (Path(place) / RESULT).write_text(json.dumps({"version": version, **seen}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
