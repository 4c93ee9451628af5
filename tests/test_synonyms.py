"""Synonyms: the file's format, its terms, and what they do to a query, its evidence and its answers."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from pipeline.documents import Article
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import InvalidSetting
from pipeline.index.engine import EngineQuery
from pipeline.index.fields import LexicalParameters
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.korean.synonyms import shipped, with_own
from pipeline.passages import ChunkingParameters, Passages, encode
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.searcher import FusionParameters, Searcher
from pipeline.retrieval.understanding import QueryReader

_ARTICLES = (
    (
        "layoff",
        "해고 뒤에 받는 실업급여",
        "회사에서 해고되면 고용센터에 실업급여를 신청합니다. 이직확인서가 있어야 합니다.",
    ),
    ("transfer", "이체 한도 올리기", "영상 통화로 본인을 확인하면 하루 이체 한도가 올라갑니다."),
    ("weather", "주말 날씨", "주말에는 전국이 맑고 낮 기온이 20도까지 오릅니다."),
)


@pytest.fixture(scope="module")
def engine(analyser: Analyser, encoder: KiwiStaticEncoder) -> ResidentEngine:
    articles = [Article.from_mapping({"id": i, "title": title, "body": body}) for i, title, body in _ARTICLES]
    made = Passages(analyser, encoder, ChunkingParameters()).of(list(enumerate(articles, start=1)))
    parts = [part for passages in made for part in passages]
    engine = ResidentEngine(encoder.dim, LexicalParameters())
    engine.add([part.passage for part in parts], encode(encoder, parts))
    return engine


@pytest.fixture(scope="module")
def searcher(analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine) -> Searcher:
    return Searcher(
        reader=QueryReader(analyser, encoder), encoder=encoder, engine=lambda: (engine, {}), fusion=FusionParameters()
    )


def _own(folder: Path, text: str | bytes) -> Path:
    path = folder / "synonyms.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_shipped_entry_has_synonyms_that_are_other_words() -> None:
    entries = shipped()
    assert len(entries) > 900
    for word, synonyms in entries.items():
        assert synonyms, word
        assert len(set(synonyms)) == len(synonyms) <= 4, word
        assert word not in synonyms
        assert not any(mark in part for part in (word, *synonyms) for mark in " ,()")


def test_hardly_an_entry_is_lost_in_analysis(analyser: Analyser) -> None:
    """An entry of a noun or verb that Kiwi knows as one gives its term the terms of its synonyms."""
    silent = [word for word in shipped() if not analyser.query_terms(word).synonyms]
    assert len(silent) < len(shipped()) / 20, silent


def test_a_verb_finds_its_nouns_in_any_ending(analyser: Analyser) -> None:
    for text in ("부치다", "돈을 부쳤어요", "돈 부치는 법"):
        found = analyser.query_terms(text)
        assert {"송금", "이체"} <= found.synonyms.keys(), text
        assert not found.synonyms.keys() & found.weights.keys()
        assert all(0 < weight <= 0.5 for weight in found.synonyms.values())
    assert analyser.query_terms("송금 이체 부치기").synonyms.keys().isdisjoint({"송금", "이체"})


def test_a_word_that_only_looks_like_an_entry_has_no_synonyms(analyser: Analyser) -> None:
    assert "의약품" in analyser.query_terms("감기에 듣는 약").synonyms
    assert "의약품" not in analyser.query_terms("약 10만 원").synonyms


def test_own_entries_come_before_the_shipped_ones(tmp_path: Path, analyser: Analyser) -> None:
    text = "\ufeff# 우리 말\r\n여울모아\t긴급 자금\r\n부치다\t전송\n\n월급\n"
    path = _own(tmp_path, unicodedata.normalize("NFD", text))  # as a Mac may write it
    entries = with_own(path)
    assert (entries["여울모아"], entries["부치다"], entries["월급"]) == (("긴급자금",), ("전송",), ())
    own = Analyser.open(synonyms=path)
    assert own.query_terms("돈 부치기").synonyms.keys() >= {"전송"}
    assert "이체" not in own.query_terms("돈 부치기").synonyms
    assert not own.query_terms("월급").synonyms
    assert own.fingerprint == analyser.fingerprint  # nothing has to be indexed again


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("부치다\t송금\n\t이체\n", "line 2"),
        ("부치다\t송금\t\t이체\n", "line 1"),
        ("부치다\t송금\n부치다\t이체\n", "line 2 has '부치다' again"),
        ("부치다\t송금".encode("cp949"), "UTF-8"),
    ],
)
def test_a_bad_line_is_told_by_number(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(InvalidSetting, match="synonyms") as caught:
        Analyser.open(synonyms=_own(tmp_path, content))
    assert told in str(caught.value)


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="readable UTF-8 file"):
        with_own(tmp_path / "none.tsv")


def test_everyday_words_find_the_formal_ones_and_say_so(searcher: Searcher) -> None:
    for text, article, matched in (("잘리면", "layoff", "해고"), ("돈 부치기", "transfer", "이체")):
        found = searcher.search(SearchRequest.checked(text, mode="lexical"))
        assert [hit.article_id for hit in found.hits] == [article]
        assert matched in found.hits[0].matched_terms
        assert f"<mark>{matched}" in found.hits[0].snippet


def test_synonyms_do_not_raise_what_a_query_could_attain(
    analyser: Analyser, encoder: KiwiStaticEncoder, engine: ResidentEngine
) -> None:
    query = QueryReader(analyser, encoder).terms("돈 부치기")
    assert query.synonyms
    assert query.asked.keys() == query.terms.keys() - query.synonyms
    plain = LexicalQuery(terms=query.asked, bigrams=query.bigrams)
    found, without = (engine.search(EngineQuery(vector=None, terms=terms, candidates=200)) for terms in (query, plain))
    assert found.lexical_attainable == without.lexical_attainable > 0
    assert found.lexical_best > without.lexical_best
