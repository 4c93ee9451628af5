"""The filter fields of the resident engine as arrays by row: a filter is a handful of vectorised comparisons.

Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from pipeline.documents import Passage
from pipeline.index.filters import Filter
from pipeline.index.lexical import part_of

_NO_TIME = np.iinfo(np.int64).min  # published_at of a passage that has none: fails every condition on time
_NO_VALUE = -1  # code of a missing category, series or source
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CODED = ("category", "series", "source")

Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]


class FilterColumns:
    """The filter fields of some rows."""

    def __init__(self) -> None:
        self._used = np.zeros(0, dtype=bool)
        self._published = np.zeros(0, dtype=np.int64)
        self._codes = {name: np.zeros(0, dtype=np.int32) for name in _CODED}
        self._code_of: dict[str, dict[str, int]] = {name: {} for name in _CODED}
        self._rows_of_tag: dict[str, set[int]] = defaultdict(set)
        self._tags: dict[int, tuple[str, ...]] = {}
        self._length = 0

    @property
    def used(self) -> Mask:
        """bool (rows in use,): which rows hold a passage."""
        return self._used[: self._length]

    def reserve(self, capacity: int) -> None:
        more = capacity - len(self._used)
        self._used = np.concatenate([self._used, np.zeros(more, dtype=bool)])
        self._published = np.concatenate([self._published, np.full(more, _NO_TIME, dtype=np.int64)])
        for name in _CODED:
            self._codes[name] = np.concatenate([self._codes[name], np.full(more, _NO_VALUE, dtype=np.int32)])

    def add(self, rows: Rows, passages: Sequence[Passage]) -> None:
        self._length = max(self._length, int(rows.max()) + 1)
        self._used[rows] = True
        self._published[rows] = [_microseconds(p.published_at) for p in passages]
        for name in _CODED:
            self._codes[name][rows] = [self._code(name, getattr(p, name)) for p in passages]
        for row, passage in zip(rows.tolist(), passages, strict=True):
            self._tags[row] = passage.tags
            for tag in passage.tags:
                self._rows_of_tag[tag].add(row)

    def remove(self, rows: Rows) -> None:
        self._used[rows] = False
        for row in rows.tolist():
            for tag in self._tags.pop(row):
                self._rows_of_tag[tag].discard(row)

    def state(self) -> dict[str, NDArray[Any]]:
        """Every column; names of codes and tags as JSON in bytes."""
        named = {"code_of": self._code_of, "tags": [[row, *tags] for row, tags in self._tags.items()]}
        return {
            "used": self._used,
            "published": self._published,
            "length": np.array([self._length]),
            "named": np.frombuffer(orjson.dumps(named), dtype=np.uint8),
            **{f"codes.{name}": codes for name, codes in self._codes.items()},
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        named = orjson.loads(state["named"].tobytes())
        self._used, self._published = state["used"], state["published"]
        self._length = int(state["length"][0])
        self._codes = part_of(state, "codes.")
        self._code_of = named["code_of"]
        self._tags = {row: tuple(tags) for row, *tags in named["tags"]}
        self._rows_of_tag = defaultdict(set)
        for row, tags in self._tags.items():
            for tag in tags:
                self._rows_of_tag[tag].add(row)

    def mask(self, filter_: Filter) -> Mask:
        """bool (rows in use,): which rows hold a visible passage that passes."""
        end = self._length
        mask = self._used[:end].copy()
        for name in _CODED:
            value = getattr(filter_, name)
            if value is not None:
                mask &= self._codes[name][:end] == self._code_of[name].get(value, _NO_VALUE - 1)
        if filter_.tag is not None:
            tagged = np.zeros(end, dtype=bool)
            tagged[list(self._rows_of_tag.get(filter_.tag, ()))] = True
            mask &= tagged
        if filter_.since is not None:
            mask &= self._published[:end] >= _microseconds(filter_.since)
        if filter_.until is not None:
            published = self._published[:end]
            mask &= (published < _microseconds(filter_.until)) & (published != _NO_TIME)
        return mask

    def _code(self, name: str, value: str | None) -> int:
        return _NO_VALUE if value is None else self._code_of[name].setdefault(value, len(self._code_of[name]))


def _microseconds(moment: datetime | None) -> int:
    return _NO_TIME if moment is None else (moment - _EPOCH) // timedelta(microseconds=1)
