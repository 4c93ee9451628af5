"""Plain Kiwi BM25 against its formula, written out over Kiwi's own morphemes."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from pipeline.evaluation.baseline import plain_rankings
from pipeline.evaluation.cache import ArrayCache
from pipeline.evaluation.datasets import Corpus, Dataset
from pipeline.korean.morphemes import Analyser

TEXTS = {
    "a": ("전세자금대출", "무주택 세대주가 신청할 수 있어요. 대출 금리는 은행마다 달라요."),
    "b": ("적금", "매달 돈을 모으는 적금은 대출보다 금리가 낮아요."),
    "c": ("ETF 투자", "ETF는 주식처럼 사고팔 수 있는 펀드입니다."),
    "d": ("", "적금과 예금의 금리 차이"),
    "e": ("", ""),
}
QUERIES = {"q1": "대출 금리", "q2": "etf 주식 투자", "q3": "적금 적금 금리", "q4": "우주 정거장"}
TAGS = {"NNG", "NNP", "NNB", "NR", "SL", "SN", "SH", "XR", "VV", "VA", "MAG"}


def _words(analyser: Analyser, text: str) -> list[str]:
    tokens = next(iter(analyser.analyse([text])))
    return [token.form.lower() for token in tokens if token.tag.split("-")[0] in TAGS]


def _scores(analyser: Analyser, query: str) -> dict[str, float]:
    documents = {i: Counter(_words(analyser, f"{title}\n{text}")) for i, (title, text) in TEXTS.items()}
    average = sum(words.total() for words in documents.values()) / len(documents)
    scores = {}
    for i, words in documents.items():
        norm = 1.2 * (0.25 + 0.75 * words.total() / average)
        scores[i] = 0.0
        for term in _words(analyser, query):
            df = sum(term in other for other in documents.values())
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            scores[i] += idf * words[term] / (words[term] + norm)
    return scores


@pytest.fixture
def dataset() -> Dataset:
    corpora = tuple(
        Corpus(
            name=name, ids=tuple(name), titles=tuple(TEXTS[i][0] for i in name), texts=tuple(TEXTS[i][1] for i in name)
        )
        for name in ("ab", "cde")
    )
    return Dataset(name="set", corpora=corpora, queries=QUERIES, qrels={q: {"a": 1} for q in QUERIES})


def test_plain_bm25_is_its_formula_over_whole_documents(analyser: Analyser, dataset: Dataset, tmp_path: Path) -> None:
    found = plain_rankings(dataset, analyser, ArrayCache(tmp_path))
    for query, text in QUERIES.items():
        scores = _scores(analyser, text)
        expected = sorted((i for i in TEXTS if scores[i] > 0), key=lambda i: (-scores[i], i))
        assert found[query] == expected
    assert found["q4"] == []
    assert found["q2"][0] == "c"


def test_terms_from_the_cache_rank_as_those_made_now(analyser: Analyser, dataset: Dataset, tmp_path: Path) -> None:
    cold = plain_rankings(dataset, analyser, ArrayCache(tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == len(dataset.corpora)
    assert plain_rankings(dataset, analyser, ArrayCache(tmp_path)) == cold
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
