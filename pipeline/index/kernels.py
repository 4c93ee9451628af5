"""The inner loops of the resident engine, compiled: they run without the interpreter's lock, so that searches and everything
else of a process go on beside them.

Numba compiles a function when it is first called and keeps the machine code on disk (`cache=True`), beside this file or,
where that cannot be written, in the user's cache folder. Knows arrays; nothing of articles, terms or locks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

_TINY = np.finfo(np.float64).tiny  # keeps 0 / (0 + K) at 0 where K is 0
_RUN = 128  # values that are looked at together before any of them by itself: most runs hold nothing that matters
_FLOAT_SLACK = 1e-5  # what rounding to float32 can shift a bound near 1, with a margin


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorated(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written: compiled anew by each process
            return numba.njit(nogil=True, **options)(function)

    return decorated


def _pointer_of(_typing: Any, address: Any) -> Any:
    """For numba: an integer that is an address → the pointer."""

    def made(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), made


_pointer: Any = intrinsic(_pointer_of)


@_compiled()
def bm25_part(tf: float, norm: float, is_l: bool, k1: float, delta: float) -> float:
    """What a term adds to a document that holds it `tf` times, before its factor: `bm25.py` has the formulas."""
    if is_l:
        c = tf / norm
        return tf * (c + delta) / max(k1 + c + delta, _TINY)
    return tf / (tf + norm)


@_compiled(boundscheck=False)
def add_scores(
    scores: Any, matched: Any, segments: Any, numbers: Any, factors: Any, lengths: Any, line: Any, shape: Any
) -> None:
    """Adds to `scores`, float64 by row, what the terms `numbers` int32 (t,) with `factors` float64 (t,) give each document.

    `segments`: int64 (s, 5), a line each of `Segment.addresses`; what it points to must live as long as this runs. `lengths`
    int32 by row; `line` float64 (2,): slope and start of K over a document's length; `shape` float64 (3,): 1 for the variant
    l, else 0, k1, delta. `matched`, bool by row or of no length, becomes True where a row holds a term.
    """
    slope, start = line[0], line[1]
    is_l, k1, delta = shape[0] > 0, shape[1], shape[2]
    marks = len(matched) > 0
    for s in range(len(segments)):
        terms = numba.carray(_pointer(segments[s, 0]), (segments[s, 1],), np.int32)
        starts = numba.carray(_pointer(segments[s, 2]), (segments[s, 1] + 1,), np.int64)
        if not len(terms):
            continue
        postings = starts[len(terms)]
        rows = numba.carray(_pointer(segments[s, 3]), (postings,), np.int32)
        tf = numba.carray(_pointer(segments[s, 4]), (postings,), np.uint16)
        for t in range(len(numbers)):
            place = np.searchsorted(terms, numbers[t])
            if place == len(terms) or terms[place] != numbers[t]:
                continue
            factor = factors[t]
            for p in range(starts[place], starts[place + 1]):
                if tf[p]:  # 0: erased
                    row = rows[p]
                    norm = max(lengths[row] * slope + start, _TINY)
                    scores[row] += bm25_part(float(tf[p]), norm, is_l, k1, delta) * factor
                    if marks:
                        matched[row] = True


@_compiled(boundscheck=False)
def threshold(values: Any, allowed: Any, k: int, above: float) -> Any:
    """The `k`-th largest of the `values` (n,) above `above` where `allowed` bool (n,); `above` itself with fewer than `k` of
    them. k >= 1."""
    heap = np.empty(k, np.float64)  # the largest so far, the smallest of them first
    size, least = 0, above
    for start in range(0, len(values), _RUN):
        end = min(start + _RUN, len(values))
        if _none_reaches(values[start:end], least):
            continue
        for row in range(start, end):
            value = values[row]
            if value > least and allowed[row]:
                if size < k:
                    _rise(heap, size, value)
                    size += 1
                else:
                    _sink(heap, value)
                if size == k:
                    least = heap[0]
    return least


@_compiled(boundscheck=False)
def _none_reaches(values: Any, least: float) -> Any:
    """Whether all `values` are below `least`: counted, because a loop that stops early is not made into vector instructions."""
    reached = 0
    for place in range(len(values)):
        reached += values[place] >= least
    return reached == 0


@_compiled(boundscheck=False)
def _rise(heap: Any, place: int, value: float) -> None:
    """Puts `value` at the end of a heap of `place` values and lets it rise."""
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= value:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = value


@_compiled(boundscheck=False)
def _sink(heap: Any, value: float) -> None:
    """Replaces the smallest value of a full heap."""
    size, place = len(heap), 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@_compiled(boundscheck=False)
def at_least(values: Any, allowed: Any, least: float) -> Any:
    """Rows, intp ascending, where `allowed` and `values` >= `least`."""
    found = np.empty(len(values), np.intp)
    count = 0
    for start in range(0, len(values), _RUN):
        end = min(start + _RUN, len(values))
        if _none_reaches(values[start:end], least):
            continue
        for row in range(start, end):
            if values[row] >= least and allowed[row]:
                found[count] = row
                count += 1
    return found[:count].copy()


@_compiled(boundscheck=False)
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
    bounds = np.empty(length, np.float32)
    for sign in (-1, 1):  # first below, for what the k best have at least, then above, for who may have that
        for start in range(0, length, block):
            end = min(start + block, length)
            line = products[start // block, query, : end - start]
            _bound(bounds[start:end], line, scales[start:end], errors[start:end], scale32, np.float32(sign * factor))
        if sign < 0:
            least = threshold(bounds, allowed, k, -np.inf) - 2.0 * query_error - _FLOAT_SLACK
    return at_least(bounds, allowed, least)


@_compiled(boundscheck=False, fastmath={"contract"})
def _bound(bounds: Any, products: Any, scales: Any, errors: Any, scale: float, factor: float) -> None:
    for place in range(len(products)):
        bounds[place] = np.float32(products[place]) * scale * scales[place] + factor * errors[place]


@_compiled(boundscheck=False, fastmath={"reassoc", "contract"})
def exact_products(blocks: Any, block_rows: int, vector: Any, rows: Any) -> Any:
    """float64 (len(rows),): inner products of `rows` with `vector` float64 (dim,), added up in float64.

    `blocks` int64: the addresses of float32 (block_rows, dim) each.
    """
    dim = len(vector)
    found = np.empty(len(rows), np.float64)
    for place in range(len(rows)):
        row = rows[place]
        matrix = numba.carray(_pointer(blocks[row // block_rows]), (block_rows, dim), np.float32)
        line = matrix[row % block_rows]
        total = 0.0
        for i in range(dim):
            total += line[i] * vector[i]
        found[place] = total
    return found


def compile_all() -> None:
    """Compiles what searches need, or reads it from disk (half a second, seconds for the first time on a machine), so that the
    first search need not."""
    some, floats, whole = np.ones(1), np.ones(1, np.float32), np.zeros(1, np.int32)
    allowed, no_segments, nothing = np.ones(1, np.bool_), np.zeros((0, 5), np.int64), np.zeros(0, np.bool_)
    add_scores(some, nothing, no_segments, whole, some, whole, np.ones(2), np.ones(3))
    at_least(some, allowed, threshold(some, allowed, 1, 0.0))
    for products in (np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1), np.float32)):
        may_be_nearest(products, 0, 1.0, 0.0, floats, floats, allowed, 1)
    exact_products(np.array([floats.__array_interface__["data"][0]]), 1, some, np.zeros(1, np.intp))
