"""Kills (SIGKILL) of every process of an installation under a load of writes, and what became of the promises.

    python -m tests.benchmarks.kills --kills 200 [--minutes 30] [--pair] [--seed N]

Without --pair `yeoul serve` with SQLite, and its Milvus Lite; with it PostgreSQL, a Milvus server, two API processes and the
indexers, each of which is killed. Moments: at random, right after an acknowledgement, in a bulk, in a rebuild, and in the
start after the kill before. In the end everything acknowledged must be found on every API process, once, and `yeoul verify`
must find no difference. Prints a Markdown table; exit code 1 where anything was lost or doubled.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx2
from sqlalchemy import func, select
from tqdm import tqdm

from indexers.benchmarks.deployment import Deployment, Running, deployed
from pipeline import reading
from pipeline.index import lite_process
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import leases, leftovers
from tests import milvus_server, postgres_server
from tests.faults import Audit, Ledger, await_seq, until, writing

_SETTLE_SECONDS = 900.0  # on a busy machine the last start and everything that waits
_PROGRESS_SECONDS = 300.0  # until a writer is answered again after a kill
_BULK_SECONDS = 5.0  # writers send one a second or so
_REBUILD_SECONDS = 60.0  # until a rebuild says its first word, and after a kill until it has ended
_LONGEST_PAUSE = 1.5  # seconds before a kill at random
_LONGEST_REBUILD = 1.0  # seconds after it took its lease; it takes two or three
_WITH_REBUILD = 0.5  # share of the kills beside a rebuild that kill it too: it may be a process of its own
_IN_START = 0.2  # share of the starts that are killed before the process is up again
_LONGEST_BULK = 0.02  # seconds after a bulk was begun: it takes some hundredths
SESSION_SECONDS = 5  # of the Milvus server: otherwise each of its kills costs half a minute
_RANDOM, _ACKNOWLEDGED, _BULK, _REBUILD, _START = "at random", "after a 202", "in a bulk", "in a rebuild", "in a start"
MOMENTS = (_RANDOM, _ACKNOWLEDGED, _BULK, _REBUILD)
_COLUMNS = (*MOMENTS, _START)
_WEIGHTS = (2, 2, 2, 1)  # a rebuild takes long


class Target(Protocol):
    """What can be killed. `start` begins a new life, `wait` until it serves."""

    name: str

    def kill(self) -> None: ...
    def start(self) -> None: ...
    def wait(self) -> None: ...


@dataclass(slots=True)
class Process:
    """A process of the deployment."""

    name: str
    running: Running
    deployment: Deployment

    def kill(self) -> None:
        self.running.kill()

    def start(self) -> None:
        self.running.start()

    def wait(self) -> None:
        if self.running.url:
            self.deployment.wait_ready(self.running)


@dataclass(slots=True)
class Child:
    """A process that `yeoul serve` starts from `module`, and starts again itself."""

    name: str
    module: str
    serve: Running
    deployment: Deployment

    def kill(self) -> None:
        until(self._pids, _PROGRESS_SECONDS, f"there is no process of {self.name}")
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """It is started by who lost it."""

    def wait(self) -> None:
        self.deployment.wait_ready(self.serve)

    def _pids(self) -> list[int]:
        assert self.serve.process is not None
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                command = (process / "cmdline").read_bytes()
                parent = (process / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
                if self.module.encode() in command.split(b"\0") and int(parent) == self.serve.process.pid:
                    found.append(int(process.name))
        return found


@dataclass(slots=True)
class MilvusServer:
    folder: Path
    process: subprocess.Popen[bytes]
    name: str = "Milvus server"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        self.process = milvus_server.restart(self.folder)

    def wait(self) -> None:
        """`start` has waited."""


@dataclass(slots=True)
class PostgresServer:
    server: postgres_server.Server
    name: str = "PostgreSQL"

    def kill(self) -> None:
        postgres_server.kill(self.server)

    def start(self) -> None:
        postgres_server.restart(self.server)

    def wait(self) -> None:
        """`start` has waited."""


@dataclass(slots=True)
class Report:
    """What a storm came to."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    acknowledged: int = 0
    unanswered: int = 0
    articles: int = 0
    rebuilds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)  # the last words of rebuilds that failed
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    verify: str = ""
    verify_code: int = -1
    seconds: float = 0.0

    @property
    def all_well(self) -> bool:
        return not (self.wrong or self.lost or self.doubled or self.verify_code or self.verify)

    def table(self) -> str:
        names = sorted({name for name, _ in self.kills})
        rows = [["killed", *_COLUMNS, "together"]]
        rows += [[n, *(str(self.kills[n, m]) for m in _COLUMNS), str(self._of(n))] for n in names]
        rows.append(["all", *(str(sum(self.kills[n, m] for n in names)) for m in _COLUMNS), str(self.kills.total())])
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|---" * len(rows[0]) + "|")
        rebuilds = ", ".join(f"{number} {how}" for how, number in sorted(self.rebuilds.items())) or "none"
        return "\n".join(
            [
                *lines,
                "",
                f"{self.acknowledged:,} changes acknowledged, {self.unanswered:,} unanswered; rebuilds: {rebuilds}",
                *(f"a rebuild failed: {words}" for words in self.failures),
                f"{self.articles:,} articles looked at: {len(self.lost)} lost, {len(self.doubled)} doubled, "
                f"{len(self.wrong)} wrong answers",
                f"yeoul verify: exit code {self.verify_code}; {self.seconds:.0f} s",
            ]
        )

    def _of(self, name: str) -> int:
        return sum(number for (killed, _), number in self.kills.items() if killed == name)


class Storm:
    """Kills of `targets`, one after the other, while others write."""

    def __init__(
        self, deployment: Deployment, targets: Sequence[Target], database: StateDatabase, ledger: Ledger, seed: int
    ) -> None:
        self.report = Report()
        self._deployment = deployment
        self._targets = targets
        self._database = database
        self._ledger = ledger
        self._chance = random.Random(seed)
        self._rebuild: subprocess.Popen[str] | None = None

    def run(self, kills: int, *, seconds: float = math.inf) -> None:
        """So many kills or one more, or for so long, each target in turn, in an order and at moments drawn by the seed."""
        end = time.monotonic() + seconds
        with tqdm(total=kills, unit=" kills", disable=not sys.stderr.isatty()) as bar:
            while self.report.kills.total() < kills:
                for target in self._chance.sample(self._targets, len(self._targets)):
                    self.strike(target, self._chance.choices(MOMENTS, _WEIGHTS)[0])
                    bar.update(self.report.kills.total() - bar.n)
                    if self.report.kills.total() >= kills or time.monotonic() > end:
                        return

    def strike(self, target: Target, moment: str) -> None:
        """Kills `target` at `moment`, has it started again, and waits until writers are answered."""
        self._await(moment)
        target.kill()
        self.report.kills[target.name, moment] += 1
        self._perhaps_kill_rebuild()
        if isinstance(target, Process) and self._deployment.indexers is None:
            self.end()  # one that began while nobody served has the folder; one beside the server gives up, and goes on later
        target.start()
        while self._chance.random() < _IN_START:
            time.sleep(self._chance.uniform(0, _LONGEST_PAUSE))
            target.kill()
            self.report.kills[target.name, _START] += 1
            target.start()
        target.wait()
        if not self._ledger.await_more(5, _PROGRESS_SECONDS):
            self.report.wrong.append(f"nothing was acknowledged {_PROGRESS_SECONDS:g} s after {target.name} was killed")

    def end(self) -> None:
        """Waits for the end of a rebuild that is still at work."""
        if self._rebuild is None:
            return
        try:
            _, told = self._rebuild.communicate(timeout=_REBUILD_SECONDS)
        except subprocess.TimeoutExpired:
            self._rebuild.kill()
            _, told = self._rebuild.communicate()
        self.report.rebuilds[{0: "done", 1: "failed"}.get(self._rebuild.returncode, "killed")] += 1
        if self._rebuild.returncode == 1:
            self.report.failures += told.strip().splitlines()[-1:]
        self._rebuild = None

    def _await(self, moment: str) -> None:
        if moment == _ACKNOWLEDGED:
            self._ledger.await_more(1, _PROGRESS_SECONDS)
        elif moment == _BULK:
            self._ledger.in_bulk.clear()
            self._ledger.in_bulk.wait(_BULK_SECONDS)
            time.sleep(self._chance.uniform(0, _LONGEST_BULK))
        elif moment == _REBUILD:
            self._begin_rebuild()
            time.sleep(self._chance.uniform(0, _LONGEST_REBUILD))
        else:
            time.sleep(self._chance.uniform(0, _LONGEST_PAUSE))

    def _begin_rebuild(self) -> None:
        """Begins one, and waits until it is at work: until it holds its lease."""
        self.end()
        before = self._rebuilds_begun()
        rebuild = self._rebuild = command(self._deployment, "rebuild", "--min-overlap", "0")
        with suppress(TimeoutError):  # on a busy machine the kill comes before it
            until(lambda: rebuild.poll() is not None or self._rebuilds_begun() > before, _REBUILD_SECONDS, "no rebuild")

    def _rebuilds_begun(self) -> int:
        with self._database.read() as connection:
            return connection.execute(select(leases.c.epoch).where(leases.c.name == "rebuild")).scalar() or 0

    def _perhaps_kill_rebuild(self) -> None:
        if self._rebuild is not None and self._rebuild.poll() is None and self._chance.random() < _WITH_REBUILD:
            time.sleep(self._chance.uniform(0, _LONGEST_PAUSE))
            self._rebuild.kill()
            self.report.kills["yeoul rebuild", _REBUILD] += 1


def storm(
    deployment: Deployment,
    targets: Sequence[Target],
    database: StateDatabase,
    *,
    seed: int,
    strikes: Callable[[Storm], None],
) -> Report:
    """Kills under a load, the time to settle, and the audit. `strikes` says who is killed when."""
    began, ledger = time.monotonic(), Ledger()
    blowing = Storm(deployment, targets, database, ledger, seed)
    urls = [server.url for server in deployment.servers]
    with writing(urls, deployment.headers, ledger, seed=seed):
        ledger.await_more(10, _PROGRESS_SECONDS)
        strikes(blowing)
        blowing.end()
    report = blowing.report
    report.acknowledged, report.unanswered = ledger.acknowledged, ledger.answers["unanswered"]
    report.wrong += ledger.wrong
    _settle(deployment, database, ledger)
    audit = Audit()
    for url in urls:
        audit.of(url, deployment.headers, ledger)
    audit.log(database)
    report.articles, report.lost, report.doubled = audit.articles, audit.lost, audit.doubled
    verified = command(deployment, "verify")
    out, err = verified.communicate(timeout=_SETTLE_SECONDS)
    report.verify_code, report.verify = verified.returncode, err.strip()
    report.wrong += [out.strip()] if verified.returncode else []
    report.seconds = time.monotonic() - began
    return report


def _settle(deployment: Deployment, database: StateDatabase, ledger: Ledger) -> None:
    """Waits until nothing waits, old rows are deleted, and every API process has applied everything."""
    store = ArticleStore(database)

    def swept() -> bool:
        with database.read() as connection:
            return not connection.execute(select(func.count()).select_from(leftovers)).scalar_one()

    until(lambda: not store.queue_length(), _SETTLE_SECONDS, "the inbox is not empty")
    until(swept, _SETTLE_SECONDS, "rows of replaced revisions are still there")
    for server in deployment.servers:
        deployment.wait_ready(server)
        with httpx2.Client(base_url=server.url, timeout=_SETTLE_SECONDS) as client:
            await_seq(client, ledger.last_seq, _SETTLE_SECONDS)


def command(deployment: Deployment, *arguments: str) -> subprocess.Popen[str]:
    """`yeoul` with `arguments` on this deployment; what it says comes at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "yeoul", *arguments],
        cwd=deployment.folder,
        env={**deployment.environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def embedded(folder: Path) -> Iterator[tuple[Deployment, list[Target], StateDatabase]]:
    """`yeoul serve` with SQLite, its Milvus Lite and its Kiwi."""
    with deployed(folder) as deployment:
        state = Path(deployment.environment["YEOUL_DATA_DIR"]) / "state.db"
        with _opened(f"sqlite:///{state}") as database:
            serve = deployment.servers[0]
            targets: list[Target] = [
                Process("yeoul serve", serve, deployment),
                Child("Milvus Lite", lite_process.__name__, serve, deployment),
                Child("Kiwi", reading.__name__, serve, deployment),
            ]
            yield deployment, targets, database


@contextmanager
def pair(
    folder: Path, postgres: postgres_server.Server, milvus: MilvusServer, uri: str
) -> Iterator[tuple[Deployment, list[Target], StateDatabase]]:
    """PostgreSQL, a Milvus server, two API processes and the indexers."""
    url = postgres_server.new_database(postgres.url)
    stores = {"database_url": url, "milvus_uri": uri, "milvus_token": milvus_server.TOKEN}
    with deployed(folder, servers=2, **stores) as deployment, _opened(url) as database:
        assert deployment.indexers is not None
        processes = [
            *((f"API process {n}", server) for n, server in enumerate(deployment.servers, start=1)),
            ("indexers", deployment.indexers),
        ]
        targets: list[Target] = [Process(name, running, deployment) for name, running in processes]
        yield deployment, [*targets, milvus, PostgresServer(postgres)], database


@contextmanager
def _opened(url: str) -> Iterator[StateDatabase]:
    database = StateDatabase.open(url)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def servers(folder: Path) -> Iterator[tuple[postgres_server.Server, MilvusServer, str]]:
    """A PostgreSQL and a Milvus server to kill, and the address of the second."""
    with ExitStack() as ended:
        _, postgres = postgres_server.start(folder / "postgres")
        ended.callback(postgres_server.stop, postgres)
        uri, process = milvus_server.start(folder / "milvus", session_seconds=SESSION_SECONDS)
        milvus = MilvusServer(folder / "milvus", process)
        ended.callback(lambda: milvus_server.stop(milvus.process))
        yield postgres, milvus, uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no kill after so long")
    parser.add_argument("--pair", action="store_true", help="PostgreSQL, a Milvus server, two API processes, indexers")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with ExitStack() as ended:
        folder = Path(ended.enter_context(tempfile.TemporaryDirectory(prefix="yeoul-kills-")))
        folder.chmod(0o755)  # PostgreSQL's account has to reach its own part of it
        if chosen.pair:
            parts = ended.enter_context(pair(folder / "pair", *ended.enter_context(servers(folder))))
        else:
            parts = ended.enter_context(embedded(folder / "embedded"))
        deployment, targets, database = parts
        report = storm(
            deployment,
            targets,
            database,
            seed=chosen.seed,
            strikes=lambda one: one.run(chosen.kills, seconds=60 * chosen.minutes),
        )
    print(report.table())
    for line in [*report.wrong, *report.lost, *report.doubled, *report.verify.splitlines()]:
        print(line[:500], file=sys.stderr)
    sys.exit(not report.all_well)


if __name__ == "__main__":
    main()
