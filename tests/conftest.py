"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.encoding.kiwi_static import KiwiStaticEncoder
from pipeline.korean.morphemes import Analyser
from tests import milvus_server


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
