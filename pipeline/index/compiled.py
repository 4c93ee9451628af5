"""How inner loops are compiled, and the ones that both legs need: the k-th largest value, and the rows from there.

Compiled code runs without the interpreter's lock, so that everything else of a process goes on beside it. Numba compiles a
function when it is first called and keeps the machine code on disk, beside this file or, where that cannot be written, in the
user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

TINY = np.finfo(np.float64).tiny  # keeps 0 / (0 + K) at 0 where K is 0
_RUN = 32  # values that are looked at together before any of them by itself: most runs hold nothing that matters


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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


pointer: Any = intrinsic(_pointer_of)


@compiled(boundscheck=False)
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


@compiled(boundscheck=False)
def at_least(values: Any, allowed: Any, least: float) -> Any:
    """Rows, intp ascending, where `allowed` and `values` >= `least`."""
    found = np.empty(len(values) + 1, np.intp)
    count = 0
    for start in range(0, len(values), _RUN):
        end = min(start + _RUN, len(values))
        if _none_reaches(values[start:end], least):
            continue
        for row in range(start, end):
            found[count] = row  # written over unless it counts: no branch that nobody can foresee
            count += values[row] >= least and allowed[row]
    return found[:count].copy()


@compiled(boundscheck=False)
def _none_reaches(values: Any, least: float) -> Any:
    """Whether all `values` are below `least`: counted, because a loop that stops early is not made into vector instructions."""
    reached = 0
    for place in range(len(values)):
        reached += values[place] >= least
    return reached == 0


@compiled(boundscheck=False)
def _rise(heap: Any, place: int, value: float) -> None:
    """Puts `value` at the end of a heap of `place` values and lets it rise."""
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= value:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = value


@compiled(boundscheck=False)
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


@compiled(boundscheck=False)
def rounded(value: float, factor: float) -> Any:
    """As numpy rounds to the decimals of `factor`, a power of 10."""
    return np.rint(value * factor) / factor


@compiled(boundscheck=False)
def with_room(values: Any, size: int) -> Any:
    if len(values) >= size:
        return values
    grown = np.empty(max(size, 2 * len(values)), values.dtype)
    grown[: len(values)] = values
    return grown
