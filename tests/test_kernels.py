"""The compiled loops against numpy, over any values, ties and masks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.index import compiled, dense_kernels, int8_kernels, lexical_kernels, resident
from pipeline.index.bm25 import Variant
from pipeline.index.engine import LEXICAL_DECIMALS
from pipeline.index.fields import LexicalFields, LexicalParameters, PreparedQueries
from pipeline.index.host_vectors import HostVectors
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.resident import ResidentEngine, compile_all
from tests.small_corpus import DIM, passages, question, vectors

_FACTOR = 1e6  # of what is compared: six decimals
_SEEDS = st.integers(0, 2**32 - 1)


def _unit(random: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    """Unit rows of which some are equal, some nearly, and some zero."""
    rows = random.normal(size=(n, dim)).astype(np.float32)
    rows[random.integers(0, n, n // 4)] = rows[0]
    rows[random.integers(0, n, n // 8)] = rows[0] + np.float32(1e-3)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    rows[random.integers(0, n, n // 16)] = 0
    return rows


@given(seed=_SEEDS, n=st.integers(1, 300), k=st.integers(1, 40), few=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_threshold_is_the_kth_largest_and_the_rows_from_there_are_all(seed: int, n: int, k: int, few: bool) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(-3, 4, n) / 4 if few else random.normal(size=n)
    allowed = random.random(n) < 0.7
    positive = np.sort(values[allowed & (values > 0)])[::-1]
    least = compiled.threshold(values, allowed, k, 0.0)
    assert least == (positive[k - 1] if len(positive) >= k else 0.0)
    assert compiled.at_least(values, allowed, least).tolist() == np.flatnonzero(allowed & (values >= least)).tolist()


@given(seed=_SEEDS, n=st.integers(1, 400), k=st.integers(1, 50), queries=st.integers(1, 5), whole=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_nearest_are_those_of_a_product_in_double_precision(
    seed: int, n: int, k: int, queries: int, whole: bool
) -> None:
    """By way of int8 (where this processor is fast at it) and by way of float32, with any mask and any number of ties."""
    random = np.random.default_rng(seed)
    rows, asked = _unit(random, n, 32), _unit(random, queries, 32)
    masks = np.stack([random.random(n) < 0.6, np.ones(n, dtype=bool)])
    mask_of = random.integers(0, 2, queries)
    matrix = HostVectors(32, int8_from=0 if whole else 1_000_000)
    matrix.reserve(n)
    matrix.put(np.arange(n), rows)
    found = matrix.nearest(asked, masks, mask_of, k, _FACTOR)
    for query in range(queries):
        exact = np.round(rows.astype(np.float64) @ asked[query].astype(np.float64), 6)
        allowed = np.flatnonzero(masks[mask_of[query]])
        least = np.sort(exact[allowed])[-k] if len(allowed) > k else -np.inf
        wanted = allowed[exact[allowed] >= least]
        start, end = found.ends[query], found.ends[query + 1]
        assert found.rows[start:end].tolist() == wanted.tolist()
        np.testing.assert_array_equal(found.products[start:end], exact[wanted])


@pytest.mark.skipif(not int8_kernels.available(), reason="a processor with AVX-512 VNNI is needed")
@pytest.mark.parametrize("dim", [1, 4, 7, 256])
def test_products_of_8_bit_integers_are_exact(dim: int) -> None:
    """The largest numbers of both signs among them, any number of queries at once."""
    random = np.random.default_rng(dim)
    rows = random.integers(-int8_kernels.LEVELS, int8_kernels.LEVELS + 1, (128, dim)).astype(np.int8)
    rows[:2] = [[int8_kernels.LEVELS], [-int8_kernels.LEVELS]]
    blocks = [int8_kernels.empty_block(128, dim) for _ in range(2)]
    order = random.permutation(128)
    int8_kernels.put(blocks[1], order[:50], rows[order[:50]])
    int8_kernels.put(blocks[1], order[50:], rows[order[50:]])
    addresses = np.array([block.__array_interface__["data"][0] for block in blocks])
    for queries in (1, 3, 4, 9):
        asked = rows[random.integers(0, 128, queries)]
        out = np.empty((2, queries, 128), dtype=np.int32)
        int8_kernels.multiply(asked, addresses, out)
        np.testing.assert_array_equal(out[1], asked.astype(np.int32) @ rows.T.astype(np.int32))
        assert not out[0].any()


def test_what_8_bits_lose_is_known() -> None:
    rows = _unit(np.random.default_rng(1), 200, 33)
    coarse, scales, errors = int8_kernels.coarsened(rows)
    lost = rows.astype(np.float64) - coarse * scales[:, None].astype(np.float64)
    np.testing.assert_allclose(errors, np.linalg.norm(lost, axis=1), atol=1e-6)
    assert errors.max() < 0.02
    assert not coarse[~rows.any(axis=1)].any()


def test_room_for_more_moves_nothing_and_rows_are_read_back() -> None:
    random = np.random.default_rng(3)
    matrix, rows = HostVectors(8, int8_from=5_000), _unit(random, 9_000, 8)
    for start in range(0, 9_000, 1_500):  # into the third block, past the change to int8
        matrix.reserve(start + 1_500)
        matrix.put(np.arange(start, start + 1_500), rows[start : start + 1_500])
    np.testing.assert_array_equal(matrix.first(9_000), rows)
    at = random.permutation(9_000)[:50]
    np.testing.assert_array_equal(matrix.at(at), rows[at])
    near = matrix.nearest(rows[:3], np.ones((1, 9_000), dtype=bool), np.zeros(3, dtype=np.intp), 10, _FACTOR)
    for query in range(3):
        assert query in near.rows[near.ends[query] : near.ends[query + 1]].tolist() or not rows[query].any()


@pytest.mark.parametrize("alone_by_two", [False, True])
def test_a_batch_gives_what_each_query_gives_by_itself(monkeypatch: pytest.MonkeyPatch, *, alone_by_two: bool) -> None:
    """Whatever each asks for: modes, filters, numbers of candidates; and by several threads, a query alone too."""
    monkeypatch.setattr(resident, "_PROCESSORS", 2)
    monkeypatch.setattr(resident, "_ROWS_FOR_A_THREAD", 0 if alone_by_two else 1_000)
    random = np.random.default_rng(7)
    words = ["대출", "금리", "전세", "월세", "세금", "이체"]
    engine = ResidentEngine(DIM, LexicalParameters())
    for number in range(40):
        some = passages(f"글{number}", 1, [random.choice(words, 5).tolist() for _ in range(5)])
        engine.add(some, vectors(some))
    modes = ["hybrid", "dense", "lexical"]
    queries = [
        question(random.choice(words, 2).tolist(), mode=modes[number % 3], candidates=5 + 10 * (number % 2))
        for number in range(48)
    ]
    together = engine.search_many(queries)
    for query, found in zip(queries, together, strict=True):
        alone = engine.search(query)
        assert list(found.passage_ids) == list(alone.passage_ids)
        np.testing.assert_array_equal(found.dense, alone.dense)
        np.testing.assert_array_equal(found.lexical, alone.lexical)
        assert (found.dense_best, found.lexical_best) == (alone.dense_best, alone.lexical_best)
        assert (found.lexical_attainable, found.lexical_rarest) == (alone.lexical_attainable, alone.lexical_rarest)


def test_a_search_that_fails_waits_for_its_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What that one reads must not change under it: the next change may free it."""
    monkeypatch.setattr(resident, "_PROCESSORS", 2)
    monkeypatch.setattr(resident, "_ROWS_FOR_A_THREAD", 0)
    some = passages("글", 1, [["대출", "금리"], ["전세"]])
    engine = ResidentEngine(DIM, LexicalParameters())
    engine.add(some, vectors(some))
    asked, weigh = question(["대출"]), engine._lexical.prepared
    begun, failed, done = threading.Event(), threading.Event(), []

    def slow(queries: Sequence[LexicalQuery | None]) -> PreparedQueries:
        begun.set()
        assert failed.wait(5)
        time.sleep(0.05)
        done.append(weigh(queries))
        return done[0]

    def failing(*_: object) -> None:
        assert begun.wait(5)
        failed.set()
        raise MemoryError

    monkeypatch.setattr(engine._lexical, "prepared", slow)
    monkeypatch.setattr(engine, "_nearest", failing)
    with pytest.raises(MemoryError):
        engine.search(asked)
    assert done


def test_the_first_search_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_all()
    outer = (
        dense_kernels.nearest,
        dense_kernels.exact_products,
        lexical_kernels.candidates,
        lexical_kernels.write_scores,
        lexical_kernels.holds,
        int8_kernels.coarsened,
        int8_kernels._multiply,
    )
    before = [len(kernel.signatures) for kernel in outer]  # type: ignore[attr-defined]
    some = passages("글", 1, [["대출", "금리"], ["전세"]])
    monkeypatch.setattr(resident, "_PROCESSORS", 2)
    for int8_from in (0, 1_000_000):
        monkeypatch.setattr(resident, "_ROWS_FOR_A_THREAD", int8_from)
        engine = ResidentEngine(DIM, LexicalParameters())
        engine._vectors = HostVectors(DIM, int8_from=int8_from)
        engine.add(some, vectors(some))
        assert len(engine.search(question(["대출", "전세"])).passage_ids) == 2
    assert [len(kernel.signatures) for kernel in outer] == before  # type: ignore[attr-defined]


@pytest.mark.parametrize("variant", ["lucene", "okapi", "l", "plus"])
def test_the_best_of_many_rows_have_their_exact_scores(
    variant: Variant,
) -> None:
    """Words as in language: few stand in most passages, most in few."""
    random = np.random.default_rng(13)
    vocabulary = np.array([f"낱말{n}" for n in range(400)])
    chances = 1 / np.arange(1, 401)
    words = random.choice(vocabulary, (3_000, 30), p=chances / chances.sum())
    engine, fields = (
        ResidentEngine(DIM, LexicalParameters(variant=variant)),
        LexicalFields(LexicalParameters(variant=variant)),
    )
    some = [p for n in range(3_000) for p in passages(f"글{n}", 1, [words[n].tolist()])]
    engine.add(some, vectors(some))
    fields.add(range(len(some)), some)
    place = {p.id: n for n, p in enumerate(some)}
    for number in range(30):
        query = question(
            random.choice(vocabulary, 8).tolist(), mode="lexical" if number % 2 else "hybrid", candidates=20
        )
        assert query.terms is not None
        exact = fields.scores(query.terms)[: len(some)].round(LEXICAL_DECIMALS)
        found = engine.search(query)
        at = [place[i] for i in found.passage_ids]
        np.testing.assert_allclose(found.lexical, exact[at], rtol=0, atol=2e-9)
        assert found.lexical_best == pytest.approx(exact.max(), abs=2e-9)
        best = np.sort(exact)[-20]
        assert set(np.flatnonzero(exact > best + 2e-9).tolist()) <= set(at)
