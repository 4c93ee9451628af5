"""Fixtures that several test modules share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.korean.morphemes import Analyser
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from tests import milvus_server, postgres_server
from tests.fakes import FakeEncoder, InterruptibleCollection
from tests.write_path import DIM, Stage

if TYPE_CHECKING:
    from tests.api_server import ApiServer


@pytest.fixture(scope="session")
def analyser() -> Analyser:
    """Kiwi with no user dictionary, started once (some 4 s). Add no words to it."""
    return Analyser.open()


@pytest.fixture(scope="session")
def encoder(analyser: Analyser, pytestconfig: pytest.Config) -> KiwiStaticEncoder:
    """kiwi-static; its table is derived once a checkout (8 s) and kept in pytest's cache."""
    cache = pytestconfig.cache
    return KiwiStaticEncoder.open(analyser.kiwi, cache_dir=cache.mkdir("kiwi-static") if cache is not None else None)


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Milvus server, started once; its token is `milvus_server.TOKEN`."""
    if milvus_server.server_python() is None:
        pytest.skip(milvus_server.CURE)
    uri, process = milvus_server.start(tmp_path_factory.mktemp("milvus"))
    yield uri
    milvus_server.stop(process)


@pytest.fixture(scope="session", name="postgres_server")
def running_postgres_server() -> Iterator[postgres_server.Server]:
    """A real PostgreSQL, started once. A test that stops it starts it again."""
    if postgres_server.server_binaries() is None:
        pytest.skip(postgres_server.CURE)
    with tempfile.TemporaryDirectory(prefix="yeoul-postgres-") as folder:
        _, server = postgres_server.start(Path(folder))
        yield server
        postgres_server.stop(server)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of its own."""
    server: postgres_server.Server = request.getfixturevalue("postgres_server")
    url = postgres_server.new_database(server.url)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty state database, on each back end that there is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def api_server(
    tmp_path_factory: pytest.TempPathFactory, analyser: Analyser, encoder: KiwiStaticEncoder
) -> Iterator[ApiServer]:
    """A whole service over HTTP with `api_server.ARTICLES` in it. Tests add articles with ids and words of their own."""
    from tests import api_server  # noqa: PLC0415 - the web framework and torch: only for tests that need them

    settings = api_server.settings_in(tmp_path_factory.mktemp("api"))
    with api_server.running(settings, analyser, encoder) as server:
        server.publish(api_server.ARTICLES)
        yield server


@pytest.fixture(scope="session")
def collection_of_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, InterruptibleCollection]]:
    """The address and the collection of `stage`, one for all tests: making it takes a second, emptying it does not."""
    uri = str(tmp_path_factory.mktemp("stage") / "milvus.db")
    opened = InterruptibleCollection.open(uri=uri, name="stage", dim=DIM)
    assert isinstance(opened, InterruptibleCollection)
    yield uri, opened
    opened.close()


@pytest.fixture
def stage(
    collection_of_stage: tuple[str, InterruptibleCollection], tmp_path: Path, analyser: Analyser
) -> Iterator[Stage]:
    """The write path over an empty registry and an empty collection."""
    uri, collection = collection_of_stage
    collection.away = False
    collection.delete([passage_id for passage_id, _, _ in collection.iterate_ids()])
    database = StateDatabase.open(f"sqlite:///{tmp_path / 'state.db'}")
    yield Stage(ArticleStore(database), collection, FakeEncoder(DIM), analyser, uri)
    database.close()
