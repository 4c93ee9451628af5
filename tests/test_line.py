"""The line before a SentenceTransformer: who comes together is encoded together, who is urgent first, too many are refused."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipeline.encoding.batcher import Batch
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.line import Line, LinedEncoder, Urgency, for_searches
from pipeline.encoding.sentence import Prepared, SentenceEncoder
from pipeline.errors import Overloaded
from tests.faults import until
from tests.sentence_models import TEXTS, save_tiny_bert

_PATIENCE = 60.0  # seconds; only a test that fails waits for so long


@dataclass
class Gate:
    """Holds the batches of an encoder up, and keeps the texts of each."""

    encoder: SentenceEncoder
    open: threading.Event = field(default_factory=threading.Event)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.encoder.rows

        def held(batch: Sequence[Prepared]) -> FloatArray:
            self.batches.append([one.text for one in batch])
            self.begun.release()
            assert self.open.wait(_PATIENCE)
            return rows(batch)

        self.encoder.rows = held  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_bert(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def encoder(tiny: str, monkeypatch: pytest.MonkeyPatch) -> SentenceEncoder:
    monkeypatch.setattr(SentenceEncoder, "workers", 1)  # one batch after the other
    return SentenceEncoder.open(tiny, device="cpu", batch_tokens=1000)


@pytest.fixture
def held(encoder: SentenceEncoder) -> Iterator[tuple[LinedEncoder, Gate]]:
    """A line whose first batch is under way and stays so until the gate is opened."""
    gate = Gate(encoder)
    lined = LinedEncoder(Line(encoder, waiting=3))
    (first,) = embedded(lined, "첫째")
    assert gate.begun.acquire(timeout=_PATIENCE)
    yield lined, gate
    gate.open.set()
    assert first.result(_PATIENCE).shape == (lined.dim,)


def embedded(lined: LinedEncoder, *texts: str) -> list[Future[FloatArray]]:
    return lined.embedded([one for one in lined.prepared(texts, "document") if one is not None])


def test_vectors_are_the_encoders_own_in_whatever_company(tiny: str) -> None:
    alone = SentenceEncoder.open(tiny, device="cpu", batch_size=1)
    lined = LinedEncoder(Line(SentenceEncoder.open(tiny, device="cpu"), waiting=10))
    assert (lined.id, lined.dim, lined.max_tokens, lined.prompts) == (
        alone.id, alone.dim, alone.max_tokens, alone.prompts,
    )  # fmt: skip
    with ThreadPoolExecutor(8) as pool:
        texts = [[*TEXTS[n % 6 :], " ", *TEXTS[: n % 3]] for n in range(40)]
        queries = list(pool.map(lined.urgently().encode_queries, texts))
        passages = list(pool.map(lined.encode_passages, texts))
    for given, query, passage in zip(texts, queries, passages, strict=True):
        np.testing.assert_allclose(query, alone.encode_queries(given), atol=1e-5)
        np.testing.assert_allclose(passage, alone.encode_passages(given), atol=1e-5)
    assert lined.encode_queries([]).shape == (0, lined.dim)


def test_searches_go_first_then_embeddings_then_what_is_indexed(held: tuple[LinedEncoder, Gate]) -> None:
    lined, gate = held
    seen: list[Batch] = []
    lined.observe = seen.append
    searches = for_searches(lined)
    with ThreadPoolExecutor(4) as pool:
        given = [pool.submit(lined.encode_passages, ["글 하나", "글 둘"])]
        until(lambda: lined._line.batcher.waiting == 2, _PATIENCE, "the passages should wait")
        given += [pool.submit(lambda: embedded(lined, "벡터")[0].result(_PATIENCE))]
        given += [pool.submit(searches.encode_queries, ["질문"]), pool.submit(searches.encode_passages, ["문장"])]
        until(lambda: lined._line.batcher.waiting == 5, _PATIENCE, "all should wait")
        gate.open.set()
        assert [len(one.result(_PATIENCE)) for one in given] == [2, lined.dim, 1, 1]
    assert [sorted(batch) for batch in gate.batches[1:]] == [["문장", "질문"], ["벡터"], ["글 둘", "글 하나"]]
    until(lambda: len(seen) == 4, _PATIENCE, "every batch is told of")
    assert [batch.priority for batch in seen[1:]] == list(Urgency)


def test_one_and_many_are_refused_alike_and_searches_and_the_indexer_never(held: tuple[LinedEncoder, Gate]) -> None:
    lined, gate = held
    with ThreadPoolExecutor(2) as pool:
        indexed = pool.submit(lined.encode_passages, ["글"] * 5)
        until(lambda: lined._line.batcher.waiting == 5, _PATIENCE, "the passages should wait")
        taken = [*embedded(lined, "하나"), *embedded(lined, *TEXTS)]  # the line is not full before the many
        for refused in (["둘"], TEXTS):
            with pytest.raises(Overloaded, match="an embedding"):
                embedded(lined, *refused)
        searched = pool.submit(for_searches(lined).encode_queries, ["질문"])
        until(lambda: lined._line.batcher.waiting == 7 + len(TEXTS), _PATIENCE, "the search should wait")
        for future in taken:
            assert future.cancel()
        again = embedded(lined, "셋")  # whom nobody waits for any more takes no place
        gate.open.set()
        assert again[0].result(_PATIENCE).any()
        assert indexed.result(_PATIENCE).all(axis=1).all()
        assert searched.result(_PATIENCE).any()
    assert not {"하나", *TEXTS} & {text for batch in gate.batches for text in batch}


def test_a_line_ends_with_the_last_who_holds_it(tiny: str) -> None:
    before = set(threading.enumerate())
    lined = LinedEncoder(Line(SentenceEncoder.open(tiny, device="cpu"), waiting=10))
    searches = lined.urgently()
    lined.encode_passages(TEXTS)
    del lined
    gc.collect()
    assert searches.encode_queries(TEXTS).any()
    working = set(threading.enumerate()) - before
    assert working
    del searches
    gc.collect()
    assert not any(thread.is_alive() for thread in working)
