"""The short form of `yeoul bench freshness`: everything it measures happens, and nothing is wrong."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from indexers.benchmarks.deployment import deployed
from indexers.benchmarks.freshness import Figures, measured

_PASSAGES, _SECONDS = 400, 4.0


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> Figures:
    cache = pytestconfig.cache
    assert cache is not None
    monkeypatch.setenv("YEOUL_ENCODER__CACHE_DIR", str(cache.mkdir("kiwi-static")))
    with deployed(tmp_path) as deployment:

        def rebuild() -> None:
            command = [sys.executable, "-m", "yeoul", "rebuild"]
            subprocess.run(command, cwd=deployment.folder, env=dict(deployment.environment), check=True, timeout=120)

        return measured(deployment, passages=_PASSAGES, seconds=_SECONDS, rebuild=rebuild)


def test_pushes_corrections_and_deletes_are_searchable_and_no_answer_is_wrong_also_during_a_rebuild(
    short: Figures,
) -> None:
    assert short.wrong == ()
    assert short.passages >= _PASSAGES
    assert (short.servers, short.pushes, short.searches) == (1, 20 * _SECONDS, 20 * _SECONDS)
    for p50, p99 in (short.publish, short.delete, short.search):
        assert 0 < p50 <= p99 < math.inf
    assert short.rebuild is not None
    assert all(0 < figure < math.inf for figure in short.rebuild)
    told = re.findall(r"^\| ([a-z →]+)", short.table(), re.MULTILINE)
    assert [name.strip() for name in told[1:4]] == ["publish → searchable", "delete → gone", "search beside it"]
