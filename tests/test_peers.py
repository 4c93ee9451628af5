"""`yeoul bench peers` on a small corpus: what needs no other environment is measured for real."""

from __future__ import annotations

import gc
import gzip
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from typer.testing import CliRunner

from indexers.benchmarks import comparison, handover, own
from indexers.benchmarks.comparison import FLOOR, PEERS, YEOUL, NotMeasured, Peer, Row, of_own, of_peer, table
from indexers.benchmarks.handover import HandedOver, Material, hand_over
from indexers.benchmarks.peers.measure import SHOWN, WARM_UP, Handed, measured
from indexers.commands.bench import bench_app, system_of
from pipeline import samples
from pipeline import settings as configuration
from pipeline.errors import InvalidInput
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System

_SAMPLES = Path(samples.__file__).parent
_LIMIT, _ASKED = 150, 12  # passages, of which the samples have more; queries
_SECONDS = 60.0
_BY_NAME = {peer.name: peer for peer in PEERS}


@dataclass(frozen=True, slots=True)
class Stage:
    opened: partial[System]
    material: Material
    cache_dir: Path
    folder: Path
    handed: HandedOver


@pytest.fixture(autouse=True, scope="module")
def _as_before() -> Iterator[None]:
    """What is measured in this process sets up the process for itself."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    gc.unfreeze()


@pytest.fixture(scope="module")
def stage(environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Stage:
    folder, cache_dir, data = (tmp_path_factory.mktemp(name) for name in ("handed", "cache", "data"))
    _write_samples(data)
    material = Material.read(data / "passages.jsonl.gz", [data], limit=_LIMIT, asked=_ASKED)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(handover, "_NEAR", 30)  # 100 would be nearly all of them
        opened = partial(system_of, configuration.load())
        handed = hand_over(material, opened(), ArrayCache(cache_dir), folder)
    return Stage(opened, material, cache_dir, folder, handed)


def _write_samples(data: Path) -> None:
    """The shipped articles and queries as the command wants them, every query twice."""
    articles = [orjson.loads(line) for line in (_SAMPLES / "articles.jsonl").read_bytes().splitlines()]
    rows = [{"_id": a["id"], "title": a["title"], "text": a["body"]} for a in articles]
    (data / "passages.jsonl.gz").write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, rows))))
    texts = [orjson.loads(line)["text"] for line in (_SAMPLES / "queries.jsonl").read_bytes().splitlines()]
    lines = [{"_id": f"{number}", "text": text} for number, text in enumerate([*texts, *texts, " ", "가" * 501])]
    (data / "queries.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))


def test_what_is_handed_over_is_the_same_for_all_and_cut_at_the_limit(stage: Stage) -> None:
    handed = Handed.read(stage.folder, stage.folder)
    assert stage.handed.passages == len(handed.ids) == len(set(handed.ids)) == len(handed.vectors) == _LIMIT
    assert len(handed.queries) == len(set(handed.queries)) == len(handed.query_vectors) == WARM_UP + _ASKED
    assert tuple(handed.queries) == stage.material.queries
    assert len(stage.handed.near) == len(stage.handed.preparation) == _ASKED
    for vectors in (handed.vectors, handed.query_vectors):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    system = stage.opened()
    again = [p for passages, _ in stage.material.passages(system, ArrayCache(stage.cache_dir)) for p in passages]
    assert [p.id for p in again] == handed.ids
    assert [" ".join([*p.title_terms, *p.terms]) for p in again] == handed.terms


def test_too_few_queries_are_told(stage: Stage, tmp_path: Path) -> None:
    _write_samples(tmp_path)
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "적금"}\n{"_id": "2", "text": "적금"}\n')
    with pytest.raises(InvalidInput, match="more than 5 distinct queries are needed, 1 are there"):
        Material.read(tmp_path / "passages.jsonl.gz", [tmp_path], limit=_LIMIT, asked=_ASKED)


@pytest.mark.parametrize("name", ["Milvus Lite", "rank_bm25 + numpy"])
def test_a_peer_is_measured_and_answers_what_was_asked(
    name: str, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "python_of", lambda _peer, _environments: Path(sys.executable))
    row = of_peer(_BY_NAME[name], stage.handed, stage.folder, environments=tmp_path, seconds=_SECONDS)
    _assert_measured(row)
    assert row.preparation == pytest.approx(np.mean(stage.handed.preparation))


def test_the_command_measures_yeoul_beside_a_peer_and_writes_what_it_prints(
    environment: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_samples(tmp_path)
    for name, value in {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(comparison, "python_of", lambda _peer, _environments: Path(sys.executable))
    given = ["--passages", str(tmp_path / "passages.jsonl.gz"), "--queries", str(tmp_path)]
    chosen = ["--limit", f"{_LIMIT}", "--asked", f"{_ASKED}", "--only", YEOUL, "--only", "rank_bm25 + numpy"]
    done = CliRunner().invoke(bench_app, ["peers", *given, *chosen, "--json", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.output
    rows = [Row(**row) for row in orjson.loads((tmp_path / "figures.json").read_bytes())]
    assert [row.peer for row in rows] == [YEOUL, "rank_bm25 + numpy"]
    for row in rows:
        _assert_measured(row)
        assert row.line() in done.stdout.splitlines()


def test_a_peer_that_nobody_knows_is_told_before_anything_is_started(tmp_path: Path) -> None:
    given = ["--passages", str(tmp_path / "none"), "--queries", str(tmp_path), "--only", "Lucene"]
    done = CliRunner().invoke(bench_app, ["peers", *given])
    assert done.exit_code == 1
    assert "--only should be one of Yeoul, floor, Milvus Lite" in done.stderr


def _assert_measured(row: Row) -> None:
    assert row.why == ""
    assert row.version
    assert len(row.seconds) == _ASKED
    assert all(0 < seconds < math.inf for seconds in row.seconds)
    assert row.build_s > 0
    assert 10 < row.memory_mb < 10_000
    assert row.near > 0.95


def test_the_floor_is_measured_and_answers_by_the_sum_of_both_legs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against BM25 and products written out over every passage."""
    monkeypatch.setattr(own, "_CANDIDATES", _LIMIT)  # what is not among a leg's candidates has nothing of it in its sum
    seen = own.floor(stage.opened, stage.folder, _SECONDS)
    assert len(seen["seconds"]) == len(seen["found"]) == _ASKED
    assert "numba" in seen["version"]
    system, handed = stage.opened(), Handed.read(stage.folder, stage.folder)
    documents = [line.split() for line in handed.terms]
    lengths = np.array([len(document) for document in documents])
    norms = system.lexical.k1 * (1 - system.lexical.b + system.lexical.b * lengths / lengths.mean())
    for number, ids in enumerate(seen["found"], start=WARM_UP):
        lexical = np.zeros(len(documents))
        for term in handed.query_terms[number].split():
            tf = np.array([document.count(term) for document in documents])
            df = np.count_nonzero(tf)
            lexical += math.log(1 + (len(documents) - df + 0.5) / (df + 0.5)) * tf / (tf + norms)
        alpha = system.fusion.alpha
        scores = (1 - alpha) * lexical / (lexical.max() or 1) + alpha * (handed.vectors @ handed.query_vectors[number])
        expected = np.sort(scores)[::-1][:SHOWN]
        assert len(ids) == SHOWN
        np.testing.assert_allclose(scores[[handed.ids.index(i) for i in ids]], expected, atol=1e-4)


@pytest.mark.parametrize(("slow", "quick"), [(1, 2), (2, 1)])
def test_the_floor_takes_as_many_threads_as_are_quickest(slow: int, quick: int) -> None:
    threads: list[int] = []
    work = lambda: time.sleep(0.003 if threads[-1] == slow else 0)  # noqa: E731
    assert own._quickest(work, threads.append, 2) == quick


def test_a_peer_that_is_slow_is_asked_for_its_time_only() -> None:
    asked: list[int] = []

    def ask(number: int) -> list[str]:
        asked.append(number)
        return [f"{number}"]

    seen = measured(lambda: ask, queries=100, seconds=0.0)
    assert asked == [*range(WARM_UP), WARM_UP]
    assert seen["found"] == [[f"{WARM_UP}"]]
    assert len(seen["seconds"]) == 1


@pytest.mark.parametrize("own_process", [True, False])
def test_a_peer_that_fails_is_a_row_that_says_why(
    own_process: bool, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_process:
        row = of_own("broken", _broken, stage.handed)
        assert row.why == "no memory | none"
    else:
        monkeypatch.setattr(comparison, "python_of", lambda _peer, _environments: Path(sys.executable))
        row = of_peer(Peer("broken", "no_such_peer"), stage.handed, stage.folder, environments=tmp_path, seconds=1)
        assert row.why == "ModuleNotFoundError: No module named 'no_such_peer'"
    lines = table([row], stage.handed).splitlines()
    told = next(line for line in lines if line.startswith("| broken"))
    assert f"not measured: {row.why.replace('|', '/')}" in told
    assert told.count("|") == lines[2].count("|")


def _broken() -> Mapping[str, Any]:
    raise ValueError("no memory | none")


def test_a_peer_that_cannot_be_installed_is_a_row_that_says_why(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(command: list[str], *, seconds: float) -> None:
        raise NotMeasured("No matching distribution found for txtai")

    monkeypatch.setattr(comparison, "_run", refused)
    row = of_peer(_BY_NAME["txtai"], stage.handed, stage.folder, environments=tmp_path, seconds=1)
    assert row.why == "No matching distribution found for txtai"


def test_an_environment_is_made_once_and_again_when_its_needs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, seconds: float) -> None:
        commands.append(command)
        (tmp_path / "environments" / "some_peer").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(comparison, "_run", run)
    monkeypatch.setattr(comparison, "_SCRIPTS", tmp_path)
    peer, needed = Peer("some peer", "some_peer"), tmp_path / "some_peer.txt"
    for content in ("one==1\n", "one==2\n"):
        needed.write_text(content)
        commands.clear()
        python = comparison.python_of(peer, tmp_path / "environments")
        assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]]
        assert commands[1][-2:] == ["-r", str(needed)]
        assert comparison.python_of(peer, tmp_path / "environments") == python
        assert len(commands) == 2


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_a_peer_needs_is_pinned(peer: Peer) -> None:
    lines = (Path(comparison.__file__).parent / "peers" / f"{peer.module}.txt").read_text().splitlines()
    needs = [line for line in lines if not line.startswith("#")]
    assert needs
    assert all("==" in line for line in needs)


def test_the_table_has_the_figures_and_the_ratio() -> None:
    handed = HandedOver(passages=1000, preparation=(0.002,) * 4, near=(frozenset("a"),) * 4)
    rows = [
        Row(peer=YEOUL, version="1", seconds=(0.004,) * 4, build_s=1.25, memory_mb=1234, near=1.0),
        Row(peer=FLOOR, version="2", seconds=(0.002,) * 4, near=1.0),
        Row(peer="slow", version="3", seconds=(0.098,) * 2, preparation=0.002, near=0.5),
    ]
    lines = table(rows, handed).splitlines()
    assert lines[0] == "1,000 passages, 4 distinct queries, one after the other (in the time there was: slow 2)"
    assert lines[4] == "| Yeoul | 1 | 250.0 | 4.0 | 4.0 | 4.0 | 250.0 | 1.2 | 1,234 | 100% |"
    assert lines[6] == "| slow | 3 | 10.2 | 98.0 | 98.0 | 98.0 | 10.0 | 0.0 | 0 | 50% |"
    assert "which takes 2.0 ms a query here" in "\n".join(lines)
    assert lines[-1] == "Yeoul / floor, p50: 4.0 / 2.0 ms = 2.00"
    assert "Yeoul / floor" not in table(rows[1:], handed)
