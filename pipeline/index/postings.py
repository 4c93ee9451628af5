"""Postings that live: which rows hold which terms how often, with adds and removes and no rebuild.

A log-structured merge: each add makes an immutable-sized segment (compressed sparse rows by term), neighbours of like size
are merged, so a posting is rewritten O(log n) times and a pause is bounded by the cap of a segment. A removed posting
is erased in place (its count becomes 0) and purged when its segment is next rewritten, so a row that is used again
cannot bring back what stood there before.

Knows term *numbers* and rows; nothing about words, lengths or scores. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.intp]
TermNumbers = NDArray[np.int32]

SEGMENT_POSTINGS = 1 << 21  # cap of a merge: about 7,000 passages, some 0.2 s of pause for the largest
MAX_TF = np.iinfo(np.uint8).max  # occurrences of one term in one passage: more than that are not told apart
_ABSENT = -1  # home of a row that is not in use
_SEGMENT_ARRAYS = ("terms", "starts", "rows", "tf", "members")  # of a Segment
_TERM_SHIFT = 32  # a posting's sort key is term << 32 | row: both are below 2**31


@dataclass(slots=True, eq=False)
class Segment:
    """Postings of some rows, ordered by term, then row.

    `terms` int32 (t,): the distinct terms, ascending; `starts` int64 (t + 1,): term i's postings are `starts[i]` to
    `starts[i + 1]` of `rows` int32 (p,) and `tf` uint8 (p,); an erased posting has tf 0. `members` int32: the rows it
    was built for, of which some may have been removed since. `serial` names it in the home table.
    """

    serial: int
    terms: NDArray[np.int32]
    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    tf: NDArray[np.uint8]
    members: NDArray[np.int32]
    erased: int = 0

    @classmethod
    def from_keys(
        cls, serial: int, keys: NDArray[np.int64], tf: NDArray[np.uint8], members: NDArray[np.int32]
    ) -> Segment:
        """The segment of distinct ascending `keys` (term << 32 | row) with their counts."""
        term_of = keys >> _TERM_SHIFT
        first = _changes(term_of)
        return cls(
            serial=serial,
            terms=term_of[first].astype(np.int32),
            starts=np.append(first, len(keys)).astype(np.int64),
            rows=(keys & ((1 << _TERM_SHIFT) - 1)).astype(np.int32),
            tf=tf,
            members=members,
        )

    @property
    def live(self) -> int:
        """Postings that are not erased."""
        return len(self.rows) - self.erased

    @property
    def nbytes(self) -> int:
        arrays = (self.terms, self.starts, self.rows, self.tf, self.members)
        return sum(array.nbytes for array in arrays)

    def keys(self) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Keys and counts of the postings that are not erased, ascending."""
        keys = np.repeat(self.terms.astype(np.int64) << _TERM_SHIFT, np.diff(self.starts))
        keys |= self.rows
        if not self.erased:
            return keys, self.tf
        kept = self.tf > 0
        return keys[kept], self.tf[kept]

    @property
    def addresses(self) -> list[int]:
        """Where its arrays lie in memory, as the kernels read them: terms, how many these are, starts, rows, tf."""
        terms, starts, rows, tf = (
            array.__array_interface__["data"][0] for array in (self.terms, self.starts, self.rows, self.tf)
        )
        return [terms, len(self.terms), starts, rows, tf]

    def erase(self, rows: Integers) -> Integers:
        """Erases every posting of `rows`; the terms that lost one, an entry a posting.

        One pass over the segment's rows: a forward index would save it and cost 40% more memory.
        """
        low, high = int(rows.min()), int(rows.max())
        # Subtracting first lets one unsigned comparison test both ends: rows below `low` wrap around to huge numbers.
        near = np.flatnonzero((self.rows - np.int32(low)).view(np.uint32) <= high - low)
        gone = np.zeros(high - low + 1, dtype=bool)
        gone[rows - low] = True
        hit = near[gone[self.rows[near] - low]]
        self.tf[hit] = 0
        self.erased += len(hit)
        owners: Integers = self.terms[np.searchsorted(self.starts, hit, side="right") - 1].astype(np.intp)
        return owners


class Postings:
    """All segments, and the home of each row: the segment in which its postings are."""

    def __init__(self, segment_postings: int = SEGMENT_POSTINGS) -> None:
        self._cap = segment_postings
        self._segments: dict[int, Segment] = {}  # by serial
        self._next_serial = 0
        self._home: NDArray[np.int32] = np.empty(0, dtype=np.int32)
        self._addresses: NDArray[np.int64] | None = None  # made when it is asked for, dropped with every change

    @property
    def capacity(self) -> int:
        """Rows there is room for: every row in use is below it."""
        return len(self._home)

    @property
    def segments(self) -> int:
        return len(self._segments)

    @property
    def nbytes(self) -> int:
        return self._home.nbytes + sum(segment.nbytes for segment in self._segments.values())

    def alive(self) -> NDArray[np.bool_]:
        """(capacity,) bool: which rows are in use."""
        used: NDArray[np.bool_] = self._home != _ABSENT
        return used

    def in_use(self, rows: Integers) -> NDArray[np.bool_]:
        """(len(rows),) bool; rows may lie outside the capacity."""
        used = (rows >= 0) & (rows < self.capacity)
        used[used] = self._home[rows[used]] != _ABSENT
        return used

    def reserve(self, capacity: int) -> None:
        """Makes room for rows below `capacity`; never shrinks."""
        grown = np.full(max(capacity, self.capacity), _ABSENT, dtype=np.int32)
        grown[: self.capacity] = self._home
        self._home = grown

    def add(self, rows: Integers, terms: TermNumbers, counts: Integers) -> Integers:
        """Takes documents in: `terms` holds `counts[i]` occurrences for `rows[i]`, one after the other.

        The rows are distinct, below the capacity and not in use. Returns the distinct terms of each document,
        concatenated: what the document frequencies grow by.
        """
        keys = terms.astype(np.int64)
        keys <<= _TERM_SHIFT
        keys |= np.repeat(rows, counts)
        keys.sort()
        first = _changes(keys)
        tf = np.minimum(np.diff(first, append=len(keys)), MAX_TF).astype(np.uint8)
        keys = keys[first]
        self._place(keys, tf, rows.astype(np.int32))
        self._settle()
        distinct: Integers = (keys >> _TERM_SHIFT).astype(np.intp)
        return distinct

    def remove(self, rows: Integers) -> Integers:
        """Erases distinct rows in use; the terms they held, an entry a posting."""
        homes = self._home[rows]
        self._home[rows] = _ABSENT
        lost = [self._segments[serial].erase(rows[homes == serial]) for serial in np.unique(homes).tolist()]
        self._settle()
        return np.concatenate(lost) if lost else np.empty(0, dtype=np.intp)

    def addresses(self) -> NDArray[np.int64]:
        """int64 (segments, 5): the addresses of all segments' arrays; they hold until the next add, removal or restore."""
        if self._addresses is None:
            lines = [segment.addresses for segment in self._segments.values()]
            self._addresses = np.array(lines, dtype=np.int64).reshape(-1, 5)
        return self._addresses

    def state(self) -> dict[str, NDArray[Any]]:
        """Every array, by name; `restore` makes equal postings of it. The arrays are this object's own: do not write."""
        arrays: dict[str, NDArray[Any]] = {"home": self._home}
        for serial, segment in self._segments.items():
            arrays |= {f"{serial}.{name}": getattr(segment, name) for name in _SEGMENT_ARRAYS}
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Takes the place of what is here; the arrays become this object's own and are written to."""
        self._home = state["home"]
        serials = sorted({int(name.split(".")[0]) for name in state if "." in name})
        self._segments = {
            serial: Segment(
                serial=serial,
                terms=state[f"{serial}.terms"],
                starts=state[f"{serial}.starts"],
                rows=state[f"{serial}.rows"],
                tf=state[f"{serial}.tf"],
                members=state[f"{serial}.members"],
            )
            for serial in serials
        }
        self._addresses = None
        for segment in self._segments.values():
            segment.erased = int(np.count_nonzero(segment.tf == 0))
        self._next_serial = serials[-1] + 1 if serials else 0

    def _place(self, keys: NDArray[np.int64], tf: NDArray[np.uint8], members: NDArray[np.int32]) -> None:
        segment = Segment.from_keys(self._next_serial, keys, tf, members)
        self._next_serial += 1
        self._segments[segment.serial] = segment
        self._addresses = None
        self._home[members] = segment.serial

    def _settle(self) -> None:
        """Restores the shape: no segment more than half erased, no two of like size that fit under the cap together."""
        while (chosen := self._next_rewrite()) is not None:
            parts = [segment.keys() for segment in chosen]
            members = np.concatenate(
                [segment.members[self._home[segment.members] == segment.serial] for segment in chosen]
            )
            for segment in chosen:
                del self._segments[segment.serial]
            self._addresses = None
            if not len(members):
                continue
            keys = np.concatenate([keys for keys, _ in parts])
            order = np.argsort(keys, kind="stable")  # timsort: joins ascending runs in linear time
            tf = np.concatenate([tf for _, tf in parts])
            self._place(keys[order], tf[order], members)

    def _next_rewrite(self) -> list[Segment] | None:
        ordered = sorted(self._segments.values(), key=lambda segment: segment.live)
        for segment in ordered:
            if segment.erased > segment.live:
                return [segment]
        for small, large in pairwise(ordered):
            if large.live <= 2 * small.live and small.live + large.live <= self._cap:
                return [small, large]
        return None


def _changes(ascending: NDArray[np.int64]) -> Integers:
    """Where a value differs from the one before it, the first place included."""
    return np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)])
