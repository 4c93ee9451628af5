"""The lexical leg's inner loops: BM25 over the postings, and what both legs propose together.

Segments come as the addresses of their arrays (`Segment.addresses`), which must live as long as a loop runs. Knows term numbers
and rows; nothing of words, articles or locks.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from pipeline.index.compiled import TINY, at_least, compiled, pointer, rounded, threshold, with_room

_FIRST_CHECK = 8_192  # postings that are added before it is asked, and that are left, so that asking pays
_SLACK = 1e-9  # of a score, for the order of additions


@compiled(boundscheck=False)
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
    for query in range(queries):
        allowed = masks[mask_of[query]]
        scores[:] = 0.0
        _add_best(scores, fields, query, shape, allowed, k, near[near_ends[query] : near_ends[query + 1]])
        if bases[query] != 0.0:
            for row in range(len(used)):
                if used[row]:
                    scores[row] += bases[query]
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
                places[end], by_words[end] = (place - near_ends[query] if is_near else -1), by_word_kept
                end += 1
            word += by_word
            place += is_near
        ends[query + 1] = end
    total = ends[queries]
    return rows[:total], lexical[:total], places[:total], by_words[:total], ends


@compiled(boundscheck=False)
def _add_best(scores: Any, fields: Any, query: int, shape: Any, allowed: Any, k: int, near: Any) -> None:
    """Adds to `scores` what the terms of `query` give: all of it to the rows that can be among the `k` best allowed ones and to
    those of `near`, to others perhaps less.

    MaxScore (Turtle, Flood 1995: "Query evaluation: strategies and optimizations"), term by term: the terms that can give most
    come first, and once the others together cannot lift a row among the best, only rows that are near enough are looked at.
    """
    clauses = 0
    for part in fields:
        clauses += part[5][query + 1] - part[5][query]
    most, postings = np.zeros(clauses, np.float64), np.zeros(clauses, np.int64)
    field_of, term_of = np.empty(clauses, np.int64), np.empty(clauses, np.int64)
    clause, prunable = 0, True
    for number, part in enumerate(fields):
        segments, _, line, numbers, factors, term_ends = part
        for term in range(term_ends[query], term_ends[query + 1]):
            largest = 0
            for s in range(len(segments)):
                start, end, tf = _found(segments, s, numbers[term])
                postings[clause] += end - start
                largest = max(largest, tf)
            most[clause] = factors[term] * bm25_part(
                float(largest), max(line[1], TINY), shape[0] > 0, shape[1], shape[2]
            )
            field_of[clause], term_of[clause] = number, term
            prunable = prunable and factors[term] >= 0.0
            clause += 1
    order = np.argsort(-most)
    rest, left, seen, check = most.sum(), postings.sum(), 0, _FIRST_CHECK
    marks = np.zeros(0, np.uint8)
    for clause in order:
        if prunable and not len(marks) and seen >= check and left >= _FIRST_CHECK:
            check *= 2
            least = threshold(scores[: len(allowed)], allowed, k, 0.0)
            if rest < least:
                marks = _marked(scores, allowed, (least - rest) * (1.0 - _SLACK), near)
        for number, part in enumerate(fields):
            if number == field_of[clause]:
                segments, lengths, line, numbers, factors, _ = part
                term = term_of[clause]
                for s in range(len(segments)):
                    _add_term(scores, marks, segments, s, numbers[term], factors[term], lengths, line, shape)
        rest -= most[clause]
        left -= postings[clause]
        seen += postings[clause]


@compiled(boundscheck=False)
def _marked(scores: Any, allowed: Any, least: float, near: Any) -> Any:
    """A bit for each row: whether its score is `least` or more, or it is one of `near`."""
    marks = np.zeros((len(scores) >> 3) + 1, np.uint8)
    for row in at_least(scores[: len(allowed)], allowed, least):
        marks[row >> 3] |= np.uint8(1 << (row & 7))
    for row in near:
        marks[row >> 3] |= np.uint8(1 << (row & 7))
    return marks


@compiled(boundscheck=False)
def _found(segments: Any, s: int, number: int) -> Any:
    """Where the postings of a term start and end in a segment, and its largest tf there; zeros where it has none."""
    terms = numba.carray(pointer(segments[s, 0]), (segments[s, 1],), np.int32)
    place = np.searchsorted(terms, number)
    if place == len(terms) or terms[place] != number:
        return 0, 0, 0
    starts = numba.carray(pointer(segments[s, 2]), (segments[s, 1] + 1,), np.int64)
    most = numba.carray(pointer(segments[s, 5]), (segments[s, 1],), np.uint16)
    return starts[place], starts[place + 1], np.int64(most[place])


@compiled(boundscheck=False)
def _add_term(
    scores: Any, marks: Any, segments: Any, s: int, number: int, factor: float, lengths: Any, line: Any, shape: Any
) -> None:
    """Adds what a term gives to the rows of a segment; with `marks`, of whole length, only to marked rows."""
    start, end, _ = _found(segments, s, number)
    if start == end:
        return
    rows = numba.carray(pointer(segments[s, 3]), (end,), np.int32)
    tf = numba.carray(pointer(segments[s, 4]), (end,), np.uint16)
    is_l, k1, delta = shape[0] > 0, shape[1], shape[2]
    if len(marks):
        for p in range(start, end):
            row = rows[p]
            if marks[row >> 3] >> (row & 7) & 1 and tf[p]:
                norm = max(lengths[row] * line[0] + line[1], TINY)
                scores[row] += bm25_part(float(tf[p]), norm, is_l, k1, delta) * factor
        return
    for p in range(start, end):
        if tf[p]:
            row = rows[p]
            norm = max(lengths[row] * line[0] + line[1], TINY)
            scores[row] += bm25_part(float(tf[p]), norm, is_l, k1, delta) * factor


@compiled(boundscheck=False)
def add_scores(
    scores: Any, matched: Any, segments: Any, numbers: Any, factors: Any, lengths: Any, line: Any, shape: Any
) -> None:
    """Adds to `scores`, float64 by row, what the terms `numbers` int32 (t,) with `factors` float64 (t,) give each document.

    `segments`: int64 (s, 6), a line each of `Segment.addresses`. `lengths` int32 by row; `line` float64 (2,): slope and start of
    K over a document's length; `shape` float64 (3,): 1 for the variant l, else 0, k1, delta. `matched`, bool by row or of no
    length, becomes True where a row holds a term.
    """
    unmarked = np.zeros(0, np.uint8)
    for s in range(len(segments)):
        for term in range(len(numbers)):
            _add_term(scores, unmarked, segments, s, numbers[term], factors[term], lengths, line, shape)
            if len(matched):
                start, end, _ = _found(segments, s, numbers[term])
                rows = numba.carray(pointer(segments[s, 3]), (end,), np.int32)
                tf = numba.carray(pointer(segments[s, 4]), (end,), np.uint16)
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
        tf = numba.carray(pointer(segments[s, 4]), (starts[len(terms)],), np.uint16)
        for t in range(len(numbers)):
            place = np.searchsorted(terms, numbers[t])
            if place < len(terms) and terms[place] == numbers[t]:
                start, end = starts[place], starts[place + 1]
                at = start + np.searchsorted(rows[start:end], np.int32(row))
                if at < end and rows[at] == row and tf[at]:
                    found[t] = True
    return found
