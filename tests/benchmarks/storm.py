"""The long form of `tests/test_live_model.py`: thousands of operations over live indexing, every read held against a model.

    python tests/benchmarks/storm.py --operations 10000 --back-end lite|lite-milvus|pair --seed 1

`lite`: SQLite and Milvus Lite, engine resident; `lite-milvus`: the same with engine milvus; `pair`: PostgreSQL and a Milvus
server of its own, a reader of each engine and a worker. Each opens the stores as a process of its own would, on threads of this
one (`kills.py` has real processes). Prints the operations by kind, the reads,
and what was wrong with them; ends with 1 where something was.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests are no installed package

from pipeline.korean.morphemes import Analyser
from tests import milvus_server, postgres_server
from tests.live_storm import Site, Storm

_ENGINES = {"lite": ("resident",), "lite-milvus": ("milvus",), "pair": ("resident", "milvus")}
_SHOWN = 20  # faults; the first one is what matters


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no operation after so long")
    parser.add_argument("--back-end", choices=_ENGINES, default="lite")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    analyser = Analyser.open()
    with tempfile.TemporaryDirectory() as folder, _site(asked.back_end, Path(folder)) as site:
        start = time.monotonic()
        with Storm(site, analyser, seed=asked.seed) as storm:
            storm.run(asked.operations, seconds=60 * asked.minutes)
            if not storm.wrong:
                storm.settle()
            seconds = time.monotonic() - start
    for title, counts in (
        ("operations", storm.operations),
        ("rebuilds", storm.rebuilds),
        ("deaths of the worker", storm.record.deaths),
        ("reads", storm.record.reads),
    ):
        print(f"| {title} | {sum(counts.values()):,} |\n|---|---|")
        print("\n".join(f"| {kind} | {count:,} |" for kind, count in counts.most_common()), end="\n\n")
    print(f"seed {asked.seed}, {asked.back_end}: {len(storm.wrong)} violations, {seconds:.0f} s")
    print("\n".join(storm.wrong[:_SHOWN]))
    return 1 if storm.wrong else 0


@contextmanager
def _site(back_end: str, folder: Path) -> Iterator[Site]:
    if back_end != "pair":
        yield Site(folder, _ENGINES[back_end], grace_seconds=1.0, told=back_end == "lite")
        return
    with ExitStack() as servers:
        uri, milvus = milvus_server.start(folder / "milvus")
        servers.callback(milvus_server.stop, milvus)
        data = servers.enter_context(tempfile.TemporaryDirectory(prefix="yeoul-postgres-"))
        _, postgres = postgres_server.start(Path(data))
        servers.callback(postgres_server.stop, postgres)
        yield Site(
            folder / "yeoul",
            _ENGINES[back_end],
            grace_seconds=1.0,
            milvus={"uri": uri, "token": milvus_server.TOKEN},
            database_url=postgres_server.new_database(postgres.url),
        )


if __name__ == "__main__":
    sys.exit(main())
