"""The matrix of the resident engine: unit vectors by row, in main memory or on a GPU.

The search for the nearest vectors goes over all of them and is exact: a first pass over all rows whose error has a strict
bound, and the products in float64 of those rows that the bound leaves. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray

Rows = NDArray[np.intp]
Masks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Nearest:
    """Rows intp and their inner products float64, for one query after the other; where each query's end, int64 (n + 1,)."""

    rows: Rows
    products: NDArray[np.float64]
    ends: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[Nearest]) -> Nearest:
        """The queries of all `parts`, one part after the other."""
        sizes = np.concatenate([np.diff(part.ends) for part in parts])
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.products for part in parts]),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        )


class Vectors(Protocol):
    """float32 (capacity, dim); rows never written are zero."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def capacity(self) -> int:
        """Rows there is room for."""

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix and of what is derived from it."""

    def reserve(self, capacity: int) -> None:
        """Makes room for rows below `capacity`; what is there stays where it is."""

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        """Writes float32 (len(rows), dim) at `rows`."""

    def at(self, rows: Rows) -> FloatArray:
        """float32 (len(rows), dim)."""

    def first(self, end: int) -> FloatArray:
        """float32 (end, dim): the rows below `end`, a copy."""

    def nearest(self, vectors: FloatArray, masks: Masks, mask_of: Rows, k: int, factor: float) -> Nearest:
        """For each of `vectors` float32 (n, dim) the `k` rows with the largest inner products, and all that tie with the last
        of them, ascending; among those that its mask allows: `mask_of` intp (n,) names a line of `masks` bool (m, rows in
        use). Products are rounded to the decimals of `factor`, a power of 10, and compared as they are then."""

    def products(self, rows: Rows, vectors: FloatArray, owners: Rows) -> NDArray[np.float64]:
        """float64 (len(rows),): inner products of each of `rows` with that of `vectors` float32 (n, dim) that `owners` names,
        added up in float64."""


def vectors_on(device: str, dim: int) -> Vectors:
    """An empty matrix on `cpu` or on a torch device such as `cuda`."""
    if device == "cpu":
        from pipeline.index.host_vectors import HostVectors  # noqa: PLC0415 - each imports what the other need not

        return HostVectors(dim)
    from pipeline.index.device_vectors import DeviceVectors  # noqa: PLC0415

    return DeviceVectors(dim, device)
