"""Blue and green: a rebuild changes what an index was built with, never what it holds; a rollback undoes it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexers import rebuild as module
from indexers.golden import compared
from indexers.rebuild import Conditions, Rebuild, RebuildRefused
from indexers.reconcile import verify
from indexers.worker import Worker
from pipeline.assembly import Assembly
from pipeline.connected import Connected
from pipeline.documents import CANARY, Article, passage_id
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import ManifestMismatch, StoreUnavailable
from pipeline.follower import Follower
from pipeline.korean.morphemes import Analyser
from pipeline.loading import load_apart
from pipeline.parts import PartsHere, recipe_of
from pipeline.retrieval.query import SearchRequest
from pipeline.settings import Settings
from pipeline.storage import leases, manifests, readers
from pipeline.storage.database import StateDatabase
from pipeline.storage.leases import LeaseLost
from tests import milvus_server
from tests.api_server import assembly_of

_BODY = "전세 보증금을 지키려면 전입신고와 확정일자를 받아야 합니다. 이사한 날 바로 주민센터에 가세요. {}"
_PATIENCE = 150.0


def article(number: int, text: str = "등기부등본도 떼어 봅니다.") -> Article:
    return Article(id=f"글{number:02}", title=f"전세 보증금 이야기 {number}", body=_BODY.format(text) * 3)


class Place:
    """A data folder with an assembly that follows the log by hand."""

    def __init__(self, settings: Settings, analyser: Analyser, encoder: KiwiStaticEncoder) -> None:
        self.settings = settings
        self.assembly = assembly_of(settings, analyser, encoder)
        self.told: list[str] = []
        self.assembly.connect().load()

    def publish(self, *articles: Article) -> None:
        self.assembly.store.accept_many(articles, source="test")
        self.drain()

    def drain(self) -> None:
        Worker(self.assembly.store, self.assembly.ingest, attempts=1).drain()
        self.assembly.catch_up()

    def rebuild(self) -> Rebuild:
        return Rebuild(self.assembly, tell=self.told.append, stopped=lambda: False)

    def recipe(self, **chunking: Any) -> manifests.Recipe:
        recipe = dict(recipe_of(self.settings))
        return recipe | {"chunking": {**recipe["chunking"], **chunking}}

    def found(self, query: str = "전세 보증금") -> dict[str, int]:
        """Article → revision, of a search."""
        hits = self.assembly.connected.searcher.search(SearchRequest.checked(query, limit=100)).hits
        return {hit.article_id: hit.passage.revision for hit in hits}

    def agrees(self) -> None:
        assert verify(self.assembly.store, self.assembly.connected, repair=False) == []
        _, _, visible = self.assembly.store.visible()
        visible.pop(CANARY, None)
        assert self.assembly.connected.engine()[0].revisions() == visible


def placed(folder: Path, analyser: Analyser, encoder: KiwiStaticEncoder, **settings: Any) -> Place:
    chosen = {"data_dir": folder, "indexers": {"poll_seconds": 0.05, "grace_seconds": 0}, **settings}
    return Place(Settings.model_validate(chosen), analyser, encoder)


@pytest.fixture
def place(tmp_path: Path, analyser: Analyser, encoder: KiwiStaticEncoder) -> Iterator[Place]:
    made = placed(tmp_path, analyser, encoder)
    yield made
    made.assembly.close()


@pytest.fixture
def place_on_servers(
    tmp_path: Path, analyser: Analyser, encoder: KiwiStaticEncoder, milvus_uri: str, postgres_url: str
) -> Iterator[Place]:
    milvus = {"collection": f"rebuild_{time.time_ns()}", "uri": milvus_uri, "token": milvus_server.TOKEN}
    made = placed(tmp_path, analyser, encoder, milvus=milvus, database_url=postgres_url)
    yield made
    made.assembly.close()


def test_a_rebuild_with_other_passages_holds_the_same_articles_and_a_rollback_the_old_passages(place: Place) -> None:
    rebuilt_and_back(place)


@pytest.mark.server
@pytest.mark.postgres
def test_so_do_they_on_a_milvus_server_and_postgresql(place_on_servers: Place) -> None:
    rebuilt_and_back(place_on_servers)


@pytest.mark.server
@pytest.mark.postgres
def test_processes_that_share_a_folder_load_beside_each_other_and_leave_no_file(place_on_servers: Place) -> None:
    place = place_on_servers
    place.publish(*(article(n) for n in range(5)))
    left, fresh = (place.settings.data_dir / f"resident-next-of_{name}.safetensors" for name in ("one", "other"))
    for file in (left, fresh):
        file.write_bytes(b"half a snapshot")
    os.utime(left, (0, 0))
    place.rebuild().to_recipe(place.recipe(), Conditions())
    place.agrees()
    assert list(place.settings.data_dir.glob("resident-next*")) == [fresh]


@pytest.mark.server
@pytest.mark.postgres
@pytest.mark.parametrize("beside", [False, True], ids=["at the start", "beside another collection"])
def test_processes_that_share_a_folder_load_once(
    place_on_servers: Place, monkeypatch: pytest.MonkeyPatch, *, beside: bool
) -> None:
    place = place_on_servers
    place.publish(*(article(n) for n in range(5)))
    loads: list[str] = []

    def counted(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            loads.append(name)
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(Follower, "load", counted(Follower.load, "here"))
    monkeypatch.setattr("pipeline.connected.load_apart", counted(load_apart, "apart"))
    known = manifests.active(place.assembly.database)
    assert known is not None
    several = [place.assembly.opened(known) for _ in range(3)]
    with ThreadPoolExecutor(len(several)) as pool:
        load = (lambda one: one.load_beside(lambda _rows: None, threading.Event())) if beside else Connected.load
        list(pool.map(load, several))
    assert loads == ["apart" if beside else "here"]
    for one in several:
        assert verify(place.assembly.store, one, repair=False) == []
        assert one.engine()[0].count == 5
        one.close()
    assert list(place.settings.data_dir.glob("resident-next*")) == []


def rebuilt_and_back(place: Place) -> None:
    place.publish(*(article(n) for n in range(20)))
    before, passages = place.found(), place.assembly.connected.engine()[0].count
    place.rebuild().to_recipe(place.recipe(max_tokens=16), Conditions())
    assert place.found() == before
    assert place.assembly.connected.engine()[0].count > passages
    assert place.assembly.connected.manifest.max_tokens == 16
    place.agrees()
    place.publish(article(3, "새 소식입니다."), article(77))
    place.assembly.store.accept_delete("글05")
    place.drain()
    changed = place.found()
    assert (len(changed), changed["글03"] > before["글03"], "글05" in changed) == (20, True, False)
    place.rebuild().back(Conditions())
    assert place.found() == changed
    assert place.assembly.connected.manifest.max_tokens == 192
    place.agrees()


def test_a_rebuild_with_the_same_recipe_encodes_nothing(place: Place) -> None:
    place.publish(*(article(n) for n in range(5)))
    name = place.assembly.connected.name
    place.rebuild().to_recipe(place.recipe(), Conditions())
    assert "5 articles written, 0 passages encoded" in place.told
    assert place.assembly.connected.name != name
    place.agrees()


def test_changes_of_the_whole_time_are_in_the_new_index(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishes, edits and deletes at every step of the way: while it is filled, before and after it is loaded."""
    monkeypatch.setattr(module, "_TOGETHER", 4)
    place.publish(*(article(n) for n in range(16)))
    steps = iter(range(100, 112))

    def disturb(told: str) -> None:
        place.told.append(told)
        number = next(steps, None)
        if number is None:
            return
        store = place.assembly.store
        store.accept_many([article(number), article(number % 16, f"{number}번째 소식")], source="test")
        store.accept_delete(f"글{(number * 5 + 1) % 16:02}")
        Worker(store, place.assembly.ingest, attempts=1).drain()

    put = Rebuild._put

    def watched(self: Rebuild, *arguments: Any) -> Any:
        disturb("put")
        return put(self, *arguments)

    monkeypatch.setattr(Rebuild, "_put", watched)
    work = Rebuild(place.assembly, tell=disturb, stopped=lambda: False)
    work.to_recipe(place.recipe(max_tokens=32), Conditions(min_overlap=0))
    place.assembly.catch_up()
    assert next(steps, None) is None, "there were fewer steps than disturbances"
    place.agrees()


def test_it_ends_where_ids_count_up_as_fast_as_it_writes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.publish(*(article(n) for n in range(16)))
    numbers = iter(range(20, 60))
    put = Rebuild._put

    def watched(self: Rebuild, target: Connected, shown: Any) -> Any:
        for number in [number for _, number in zip(shown, numbers, strict=False)]:
            place.assembly.store.accept(article(number))
        Worker(place.assembly.store, place.assembly.ingest, attempts=1).drain()
        return put(self, target, shown)

    monkeypatch.setattr(Rebuild, "_put", watched)
    place.rebuild().to_recipe(place.recipe(), Conditions())
    assert "16 articles written, 0 passages encoded" in place.told
    assert next(numbers, None) is None
    place.agrees()


@contextmanager
def worked_on(place: Place) -> Iterator[threading.Event]:
    """A worker and a follower that run, as in a process that serves."""
    stop = threading.Event()
    worker = Worker(place.assembly.store, place.assembly.ingest, poll_seconds=0.05)

    def follow() -> None:
        while not stop.wait(0.02):
            place.assembly.catch_up()

    threads = [threading.Thread(target=worker.run, args=(stop,)), threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
    try:
        yield stop
    finally:
        stop.set()
        worker.wake()
        for thread in threads:
            thread.join()


@contextmanager
def beside(place: Place) -> Iterator[Assembly]:
    """The parts of a process of its own, as `yeoul rebuild` is."""
    assembly = Assembly(place.settings, StateDatabase.open(place.settings.state_url), place.assembly.parts, None)
    try:
        assembly.connect().load()
        yield assembly
    finally:
        assembly.close()


def test_under_writes_and_searches_no_answer_lacks_an_article_or_mixes_revisions(place: Place) -> None:
    place.publish(*(article(n) for n in range(30)))
    wrong: list[str] = []
    searches = 0
    with worked_on(place) as stop:

        def write() -> None:
            number = 0
            while not stop.wait(0.03):
                number += 1
                place.assembly.store.accept(article(number % 10, f"{number}번째 판입니다."))

        def read() -> None:
            nonlocal searches
            while not stop.is_set():
                found = place.found()
                searches += 1
                if len(found) != 30:
                    wrong.append(f"{len(found)} articles")

        threads = [threading.Thread(target=write), threading.Thread(target=read)]
        for thread in threads:
            thread.start()
        # A third of the articles changes three times a second: what ten best are depends on the moment.
        with beside(place) as assembly:
            work = Rebuild(assembly, tell=place.told.append, stopped=lambda: False)
            work.to_recipe(place.recipe(max_tokens=32), Conditions(min_overlap=0.0))
        deadline = time.monotonic() + _PATIENCE
        while place.assembly.connected.manifest.max_tokens != 32:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # some more writes and searches on the new index
        stop.set()
        for thread in threads:
            thread.join()
    place.drain()
    assert wrong == []
    assert searches > 20
    place.agrees()


def test_a_rebuild_that_was_broken_off_goes_on_where_it_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 4)
    place.publish(*(article(n) for n in range(12)))
    stopped = iter([False, False, True])
    work = Rebuild(place.assembly, tell=place.told.append, stopped=lambda: next(stopped))
    with pytest.raises(RebuildRefused, match="stopped"):
        work.to_recipe(place.recipe(max_tokens=32), Conditions())
    [begun] = manifests.known(place.assembly.database, "building")
    assert begun.last_article == "글07"
    place.publish(article(2, "그 사이의 소식"))
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    assert f"going on with {begun.name}" in place.told
    assert [line for line in place.told if line.startswith("4 articles written")]
    assert place.assembly.connected.name == begun.name
    place.agrees()


def test_it_waits_while_searches_stand_in_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(waiting: int) -> None:
        readers.report(place.assembly.database, "one that answers", "", 0, waiting=waiting)

    report(module._LINE - 1)
    place.rebuild()._let_searches_go_first()  # it does not
    report(module._LINE)
    waits = threading.Thread(target=place.rebuild()._let_searches_go_first)
    waits.start()
    waits.join(3 * module._LOOK_SECONDS)
    assert waits.is_alive()
    report(0)
    waits.join(_PATIENCE)
    assert not waits.is_alive()
    report(module._LINE)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_SECONDS", 0.1)
    place.rebuild()._let_searches_go_first()  # not for ever


def test_answers_that_differ_too_much_stop_it_before_the_switch(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.publish(*(article(n) for n in range(12)))
    name = place.assembly.connected.name
    monkeypatch.setattr(module, "compared", lambda *given: replace(compared(*given), share=0.1))
    with pytest.raises(RebuildRefused, match=r"have 0\.10 of their ten best articles in common"):
        place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    assert place.assembly.connected.name == name
    place.agrees()
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions(min_overlap=0))
    assert place.assembly.connected.manifest.max_tokens == 32


def test_an_article_that_cannot_be_put_into_the_new_index_is_named_and_nothing_is_switched(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish(*(article(n) for n in range(3)))
    put = Rebuild._put
    monkeypatch.setattr(Rebuild, "_put", lambda self, target, shown: put(self, target, shown[:-1]))
    with pytest.raises(manifests.Incomplete, match="글02"):
        place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    assert place.assembly.connected.manifest.max_tokens == 192


def test_a_second_rebuild_is_refused_while_one_is_at_work(place: Place) -> None:
    work = place.rebuild()
    with work._alone(), pytest.raises(RebuildRefused, match="at work"):
        place.rebuild().to_recipe(place.recipe(), Conditions())


def test_there_is_nothing_to_go_back_to_before_the_first_rebuild_and_after_a_prune(place: Place) -> None:
    place.publish(article(1))
    with pytest.raises(RebuildRefused, match="no collection is kept"):
        place.rebuild().back(Conditions())
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    old = manifests.known(place.assembly.database, "kept")[0].name
    assert place.rebuild().prune() == [old]
    assert old not in place.assembly.connected.collection.list_collections()
    with pytest.raises(RebuildRefused, match="no collection is kept"):
        place.rebuild().back(Conditions())


def test_a_later_start_takes_what_the_settings_leave_open_from_the_index(
    place: Place, analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    place.publish(article(1))
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    parts = PartsHere(place.settings, analyser, encoder).following(manifests.active(place.assembly.database).recipe)  # type: ignore[union-attr]
    assert parts.manifest.max_tokens == 32
    alias = place.settings.milvus.collection
    assert place.assembly.connected.collection.resolve_alias(alias) == place.assembly.connected.name


def test_a_rollback_does_not_take_a_rebuild_that_was_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.publish(*(article(n) for n in range(6)))
    first = place.assembly.connected.name
    with monkeypatch.context() as context:
        context.setattr(module, "compared", lambda *given: replace(compared(*given), share=0.1))
        with pytest.raises(RebuildRefused, match="in common"):
            place.rebuild().to_recipe(place.recipe(max_tokens=64), Conditions())
    with pytest.raises(RebuildRefused, match="no collection is kept"):
        place.rebuild().back(Conditions())
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions(min_overlap=0))
    with monkeypatch.context() as context:
        context.setattr(module, "compared", lambda *given: replace(compared(*given), share=0.1))
        with pytest.raises(RebuildRefused, match="in common"):
            place.rebuild().to_recipe(place.recipe(max_tokens=16), Conditions())
        with pytest.raises(RebuildRefused, match="in common"):
            place.rebuild().back(Conditions())
    assert place.assembly.connected.manifest.max_tokens == 32
    [refused] = manifests.known(place.assembly.database, "building", "ready")
    place.rebuild().back(Conditions(min_overlap=0))
    assert place.assembly.connected.name == first
    assert [known.name for known in manifests.known(place.assembly.database, "building")] == [refused.name]
    place.agrees()


def vectors_of(place: Place) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of all visible passages, in order of article and passage."""
    counts = place.assembly.store.visible_passages(place.assembly.store.visible()[2])
    ids = [passage_id(a, revision, n) for a, (revision, passages) in sorted(counts.items()) for n in range(passages)]
    return place.assembly.connected.collection.read(ids)[1]


def test_a_dictionary_edited_in_place_is_rebuilt_with_new_vectors(tmp_path: Path, encoder: KiwiStaticEncoder) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("여울모아통장\tNNP\t5\n", encoding="utf-8")
    place = placed(tmp_path / "data", Analyser.open(words), encoder, user_words=words)
    recipe = place.recipe()
    try:
        place.publish(*(article(n, "확정일자와 여울모아통장을 봅니다.") for n in range(3)))
        name, before = place.assembly.connected.name, vectors_of(place)
    finally:
        place.assembly.close()
    words.write_text("여울모아통장\tNNP\t5\n확정일자\tNNP\t5\n", encoding="utf-8")
    own = Analyser.open(words)
    with pytest.raises(ManifestMismatch, match="user words"):
        opened(place, own, encoder, replaced=False)
    opened(place, own, encoder, replaced=True)
    try:
        assert place.recipe() == recipe
        place.rebuild().to_recipe(recipe, Conditions(min_overlap=0))
        after = vectors_of(place)
        assert f"3 articles written, {len(after)} passages encoded" in place.told
        assert place.assembly.connected.name != name
        assert place.assembly.connected.manifest.tokenizer == own.fingerprint
        assert after.shape == before.shape
        assert (np.abs(after - before).max(axis=1) > 0.001).all()
        shown = place.assembly.store.shown()
        np.testing.assert_allclose(
            after, place.assembly.ingest().put(place.assembly.ingest().analyse(shown), {})[0], atol=1e-6
        )
        assert len(place.found("확정일자")) == 3
        place.agrees()
    finally:
        place.assembly.close()


def opened(place: Place, analyser: Analyser, encoder: KiwiStaticEncoder, *, replaced: bool) -> None:
    """Opens the place's folder again, as `yeoul rebuild` does (`replaced`) or any other command."""
    assembly = assembly_of(place.settings, analyser, encoder)
    try:
        assembly.connect(replaced=replaced).load()
    except BaseException:
        assembly.close()
        raise
    place.assembly = assembly


def test_rows_that_were_replaced_while_a_collection_was_out_of_use_are_swept_after_the_switch(place: Place) -> None:
    place.publish(*(article(n) for n in range(6)))
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    place.publish(article(2, "그 사이의 소식"), article(8))
    place.assembly.store.accept_delete("글04")
    place.drain()
    Worker(place.assembly.store, place.assembly.ingest).sweep()  # of the collection in use: the one kept is left alone
    assert place.assembly.store.due_leftovers() == []
    place.rebuild().back(Conditions())
    _, _, visible = place.assembly.store.visible()
    collection = place.assembly.connected.collection
    assert {(a, revision) for _, a, revision in collection.iterate_ids()} == set(visible.items())
    assert place.assembly.store.due_leftovers() == []
    place.agrees()


def test_rows_that_were_not_swept_when_their_collection_left_use_are_after_a_rollback(place: Place) -> None:
    place.publish(*(article(n) for n in range(6)))
    place.publish(article(2, "그 사이의 소식"))
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    Worker(place.assembly.store, place.assembly.ingest).sweep()  # of the other collection
    place.rebuild().back(Conditions())
    _, _, visible = place.assembly.store.visible()
    collection = place.assembly.connected.collection
    assert {"글02"} == {a for _, a, revision in collection.iterate_ids() if visible.get(a) != revision}
    place.agrees()  # what the sweep will take is no difference
    Worker(place.assembly.store, place.assembly.ingest).sweep()
    assert {(a, revision) for _, a, revision in collection.iterate_ids()} == set(visible.items())


def test_what_is_replaced_or_deleted_while_a_collection_is_filled_leaves_no_rows_in_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish(*(article(n) for n in range(2 * module._TOGETHER)))
    put = Rebuild._put

    def with_changes(rebuild: Rebuild, *given: Any) -> Any:
        made = put(rebuild, *given)
        if given[1][0].article_id == "글00" and given[1][0].seq == 1:  # the first of all has been written
            place.publish(article(0, "그 사이의 소식"))
            place.assembly.store.accept_delete("글01")
            place.drain()
        return made

    monkeypatch.setattr(Rebuild, "_put", with_changes)
    place.rebuild().to_recipe(place.recipe(), Conditions())
    _, _, visible = place.assembly.store.visible()
    rows = place.assembly.connected.collection.iterate_ids()
    assert {(a, revision) for _, a, revision in rows} == set(visible.items())
    assert "글01" not in visible
    place.agrees()
    place.agrees()


def test_a_rebuild_that_slept_while_another_one_went_on_with_it_changes_nothing_any_more(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish(*(article(n) for n in range(6)))
    put, recipe, database = Rebuild._put, place.recipe(), place.assembly.database

    def asleep(rebuild: Rebuild, *given: Any) -> Any:
        made = put(rebuild, *given)
        monkeypatch.undo()
        other = leases.acquire(database, "rebuild", "another one", 60, alone=True)
        assert other is not None
        leases.release(database, other)
        module._at_work.release()  # it would be another process
        place.rebuild().to_recipe(recipe, Conditions())
        module._at_work.acquire()
        return made

    monkeypatch.setattr(Rebuild, "_put", asleep)
    with pytest.raises(manifests.InUse):
        place.rebuild().to_recipe(recipe, Conditions())
    in_use = manifests.active(database)
    assert in_use is not None
    assert in_use.name == place.assembly.connected.name
    late = place.rebuild()
    with late._alone():
        late._check_stop()
        assert leases.acquire(database, "rebuild", "another one", 0, alone=True) is not None
        with pytest.raises(LeaseLost):
            late._check_stop()
    place.agrees()


def test_a_store_that_goes_away_after_the_switch_does_not_make_it_a_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be tried again, and a rollback would go back to where it came from."""
    place.publish(*(article(n) for n in range(6)))
    before = place.assembly.connected.name
    place.rebuild().to_recipe(place.recipe(), Conditions())
    away = StoreUnavailable("collection", "test", "gone", "start it")

    def refuse(*_given: Any) -> Any:
        raise away

    monkeypatch.setattr(Rebuild, "_leave_to_the_sweep", refuse)
    monkeypatch.setattr(leases, "release", refuse)
    place.rebuild().back(Conditions())
    assert place.assembly.connected.name == before
    assert any("old rows were left as they are" in line for line in place.told)
    place.agrees()


@pytest.mark.parametrize("times", [1, 2])
def test_rows_that_the_store_has_lost_are_written_again_or_told_before_anything_is_switched(
    place: Place, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    place.publish(*(article(n) for n in range(6)))
    name, passages = place.assembly.connected.name, place.assembly.connected.engine()[0].count
    found, losses = module._lacking_rows, iter(range(times))

    def with_loss(target: Connected, counts: Any) -> list[str]:
        if next(losses, None) is not None:
            target.collection.delete([passage_id("글03", counts["글03"][0], 0)])
        return found(target, counts)

    monkeypatch.setattr(module, "_lacking_rows", with_loss)
    if times > 1:
        with pytest.raises(RebuildRefused, match="has lost passages of 1 articles twice"):
            place.rebuild().to_recipe(place.recipe(), Conditions())
        assert place.assembly.connected.name == name
    else:
        place.rebuild().to_recipe(place.recipe(), Conditions())
        fresh = place.assembly.connected.name
        for line in (
            f"1 articles lack passages in {fresh}, such as '글03'",
            f"{name}: 6 articles, {passages:,} passages",
            f"{fresh}: 6 articles, {passages:,} passages",
        ):
            assert line in place.told
    place.agrees()


def test_a_rebuild_left_for_longer_than_the_log_is_begun_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 4)
    place.publish(*(article(n) for n in range(8)))

    def broken_off() -> manifests.KnownCollection:
        stopped = iter([False, True])
        work = Rebuild(place.assembly, tell=place.told.append, stopped=lambda: next(stopped))
        with pytest.raises(RebuildRefused, match="stopped"):
            work.to_recipe(place.recipe(max_tokens=32), Conditions())
        [begun] = manifests.known(place.assembly.database, "building")
        return begun

    begun = broken_off()
    place.assembly.store.prune(0)  # nothing that it lacks is gone
    place.publish(article(2, "그 사이의 소식"))
    assert broken_off().name == begun.name
    assert f"going on with {begun.name}" in place.told
    place.told.clear()
    place.assembly.store.prune(0)
    place.rebuild().to_recipe(place.recipe(max_tokens=32), Conditions())
    assert not [line for line in place.told if line.startswith("going on")]
    assert [line for line in place.told if line.startswith("8 articles written")]
    assert [known.name for known in manifests.known(place.assembly.database, "dropped")] == [begun.name]
    assert begun.name not in place.assembly.connected.collection.list_collections()
    assert place.assembly.connected.manifest.max_tokens == 32
    assert place.found()["글02"] == 9
    place.agrees()
