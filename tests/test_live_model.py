"""Live indexing against a model: whatever happens beside it, no read shows a mixed, vanished or returned article.

The long form is `python tests/benchmarks/storm.py`. The first tests show that model and storm notice what they are for.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.documents import Article
from pipeline.follower import Follower
from pipeline.index.resident import ResidentEngine
from pipeline.korean.morphemes import Analyser
from pipeline.storage.news import News
from tests import milvus_server
from tests.live_model import CATEGORIES, Floors, Model, Sight, composed
from tests.live_storm import Site, Storm

_OPERATIONS = {"resident": 250, "milvus": 100}  # Milvus Lite needs a second of both cores for a few searches
_OPERATIONS_ON_SERVERS = 60  # a commit on a Milvus server takes a third of a second
_SEED = 20_261_121
_FAULTY_OPERATIONS = 60


def version(number: int, category: str = "강", *, visible: bool = True) -> Article:
    return composed(random.Random(number), "글", number, category=category, visible=visible)


def sight(article: Article, revision: int) -> Sight:
    mark = int(article.title.split("판본")[1].removesuffix("표지"))
    return Sight(frozenset({revision}), frozenset({mark}), article.category, article.tags)


@pytest.fixture
def model() -> Model:
    """Of one article: published (1), edited (3), deleted (5), published again (7)."""
    made = Model()
    for seq, article in ((1, version(1)), (3, version(2)), (5, None), (7, version(3))):
        made.record("글", article, "queued", seq)
    return made


def judged(model: Model, seen: Sight | None, *, at: int, seq: int = 0) -> list[str]:
    """What is wrong with an answer to a reader that stood `at` a state, and says that it is up to `seq`."""
    found = {"글": seen} if seen is not None else {}
    return model.judge(found, {"글": at}, seq=seq, asked=lambda _: True, whole=True)[1]


def test_a_reader_may_skip_states_and_never_goes_back(model: Model) -> None:
    old, new = sight(version(1), 1), sight(version(2), 3)
    assert judged(model, old, at=0) == judged(model, old, at=1) == judged(model, new, at=0) == []
    assert ["returned" in one for one in judged(model, old, at=3)] == [True]
    assert ["returned" in one for one in judged(model, new, at=5)] == [True]


def test_an_article_vanishes_only_where_it_was_deleted_since(model: Model) -> None:
    assert judged(model, None, at=0) == judged(model, None, at=3) == []
    assert ["vanished" in one for one in judged(model, None, at=7)] == [True]
    after, _ = model.judge({}, {"글": 1}, seq=0, asked=lambda _: True, whole=True)
    assert after == {"글": 5}


def test_an_answer_must_have_what_it_says_it_has(model: Model) -> None:
    assert judged(model, sight(version(2), 3), at=0, seq=4) == []
    assert judged(model, sight(version(1), 1), at=0, seq=4)
    assert judged(model, sight(version(2), 3), at=0, seq=6)
    assert judged(model, None, at=0, seq=7)


def test_two_revisions_or_the_text_of_another_version_are_a_fault(model: Model) -> None:
    article = version(2)
    for revisions, marks, category in (({1, 3}, {2}, "강"), ({3}, {1, 2}, "강"), ({3}, {1}, "강"), ({3}, {2}, "산")):
        mixed = Sight(frozenset(revisions), frozenset(marks), category, article.tags)
        assert judged(model, mixed, at=0), mixed


def test_a_category_that_nobody_asked_for_is_a_fault_and_its_absence_is_none() -> None:
    model = Model()
    model.record("글", version(1, CATEGORIES[0]), "queued", 1)
    model.record("글", version(2, CATEGORIES[1]), "queued", 2)

    def asked(article: Article) -> bool:
        return article.category == CATEGORIES[0]

    floors: Floors = {"글": 1}
    assert model.judge({}, floors, seq=0, asked=asked, whole=True) == ({"글": 2}, [])
    shown = {"글": sight(version(2, CATEGORIES[1]), 2)}
    assert model.judge(shown, floors, seq=0, asked=asked, whole=True)[1]


def _without_deletes(self: Follower, new: News) -> int:
    return apply_newest(self, replace(new, entries=tuple(entry for entry in new.entries if entry.revision is not None)))


def _one_passage_too_few(self: ResidentEngine, rows: list[int]) -> None:
    remove(self, rows[:-1] if len(rows) > 1 else rows)


apply_newest, remove = Follower._apply_newest, ResidentEngine._remove


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [(Follower, "_apply_newest", _without_deletes), (ResidentEngine, "_remove", _one_passage_too_few)],
)
def test_a_storm_notices_a_fault(
    tmp_path: Path, analyser: Analyser, monkeypatch: pytest.MonkeyPatch, where: type, name: str, fault: object
) -> None:
    monkeypatch.setattr(where, name, fault)
    with Storm(Site(tmp_path, ("resident",)), analyser, seed=_SEED) as storm:
        storm.run(_FAULTY_OPERATIONS)
        assert storm.wrong


@pytest.fixture(
    params=["lite-resident", "lite-milvus", pytest.param("servers", marks=[pytest.mark.server, pytest.mark.postgres])]
)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """Both engines on Milvus Lite, one process each time; and both at once on the servers, with a worker between them."""
    if request.param == "lite-resident":
        return Site(tmp_path, ("resident",), told=True)
    if request.param == "lite-milvus":
        return Site(tmp_path, ("milvus",), grace_seconds=5.0)  # slow searches are not judged
    return Site(
        tmp_path,
        ("resident", "milvus"),
        grace_seconds=1.0,
        milvus={"uri": request.getfixturevalue("milvus_uri"), "token": milvus_server.TOKEN},
        database_url=request.getfixturevalue("postgres_url"),
    )


def test_after_a_storm_everything_is_as_the_model_says_and_no_read_was_wrong(site: Site, analyser: Analyser) -> None:
    with Storm(site, analyser, seed=_SEED) as storm:
        storm.run(_OPERATIONS_ON_SERVERS if site.shared else _OPERATIONS[site.engines[0]])
        if not storm.wrong:
            storm.settle()
        assert storm.wrong == []
    assert storm.record.reads["judged"] > 50
