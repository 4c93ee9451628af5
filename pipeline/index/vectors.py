"""The matrix of the resident engine: unit vectors by row, in main memory (numpy) or on a GPU (torch).

On the processor numpy's product with one vector takes a quarter of torch's time, and not importing torch saves every start
a second and 150 MB; on a GPU the matrix stays where the products are made. Not thread-safe: its owner locks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.intp]


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
        """Bytes of the matrix."""

    def reserve(self, capacity: int) -> None:
        """Makes room for rows below `capacity`; what is there stays."""

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        """Writes float32 (len(rows), dim) at `rows`."""

    def at(self, rows: Rows) -> FloatArray:
        """float32 (len(rows), dim)."""

    def first(self, end: int) -> FloatArray:
        """float32 (end, dim): the rows below `end`, to read only."""

    def products(self, vector: FloatArray, end: int) -> FloatArray:
        """float32 (end,): inner products of the rows below `end` with `vector` (dim,)."""


def vectors_on(device: str, dim: int) -> Vectors:
    """An empty matrix on `cpu` or on a torch device such as `cuda`."""
    return HostVectors(dim) if device == "cpu" else DeviceVectors(dim, device)


class HostVectors:
    """`Vectors` in main memory."""

    def __init__(self, dim: int) -> None:
        self._matrix: FloatArray = np.zeros((0, dim), dtype=np.float32)

    @property
    def dim(self) -> int:
        return int(self._matrix.shape[1])

    @property
    def capacity(self) -> int:
        return len(self._matrix)

    @property
    def nbytes(self) -> int:
        return self._matrix.nbytes

    def reserve(self, capacity: int) -> None:
        grown = np.zeros((capacity, self.dim), dtype=np.float32)
        grown[: len(self._matrix)] = self._matrix
        self._matrix = grown

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        self._matrix[rows] = vectors

    def at(self, rows: Rows) -> FloatArray:
        return self._matrix[rows]

    def first(self, end: int) -> FloatArray:
        return self._matrix[:end]

    def products(self, vector: FloatArray, end: int) -> FloatArray:
        found: FloatArray = self._matrix[:end] @ vector
        return found


class DeviceVectors:
    """`Vectors` on a GPU."""

    def __init__(self, dim: int, device: str) -> None:
        import torch  # noqa: PLC0415 - see the module's docstring

        self._torch = torch
        self._matrix: torch.Tensor = torch.zeros((0, dim), dtype=torch.float32, device=device)

    @property
    def dim(self) -> int:
        return int(self._matrix.shape[1])

    @property
    def capacity(self) -> int:
        return len(self._matrix)

    @property
    def nbytes(self) -> int:
        return self._matrix.numel() * self._matrix.element_size()

    def reserve(self, capacity: int) -> None:
        grown = self._torch.zeros((capacity, self.dim), dtype=self._matrix.dtype, device=self._matrix.device)
        grown[: len(self._matrix)] = self._matrix
        self._matrix = grown

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        self._matrix[self._moved(rows)] = self._moved(np.ascontiguousarray(vectors))

    def at(self, rows: Rows) -> FloatArray:
        found: FloatArray = self._matrix[self._moved(rows)].cpu().numpy()
        return found

    def first(self, end: int) -> FloatArray:
        found: FloatArray = self._matrix[:end].cpu().numpy()
        return found

    def products(self, vector: FloatArray, end: int) -> FloatArray:
        found: FloatArray = self._torch.mv(self._matrix[:end], self._moved(np.ascontiguousarray(vector))).cpu().numpy()
        return found

    def _moved(self, array: NDArray[np.float32] | Rows) -> torch.Tensor:
        return self._torch.from_numpy(array).to(self._matrix.device)
