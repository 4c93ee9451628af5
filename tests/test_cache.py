"""The cache of evaluations: what goes in comes out, and what is not whole is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.cache import ArrayCache, Arrays, Key

KEY: Key = {"corpus": "abc", "dim": 3, "format": 1}
ARRAYS: Arrays = {
    "vectors": np.arange(12, dtype=np.float32).reshape(4, 3),
    "passages": np.frombuffer("가나다".encode(), dtype=np.uint8),
    "ends": np.array([], dtype=np.int64),
}


def test_arrays_come_back_equal_and_of_the_same_type(tmp_path: Path) -> None:
    ArrayCache(tmp_path / "new" / "folder").store(KEY, ARRAYS)
    found = ArrayCache(tmp_path / "new" / "folder").load(KEY)
    assert found is not None
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_only_the_very_key_finds_them(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.store(KEY, ARRAYS)
    assert cache.load(dict(reversed(list(KEY.items())))) is not None
    assert cache.load({**KEY, "dim": 4}) is None
    assert cache.load({**KEY, "more": 1}) is None


def test_a_file_of_another_key_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ArrayCache(tmp_path)
    cache.store(KEY, ARRAYS)
    other = {**KEY, "dim": 4}
    cache.path(KEY).rename(cache.path(other))
    with caplog.at_level(logging.WARNING):
        assert cache.load(other) is None
    assert "another corpus or encoder" in caplog.text


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_file_gives_nothing_or_what_was_stored(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A byte changed or an end cut off: never other numbers than those that were stored, never an error."""
    cache = ArrayCache(tmp_path_factory.mktemp("cache"))
    cache.store(KEY, ARRAYS)
    content = bytearray(cache.path(KEY).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    cache.path(KEY).write_bytes(content)
    found = cache.load(KEY)
    if found is not None:
        assert set(found) == set(ARRAYS)
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_folder_that_cannot_be_written_is_said_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = ArrayCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        cache.store(KEY, ARRAYS)
        assert cache.load(KEY) is None
    assert "cannot be cached" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_store_leaves_one_file_and_replaces_it_whole(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.store(KEY, ARRAYS)
    cache.store(KEY, {"vectors": np.zeros(1)})
    assert list(tmp_path.iterdir()) == [cache.path(KEY)]
    assert set(cache.load(KEY) or ()) == {"vectors"}
