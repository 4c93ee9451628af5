"""The write path on a real collection: what is encoded, what becomes visible, what stays and what is swept."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from pipeline.documents import Article, Passage
from pipeline.encoding.encoder import FloatArray
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import EncoderFailed
from pipeline.follower import Follower
from pipeline.index.collection import Collection
from pipeline.index.engine import Revisions
from pipeline.index.fields import LexicalParameters
from pipeline.index.resident import ResidentEngine
from pipeline.storage import commits
from tests.fakes import InterruptibleCollection
from tests.stores import EMBEDDED_ALONE
from tests.write_path import DIM, Stage

_PATIENCE = 120.0  # seconds until a test gives up waiting
_GRACE = 60.0  # seconds: not over during a test
_PARAGRAPHS = [
    "전세 대출의 금리는 은행마다 다르므로 여러 곳을 비교하는 편이 좋습니다.",
    "연말정산에서 월세 세액공제를 받으려면 무주택 세대주여야 합니다.",
    "보이스피싱을 당했다면 곧바로 112에 전화하여 지급정지를 요청하십시오.",
    "적립식 펀드는 매달 같은 금액을 넣어 평균 매입 단가를 낮추는 방법입니다.",
    "청약 통장은 가입 기간이 길수록 가점에 유리하게 작용합니다.",
]


def article(article_id: str = "가", paragraphs: list[str] = _PARAGRAPHS, title: str = "알아두면 좋은 것") -> Article:
    return Article(id=article_id, title=title, body="\n\n".join(paragraphs), category="금융")


def test_a_published_article_is_visible_whole_and_every_passage_is_encoded(stage: Stage) -> None:
    written = stage.publish(article("가"), article("나", _PARAGRAPHS[:2]))
    assert (written.articles, written.deleted) == (2, 0)
    assert written.encoded == written.passages == len(stage.encoder.encoded) == sum(stage.rows().values())
    assert len(stage.shown("가")) > len(stage.shown("나")) > 1
    for paragraph in _PARAGRAPHS:
        assert any(paragraph in text for text in stage.shown("가"))
    assert stage.store.state("가").passages == len(stage.shown("가"))


def test_of_an_article_with_one_changed_paragraph_only_its_passages_are_encoded(stage: Stage) -> None:
    stage.publish(article())
    before = stage.shown("가")
    edited = [*_PARAGRAPHS]
    edited[2] = "대포통장을 빌려주면 형사 처벌을 받을 수 있으니 조심하십시오."
    stage.encoder.encoded.clear()
    written = stage.publish(article(paragraphs=edited))
    fresh = [text for text in stage.shown("가") if text not in before]
    assert len(fresh) == written.encoded == len(stage.encoder.encoded)
    assert 0 < written.encoded < written.passages
    assert all(edited[2][:10] in text or edited[2][-10:] in text for text in fresh)


def test_copied_vectors_are_the_vectors_that_encoding_would_give(stage: Stage) -> None:
    stage.publish(article())
    stage.publish(replace(article(), category="생활"))
    revision, count = stage.store.visible_passages(["가"])["가"]
    ids = [f"가#{revision}#{n}" for n in range(count)]
    passages = stage.collection.get(ids)
    expected = stage.encoder.encode_passages([f"{p.title}\n{p.text}" for p in passages])
    vectors = stage.collection.get_vectors(ids)
    np.testing.assert_allclose(np.array([vectors[i] for i in ids]), expected, atol=1e-6)


@EMBEDDED_ALONE  # each field on each store: test_collection
@pytest.mark.parametrize(
    "change",
    [{"category": "생활"}, {"tags": ("월세",)}, {"url": "https://example.com/2"}, {"quality": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_a_change_of_a_field_that_no_encoder_reads_encodes_nothing(stage: Stage, change: dict[str, object]) -> None:
    stage.publish(article())
    written = stage.publish(replace(article(), **change))  # type: ignore[arg-type]
    assert written.encoded == 0
    assert written.passages > 0
    revision, _ = stage.store.visible_passages(["가"])["가"]
    (name, value), *_ = change.items()
    assert getattr(stage.collection.get([f"가#{revision}#0"])[0], name) == value


@EMBEDDED_ALONE  # on servers who writes holds nothing in memory
def test_vectors_are_copied_from_memory_where_all_of_them_are_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ResidentEngine(DIM, LexicalParameters())
    follower = Follower(stage.store, stage.collection, engine)
    follower.load()
    ingest = stage.ingest()
    ingest.observer, ingest.memory = follower.tell, engine.read
    read, asked = Collection.read, []

    def watched(collection: Collection, ids: Sequence[str], *, newest: bool = True) -> Any:
        asked.append(list(ids))
        return read(collection, ids, newest=newest)

    monkeypatch.setattr(Collection, "read", watched)
    stage.publish(article(), ingest=ingest)
    written = stage.publish(replace(article(), category="새것"), ingest=ingest)
    assert (written.encoded, asked) == (0, [])
    [held], [kept] = engine.read(["가#2#0"])[1], read(stage.collection, ["가#2#0"])[1]
    assert np.array_equal(held, kept)
    engine.apply({"가": None}, [], np.zeros((0, DIM), dtype=np.float32))  # it lags behind
    written = stage.publish(replace(article(), category="neu"), ingest=ingest)
    assert (written.encoded, len(asked)) == (0, 1)


@EMBEDDED_ALONE  # it is about the hash of what is encoded; copies from a server are made in the tests above
def test_another_title_encodes_every_passage_as_it_is_carried_in_front(stage: Stage) -> None:
    stage.publish(article())
    written = stage.publish(article(title="새 제목"))
    assert written.encoded == written.passages


@EMBEDDED_ALONE  # as the one before
def test_moved_paragraphs_keep_their_vectors(stage: Stage) -> None:
    stage.publish(article())
    assert stage.publish(article(paragraphs=_PARAGRAPHS[::-1])).encoded == 0


@EMBEDDED_ALONE  # what differs is the encoder; a collection of its dimension would take a server seconds
def test_an_encoder_of_morphemes_copies_too(stage: Stage, encoder: KiwiStaticEncoder) -> None:
    with_morphemes = InterruptibleCollection.open(uri=stage.uri, name="morphemes", dim=encoder.dim)
    assert isinstance(with_morphemes, InterruptibleCollection)
    stage = replace(stage, collection=with_morphemes)
    ingest = stage.ingest(encoder, max_tokens=40)
    first = stage.publish(article(), ingest=ingest)
    assert first.encoded == first.passages > 1
    second = stage.publish(article(paragraphs=[*_PARAGRAPHS, "덧붙인 단락은 아주 짧습니다."]), ingest=ingest)
    assert 0 < second.encoded < second.passages
    with_morphemes.close()


def test_old_rows_stay_until_the_grace_is_over_and_are_swept_after(stage: Stage) -> None:
    stage.publish(article())
    patient = stage.ingest(grace=_GRACE)
    stage.publish(article(paragraphs=_PARAGRAPHS[:2]), ingest=patient)
    assert {revision for _, revision in stage.rows()} == {1, 2}
    assert patient.sweep() == 0
    assert {revision for _, revision in stage.rows()} == {1, 2}
    stage.delete("가")
    assert {revision for _, revision in stage.rows()} == {1, 2}


def test_a_sweep_leaves_exactly_the_visible_rows(stage: Stage) -> None:
    ingest = stage.ingest()
    names = [f"글{n}" for n in range(5)]
    stage.publish(*(article(name, _PARAGRAPHS[:2]) for name in names), article('따옴표 " 와 \\'))
    stage.publish(*(article(name, _PARAGRAPHS[2:3]) for name in names[:3]), article('따옴표 " 와 \\', _PARAGRAPHS[:1]))
    stage.delete("글0")
    assert ingest.sweep() == 5  # of the deleted one, two
    assert ingest.sweep() == 0
    _, _, visible = stage.store.visible()
    expected = {(name, revision): len(stage.shown(name)) for name, revision in visible.items()}
    assert stage.rows() == expected
    assert "글0" not in visible


def test_what_a_commit_replaced_is_swept_without_a_look_at_the_collection(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> NoReturn:
        raise AssertionError("the rows were looked for")

    stage.publish(article())
    stage.publish(article(paragraphs=_PARAGRAPHS[:2]))
    monkeypatch.setattr(Collection, "revisions_of", looked)
    monkeypatch.setattr(Collection, "_pages", looked)
    stage.ingest().sweep()
    monkeypatch.undo()
    assert stage.rows() == {("가", 2): len(stage.shown("가"))}


def test_what_is_replaced_while_a_sweep_goes_on_is_left_to_the_next(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that began before the sweep and ends in the middle of it dates what it leaves from its beginning."""
    stage.publish(article(paragraphs=_PARAGRAPHS[:1]))
    stage.publish(article(paragraphs=_PARAGRAPHS[:2]))
    stage.store.leave(["가"], grace_seconds=0)  # which rows may go has to be looked for
    begun, looked = threading.Event(), threading.Event()
    show, delete_replaced = commits.commit, Collection.delete_replaced

    def slowly(*arguments: Any, **options: Any) -> set[int]:
        begun.set()
        assert looked.wait(_PATIENCE)
        return show(*arguments, **options)

    def after_the_commit(collection: Collection, keep: dict[str, tuple[int | None, int]]) -> None:
        looked.set()
        replacing.result(_PATIENCE)
        delete_replaced(collection, keep)

    monkeypatch.setattr(commits, "commit", slowly)
    monkeypatch.setattr(Collection, "delete_replaced", after_the_commit)
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(stage.publish, article(paragraphs=_PARAGRAPHS[:3]))
        assert begun.wait(_PATIENCE)
        assert stage.ingest().sweep() == 2
    monkeypatch.undo()
    stage.ingest().sweep()
    assert {revision for _, revision in stage.rows()} == {3}


def test_an_article_that_is_not_to_be_shown_has_no_rows_and_comes_back_when_it_is(stage: Stage) -> None:
    stage.publish(article())
    hidden = stage.publish(replace(article(), visible=False))
    assert (hidden.articles, hidden.passages) == (1, 0)
    assert stage.shown("가") == []
    assert stage.store.state("가").status == "indexed"
    assert stage.store.state("가").article == replace(article(), visible=False)
    stage.ingest().sweep()
    assert not stage.rows()
    stage.publish(article())
    assert len(stage.shown("가")) > 1


def test_a_deleted_article_has_no_rows_after_the_sweep(stage: Stage) -> None:
    stage.publish(article())
    assert stage.delete("가").deleted == 1
    assert stage.shown("가") == []
    stage.ingest().sweep()
    assert not stage.rows()


@EMBEDDED_ALONE  # it is about the text, and a store holds any
@pytest.mark.parametrize("body", ["", " \n ", "<p></p>", "😀😀😀"], ids=["empty", "blank", "tags", "emoji"])
def test_an_article_without_words_is_found_by_its_title(stage: Stage, body: str) -> None:
    stage.publish(Article(id="가", title="금리 인하", body=body, format="html"))
    revision, count = stage.store.visible_passages(["가"])["가"]
    assert count == 1
    assert "금리" in stage.collection.get([f"가#{revision}#0"])[0].title_terms


def test_writing_the_same_batch_twice_gives_the_same_rows(stage: Stage) -> None:
    """What a worker does that was killed between writing the rows and the commit."""
    ingest = stage.ingest()
    stage.store.accept(article())
    batch = stage.store.queued(1)
    passages = [p.passage for p in ingest.analyse(batch)[0]]
    stage.collection.upsert(passages, stage.encoder.encode_passages([p.text for p in passages]))
    assert stage.shown("가") == []  # not committed, so not visible
    stage.drain(ingest)
    assert stage.rows() == {("가", 1): len(passages)}
    assert stage.shown("가") == [p.text for p in passages]


def test_the_observer_is_told_of_every_article_with_its_passages_and_vectors(stage: Stage) -> None:
    """Some hundred passages at a time, articles whole; of a deleted one that it is gone."""
    stage.publish(article("지운"))
    told: list[tuple[Revisions, Sequence[Passage], FloatArray]] = []
    ingest = stage.ingest()
    ingest.observer = lambda *what: told.append(what)
    stage.store.accept_many([article(f"글{n}", _PARAGRAPHS * 12) for n in range(6)], source="test")
    stage.store.accept_delete("지운")
    stage.drain(ingest)
    assert len(told) > 1
    revisions = {article_id: revision for some, _, _ in told for article_id, revision in some.items()}
    assert [*revisions] == ["지운", *(f"글{n}" for n in range(6))]  # a delete is pushed: it goes before the bulk
    assert revisions.pop("지운") is None
    for some, passages, vectors in told:
        assert {p.article_id: p.revision for p in passages} == {i: r for i, r in some.items() if r is not None}
        assert len(passages) < 200
        stored = stage.collection.get_vectors([p.id for p in passages])
        assert len(vectors) == len(passages)
        for vector, passage in zip(vectors, passages, strict=True):
            np.testing.assert_allclose(vector, stored[passage.id], atol=1e-6)
    counts = Counter(p.article_id for _, passages, _ in told for p in passages)
    assert counts == {i: stage.store.state(i).passages for i in revisions}


def test_a_batch_that_cannot_be_encoded_changes_nothing(stage: Stage) -> None:
    stage.publish(article())
    before = stage.rows(), stage.shown("가")
    stage.encoder.poison = "독"
    stage.store.accept_many([article(paragraphs=["맑은 물"]), article("나", ["독이 든 사과"])], source="test")
    with pytest.raises(EncoderFailed):
        stage.drain()
    assert (stage.rows(), stage.shown("가")) == before
    assert stage.store.queue_length() == 2
