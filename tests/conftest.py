"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import milvus_server


@pytest.fixture(scope="session")
def milvus_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Milvus server, started once; its token is `milvus_server.TOKEN`."""
    if milvus_server.server_python() is None:
        pytest.skip(milvus_server.CURE)
    uri, process = milvus_server.start(tmp_path_factory.mktemp("milvus"))
    yield uri
    milvus_server.stop(process)
