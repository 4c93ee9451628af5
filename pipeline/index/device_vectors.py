"""`Vectors` on a GPU: the matrix stays there, and only the best rows of a query come back."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray
from pipeline.index.vectors import Masks, Nearest, Rows

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

    def nearest(self, vectors: FloatArray, masks: Masks, mask_of: Rows, k: int, factor: float) -> Nearest:
        at_once = max(1, _MOST_PRODUCTS_BYTES // max(1, masks.shape[1] * 4))
        parts = [
            self._nearest(vectors[start : start + at_once], masks, mask_of[start : start + at_once], k, factor)
            for start in range(0, len(vectors), at_once)
        ]
        return Nearest.joined(parts)

    def products(self, rows: Rows, vectors: FloatArray, owners: Rows) -> NDArray[np.float64]:
        lines, asked = self._matrix[self._moved(rows)].double(), self._moved(vectors.astype(np.float64))
        found: NDArray[np.float64] = (lines * asked[self._moved(owners)]).sum(dim=1).cpu().numpy()
        return found

    def _nearest(self, vectors: FloatArray, masks: Masks, mask_of: Rows, k: int, factor: float) -> Nearest:
        rows = masks.shape[1]
        products = self._moved(np.ascontiguousarray(vectors, dtype=np.float32)) @ self._matrix[:rows].T
        allowed = self._moved(masks)
        if not masks.all():
            products.masked_fill_(~allowed[self._moved(mask_of)], -torch.inf)
        fetched = min(rows, k + _MORE)
        best, places = products.topk(fetched)
        values, found = best.cpu().numpy(), places.cpu().numpy()
        parts: list[tuple[Rows, NDArray[np.float64]]] = []
        for query in range(len(vectors)):
            least = float(values[query, k - 1]) - 2 * _ERROR if k <= fetched else -np.inf
            if fetched < rows and values[query, -1] >= least:  # as many more may be as near
                chosen = torch.nonzero(products[query] >= least)[:, 0].cpu().numpy()
            else:
                chosen = found[query][values[query] >= least]
            near = np.sort(chosen[masks[mask_of[query], chosen]]).astype(np.intp)
            exact = np.round(self.products(near, vectors, np.full(len(near), query)) * factor) / factor
            kept = exact >= (np.partition(exact, -k)[-k] if len(exact) > k else -np.inf)
            parts.append((near[kept], exact[kept]))
        ends = np.cumsum([0, *(len(near) for near, _ in parts)], dtype=np.int64)
        return Nearest(np.concatenate([near for near, _ in parts]), np.concatenate([exact for _, exact in parts]), ends)

    def _moved(self, array: NDArray[np.float32] | NDArray[np.float64] | Rows | Masks) -> torch.Tensor:
        return torch.from_numpy(array).to(self._matrix.device)
