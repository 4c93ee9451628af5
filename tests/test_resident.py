"""The resident engine is exact: whatever came and went, it answers as numpy and a fresh BM25 index over what is there."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.documents import Passage
from pipeline.index.bm25 import Variant
from pipeline.index.fields import LexicalParameters
from pipeline.index.filters import Filter
from pipeline.index.lexical_query import LexicalQuery
from pipeline.index.resident import ResidentEngine
from tests import small_corpus as corpus
from tests.small_corpus import DIM, WORDS, assert_same, expected, passages, question, scores, vectors

PARAMETERS = LexicalParameters()


def filled(some: list[Passage], parameters: LexicalParameters = PARAMETERS) -> ResidentEngine:
    engine = ResidentEngine(DIM, parameters)
    engine.add(some, vectors(some))
    return engine


EVERY_PASSAGE = list(chain.from_iterable(corpus.varied_articles()))
ENGINE = filled(EVERY_PASSAGE)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@given(conditions=corpus.filters, words=st.lists(st.sampled_from((*WORDS, "없는말")), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_every_score_and_maximum_is_that_of_brute_force(mode: str, conditions: Filter, words: list[str]) -> None:
    query = question(words, mode=mode, conditions=conditions)
    assert_same(ENGINE.search(query), expected(EVERY_PASSAGE, query, PARAMETERS))


@pytest.mark.parametrize("variant", ["lucene", "okapi", "l", "plus"])
def test_a_passage_that_is_not_there_scores_as_if_it_were(variant: Variant) -> None:
    parameters = LexicalParameters(variant=variant)
    engine = filled(EVERY_PASSAGE, parameters)
    query = question(["대출", "세금", "없는말"])
    assert query.terms is not None
    given_scores = engine.scorer(query.terms).scores(EVERY_PASSAGE)
    wanted = expected(EVERY_PASSAGE, query, parameters)
    np.testing.assert_allclose(given_scores, [wanted[p.id][1] for p in EVERY_PASSAGE], rtol=0, atol=1e-9)


class Replacements(RuleBasedStateMachine):
    """Articles come, change and go in any order, beside a plain mapping of what is visible."""

    @initialize()
    def start(self) -> None:
        self.engine = ResidentEngine(DIM, PARAMETERS)
        self.visible: dict[str, list[Passage]] = {}
        self.revision = 0

    @rule(article_id=st.sampled_from("가나다라마"), texts=corpus.documents, tag=st.sampled_from(["가", "나", None]))
    def publish(self, article_id: str, texts: list[list[str]], tag: str | None) -> None:
        self.revision += 1
        new = passages(article_id, self.revision, texts, tags=(tag,) if tag else (), category=tag)
        self.engine.apply({article_id: self.revision}, new, vectors(new))
        self.visible[article_id] = new

    @rule(article_id=st.sampled_from("가나다라마"))
    def withdraw(self, article_id: str) -> None:
        self.engine.apply({article_id: None}, [], np.zeros((0, 0), dtype=np.float32))
        self.visible.pop(article_id, None)

    @rule(words=st.lists(st.sampled_from(WORDS), max_size=3), tag=st.sampled_from(["가", None]), both=st.booleans())
    def search_equals_brute_force(self, words: list[str], tag: str | None, *, both: bool) -> None:
        query = question(words, conditions=Filter(tag=tag, category=tag if both else None))
        there = list(chain.from_iterable(self.visible.values()))
        assert_same(self.engine.search(query), expected(there, query, PARAMETERS))

    @invariant()
    def what_is_there_is_what_was_put_last(self) -> None:
        there = {p.id: p for p in chain.from_iterable(self.visible.values())}
        assert self.engine.count == len(there)
        gone = [f"{a}#{r}#0" for a in "가나다라마" for r in range(self.revision + 1)]
        assert self.engine.passages([*there, *gone]) == there


TestReplacements: Any = Replacements.TestCase
TestReplacements.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_rows_of_removed_passages_are_used_again() -> None:
    engine = ResidentEngine(DIM, PARAMETERS)
    sizes = []
    for revision in range(1, 2_000):
        new = passages("글", revision, [["대출"], ["금리"]])
        engine.apply({"글": revision}, new, vectors(new))
        sizes.append(engine.memory_bytes)
    assert engine.count == 2
    assert sizes[-1] <= 1.01 * sizes[0]


def test_a_row_used_again_brings_nothing_back() -> None:
    old = passages("글", 1, [["대출", "대출"]], category="금융", tags=("낡은",), published_at=corpus.NOON)
    new = passages("글", 2, [["세금"]])
    engine = filled(old)
    engine.apply({"글": 2}, new, vectors(new))
    found = engine.search(question(["대출"], mode="lexical"))
    assert list(found.passage_ids) == []
    for conditions in (Filter(category="금융"), Filter(tag="낡은"), Filter(since=corpus.NOON)):
        assert list(engine.search(question(["세금"], conditions=conditions)).passage_ids) == []
    assert scores(engine.search(question(["세금"])))["글#2#0"][0] == pytest.approx(1.0)


def test_the_engine_grows_past_its_first_capacity_and_stays_exact() -> None:
    random = np.random.default_rng(5)
    several = [
        passages(f"글{n}", 1, [random.choice(WORDS, 6).tolist() for _ in range(300)])
        for n in range(9)  # 2,700 passages: the first 1,024 rows are doubled twice
    ]
    engine = ResidentEngine(DIM, PARAMETERS)
    for some in several:
        engine.add(some, vectors(some))
    there = list(chain.from_iterable(several))
    query = question(["대출", "환율"], candidates=5_000)
    assert engine.count == len(there)
    assert_same(engine.search(query), expected(there, query, PARAMETERS))


def test_memory_is_vectors_postings_and_packed_texts() -> None:
    engine = ResidentEngine(DIM, PARAMETERS)
    assert engine.memory_bytes < 1_000
    some = passages("글", 1, [["대출"] * 20 for _ in range(2_000)])
    engine.add(some, vectors(some))
    vector_bytes = DIM * 4 * 2_000
    assert vector_bytes < engine.memory_bytes < vector_bytes + 400 * 2_000


def test_candidates_of_a_leg_are_its_best_and_ties_go_by_id() -> None:
    several = [passages(f"글{n:02}", 1, [["대출", "금리"]]) for n in range(30)] + [passages("맞다", 1, [["대출"]])]
    some = list(chain.from_iterable(reversed(several)))
    found = filled(some).search(question(["대출"], candidates=4))
    tied = {f"글{n:02}#1#0" for n in range(3)}
    assert set(found.passage_ids) == {"맞다#1#0"} | tied
    everything = expected(some, question(["대출"]), PARAMETERS)
    assert found.lexical_best == pytest.approx(max(pair[1] for pair in everything.values()), abs=1e-9)


def test_equal_texts_have_equal_scores_wherever_they_stand() -> None:
    several = [passages(f"글{n}", 1, [[str(n), "말"]]) for n in range(200)]
    for place in (0, 3, 77, 150, 199):
        several[place] = passages(f"글{place}", 1, [["같은", "말"]])
    engine = filled(list(chain.from_iterable(several)))
    for number in range(50):
        found = scores(engine.search(question([f"질문{number}"], mode="dense")))
        assert len({found[f"글{place}#1#0"][0] for place in (0, 3, 77, 150, 199)}) == 1


def test_an_empty_engine_answers_with_nothing() -> None:
    engine = ResidentEngine(DIM, PARAMETERS)
    for mode in ("hybrid", "dense", "lexical"):
        found = engine.search(question(["대출"], mode=mode))
        assert (list(found.passage_ids), found.dense_best, found.lexical_best) == ([], 0.0, 0.0)
    assert engine.passages(["글#1#0"]) == {}


def test_an_empty_lexical_query_matches_nothing() -> None:
    query = question([], mode="lexical")
    assert query.terms == LexicalQuery()
    assert list(ENGINE.search(query).passage_ids) == []
