"""What reads texts in a process of its own: it reads as this process does, nobody is left behind, and whoever dies is replaced."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from pipeline import parts
from pipeline.assembly import Assembly
from pipeline.documents import Article
from pipeline.encoding.encoder import TermEncoder
from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.errors import (
    EncoderFailed,
    InvalidArticle,
    InvalidSetting,
    Overloaded,
    TooLarge,
    Unavailable,
)
from pipeline.korean.morphemes import Analyser
from pipeline.parts import PartsApart, PartsHere, Starting, recipe_of
from pipeline.passages import ChunkingParameters, Passages
from pipeline.processes import Processes
from pipeline.reading import Order, ReadingProcess
from pipeline.retrieval.query import SearchRequest
from pipeline.retrieval.understanding import QueryReader
from pipeline.settings import Settings
from tests.api_server import settings_in
from tests.faults import until
from tests.test_lite_process import alive

_PATIENCE = 60.0  # seconds
_QUERIES = ("전세대출 금리", "보이스피싱을 당하면?", "여울톡 2.0", "?!", "돈 부치기")
_HOLDER = """
import sys, time
from pathlib import Path
from pipeline.reading import ReadingProcess
from pipeline.settings import Settings

process = ReadingProcess.started(Settings.model_validate({"data_dir": sys.argv[1]}))
print(process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Settings:
    encoder = {"cache_dir": environment["YEOUL_ENCODER__CACHE_DIR"]}
    return settings_in(tmp_path_factory.mktemp("reading"), encoder=encoder)


@pytest.fixture(scope="module")
def process(settings: Settings, encoder: KiwiStaticEncoder) -> Iterator[ReadingProcess]:
    assert encoder  # its table is cached
    with _started(settings) as process:
        yield process


@contextmanager
def _started(settings: Settings) -> Iterator[ReadingProcess]:
    process = ReadingProcess.started(settings)
    assert process is not None
    with closing(process):
        yield process


def _requests(*texts: str) -> list[SearchRequest]:
    return [SearchRequest.checked(text, mode=mode) for text in texts for mode in ("hybrid", "dense", "lexical")]


def _article(body: str) -> Article:
    return Article.from_mapping({"id": "a", "title": "전세대출", "body": body, "format": "markdown", "tags": ["대출"]})


def test_queries_are_read_as_they_are_here(
    process: ReadingProcess, analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    requests = _requests(*_QUERIES)
    for there, here in zip(process.read(requests), QueryReader(analyser, encoder).read(requests), strict=True):
        assert there.terms == here.terms
        assert there.failed == here.failed == {}
        assert (there.vector is None) == (here.vector is None)
        if there.vector is not None and here.vector is not None:
            np.testing.assert_array_equal(there.vector, here.vector)


def test_passages_are_made_as_they_are_here(
    process: ReadingProcess, analyser: Analyser, encoder: KiwiStaticEncoder
) -> None:
    articles = [(1, _article("# 금리\n\n" + "금리를 비교해요. 서류는 앱으로 내요. " * 60)), (2, _article(""))]
    there = process.of(articles)
    here = Passages(analyser, encoder, ChunkingParameters()).of(articles)
    assert [[one.passage for one in made] for made in there] == [[one.passage for one in made] for made in here]
    for one, other in zip(chain.from_iterable(there), chain.from_iterable(here), strict=True):
        assert one.vector is not None
        assert other.vector is not None
        np.testing.assert_array_equal(one.vector, other.vector)


def test_its_encoder_is_the_one_here(settings: Settings, process: ReadingProcess, encoder: KiwiStaticEncoder) -> None:
    apart = PartsApart.open(settings, process)
    assert apart is not None
    there = apart.encoder
    assert isinstance(there, TermEncoder)
    assert (there.id, there.dim, there.max_tokens) == (encoder.id, encoder.dim, encoder.max_tokens)
    texts = [*_QUERIES, ""]
    np.testing.assert_array_equal(there.encode_queries(texts), encoder.encode_queries(texts))
    np.testing.assert_array_equal(there.encode_passages(texts), encoder.encode_passages(texts))
    terms = [["전세", "대출"], ["여울톡"], []]
    np.testing.assert_array_equal(there.encode_terms(terms), encoder.encode_terms(terms))
    assert there.count_tokens(texts) == encoder.count_tokens(texts)


def test_what_it_raises_is_raised_here(settings: Settings, process: ReadingProcess) -> None:
    with pytest.raises(EncoderFailed, match="not Unicode"):
        process.encoded("encode_queries", ["\ud800"])
    assert process.read(_requests("금리"))[0].terms  # and it goes on


def test_every_error_survives_its_way_to_another_process() -> None:
    for error in (
        InvalidArticle("id", "#", "without #"),
        InvalidSetting("user_words", "x", "readable"),
        TooLarge("the body", 7, 5, "bytes"),
        Overloaded("a search", 9, 1.5),
        EncoderFailed("it cannot", "do this"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (str(again), again.code, again.__dict__) == (str(error), error.code, error.__dict__)


def test_killed_it_is_started_again_by_who_asks_next(settings: Settings) -> None:
    with _started(settings) as process:
        process.wait()
        first = process.pid
        assert process.ready
        _kill(first)
        until(lambda: not process.ready, _PATIENCE, "its end")
        assert process.read(_requests("금리"))[0].terms
        assert process.pid != first
        assert process.ready


def test_what_it_dies_of_every_time_is_given_up_and_everything_else_is_read(settings: Settings) -> None:
    with _started(settings) as process:
        process.wait()
        given_up = threading.Event()

        def kill_each() -> None:
            while not given_up.is_set():
                if process.ready:
                    _kill(process.pid)
                time.sleep(0.01)

        killer = threading.Thread(target=kill_each)
        killer.start()
        try:
            with pytest.raises(EncoderFailed, match=r"every time \(2\)"):
                process.of([(1, _article("금리를 비교해요. " * 50_000))])
        finally:
            given_up.set()
            killer.join()
        assert process.of([(1, _article("금리를 비교해요."))])[0][0].vector is not None


def test_queries_that_it_dies_of_name_both_legs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with _started(settings) as process:
        monkeypatch.setattr(process, "_running", _Dying)
        (understood,) = process.read([SearchRequest.checked("금리")])
        assert understood.failed.keys() == {"lexical", "dense"}
        assert (understood.vector, understood.terms) == (None, None)


def test_a_query_that_it_dies_of_fails_alone(
    process: ReadingProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process.wait()
    monkeypatch.setattr(process, "_running", lambda: _DyingOf("독이 든 질문", process._process))
    texts = ("금리", "독이 든 질문", "대출")
    before, poisoned, after = process.read([SearchRequest.checked(text) for text in texts])
    assert poisoned.failed.keys() == {"lexical", "dense"}
    for fine in (before, after):
        assert (fine.failed, fine.vector is not None, fine.terms is not None) == ({}, True, True)
    assert "'독이 든 질문' was given up" in caplog.text


@dataclass
class _DyingOf:
    """A process that reads, and ends at one query."""

    query: str
    process: Any

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass

    def exchanged(self, line: object, message: tuple[str, tuple[Sequence[SearchRequest]]]) -> object:
        if self.query in [request.text for request in message[1][0]]:
            raise EOFError
        return self.process.exchanged(line, message)


class _Dying:
    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass

    def exchanged(self, *_: object) -> None:
        raise EOFError


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        assert alive(pid)
        holder.kill()
    until(lambda: not alive(pid), _PATIENCE, "its end")


def test_a_dictionary_that_cannot_be_used_is_said(tmp_path: Path, settings: Settings) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("여울톡\tNNP\tvery much\n")
    mine = settings.model_copy(update={"user_words": words})
    with pytest.raises(InvalidSetting, match="line 1"):
        Order.of(mine)
    words.write_text("여울톡\tXYZ\t0\n")  # a tag that only Kiwi knows not to exist
    with _started(mine) as process:
        for _ in range(2):
            with pytest.raises(InvalidSetting, match="line 1"):
                process.wait()


def test_started_again_with_another_dictionary_it_reads_nothing_with_it(tmp_path: Path, settings: Settings) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("여울톡\tNNP\t0\n")
    with _started(settings.model_copy(update={"user_words": words})) as process:
        assert "여울톡" in process.read(_requests("여울톡"))[0].terms.terms  # type: ignore[union-attr]
        words.write_text("여울\tNNP\t0\n")
        _kill(process.pid)
        until(lambda: not process.ready, _PATIENCE, "its end")
        with pytest.raises(Unavailable, match="was changed since the start"):
            process.wait()


def test_parts_follow_a_recipe_in_a_new_process(settings: Settings, process: ReadingProcess) -> None:
    apart = PartsApart.open(settings, process)
    assert apart is not None
    assert apart.following(recipe_of(settings)) is apart
    chunking = settings.chunking.model_copy(update={"max_tokens": 32})
    following = apart.following(recipe_of(settings.model_copy(update={"chunking": chunking})))
    with closing(following):
        assert following.ready
        assert isinstance(following, PartsApart)
        assert following.process.pid != process.pid
        assert following.manifest == replace(apart.manifest, max_tokens=32)
        assert len(following.passages.of([(1, _article("금리를 비교해요. " * 30))])[0]) > 1


def test_without_a_table_in_a_file_the_parts_are_here(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the cache folder cannot be written."""
    monkeypatch.setattr(parts, "open_table", lambda *_: None)
    process = ReadingProcess.started(settings)
    assert process is not None
    with Starting(settings, apart=process) as starting:
        opened = starting.opened(settings)
    assert isinstance(opened, PartsHere)
    assert not alive(process.pid)


def test_a_sentence_transformer_is_read_here(tmp_path: Path) -> None:
    assert ReadingProcess.started(settings_in(tmp_path, encoder={"model": "sentence-transformers/any"})) is None


def _kill(pid: int) -> None:
    subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(pid)], check=False)


def test_a_service_says_that_kiwi_is_away_and_searches_wait_for_it(settings: Settings) -> None:
    assembly = Assembly.open(settings, command="a test", apart=Processes.start(settings, "a test"))
    parts_apart = assembly.parts
    assert isinstance(parts_apart, PartsApart)
    with TestClient(create_app(settings, assembly=assembly, on_stop=assembly.close)) as client:
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready")
        pid = parts_apart.process.pid
        _kill(pid)
        until(lambda: not parts_apart.ready, _PATIENCE, "its end")
        assert client.get("/readyz").status_code == 503 or parts_apart.ready  # it may be back already
        assert client.get("/v1/search", params={"q": "금리"}).status_code == 200
        until(lambda: client.get("/readyz").status_code == 200, _PATIENCE, "not ready")
        assert parts_apart.process.pid != pid
    assert not alive(parts_apart.process.pid)
