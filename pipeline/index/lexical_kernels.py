"""The lexical leg's inner loops: BM25 over the postings, and what both legs propose together.

Segments come as the addresses of their arrays (`Segment.addresses`), which must live as long as a loop runs. Knows term numbers
and rows; nothing of words, articles or locks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.index.compiled import TINY, at_least, compiled, pointer, rounded, threshold, with_room

_RUN = 1_024  # postings at a time


@compiled(boundscheck=False)
def candidates(fields: Any, bases: Any, shape: Any, used: Any, masks: Any, mask_of: Any, k: int, factor: float, near: Any,
               near_ends: Any, scores: Any, scored: bool) -> Any:  # fmt: skip
    """What both legs propose for each query: rows intp ascending, their lexical scores float64 rounded by `factor`, their
    places in `near` (-1: proposed by words alone), and whether the words proposed them, all for one query after the other; and
    where each query's end, int64 (queries + 1,).

    `fields`: a tuple for each lexical field: what `add_scores` takes, and the terms' numbers and factors for one query after
    the other with their ends int64 (queries + 1,). `bases` float64 (queries,): what every row in `used`, bool, scores. `near`,
    `near_ends`: what `nearest` found. `scores` float64 by row is written over; a single query may be `scored` there already. The
    words propose the `k` best rows with a positive score, and all that tie with the last one.
    """
    queries = len(mask_of)
    rows, lexical = np.empty(2 * queries * (k + 32), np.intp), np.empty(2 * queries * (k + 32), np.float64)
    places, by_words = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_)
    ends = np.zeros(queries + 1, np.int64)
    for query in range(queries):
        allowed = masks[mask_of[query]]
        if not scored:
            write_scores(fields, bases, shape, used, query, scores)
        tie = 1.0 / factor
        least = threshold(scores[: len(allowed)], allowed, k, 0.0)
        worded = at_least(scores[: len(allowed)], allowed, max(least - tie, TINY))
        least = rounded(least, factor)
        end, place, last = ends[query], near_ends[query], near_ends[query + 1]
        size = end + len(worded) + last - place
        rows, lexical = with_room(rows, size), with_room(lexical, size)
        places, by_words = with_room(places, size), with_room(by_words, size)
        word = 0
        while word < len(worded) or place < last:
            by_word = word < len(worded) and (place == last or worded[word] <= near[place])
            is_near = place < last and (word == len(worded) or near[place] <= worded[word])
            row = worded[word] if by_word else near[place]
            score = rounded(scores[row], factor)
            by_word_kept = by_word and score >= least and score > 0.0
            if is_near or by_word_kept:
                rows[end], lexical[end] = row, score
                places[end], by_words[end] = (place if is_near else -1), by_word_kept
                end += 1
            word += by_word
            place += is_near
        ends[query + 1] = end
    total = ends[queries]
    return rows[:total], lexical[:total], places[:total], by_words[:total], ends


@compiled(boundscheck=False)
def write_scores(fields: Any, bases: Any, shape: Any, used: Any, query: int, scores: Any) -> None:
    """Writes what each row scores for a query to `scores`; the rest as `candidates` has it."""
    scores[:] = 0.0
    parts = np.empty(_RUN)
    for part in fields:
        segments, lengths, line, numbers, factors, term_ends = part
        these = slice(term_ends[query], term_ends[query + 1])
        _add_terms(scores, segments, numbers[these], factors[these], lengths, line, shape, parts)
    if bases[query] != 0.0:
        for row in range(len(used)):
            if used[row]:
                scores[row] += bases[query]


@compiled(boundscheck=False)
def _found(segments: Any, s: int, number: int) -> Any:
    """Where the postings of a term start and end in a segment; equal where it has none."""
    terms = numba.carray(pointer(segments[s, 0]), (segments[s, 1],), np.int32)
    place = np.searchsorted(terms, number)
    if place == len(terms) or terms[place] != number:
        return 0, 0
    starts = numba.carray(pointer(segments[s, 2]), (segments[s, 1] + 1,), np.int64)
    return starts[place], starts[place + 1]


@compiled(boundscheck=False)
def _add_terms(
    scores: Any, segments: Any, numbers: Any, factors: Any, lengths: Any, line: Any, shape: Any, parts: Any
) -> None:
    """As `add_scores`; `parts` float64 (n,) is written over.

    Two loops over a run of postings: the first, of divisions, becomes vector instructions; the second cannot. A segment's terms
    come one after the other, while its rows' scores are in the cache.
    """
    is_l, k1, delta = shape[0] > 0, shape[1], shape[2]
    for s in range(len(segments)):
        for term in range(len(numbers)):
            start, end = _found(segments, s, numbers[term])
            rows = numba.carray(pointer(segments[s, 3]), (end,), np.int32)
            tf = numba.carray(pointer(segments[s, 4]), (end,), np.uint8)
            for first in range(start, end, len(parts)):
                last = min(first + len(parts), end)
                run, counts = rows[first:last], tf[first:last]
                for p in range(len(run)):
                    norm = max(lengths[run[p]] * line[0] + line[1], TINY)
                    parts[p] = bm25_part(float(counts[p]), norm, is_l, k1, delta)
                for p in range(len(run)):
                    scores[run[p]] += parts[p] * factors[term]


@compiled(boundscheck=False)
def add_scores(
    scores: Any, matched: Any, segments: Any, numbers: Any, factors: Any, lengths: Any, line: Any, shape: Any
) -> None:
    """Adds to `scores`, float64 by row, what the terms `numbers` int32 (t,) with `factors` float64 (t,) give each document.

    `segments`: int64 (s, 5), a line each of `Segment.addresses`. `lengths` int32 by row; `line` float64 (2,): slope and start of
    K over a document's length; `shape` float64 (3,): 1 for the variant l, else 0, k1, delta. `matched`, bool by row or of no
    length, becomes True where a row holds a term.
    """
    _add_terms(scores, segments, numbers, factors, lengths, line, shape, np.empty(_RUN))
    if len(matched):
        for s in range(len(segments)):
            for number in numbers:
                start, end = _found(segments, s, number)
                rows = numba.carray(pointer(segments[s, 3]), (end,), np.int32)
                tf = numba.carray(pointer(segments[s, 4]), (end,), np.uint8)
                for p in range(start, end):
                    if tf[p]:
                        matched[rows[p]] = True


@compiled()
def bm25_part(tf: float, norm: float, is_l: bool, k1: float, delta: float) -> float:
    """What a term adds to a document that holds it `tf` times, before its factor: `bm25.py` has the formulas."""
    if is_l:
        c = tf / norm
        return tf * (c + delta) / max(k1 + c + delta, TINY)
    return tf / (tf + norm)


@compiled(boundscheck=False)
def holds(segments: Any, numbers: Any, row: int) -> Any:
    """bool (len(numbers),): which of the terms `numbers` int32 stand in `row`."""
    found = np.zeros(len(numbers), np.bool_)
    for s in range(len(segments)):
        terms = numba.carray(pointer(segments[s, 0]), (segments[s, 1],), np.int32)
        starts = numba.carray(pointer(segments[s, 2]), (segments[s, 1] + 1,), np.int64)
        if not len(terms):
            continue
        rows = numba.carray(pointer(segments[s, 3]), (starts[len(terms)],), np.int32)
        tf = numba.carray(pointer(segments[s, 4]), (starts[len(terms)],), np.uint8)
        for t in range(len(numbers)):
            place = np.searchsorted(terms, numbers[t])
            if place < len(terms) and terms[place] == numbers[t]:
                start, end = starts[place], starts[place + 1]
                at = start + np.searchsorted(rows[start:end], np.int32(row))
                if at < end and rows[at] == row and tf[at]:
                    found[t] = True
    return found
