"""The matrix of the resident engine: unit vectors by row, in main memory or on a GPU.

The search for the nearest vectors goes over all of them and is exact: a first pass over all rows whose error has a strict
bound, and the products in float64 of those rows that the bound leaves. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


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

    def nearest(self, vectors: FloatArray, allowed: Sequence[Mask], k: int) -> list[Rows]:
        """For each of `vectors` float32 (n, dim) rows, ascending, among which are all that have one of the `k` largest inner
        products of its `allowed` ones, bool (rows in use,) each; with fewer than `k` all of these."""

    def products(self, rows: Rows, vector: FloatArray) -> NDArray[np.float64]:
        """float64 (len(rows),): inner products of `rows` with `vector` float32 (dim,), added up in float64."""


def vectors_on(device: str, dim: int) -> Vectors:
    """An empty matrix on `cpu` or on a torch device such as `cuda`."""
    if device == "cpu":
        from pipeline.index.host_vectors import HostVectors  # noqa: PLC0415 - each imports what the other need not

        return HostVectors(dim)
    from pipeline.index.device_vectors import DeviceVectors  # noqa: PLC0415

    return DeviceVectors(dim, device)
