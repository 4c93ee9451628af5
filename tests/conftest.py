"""Fixtures that several test modules share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.index import lite
from pipeline.korean.morphemes import Analyser
from pipeline.storage.articles import ArticleStore
from pipeline.storage.database import StateDatabase
from tests import milvus_server, postgres_server
from tests.fakes import FakeEncoder, InterruptibleCollection
from tests.stores import PAIRS, Servers
from tests.write_path import DIM, Stage

if TYPE_CHECKING:
    from tests.api_server import ApiServer

_SLOW = [hypothesis.HealthCheck.too_slow]  # as a busy machine is now and then
hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=_SLOW)
hypothesis.settings.load_profile("any machine")

# Files of minutes, which one worker should not have before them at the end, when there is nothing else left to do.
_FIRST = (
    "test_faults.py", "test_cli.py", "test_live_model.py", "test_rebuild.py", "test_commands.py", "test_bench_search.py",
    "test_workers.py", "test_collection.py", "test_crash.py", "test_pair.py",
)  # fmt: skip
_LAST = ("test_bench.py",)  # what loads an index there takes the processor only where nobody else wants it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.name))


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST) + (name in _LAST)


@pytest.fixture(scope="session")
def environment(pytestconfig: pytest.Config) -> dict[str, str]:
    """For processes of `yeoul`: kiwi-static's table is derived once a checkout."""
    cache = pytestconfig.cache
    return {"YEOUL_ENCODER__CACHE_DIR": str(cache.mkdir("kiwi-static"))} if cache is not None else {}


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


@pytest.fixture(autouse=True)
def _patience_with_milvus(request: pytest.FixtureRequest) -> Iterator[None]:
    """For who uses the server of the session, which nobody stops; `milvus` is one to be killed."""
    stays = request.node.get_closest_marker("server") is not None and "milvus" not in request.fixturenames
    with milvus_server.patiently() if stays else nullcontext():
        yield


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


@pytest.fixture(scope="module")
def module_postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """One for all tests of a file: emptying it is a tenth of the work of making it."""
    server: postgres_server.Server = request.getfixturevalue("postgres_server")
    url = postgres_server.new_database(server.url)
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(scope="module")
def stores_of_processes(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    """What `deployed` and `prepared` are told of a PostgreSQL database, empty, and of a Milvus server; their processes take
    kiwi-static's table from where the other tests have it."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        yield {
            "database_url": request.getfixturevalue("module_postgres_url"),
            "milvus_uri": request.getfixturevalue("milvus_uri"),
            "milvus_token": milvus_server.TOKEN,
        }


@pytest.fixture(scope="session")
def migrated_template(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database that holds the schema and nothing else: copying it is quicker than migrating."""
    server: postgres_server.Server = request.getfixturevalue("postgres_server")
    url = postgres_server.new_database(server.url)
    StateDatabase.open(url).close()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without a schema, on each back end that there is."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a state database with nothing in it, on each back end that there is."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state.db'}"
        return
    template = request.getfixturevalue("migrated_template")
    url = postgres_server.new_database(template, template=template)
    yield url
    postgres_server.drop_database(url)


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
def servers(request: pytest.FixtureRequest, milvus_uri: str) -> Iterator[Servers]:
    """A Milvus server and a PostgreSQL with stores that are emptied for each test."""
    server: postgres_server.Server = request.getfixturevalue("postgres_server")
    url = postgres_server.new_database(server.url)
    made = Servers(milvus_uri, url)
    yield made
    made.close()
    postgres_server.drop_database(url)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> str:
    """Each pair of stores in turn; a test that needs one alone says so with a mark of `tests/stores.py`."""
    return str(request.param)


@pytest.fixture
def stores_of(pair: str, request: pytest.FixtureRequest) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Gives, for a dimension, the settings of an assembly on these stores; what is left of it there is deleted after it."""
    with ExitStack() as after:

        def settings(dim: int) -> dict[str, Any]:
            if pair == "embedded":
                return {}
            servers: Servers = request.getfixturevalue("servers")
            after.enter_context(servers.emptied(dim, others_write=True))
            return servers.settings(dim)

        yield settings


@pytest.fixture(scope="session")
def lite_collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, InterruptibleCollection]]:
    """The address and the collection of `stage` in Milvus Lite, one for all tests, as the servers have it; in a process of its
    own, as `yeoul serve` has it."""
    folder = tmp_path_factory.mktemp("stage") / "milvus.db"
    with lite.apart(folder):
        opened = InterruptibleCollection.open(uri=str(folder), name="stage", dim=DIM)
        assert isinstance(opened, InterruptibleCollection)
        yield str(folder), opened
        opened.close()


@pytest.fixture
def stage(pair: str, request: pytest.FixtureRequest, tmp_path: Path, analyser: Analyser) -> Iterator[Stage]:
    """The write path over an empty registry and an empty collection, on each pair of stores."""
    with ExitStack() as after:
        if pair == "servers":
            servers: Servers = request.getfixturevalue("servers")
            after.enter_context(servers.emptied(DIM))
            uri, collection, url = servers.milvus_uri, servers.collection(DIM), servers.database_url
        else:
            uri, collection = request.getfixturevalue("lite_collection")
            url = f"sqlite:///{tmp_path / 'state.db'}"
            after.callback(collection.empty)
        collection.away = False
        database = StateDatabase.open(url)
        after.callback(database.close)
        yield Stage(ArticleStore(database), collection, FakeEncoder(DIM), analyser, uri)
