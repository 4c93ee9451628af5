"""`Vectors` in main memory, in blocks: what is there never moves, and room for more is one block more.

The first pass reads a quarter of the bytes where the processor multiplies 8-bit integers fast (VNNI): each vector is also
kept as int8 with a scale of its own, and torch, whose oneDNN knows these instructions, makes the products of all queries at
once. Elsewhere, and for small matrices, it is numpy's product in float32. How much a row's int8 vector is off is known when it
is written, so the rows that can be among the nearest are known for certain (`dense_kernels.nearest`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoding.encoder import FloatArray
from pipeline.index import dense_kernels
from pipeline.index.vectors import Masks, Nearest, Rows

BLOCK_ROWS = 1 << 12  # 4 MB of float32 with 256 dimensions
# Below, float32 takes no longer than what torch, a second and 200 MB of memory when it is first imported, would save.
INT8_FROM_ROWS = 20_000
_FLOAT_ERROR = 1e-5  # of a product of unit vectors in float32, far above what the order of the additions makes
_MOST_PRODUCTS_BYTES = 1 << 26  # 64 MB of first-pass products at a time: more queries are cut into parts
_LEVELS = 127  # of int8, either side of 0

_NO_PRODUCTS = np.zeros(0, dtype=np.int32)

IntProducts = Callable[[NDArray[np.int8], NDArray[np.int8], NDArray[np.int32]], None]


class HostVectors:
    """`Vectors` on the processor."""

    def __init__(self, dim: int, *, int8_from: int = INT8_FROM_ROWS) -> None:
        self._dim = dim
        self._int8_from = int8_from
        self._blocks: list[FloatArray] = []
        self._addresses = np.zeros(0, dtype=np.int64)
        self._coarse: list[NDArray[np.int8]] = []  # by block, where the first pass is in int8
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
        while self.capacity < capacity:
            self._blocks.append(np.zeros((BLOCK_ROWS, self._dim), dtype=np.float32))
            self._scales = np.append(self._scales, np.ones(BLOCK_ROWS, dtype=np.float32))
            self._errors = np.append(self._errors, np.full(BLOCK_ROWS, _FLOAT_ERROR, dtype=np.float32))
        self._addresses = np.array([b.__array_interface__["data"][0] for b in self._blocks], dtype=np.int64)
        if self.capacity >= self._int8_from and _int_products() is not None:
            for block in range(len(self._coarse), len(self._blocks)):
                self._coarse.append(np.zeros((BLOCK_ROWS, self._dim), dtype=np.int8))
                self._coarsen(block, np.arange(BLOCK_ROWS))

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
        multiply = _int_products()
        if self._coarse and multiply is not None:
            coarse, scales, query_errors = _coarsened(queries)
            products = self._room(blocks, len(queries), np.dtype(np.int32))
            for block in range(blocks):
                multiply(coarse, self._coarse[block], products[block])
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
        coarse, scales, errors = _coarsened(self._blocks[block][places])
        self._coarse[block][places] = coarse
        self._scales[block * BLOCK_ROWS + places] = scales
        self._errors[block * BLOCK_ROWS + places] = errors + _FLOAT_ERROR


def _coarsened(vectors: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """int8 like `vectors` (n, dim), and for each row its scale and the length of what is lost, both float32 (n,)."""
    scales = np.abs(vectors).max(axis=1) / np.float32(_LEVELS)
    scales[scales == 0] = 1
    coarse = np.rint(vectors / scales[:, None]).astype(np.int8)
    errors = np.linalg.norm(vectors - coarse * scales[:, None], axis=1)
    return coarse, scales, errors


def _by_block(rows: Rows) -> list[tuple[int, Rows, Rows]]:
    """For each block that `rows` touch: its number, the places in it, and which of `rows` these are."""
    rows = np.asarray(rows, dtype=np.intp)
    blocks = rows // BLOCK_ROWS
    return [
        (block, rows[chosen] % BLOCK_ROWS, chosen)
        for block in np.unique(blocks).tolist()
        for chosen in [np.flatnonzero(blocks == block)]
    ]


@cache
def _int_products() -> IntProducts | None:
    """Products of int8 (n, dim) with int8 (rows, dim) into int32 (n, rows), where this processor is fast at it."""
    try:
        import torch  # noqa: PLC0415 - only where there is something to gain

        supported = torch.cpu._is_vnni_supported()
        int_mm = torch._int_mm
    except (ImportError, AttributeError):  # both names are torch's own business
        return None
    if not supported:
        return None

    def multiply(queries: NDArray[np.int8], block: NDArray[np.int8], out: NDArray[np.int32]) -> None:
        # By one thread: two that share a block wait for each other longer than they work, on a busy machine by far.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            int_mm(torch.from_numpy(queries), torch.from_numpy(block).T, out=torch.from_numpy(out))
        finally:
            torch.set_num_threads(threads)

    return multiply
