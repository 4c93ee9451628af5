"""The two pairs of stores that the write side is tested on: SQLite with Milvus Lite, PostgreSQL with a Milvus server.

On servers there is one database and one collection a dimension for all tests, emptied after each: to make one takes a
Milvus server seconds. Knows nothing about what the tests put in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import delete, func, select

from pipeline.storage.database import StateDatabase
from pipeline.storage.tables import metadata
from tests import milvus_server
from tests.fakes import InterruptibleCollection

PAIRS = ["embedded", pytest.param("servers", marks=[pytest.mark.server, pytest.mark.postgres])]
# A test says beside it why the servers could show nothing more, or where they do.
EMBEDDED_ALONE = pytest.mark.parametrize("pair", ["embedded"], indirect=True)
SERVERS_ALONE = pytest.mark.parametrize("pair", PAIRS[1:], indirect=True)

_FIRST = "_1"  # what an assembly puts behind `milvus.collection` for its first collection


def empty_database(url: str) -> None:
    """Of a migrated PostgreSQL database: no rows, numbers from 1 again. Quicker than TRUNCATE, which makes new files."""
    with contextlib.closing(StateDatabase.open(url)) as database, database.write() as connection:
        for table in metadata.sorted_tables:
            connection.execute(delete(table))
            column = table.autoincrement_column
            if column is not None:
                sequence = func.pg_get_serial_sequence(table.name, column.name)
                connection.execute(select(func.setval(sequence, 1, False)))


@dataclass(frozen=True, slots=True)
class Servers:
    """A Milvus server and a migrated database, which one test at a time has for itself."""

    milvus_uri: str
    database_url: str
    _made: dict[int, InterruptibleCollection] = field(default_factory=dict)

    def collection(self, dim: int) -> InterruptibleCollection:
        """The collection for vectors of `dim`; empty at the beginning of a test."""
        if dim not in self._made:
            name = f"stores_{uuid4().hex}{_FIRST}"
            opened = InterruptibleCollection.open(uri=self.milvus_uri, token=milvus_server.TOKEN, name=name, dim=dim)
            assert isinstance(opened, InterruptibleCollection)
            self._made[dim] = opened
        return self._made[dim]

    def settings(self, dim: int) -> dict[str, Any]:
        """The settings with which an assembly takes that collection for its first one."""
        name = self.collection(dim).name.removesuffix(_FIRST)
        milvus = {"uri": self.milvus_uri, "token": milvus_server.TOKEN, "collection": name}
        return {"milvus": milvus, "database_url": self.database_url}

    @contextlib.contextmanager
    def emptied(self, dim: int, *, others_write: bool = False) -> Iterator[None]:
        """Both stores are empty again after the block. `others_write`: not through the object of `collection` alone."""
        try:
            yield
        finally:
            collection = self.collection(dim)
            if others_write:
                collection.written.update(passage_id for passage_id, _, _ in collection.iterate_ids())
            collection.empty()
            empty_database(self.database_url)

    def close(self) -> None:
        for collection in self._made.values():
            collection.drop()
            collection.close()
