"""Vectors as 8-bit integers, and their products by the instruction that is made for them: vpdpbusd of AVX-512 VNNI.

It adds 64 products to 16 sums at once; LLVM finds no use for it in a plain loop, numpy has no such product, and torch has, for
200 MB of memory and a second at every start. A block lies as the instruction reads it: 16 rows side by side, four values of
each in turn, as unsigned numbers that are `_OFFSET` too large.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from pipeline.index.compiled import compiled

LEVELS = 127  # of int8, either side of 0
_OFFSET = 128  # the instruction multiplies unsigned by signed numbers
_ROWS, _VALUES = 16, 4  # of one instruction: sums side by side, values that go into each
_GROUPS, _TOGETHER = 4, 4  # groups of such rows, and queries, whose sums are made at once: half of the registers
_INSTRUCTION = "llvm.x86.avx512.vpdpbusd.512"
_NUMBER, _SUMS = ir.IntType(32), ir.VectorType(ir.IntType(32), _ROWS)

Block = NDArray[np.uint8]  # (rows / 16, steps, 16, 4)


@cache
def available() -> bool:
    """Whether this processor has the instruction."""
    return bool(binding.get_host_cpu_features().get("avx512vnni"))


def empty_block(rows: int, dim: int) -> Block:
    """`rows`, a multiple of 64, of `dim` zeros."""
    return np.full((rows // _ROWS, -(-dim // _VALUES), _ROWS, _VALUES), _OFFSET, dtype=np.uint8)


def put(block: Block, places: NDArray[np.intp], vectors: NDArray[np.int8]) -> None:
    """Writes `vectors` (n, dim) to the rows `places` (n,) of `block`."""
    block[places // _ROWS, :, places % _ROWS] = _in_steps(vectors).view(np.uint8) ^ np.uint8(_OFFSET)


def multiply(queries: NDArray[np.int8], blocks: NDArray[np.int64], out: NDArray[np.int32]) -> None:
    """Writes the products of `queries` (n, dim) with all rows of the blocks at the addresses `blocks` (b,) to `out`
    (b, n, rows). They are exact."""
    steps = _in_steps(queries)
    _multiply(steps, -_OFFSET * steps.sum(axis=(1, 2), dtype=np.int32), blocks, out)


def _in_steps(vectors: NDArray[np.int8]) -> NDArray[np.int8]:
    """(n, steps, 4), filled up with zeros."""
    missing = -vectors.shape[1] % _VALUES
    filled = np.pad(vectors, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(vectors)
    return filled.reshape(len(vectors), -1, _VALUES)


@compiled(boundscheck=False, fastmath={"reassoc", "contract"})
def coarsened(vectors: Any) -> Any:
    """int8 like `vectors` float32 (n, dim), and for each row its scale and the length of what is lost, both float32 (n,)."""
    count, dim = vectors.shape
    coarse = np.empty((count, dim), np.int8)
    scales, errors = np.empty(count, np.float32), np.empty(count, np.float32)
    for row in range(count):
        largest = np.float32(0)
        for i in range(dim):
            largest = max(largest, abs(vectors[row, i]))
        scale = largest / np.float32(LEVELS) if largest > 0 else np.float32(1)
        lost = 0.0
        for i in range(dim):
            level = np.rint(vectors[row, i] / scale)
            coarse[row, i] = np.int8(level)
            rest = vectors[row, i] - level * scale
            lost += rest * rest
        scales[row], errors[row] = scale, np.sqrt(lost)
    return coarse, scales, errors


def _sums_of(queries: int) -> Any:
    """For numba: writes the sums of so many queries with 64 rows, all in registers until they are whole."""

    def sums(_typing: Any, values: Any, steps: Any, asked: Any, firsts: Any, out: Any, width: Any) -> Any:
        """The addresses of the rows' values, the number of steps, the addresses of the queries, of what each sum begins with
        (int32) and of the sums, and how many sums lie between those of two queries."""
        return types.void(values, steps, asked, firsts, out, width), _code

    def _code(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        values, steps, asked, firsts, out, width = arguments
        instruction = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_SUMS, [_SUMS] * 3), _INSTRUCTION)

        def at(address: Any, bytes_on: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(address, bytes_on), kind.as_pointer())

        def times(number: Any, factor: int) -> Any:
            return builder.mul(number, ir.Constant(number.type, factor))

        def repeated(number: Any) -> Any:
            first = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), number, ir.Constant(_NUMBER, 0))
            return builder.shuffle_vector(first, first, ir.Constant(_SUMS, [0] * _ROWS))

        totals = []
        for query in range(queries):
            first = repeated(builder.load(at(firsts, ir.Constant(firsts.type, 4 * query), _NUMBER)))
            totals.append([cgutils.alloca_once_value(builder, first) for _ in range(_GROUPS)])
        with cgutils.for_range(builder, steps, intp=steps.type) as loop:
            of_rows = []
            for group in range(_GROUPS):
                place = times(builder.add(times(steps, group), loop.index), _ROWS * _VALUES)
                of_rows.append(builder.load(at(values, place, _SUMS), align=1))
            for query in range(queries):
                place = times(builder.add(times(steps, query), loop.index), _VALUES)
                of_query = repeated(builder.load(at(asked, place, _NUMBER), align=1))
                for group in range(_GROUPS):
                    total = totals[query][group]
                    builder.store(builder.call(instruction, [builder.load(total), of_rows[group], of_query]), total)
        for query in range(queries):
            for group in range(_GROUPS):
                place = builder.add(times(width, 4 * query), ir.Constant(width.type, 4 * _ROWS * group))
                builder.store(builder.load(totals[query][group]), at(out, place, _SUMS), align=4)
        return context.get_dummy_value()

    return intrinsic(sums)


_of_four, _of_two, _of_one = _sums_of(_TOGETHER), _sums_of(2), _sums_of(1)


@compiled(boundscheck=False)
def _multiply(queries: Any, firsts: Any, blocks: Any, out: Any) -> None:
    """Rows by rows: 64 of them are read once from memory, and for the next queries from the nearest cache."""
    count, steps, rows = len(queries), queries.shape[1], out.shape[2]
    for block in range(len(blocks)):
        for row in range(0, rows, _ROWS * _GROUPS):
            values, query = blocks[block] + row * steps * _VALUES, 0
            while query < count:
                asked, first = queries[query:].ctypes.data, firsts[query:].ctypes.data
                sums = out[block, query:, row:].ctypes.data
                if count - query >= _TOGETHER:
                    _of_four(values, steps, asked, first, sums, rows)
                    query += _TOGETHER
                elif count - query >= 2:
                    _of_two(values, steps, asked, first, sums, rows)
                    query += 2
                else:
                    _of_one(values, steps, asked, first, sums, rows)
                    query += 1
