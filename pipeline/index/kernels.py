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


@_compiled(boundscheck=False)
def rounded(value: float, factor: float) -> Any:
    """As numpy rounds to the decimals of `factor`, a power of 10."""
    return np.rint(value * factor) / factor


@_compiled(boundscheck=False)
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
        exact = exact_products(blocks, products.shape[2], vectors[query], near)
        for place in range(len(exact)):
            exact[place] = rounded(exact[place], factor)
        least = -np.inf
        if len(near) > k:
            least = threshold(exact, np.ones(len(exact), np.bool_), k, -np.inf)
        end = ends[query]
        rows, found = _with_room(rows, end + len(near)), _with_room(found, end + len(near))
        for place in range(len(near)):
            if exact[place] >= least:
                rows[end], found[end] = near[place], exact[place]
                end += 1
        ends[query + 1] = end
    return rows[: ends[queries]], found[: ends[queries]], ends


@_compiled(boundscheck=False)
def _with_room(values: Any, size: int) -> Any:
    if len(values) >= size:
        return values
    grown = np.empty(max(size, 2 * len(values)), values.dtype)
    grown[: len(values)] = values
    return grown


@_compiled(boundscheck=False)
def candidates(fields: Any, bases: Any, shape: Any, used: Any, masks: Any, mask_of: Any, k: int, factor: float, near: Any,
               near_ends: Any, scores: Any) -> Any:  # fmt: skip
    """What both legs propose for each query: rows intp ascending, their lexical scores float64 rounded by `factor`, their
    places among the query's `near` ones (-1: proposed by words alone), and whether the words proposed them, all for one query
    after the other; and where each query's end, int64 (queries + 1,).

    `fields`: a tuple for each lexical field: what `add_scores` takes, and the terms' numbers and factors for one query after
    the other with their ends int64 (queries + 1,). `bases` float64 (queries,): what every row in `used`, bool, scores. `near`,
    `near_ends`: what `nearest` found. `scores` float64 by row is written over. The words propose the `k` best rows with a
    positive score, and all that tie with the last one.
    """
    queries = len(mask_of)
    rows, lexical = np.empty(2 * queries * (k + 32), np.intp), np.empty(2 * queries * (k + 32), np.float64)
    places, by_words = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
    ends = np.zeros(queries + 1, np.int64)
    unmarked = np.zeros(0, np.bool_)
    for query in range(queries):
        allowed = masks[mask_of[query]]
        scores[:] = 0.0
        for field in fields:
            segments, lengths, line, numbers, factors, term_ends = field
            start, end = term_ends[query], term_ends[query + 1]
            add_scores(scores, unmarked, segments, numbers[start:end], factors[start:end], lengths, line, shape)
        if bases[query] != 0.0:
            for row in range(len(used)):
                if used[row]:
                    scores[row] += bases[query]
        tie = 1.0 / factor
        least = threshold(scores[: len(allowed)], allowed, k, 0.0)
        worded = at_least(scores[: len(allowed)], allowed, max(least - tie, _TINY))
        least = rounded(least, factor)
        end, place, last = ends[query], near_ends[query], near_ends[query + 1]
        size = end + len(worded) + last - place
        rows, lexical = _with_room(rows, size), _with_room(lexical, size)
        places, by_words = _with_room(places, size), _with_room(by_words, size)
        word = 0
        while word < len(worded) or place < last:
            by_word = word < len(worded) and (place == last or worded[word] <= near[place])
            is_near = place < last and (word == len(worded) or near[place] <= worded[word])
            row = worded[word] if by_word else near[place]
            score = rounded(scores[row], factor)
            by_word_kept = by_word and score >= least and score > 0.0
            if is_near or by_word_kept:
                rows[end], lexical[end] = row, score
                places[end], by_words[end] = (place - near_ends[query] if is_near else -1), by_word_kept
                end += 1
            word += by_word
            place += is_near
        ends[query + 1] = end
    total = ends[queries]
    return rows[:total], lexical[:total], places[:total], by_words[:total], ends


@_compiled(boundscheck=False)
def holds(segments: Any, numbers: Any, row: int) -> Any:
    """bool (len(numbers),): which of the terms `numbers` int32 stand in `row`."""
    found = np.zeros(len(numbers), np.bool_)
    for s in range(len(segments)):
        terms = numba.carray(_pointer(segments[s, 0]), (segments[s, 1],), np.int32)
        starts = numba.carray(_pointer(segments[s, 2]), (segments[s, 1] + 1,), np.int64)
        if not len(terms):
            continue
        rows = numba.carray(_pointer(segments[s, 3]), (starts[len(terms)],), np.int32)
        tf = numba.carray(_pointer(segments[s, 4]), (starts[len(terms)],), np.uint16)
        for t in range(len(numbers)):
            place = np.searchsorted(terms, numbers[t])
            if place < len(terms) and terms[place] == numbers[t]:
                start, end = starts[place], starts[place + 1]
                at = start + np.searchsorted(rows[start:end], np.int32(row))
                if at < end and rows[at] == row and tf[at]:
                    found[t] = True
    return found


def compile_all() -> None:
    """Compiles what searches need, or reads it from disk (half a second, seconds for the first time on a machine), so that the
    first search need not."""
    ones, floats, ends = np.ones(1), np.ones(1, np.float32), np.zeros(2, np.int64)
    masks, mask_of, numbers = np.ones((1, 1), np.bool_), np.zeros(1, np.intp), np.zeros(0, np.int32)
    address = np.array([floats.__array_interface__["data"][0]])
    for products in (np.zeros((1, 1, 1), np.int32), np.zeros((1, 1, 1), np.float32)):
        nearest(products, floats, floats, floats, floats, address, np.ones((1, 1)), masks, mask_of, 1, 1.0)
    exact_products(address, 1, ones, mask_of)
    segments = np.zeros((0, 5), np.int64)
    field = (segments, np.zeros(1, np.int32), np.ones(2), numbers, np.zeros(0), ends)
    candidates((field,) * 3, ones, np.ones(3), masks[0], masks, mask_of, 1, 1.0, mask_of, ends, ones)
    holds(segments, numbers, 0)
