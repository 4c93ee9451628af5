"""`Vectors` in main memory, in blocks: what is there never moves, and room for more is one block more.

The first pass reads a quarter of the bytes where the processor multiplies 8-bit integers fast (`int8_kernels`): each vector is
also kept as int8 with a scale of its own. Elsewhere, and for small matrices, it is numpy's product in float32. How much a row's
int8 vector is off is known when it is written, so the rows that can be among the nearest are known for certain
(`dense_kernels.nearest`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray
from pipeline.index import dense_kernels, int8_kernels
from pipeline.index.vectors import Masks, Nearest, Rows

BLOCK_ROWS = 1 << 12  # 4 MB of float32 with 256 dimensions
INT8_FROM_ROWS = 20_000  # below, float32 takes little longer
_FLOAT_ERROR = 1e-5  # of a product of unit vectors in float32, far above what the order of the additions makes
_MOST_PRODUCTS_BYTES = 1 << 26  # 64 MB of first-pass products at a time: more queries are cut into parts

_NO_PRODUCTS = np.zeros(0, dtype=np.int32)


class HostVectors:
    """`Vectors` on the processor."""

    def __init__(self, dim: int, *, int8_from: int = INT8_FROM_ROWS) -> None:
        self._dim = dim
        self._int8_from = int8_from
        self._blocks: list[FloatArray] = []
        self._addresses = np.zeros(0, dtype=np.int64)
        self._coarse: list[int8_kernels.Block] = []  # by block, where the first pass is in int8
        self._coarse_addresses = np.zeros(0, dtype=np.int64)
        self._scales = np.ones(0, dtype=np.float32)  # by row: a coarse vector times its scale is near the vector
        self._errors = np.zeros(0, dtype=np.float32)  # by row: how far it is off
        self._of_thread = threading.local()  # `products`: memory of the first pass

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def capacity(self) -> int:
        return len(self._blocks) * BLOCK_ROWS

    @property
    def nbytes(self) -> int:
        matrices = sum(block.nbytes for block in self._blocks) + sum(block.nbytes for block in self._coarse)
        return matrices + self._scales.nbytes + self._errors.nbytes

    def reserve(self, capacity: int) -> None:
        filled = len(self._blocks)
        while self.capacity < capacity:
            self._blocks.append(np.zeros((BLOCK_ROWS, self._dim), dtype=np.float32))
            self._scales = np.append(self._scales, np.ones(BLOCK_ROWS, dtype=np.float32))
            self._errors = np.append(self._errors, np.full(BLOCK_ROWS, _FLOAT_ERROR, dtype=np.float32))
        self._addresses = _addresses_of(self._blocks)
        if self.capacity >= self._int8_from and int8_kernels.available():
            for block in range(len(self._coarse), len(self._blocks)):
                self._coarse.append(int8_kernels.empty_block(BLOCK_ROWS, self._dim))
                if block < filled:
                    self._coarsen(block, np.arange(BLOCK_ROWS))
            self._coarse_addresses = _addresses_of(self._coarse)

    def put(self, rows: Rows, vectors: FloatArray) -> None:
        for block, places, chosen in _by_block(rows):
            self._blocks[block][places] = vectors[chosen]
            if self._coarse:
                self._coarsen(block, places)

    def at(self, rows: Rows) -> FloatArray:
        found = np.empty((len(rows), self._dim), dtype=np.float32)
        for block, places, chosen in _by_block(rows):
            found[chosen] = self._blocks[block][places]
        return found

    def first(self, end: int) -> FloatArray:
        if not self._blocks:
            return np.zeros((0, self._dim), dtype=np.float32)
        return np.concatenate(self._blocks[: -(-end // BLOCK_ROWS)] or self._blocks[:1])[:end]

    def nearest(self, vectors: FloatArray, masks: Masks, mask_of: Rows, k: int, factor: float) -> Nearest:
        blocks = -(-masks.shape[1] // BLOCK_ROWS)
        at_once = max(1, _MOST_PRODUCTS_BYTES // (max(1, blocks) * BLOCK_ROWS * 4))
        parts = [
            self._nearest(vectors[start : start + at_once], blocks, masks, mask_of[start : start + at_once], k, factor)
            for start in range(0, len(vectors), at_once)
        ]
        return Nearest.joined(parts)

    def products(self, rows: Rows, vectors: FloatArray, owners: Rows) -> NDArray[np.float64]:
        found: NDArray[np.float64] = dense_kernels.exact_products(
            self._addresses, BLOCK_ROWS, vectors.astype(np.float64), rows, owners
        )
        return found

    def _nearest(self, vectors: FloatArray, blocks: int, masks: Masks, mask_of: Rows, k: int, factor: float) -> Nearest:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        scales, query_errors = np.ones(len(queries), dtype=np.float32), np.zeros(len(queries), dtype=np.float32)
        if self._coarse:
            coarse, scales, query_errors = int8_kernels.coarsened(queries)
            products = self._room(blocks, len(queries), np.dtype(np.int32))
            int8_kernels.multiply(coarse, self._coarse_addresses[:blocks], products)
        else:
            products = self._room(blocks, len(queries), np.dtype(np.float32))
            for block in range(blocks):
                np.matmul(queries, self._blocks[block].T, out=products[block])
        found = dense_kernels.nearest(
            products, scales, query_errors, self._scales, self._errors, self._addresses,
            queries.astype(np.float64), masks, mask_of, k, factor,
        )  # fmt: skip
        return Nearest(*found)

    def _room(self, blocks: int, queries: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """(blocks, queries, BLOCK_ROWS) to write to; memory that was used before, as the system gives new memory slowly."""
        size = blocks * queries * BLOCK_ROWS
        memory: NDArray[np.int32] = getattr(self._of_thread, "products", _NO_PRODUCTS)
        if len(memory) < size:
            memory = self._of_thread.products = np.empty(size, dtype=np.int32)
        return memory[:size].view(dtype).reshape(blocks, queries, BLOCK_ROWS)

    def _coarsen(self, block: int, places: Rows) -> None:
        coarse, scales, errors = int8_kernels.coarsened(self._blocks[block][places])
        int8_kernels.put(self._coarse[block], places, coarse)
        self._scales[block * BLOCK_ROWS + places] = scales
        self._errors[block * BLOCK_ROWS + places] = errors + _FLOAT_ERROR


def _addresses_of(blocks: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    return np.array([block.__array_interface__["data"][0] for block in blocks], dtype=np.int64)


def _by_block(rows: Rows) -> list[tuple[int, Rows, Rows]]:
    """For each block that `rows` touch: its number, the places in it, and which of `rows` these are."""
    rows = np.asarray(rows, dtype=np.intp)
    blocks = rows // BLOCK_ROWS
    return [
        (block, rows[chosen] % BLOCK_ROWS, chosen)
        for block in np.unique(blocks).tolist()
        for chosen in [np.flatnonzero(blocks == block)]
    ]
