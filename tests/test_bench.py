"""The short form of `yeoul bench freshness`: everything it measures happens, and nothing is wrong."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from indexers.benchmarks.deployment import deployed
from indexers.benchmarks.freshness import Figures, measured
from tests.faults import until

_PASSAGES, _SECONDS = 400, 6.0
_RATE = 8.0  # pushes and searches a second: a machine with other work is not to be measured, and not to be overrun
_LONGEST_SECONDS = 900.0  # for a nice process beside everything else


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> Figures:
    cache = pytestconfig.cache
    assert cache is not None
    monkeypatch.setenv("YEOUL_ENCODER__CACHE_DIR", str(cache.mkdir("kiwi-static")))
    with deployed(tmp_path) as deployment:

        def rebuild() -> None:
            command = [sys.executable, "-m", "yeoul", "rebuild"]
            with subprocess.Popen(command, cwd=deployment.folder, env=dict(deployment.environment)) as process:
                until(lambda: _niceness(process.pid) >= _niceness(0) + 15, 30, "a rebuild does not let others go first")
                assert process.wait(_LONGEST_SECONDS) == 0

        return measured(
            deployment,
            passages=_PASSAGES,
            seconds=_SECONDS,
            pushes_a_second=_RATE,
            searches_a_second=_RATE,
            rebuild=rebuild,
        )


def _niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


def test_pushes_corrections_and_deletes_are_searchable_and_no_answer_is_wrong_also_during_a_rebuild(
    short: Figures,
) -> None:
    assert short.wrong == ()
    assert short.passages >= _PASSAGES
    assert (short.servers, short.pushes, short.searches) == (1, _RATE * _SECONDS, _RATE * _SECONDS)
    for p50, p99 in (short.publish, short.delete, short.search):
        assert 0 < p50 <= p99 < math.inf
    assert short.rebuild is not None
    assert all(0 < figure < math.inf for figure in short.rebuild)
    told = re.findall(r"^\| ([a-z →]+)", short.table(), re.MULTILINE)
    assert [name.strip() for name in told[1:4]] == ["publish → searchable", "delete → gone", "search beside it"]
