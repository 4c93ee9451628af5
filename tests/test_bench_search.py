"""`yeoul bench search` in short: a filled server is measured in every way, and what is printed is what was seen."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest

from indexers.benchmarks import search
from indexers.benchmarks.deployment import Deployment, prepared
from indexers.benchmarks.memory import memory_of, processor_seconds, rss_of, watched
from indexers.benchmarks.passages import NotFilled, filled
from indexers.benchmarks.queries import queries
from indexers.benchmarks.search import Comparison, Figures, Overload, Plan, Row, measured
from tests.command_line import Shell

_PASSAGES = 300
_ONE_MORE = "YEOUL_FUSION__CANDIDATES"
_HELD_MB = 100
_HOLDS = f"held = bytearray({_HELD_MB}_000_000); print('ready', flush=True); input()"

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="the closed loop needs wrk: apt-get install wrk")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice as many documents as passages are asked for, and one without a text."""
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    lines = [
        {"_id": f"문서/{n}", "title": f"{n}번 글", "text": f"전세 대출 {n}번을 갈아타는 방법입니다."}
        for n in range(600)
    ]
    file.write_bytes(b"\n".join(map(orjson.dumps, [{"_id": "none", "text": " "}, *lines])))
    return file


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path) -> Deployment:
    made = prepared(tmp_path_factory.mktemp("deployment"))
    made = replace(made, environment={**made.environment, **environment})
    (server,) = made.servers
    server.environment = {**server.environment, **environment}
    assert filled(made, corpus, _PASSAGES) in range(int(_PASSAGES * 0.99), int(_PASSAGES * 1.1))
    return made


def test_a_folder_that_is_filled_is_left_as_it_is_and_serves_for_nothing_else(
    deployment: Deployment, corpus: Path
) -> None:
    database = deployment.folder / "data" / "state.db"
    before = database.stat().st_mtime_ns
    filled(deployment, corpus, _PASSAGES)
    assert database.stat().st_mtime_ns == before
    with pytest.raises(NotFilled, match="--keep"):
        filled(deployment, corpus, _PASSAGES + 1)
    with pytest.raises(NotFilled, match="--keep"):
        filled(deployment, None, _PASSAGES)


def test_editions_of_the_samples_fill_a_folder_with_as_many_passages(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YEOUL_ENCODER__CACHE_DIR", environment["YEOUL_ENCODER__CACHE_DIR"])
    assert filled(prepared(tmp_path), None, 400) in range(396, 480)


def test_a_folder_whose_filling_broke_off_is_refused(tmp_path: Path, corpus: Path) -> None:
    broken = prepared(tmp_path)
    (broken.folder / "data").mkdir()
    with pytest.raises(NotFilled, match="delete it"):
        filled(broken, corpus, _PASSAGES)


@needs_wrk
def test_every_load_is_answered_and_every_figure_is_there(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_WARM_UP_SECONDS", "_PROBES", "_STARTS"):
        monkeypatch.setattr(search, name, 1)
    plan = Plan(connections=4, seconds=1, overload=2, against={_ONE_MORE: "400"}, rounds=1)
    figures = measured(deployment, passages=_PASSAGES, queries=queries([]), plan=plan)
    closed, repeated, steady, overload = figures.rows
    for row in (closed, repeated, steady):
        assert set(row.outcomes) == {"200"}, row
    for row in figures.rows:
        assert 0 < row.p50 <= row.p95 <= row.p99 <= row.worst
        assert row.rate > 0
        assert row.times > 0
        assert list(row.percentiles) == sorted(row.percentiles)
    assert repeated.times > closed.times
    assert steady.name == f"open loop, {closed.rate / 2:,.1f} a second"
    assert steady.outcomes["200"] == round(closed.rate / 2 * plan.seconds)
    assert overload.outcomes["200"] > 0
    for memory in figures.memory.values():
        assert _HELD_MB < memory.pss <= memory.rss
    assert list(figures.starts) == ["with a snapshot", "without a snapshot"]
    assert all(0 < seconds < math.inf for seconds in figures.starts.values())
    assert figures.overload is not None
    assert figures.overload.rate == pytest.approx(4 * closed.rate)
    assert figures.overload.during >= figures.overload.before > 0
    assert figures.comparison is not None
    assert figures.comparison.against == f"{_ONE_MORE}=400"
    assert 0 < figures.comparison.ratio < math.inf
    assert orjson.loads(orjson.dumps(asdict(figures)))["rows"][0]["p50"] == closed.p50
    assert [row.split(" | ")[0] for row in figures.table().splitlines()[2:6]] == [
        f"| {row.name}" for row in figures.rows
    ]
    assert (deployment.folder / "data" / "resident.safetensors").is_file()  # it was put back


def test_the_table_says_what_was_not_answered() -> None:
    row = Row(
        name="closed loop",
        rate=1234.56,
        p50=0.5,
        p95=12.34,
        p99=345.6,
        worst=math.nan,
        times=0.25,
        outcomes={"200": 90, "503": 2, "429": 1000},
        percentiles=(),
    )
    overload = Overload(
        seconds=60, rate=500, refused=0.75, without_retry_after=3, before=900, during=1100, after=950, recovered=None
    )
    figures = Figures(
        passages=100_000,
        queries=5000,
        rows=(row,),
        starts={"with a snapshot": 5.25},
        memory={},
        overload=overload,
        comparison=Comparison(against="A=1", without=(30.0, 10.0, 20.0), with_it=(10.0, 5.0, 20.0)),
    )
    lines = figures.table().splitlines()
    assert lines[0].startswith("| yeoul serve, 100,000 passages | answers a second | p50 |")
    assert lines[2] == "| closed loop | 1,234.6 | 0.50 ms | 12.3 ms | 346 ms |  | 0.25 times | 429: 1,000, 503: 2 |"
    assert lines[4:] == [
        "|  | 5,000 different queries |",
        "|---|---|",
        "| start to ready, with a snapshot | 5.2 s |",
        "| overload, 500 a second for 60 s: refused with 429 | 75.0% |",
        "| of these without Retry-After | 3 |",
        "| RSS before / at most / after | 900 / 1,100 / 950 MB |",
        "| until 90% of the rate before | not within 60 s |",
        "| answers a second as it is, by round | 30.0, 10.0, 20.0 |",
        "| with A=1 | 10.0, 5.0, 20.0 |",
        "| ratio of the medians | 2.00 |",
    ]


def test_queries_are_distinct_accepted_and_always_in_one_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        texts = ["월세 공제", "전세 대출", "  전세  대출", "?" * 501, "", f"{name}만"]
        lines = [orjson.dumps({"_id": str(n), "text": text}) for n, text in enumerate(texts)]
        (tmp_path / name / "queries.jsonl").write_bytes(b"\n".join(lines))
    found = queries([tmp_path / "a", tmp_path / "b"])
    assert sorted(found) == ["a만", "b만", "월세 공제", "전세 대출"]
    assert queries([tmp_path / "a", tmp_path / "b"]) == found
    assert len(set(queries([]))) == len(queries([])) > 100


def test_memory_is_that_of_a_process_and_of_what_it_started() -> None:
    before = memory_of(os.getpid())
    with watched(os.getpid()) as peak:
        child = subprocess.Popen([sys.executable, "-c", _HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        during = memory_of(os.getpid())
        assert rss_of(os.getpid()) > before.rss + _HELD_MB
        child.communicate(b"\n")
    assert during.rss > before.rss + _HELD_MB
    assert during.pss > before.pss + _HELD_MB
    assert peak.rss > 0
    assert math.isnan(rss_of(2**30))


@pytest.mark.parametrize(
    ("arguments", "code", "cure"),
    [
        (("--against", "batching"), 2, "NAME=VALUE"),
        (("--queries", "nowhere"), 1, "queries.jsonl"),
        (("--passages", "nowhere.jsonl"), 2, "nowhere.jsonl"),
    ],
)
@needs_wrk
def test_what_cannot_be_measured_is_told_before_anything_starts(
    tmp_path: Path, environment: dict[str, str], arguments: tuple[str, str], code: int, cure: str
) -> None:
    outcome = Shell(tmp_path, environment).run("bench", "search", *arguments)
    assert outcome.code == code
    assert cure in outcome.err
    assert "Traceback" not in outcome.err


def test_a_process_had_the_time_that_it_worked() -> None:
    before, begun = processor_seconds(os.getpid()), time.process_time()
    while time.process_time() < begun + 0.2:
        pass
    assert processor_seconds(os.getpid()) - before == pytest.approx(0.2, abs=0.1)
    assert math.isnan(processor_seconds(2**22 + 1))  # beyond the largest
