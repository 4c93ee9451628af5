"""The dense leg's inner loops: which rows may be among the nearest by a coarse product, and their exact products.

Knows arrays; nothing of articles or locks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.index.compiled import at_least, compiled, pointer, rounded, threshold, with_room

_LANES = 64  # columns that rows are dealt to in turn
_GROUP = 16 * _LANES  # rows of which each lane's best is kept; a block is some of them
_FLOAT_SLACK = 1e-5  # what rounding to float32 can shift a bound near 1, with a margin


@compiled(boundscheck=False)
def nearest(
    products: Any, query_scales: Any, query_errors: Any, scales: Any, errors: Any, blocks: Any, vectors: Any, masks: Any,
    mask_of: Any, k: int, factor: float,
) -> Any:  # fmt: skip
    """The `k` nearest rows of each query, with all that tie with the last one: rows intp ascending, their inner products
    float64 rounded by `factor`, both for one query after the other, and where each query's end, int64 (queries + 1,).

    `masks` bool (m, rows), of which `mask_of` names each query's; `vectors` float64 (queries, dim); the rest as
    `may_be_nearest` and `exact_products` have it.
    """
    queries = len(vectors)
    rows, found = np.empty(queries * (k + 32), np.intp), np.empty(queries * (k + 32), np.float64)
    ends = np.zeros(queries + 1, np.int64)
    for query in range(queries):
        near = may_be_nearest(
            products, query, query_scales[query], query_errors[query], scales, errors, masks[mask_of[query]], k
        )
        exact = exact_products(blocks, products.shape[2], vectors, near, np.full(len(near), query))
        for place in range(len(exact)):
            exact[place] = rounded(exact[place], factor)
        least = -np.inf
        if len(near) > k:
            least = threshold(exact, np.ones(len(exact), np.bool_), k, -np.inf)
        end = ends[query]
        rows, found = with_room(rows, end + len(near)), with_room(found, end + len(near))
        for place in range(len(near)):
            if exact[place] >= least:
                rows[end], found[end] = near[place], exact[place]
                end += 1
        ends[query + 1] = end
    return rows[: ends[queries]], found[: ends[queries]], ends


@compiled(boundscheck=False)
def may_be_nearest(
    products: Any, query: int, scale: float, query_error: float, scales: Any, errors: Any, allowed: Any, k: int
) -> Any:
    """Rows, intp ascending, that may be among the `k` ones of `allowed`, bool (rows,), with the largest inner products.

    `products` (blocks, queries, rows of a block) of what stands for a query and for the rows; times `scale` and `scales`
    float32 by row they are near the inner products. What stands for the unit query is off by `query_error`, for a unit row by
    `errors` float32 by row, so a product by no more than errors + (1 + errors) query_error.
    """
    length, block = len(allowed), products.shape[2]
    scale32, factor = np.float32(scale), np.float32(1.0 + query_error)
    bounds = np.empty(length, np.float32)  # what the products are at most
    best = np.full((length // _GROUP + 1, _LANES), -np.inf, np.float32)  # what the best of each lane is at least
    for start in range(0, length, _GROUP):
        end = min(start + _GROUP, length)
        line = products[start // block, query, start % block : start % block + end - start]
        _bound(
            bounds[start:end], best[start // _GROUP], line, scales[start:end], errors[start:end], allowed[start:end],
            scale32, factor,
        )  # fmt: skip
    least = threshold(best.reshape(-1), np.ones(best.size, np.bool_), k, -np.inf)
    return at_least(bounds, allowed, least - 2.0 * query_error - _FLOAT_SLACK)


@compiled(boundscheck=False, fastmath={"contract"})
def _bound(
    bounds: Any, best: Any, products: Any, scales: Any, errors: Any, allowed: Any, scale: float, factor: float
) -> None:
    """Lane by lane, as that becomes vector instructions: the k best lanes are k different rows, so the k-th best row is no
    worse than the k-th best lane."""
    for start in range(0, len(products), _LANES):
        end = min(start + _LANES, len(products))
        line, scaled, lost, may = products[start:end], scales[start:end], errors[start:end], allowed[start:end]
        most = bounds[start:end]
        for lane in range(len(line)):
            near, off = np.float32(line[lane]) * scale * scaled[lane], factor * lost[lane]
            most[lane] = near + off
            low = near - off if may[lane] else np.float32(-np.inf)
            best[lane] = low if low > best[lane] else best[lane]


@compiled(boundscheck=False, fastmath={"reassoc", "contract"})
def exact_products(blocks: Any, block_rows: int, vectors: Any, rows: Any, owners: Any) -> Any:
    """float64 (len(rows),): inner products of each of `rows` with that of `vectors` float64 (n, dim) that `owners` intp names,
    added up in float64.

    `blocks` int64: the addresses of float32 (block_rows, dim) each.
    """
    dim = vectors.shape[1]
    found = np.empty(len(rows), np.float64)
    for place in range(len(rows)):
        row = rows[place]
        matrix = numba.carray(pointer(blocks[row // block_rows]), (block_rows, dim), np.float32)
        line, vector = matrix[row % block_rows], vectors[owners[place]]
        total = 0.0
        for i in range(dim):
            total += line[i] * vector[i]
        found[place] = total
    return found
