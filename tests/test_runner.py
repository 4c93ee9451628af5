"""Evaluation against the code that serves: what each mode is said to answer is what a search in that mode answers."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kiwipiepy import Token
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import Unavailable, UnreadableSource
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.corpus_index import System, index
from pipeline.evaluation.datasets import Corpus, Dataset
from pipeline.evaluation.runner import ALPHAS, LEGS, MODES, Evaluation, evaluate, halves, leg, run, sweep, table
from pipeline.index.engine import Candidates, best_first
from pipeline.index.fields import LexicalParameters
from pipeline.korean.morphemes import Analyser
from pipeline.passages import ChunkingParameters
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import FusionParameters, Searcher

CANDIDATES = 7  # a leg: fewer than the corpus has passages, so that where the legs stop is under test
SUBJECTS = ["적금", "예금", "전세대출", "신용카드", "연금저축", "실손보험", "자동차보험", "주식 계좌"]
SAYINGS = [
    "가입하는 방법을 알려 드려요.",
    "해지하면 수수료가 붙어요.",
    "금리가 올랐습니다.",
    "청구할 때 필요한 서류예요.",
]
LONG = " ".join(f"{subject} {saying}" for subject, saying in product(SUBJECTS, SAYINGS))
DOCUMENTS = {
    **{f"{s}-{n}": (SUBJECTS[s], f"{SUBJECTS[s]} {SAYINGS[n]}") for s, n in product(range(8), range(4))},
    **{f"twin-{n}": ("적금", "적금 금리가 올랐습니다.") for n in range(12)},
    "long": ("모두 모음", LONG),
    "empty": ("", ""),
}
QUERIES = {
    "q-card": "신용카드 해지 수수료",
    "q-twin": "적금 금리",
    "q-sense": "돈을 은행에 맡겨 두고 이자 받기",
    "q-latin": "zzz qqq",
    "q-marks": "?!",
    "q-blank": " \u200b ",
    "q-long": "보험 " * 300,
}
QRELS = {
    "q-card": {"3-1": 2, "long": 1},
    "q-twin": {f"twin-{n}": 1 for n in range(3, 12)},
    "q-sense": {"1-0": 1, "gone": 1},
    "q-latin": {"0-0": 1},
    "q-marks": {"0-1": 1},
    "q-blank": {"0-0": 1},
    "q-long": {"5-3": 1},
}


def _corpus(ids: Sequence[str]) -> Corpus:
    titles, texts = zip(*(DOCUMENTS[i] for i in ids), strict=True)
    return Corpus(name="corpus.jsonl", ids=tuple(ids), titles=titles, texts=texts)


def _dataset(*parts: Sequence[str]) -> Dataset:
    corpora = tuple(_corpus(part) for part in parts or [list(DOCUMENTS)])
    return Dataset(name="money", corpora=corpora, queries=QUERIES, qrels=QRELS)


@pytest.fixture(scope="module")
def system(analyser: Analyser, encoder: KiwiStaticEncoder) -> System:
    return System(
        analyser=analyser,
        encoder=encoder,
        chunking=ChunkingParameters(max_tokens=30),
        lexical=LexicalParameters(),
        fusion=FusionParameters(alpha=0.3, candidates=CANDIDATES),
    )


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eval")


@pytest.fixture(scope="module")
def evaluation(system: System, cache_dir: Path) -> Evaluation:
    return evaluate(_dataset(), system, plain=True, cache_dir=cache_dir)


class _Watched:
    """kiwi-static that counts the passages it encodes, and can be told to fail at queries."""

    def __init__(self, encoder: KiwiStaticEncoder, *, fails: bool = False) -> None:
        self._encoder = encoder
        self._fails = fails
        self.id, self.dim, self.max_tokens = encoder.id, encoder.dim, encoder.max_tokens
        self.encoded = 0

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        if self._fails:
            raise RuntimeError("out of memory")
        return self._encoder.encode_queries(texts)

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        self.encoded += len(texts)
        return self._encoder.encode_passages(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._encoder.count_tokens(texts)

    def encode_morphemes(self, texts: Sequence[Sequence[Token]]) -> FloatArray:
        if len(texts) > 1:  # queries come one at a time, passages all together
            self.encoded += len(texts)
        elif self._fails:
            raise RuntimeError("out of memory")
        return self._encoder.encode_morphemes(texts)


def _served(searcher: Searcher, text: str, mode: str) -> list[str]:
    """Every article that a client can page to."""
    ids: list[str] = []
    cursor = None
    while True:
        result = searcher.search(SearchRequest.checked(text, mode=mode, limit=100, cursor=cursor))
        ids += [hit.article_id for hit in result.hits]
        cursor = result.next_cursor
        if cursor is None:
            return ids


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_what_the_service_answers_in_it(
    evaluation: Evaluation, system: System, cache_dir: Path, mode: str
) -> None:
    engine = index(_dataset().corpora, system, ArrayCache(cache_dir))
    fusion = replace(system.fusion, method="rrf") if mode == "rrf" else system.fusion
    searcher = replace(system, fusion=fusion).searcher(engine)
    asked = [query for query in QUERIES if query not in evaluation.refused]
    assert list(evaluation.rankings[mode]) == asked
    for query in asked:
        served = _served(searcher, QUERIES[query], "hybrid" if mode == "rrf" else mode)
        assert evaluation.rankings[mode][query] == served
    assert any(len(evaluation.rankings[mode][query]) == CANDIDATES for query in asked) or mode in {"rrf", "hybrid"}


SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4)), min_size=1, max_size=60)


def _top(scores: NDArray[np.float64], ids: Sequence[str], k: int, *, positive: bool) -> list[int]:
    return [i for i in best_first(scores, ids) if scores[i] > 0 or not positive][:k]


@given(SCORES, st.integers(1, 20))
def test_the_union_of_both_legs_holds_each_leg_whole(scores: list[tuple[int, int]], k: int) -> None:
    """Over any scores with any ties: the leg read from the union is the leg asked alone."""
    dense = np.array([a / 4 for a, _ in scores])
    lexical = np.array([float(b) for _, b in scores])
    ids = [f"p{(7 * n + 3) % 61}" for n in range(len(scores))]
    proposed = {"dense": _top(dense, ids, k, positive=False), "lexical": _top(lexical, ids, k, positive=True)}
    union = sorted({*proposed["dense"], *proposed["lexical"]})
    both = Candidates(
        passage_ids=[ids[i] for i in union],
        article_ids=[ids[i] for i in union],
        dense=dense[union],
        lexical=lexical[union],
        dense_best=float(dense.max()),
        lexical_best=float(lexical.max()),
    )
    for name in LEGS:
        assert list(leg(both, name, limit=k).passage_ids) == [ids[i] for i in proposed[name]]


def test_a_corpus_in_parts_is_the_same_corpus(evaluation: Evaluation, system: System, tmp_path: Path) -> None:
    ids = list(DOCUMENTS)
    parts = evaluate(_dataset(ids[30:], ids[:30]), system, cache_dir=tmp_path)
    assert {mode: parts.rankings[mode] for mode in MODES} == {mode: evaluation.rankings[mode] for mode in MODES}
    assert (parts.documents, parts.passages) == (len(DOCUMENTS), evaluation.passages)
    assert evaluation.passages > len(DOCUMENTS)  # the long one was split


def test_a_second_run_encodes_nothing_and_finds_the_same(
    system: System, encoder: KiwiStaticEncoder, tmp_path: Path
) -> None:
    first, second = _Watched(encoder), _Watched(encoder)
    cold = evaluate(_dataset(), replace(system, encoder=first), plain=True, cache_dir=tmp_path)
    warm = evaluate(_dataset(), replace(system, encoder=second), plain=True, cache_dir=tmp_path)
    assert (first.encoded, second.encoded) == (cold.passages, 0)
    assert warm.rankings == cold.rankings
    assert warm.to_json() == cold.to_json()


def test_a_damaged_cache_is_made_anew(
    system: System, encoder: KiwiStaticEncoder, evaluation: Evaluation, tmp_path: Path
) -> None:
    evaluate(_dataset(), system, plain=True, cache_dir=tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 2  # passages, and the terms of the plain baseline
    for path in files:
        path.write_bytes(path.read_bytes()[:-100])
    watched = _Watched(encoder)
    again = evaluate(_dataset(), replace(system, encoder=watched), plain=True, cache_dir=tmp_path)
    assert watched.encoded == again.passages
    assert again.rankings == evaluation.rankings


def test_other_chunking_has_a_cache_of_its_own(system: System, encoder: KiwiStaticEncoder, tmp_path: Path) -> None:
    evaluate(_dataset(), system, cache_dir=tmp_path)
    watched = _Watched(encoder)
    other = replace(system, encoder=watched, chunking=ChunkingParameters(max_tokens=60))
    assert evaluate(_dataset(), other, cache_dir=tmp_path).passages == watched.encoded > 0


def test_queries_that_the_service_refuses_count_as_answered_with_nothing(evaluation: Evaluation) -> None:
    assert evaluation.refused == ("q-blank", "q-long")
    for values in evaluation.per_query["hybrid"].values():
        assert list(values) == list(QUERIES)
        assert values["q-blank"] == values["q-long"] == 0
    assert "2 queries are empty or too long" in table(evaluation)


def test_a_leg_that_fails_stops_the_evaluation(system: System, encoder: KiwiStaticEncoder, cache_dir: Path) -> None:
    broken = replace(system, encoder=_Watched(encoder, fails=True))
    with pytest.raises(Unavailable, match="the dense leg failed at the query '신용카드 해지 수수료': out of memory"):
        evaluate(_dataset(), broken, cache_dir=cache_dir)


def test_the_sweep_holds_the_weight_in_force_and_both_ends(evaluation: Evaluation) -> None:
    queries = list(QUERIES)
    found = sweep(evaluation, queries, [*ALPHAS, 0.3])
    assert found[0.3] == pytest.approx(evaluation.modes["hybrid"]["ndcg@10"])
    assert len(ALPHAS) == 21
    assert (ALPHAS[0], ALPHAS[7], ALPHAS[-1]) == (0, 0.35, 1)
    tune, gate = halves(queries)
    assert (tune, gate) == (queries[::2], queries[1::2])
    for alpha in ALPHAS:
        parts = [sweep(evaluation, half, [alpha])[alpha] * len(half) for half in (tune, gate)]
        assert sum(parts) / len(queries) == pytest.approx(found[alpha])


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_sweep_adapts_as_the_service_does(system: System, cache_dir: Path, adaptive: bool) -> None:
    fusion = replace(system.fusion, alpha=0.0, adaptive=adaptive)
    found = evaluate(_dataset(), replace(system, fusion=fusion), cache_dir=cache_dir)
    assert sweep(found, list(QUERIES), [0.0], adaptive=adaptive)[0.0] == pytest.approx(found.modes["hybrid"]["ndcg@10"])
    other = sweep(found, ["q-sense"], [0.0], adaptive=not adaptive)[0.0]
    assert other != pytest.approx(found.per_query["hybrid"]["ndcg@10"]["q-sense"])


def test_the_comparison_is_hybrid_against_the_better_leg(evaluation: Evaluation) -> None:
    means = {mode: evaluation.modes[mode]["ndcg@10"] for mode in MODES}
    assert evaluation.best_leg == max(LEGS, key=lambda name: means[name])
    assert evaluation.comparison.difference == pytest.approx(means["hybrid"] - means[evaluation.best_leg])
    assert evaluation.comparison.queries == len(QUERIES)


def _folder(path: Path) -> Path:
    (path / "qrels").mkdir(parents=True)
    corpus = [{"_id": i, "title": title, "text": text} for i, (title, text) in DOCUMENTS.items() if i != "long"]
    (path / "corpus.jsonl").write_bytes(b"\n".join(map(orjson.dumps, corpus)))
    queries = [{"_id": i, "text": text} for i, text in QUERIES.items()]
    (path / "queries.jsonl").write_bytes(b"\n".join(map(orjson.dumps, queries)))
    rows = [f"{query}\t{document}\t{grade}" for query, grades in QRELS.items() for document, grade in grades.items()]
    (path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]), encoding="utf-8")
    return path


def test_a_folder_with_its_pool_gives_the_object_of_the_contract(
    system: System, cache_dir: Path, tmp_path: Path
) -> None:
    pool = tmp_path / "pool.jsonl.gz"
    pool.write_bytes(gzip.compress(orjson.dumps({"_id": "long", "title": "모두 모음", "text": LONG, "source": "x"})))
    found = run(
        _folder(tmp_path / "money"),
        analyser=system.analyser,
        encoder=system.encoder,
        chunking=system.chunking,
        lexical=system.lexical,
        fusion=system.fusion,
        pool=[pool],
        queries=3,
        plain=True,
        swept=True,
        cache_dir=cache_dir,
    )
    answer = orjson.loads(orjson.dumps(found.to_json()))
    assert (answer["dataset"], answer["queries"], answer["documents"]) == ("money", 3, len(DOCUMENTS))
    assert answer["passages"] == found.passages
    assert answer["manifest"]["encoder"] == system.encoder.id
    assert answer["settings"]["fusion"]["candidates"] == CANDIDATES
    assert list(answer["modes"]) == [*MODES, "plain"]
    for values in answer["modes"].values():
        assert set(values) == {"ndcg@10", "recall@1", "recall@10", "recall@100", "mrr@10"}
        assert all(0 <= value <= 1 for value in values.values())
    assert {"first", "second", "difference", "low", "high", "bound", "p_value"} <= set(answer["comparison"])
    assert {half: list(values) for half, values in answer["sweeps"].items()} == {
        half: [str(alpha) for alpha in ALPHAS] for half in ("tune", "gate")
    }
    assert answer["notes"] == ["judgments of documents that are not in the corpus: 1, never found"]
    shown = table(found)
    for mode, values in found.modes.items():
        assert f"| {mode} | " + " | ".join(f"{value:.4f}" for value in values.values()) + " |" in shown
    assert answer["notes"][0] in shown
    with pytest.raises(UnreadableSource):
        run(
            tmp_path,
            analyser=system.analyser,
            encoder=system.encoder,
            chunking=system.chunking,
            lexical=system.lexical,
            fusion=system.fusion,
        )
