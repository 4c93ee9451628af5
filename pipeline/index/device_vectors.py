"""`Vectors` on a GPU: the matrix stays there, and only the best rows of a query come back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray
from pipeline.index.vectors import Mask, Rows

_ERROR = 1e-5  # of a product of unit vectors in float32, far above what the order of the additions makes
_MORE = 64  # rows fetched beyond k: seldom are more of them as near as the error leaves open
_MOST_PRODUCTS_BYTES = 1 << 30  # 1 GB of products at a time: more queries are cut into parts


class DeviceVectors:
    """`Vectors` on a torch device."""

    def __init__(self, dim: int, device: str) -> None:
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
        if capacity <= self.capacity:
            return
        # Doubled: a copy inside the device's memory takes a millisecond a gigabyte.
        grown = torch.zeros(
            (max(capacity, 2 * self.capacity), self.dim), dtype=self._matrix.dtype, device=self._matrix.device
        )
        grown[: len(self._matrix)] = self._matrix
        self._matrix = grown

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        self._matrix[self._moved(rows)] = self._moved(np.ascontiguousarray(vectors))

    def at(self, rows: Rows) -> FloatArray:
        found: FloatArray = self._matrix[self._moved(rows)].cpu().numpy()
        return found

    def first(self, end: int) -> FloatArray:
        found: FloatArray = self._matrix[:end].cpu().numpy().copy()
        return found

    def nearest(self, vectors: FloatArray, allowed: Sequence[Mask], k: int) -> list[Rows]:
        rows = max(map(len, allowed), default=0)
        at_once = max(1, _MOST_PRODUCTS_BYTES // max(1, rows * 4))
        found: list[Rows] = []
        for start in range(0, len(vectors), at_once):
            found += self._nearest(vectors[start : start + at_once], allowed[start : start + at_once], rows, k)
        return found

    def products(self, rows: Rows, vector: FloatArray) -> NDArray[np.float64]:
        lines = self._matrix[self._moved(np.asarray(rows, dtype=np.intp))].double()
        found: NDArray[np.float64] = (lines @ self._moved(vector.astype(np.float64))).cpu().numpy()
        return found

    def _nearest(self, vectors: FloatArray, allowed: Sequence[Mask], rows: int, k: int) -> list[Rows]:
        queries = self._moved(np.ascontiguousarray(vectors, dtype=np.float32))
        products = queries @ self._matrix[:rows].T
        moved: dict[int, torch.Tensor] = {}  # a mask that several queries share travels once
        for number, mask in enumerate(allowed):
            if not mask.all():
                refused = moved.setdefault(id(mask), self._moved(~mask))
                products[number].masked_fill_(refused, -torch.inf)
        fetched = min(rows, k + _MORE)
        best, places = products.topk(fetched)
        values, found = best.cpu().numpy(), places.cpu().numpy()
        nearest: list[Rows] = []
        for number in range(len(queries)):
            least = (values[number, k - 1] if k <= fetched else -np.inf) - 2 * _ERROR
            if fetched < rows and values[number, -1] >= least:  # as many more may be as near
                chosen = torch.nonzero(products[number] >= float(least))[:, 0].cpu().numpy()
            else:
                chosen = found[number][values[number] >= least]
            nearest.append(np.sort(chosen[allowed[number][chosen]]).astype(np.intp))
        return nearest

    def _moved(self, array: NDArray[np.float32] | NDArray[np.float64] | Rows | Mask) -> torch.Tensor:
        return torch.from_numpy(array).to(self._matrix.device)
