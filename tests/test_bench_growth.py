"""`yeoul bench legs`, `growth` and `index` in short, as a person runs them, and what their figures are made of."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexers.benchmarks.growth import dense_alone, slope
from indexers.benchmarks.passages import SHIPPED, batches, documents, passages_told, shipped
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System
from pipeline.index.fields import LexicalParameters
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters
from pipeline.retrieval.searcher import FusionParameters
from tests.command_line import Shell

_PNG = b"\x89PNG"
_OUT = ("--json", "figures.json", "--plot", "picture.png")


@pytest.fixture
def shell(tmp_path: Path, environment: dict[str, str]) -> Shell:
    return Shell(tmp_path, {**environment, "XDG_CACHE_HOME": str(tmp_path / "cache")})


@pytest.fixture
def system(analyser: Analyser, encoder: KiwiStaticEncoder) -> System:
    return System(
        analyser=analyser,
        encoder=encoder,
        chunking=ChunkingParameters(),
        lexical=LexicalParameters(),
        fusion=FusionParameters(),
    )


def test_legs_tells_every_stage_in_every_mode(shell: Shell) -> None:
    told = shell.run("bench", "legs", "--count", "150", "--searches", "5", *_OUT).done().out
    figures = orjson.loads((shell.folder / "figures.json").read_bytes())
    assert (figures["passages"], figures["searches"]) == (150, 5)
    assert list(figures["modes"]) == ["hybrid", "dense", "lexical"]
    for stages in (figures["parts"], *figures["modes"].values()):
        assert all(0 < p50 <= p95 < math.inf for p50, p95 in stages.values())
    for stages in figures["modes"].values():
        assert all(p50 <= stages["whole"][0] for p50, _ in stages.values())
    for name in (*figures["parts"], *figures["modes"]["hybrid"]):
        assert f"| {name} |" in told
    assert (shell.folder / "picture.png").read_bytes().startswith(_PNG)
    assert list((shell.folder / "cache").rglob("*.npz"))  # the next run is fast


def test_growth_looks_at_each_size_and_at_random_vectors(shell: Shell) -> None:
    sizes = (30, 200, 120)
    options = [option for size in sizes for option in ("--size", str(size))]
    told = shell.run("bench", "growth", *options, "--searches", "5", "--vectors", "500", *_OUT).done().out
    figures = orjson.loads((shell.folder / "figures.json").read_bytes())
    assert [size["passages"] for size in figures["sizes"]] == sorted(sizes)
    assert [size["added"] for size in figures["sizes"]] == [30, 90, 80]
    assert figures["dense"]["passages"] == 500
    for size in (*figures["sizes"], figures["dense"]):
        assert 0 < size["p50"] <= size["p99"]
        assert 0 < size["engine"] < size["process"]
    assert f"Memory of 1,000 passages more: {figures['engine_slope']:.2f} MB" in told
    assert (shell.folder / "picture.png").read_bytes().startswith(_PNG)


def test_growth_ends_where_the_passages_do(shell: Shell) -> None:
    lines = [{"_id": str(n), "text": f"전세 대출 {n}번"} for n in range(40)]
    (shell.folder / "few.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    options = ("--passages", "few.jsonl", "--size", "30", "--size", "100", "--size", "200", "--vectors", "0")
    shell.run("bench", "growth", *options, "--searches", "2", "--json", "figures.json").done()
    figures = orjson.loads((shell.folder / "figures.json").read_bytes())
    assert [size["passages"] for size in figures["sizes"]] == [30, 40]
    assert figures["dense"] is None


def test_index_is_measured_beside_kiwi_alone(shell: Shell) -> None:
    (shell.folder / "few.jsonl").write_bytes(b"\n".join(SHIPPED.read_bytes().splitlines()[:20]))
    told = shell.run("bench", "index", "few.jsonl", *_OUT).done().out
    figures = orjson.loads((shell.folder / "figures.json").read_bytes())
    assert figures["articles"] == 20
    assert figures["passages"] >= 20
    assert 0 < figures["kiwi"] < figures["first"]
    assert figures["first_memory"] > figures["again_memory"] > 0
    assert f"| yeoul index | {figures['first']:.1f} | " in told
    assert "20 articles indexed as" in figures["told"][0]
    assert "20 unchanged" in figures["told"][1]
    assert (shell.folder / "picture.png").read_bytes().startswith(_PNG)


def test_passages_come_as_many_as_asked_for_and_from_the_cache_the_same(system: System, tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    first, again = (list(batches(documents(None), system, cache, 70)) for _ in range(2))
    passages, repeated = ([p for made, _ in found for p in made] for found in (first, again))
    assert len(passages) == 70
    assert repeated == passages
    vectors, kept = (np.concatenate([v for _, v in found]) for found in (first, again))
    assert np.array_equal(vectors, kept)
    assert list(tmp_path.glob("*.npz"))


def test_editions_of_the_samples_never_end_and_have_an_id_and_a_title_each() -> None:
    many = list(islice(documents(None), 3 * len(shipped())))
    assert len({i for i, _, _ in many}) == len({title for _, title, _ in many}) == len(many)


def test_random_vectors_are_searched_whatever_the_chunks() -> None:
    size = dense_alone(8, 20_500)
    assert (size.passages, size.added) == (20_500, 20_500)
    assert size.engine * 1e6 > 20_500 * 8 * 4


@given(st.floats(-5, 5), st.floats(-100, 100), st.lists(st.integers(1, 200_000), min_size=2, max_size=6, unique=True))
def test_the_slope_of_a_line_is_its_own(steepness: float, start: float, sizes: list[int]) -> None:
    assert slope([(x, start + steepness * x / 1000) for x in sizes]) == pytest.approx(steepness, abs=0.1)


def test_of_one_size_there_is_no_slope() -> None:
    assert math.isnan(slope([(10, 1)]))


def test_passages_are_read_from_what_index_prints() -> None:
    told = "1,200 articles read: ...\n1,200 articles indexed as 3,456 passages, 3,000 of them encoded"
    assert passages_told(told) == 3456
    assert passages_told("128 articles read: 0 new or changed, 128 unchanged, 0 lines refused") == 0
