"""The innermost part of a product, written for LLVM: sums of two rows for 32 outputs stay in registers while 16 inputs are added.

The compiler makes vectors of plain loops too, but stores every sum after every few inputs: 16 rows then reach 35 GFLOP/s on a core where
this reaches 52 and MKL 50 (measured, 768 x 2048). Each sum adds its products in the order of the inputs, multiplied and added in one
rounding where the processor can, whatever rows stand beside it: the bits are those of the plain loop.

numba keeps what it has compiled of `kernels` and does not see that this file has changed: save that one too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

INPUTS = 16
"""Added in one go."""
TILE = 256
"""How far the weights of one output lie apart from input to input."""

_LANES = 16
"""Of a vector: a line of the cache. Narrower processors compute it in parts."""
_VECTOR = ir.VectorType(ir.FloatType(), _LANES)
_INT = ir.IntType(64)


def _unpacked(context: Any, weight: Any) -> Any:
    """A weight as it is packed -> fp32: fp32 and int8 are numbers, uint16 is the upper half of the bits of one."""

    def build(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        if signature.args[0] != types.uint16:
            return context.cast(builder, given[0], signature.args[0], types.float32)
        bits = builder.shl(builder.zext(given[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(weight), build


unpacked: Any = intrinsic(_unpacked)


def _add_block(rows_count: int, outputs_count: int) -> Any:
    """rows (R, I), weights (INPUTS, TILE) as one array, result (R, O):

    result[row + m, output + p] += sum over k of rows[row + m, start + k] weights[k, place + p], for m < rows_count and p < outputs_count.
    """

    @intrinsic
    def add_block(context: Any, rows: Any, row: Any, start: Any, weights: Any, place: Any, result: Any, output: Any) -> Any:
        signature = types.void(rows, row, start, weights, place, result, output)
        return signature, lambda *given: _build(rows_count, outputs_count, *given)

    return add_block


def _build(rows_count: int, outputs_count: int, context: Any, builder: Any, signature: Any, given: Any) -> Any:
    rows, weights, result = (context.make_array(signature.args[at])(context, builder, given[at]) for at in (0, 3, 5))
    row, start, place, output = (given[at] for at in (1, 2, 4, 6))

    def pointer(base: Any, index: Any) -> Any:
        return builder.gep(base, [index if isinstance(index, ir.Value) else ir.Constant(_INT, index)])

    def element(matrix: Any, below: int, column: Any) -> Any:
        at = builder.mul(builder.add(row, ir.Constant(_INT, below)), builder.extract_value(matrix.shape, 1))
        return pointer(matrix.data, builder.add(at, column))

    def vector(base: Any, index: int) -> Any:
        return builder.bitcast(pointer(base, index), _VECTOR.as_pointer())

    def load(address: Any) -> Any:
        loaded = builder.load(address)
        loaded.align = 4
        return loaded

    inputs = [element(rows, below, start) for below in range(rows_count)]
    lanes = range(0, outputs_count, _LANES)
    outputs = [[vector(element(result, below, output), lane) for lane in lanes] for below in range(rows_count)]
    sums = [[load(address) for address in addresses] for addresses in outputs]
    first_weight = pointer(weights.data, place)
    for number in range(INPUTS):
        columns = [load(vector(first_weight, number * TILE + lane)) for lane in lanes]
        for below in range(rows_count):
            same = _broadcast(builder, builder.load(pointer(inputs[below], number)))
            for at, column in enumerate(columns):
                product = builder.fmul(same, column, flags=("contract",))
                sums[below][at] = builder.fadd(sums[below][at], product, flags=("contract",))
    for addresses, finished in zip(outputs, sums, strict=True):
        for address, value in zip(addresses, finished, strict=True):
            builder.store(value, address).align = 4
    return context.get_dummy_value()


def _broadcast(builder: Any, value: Any) -> Any:
    unset = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(unset, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, unset, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


OUTPUTS_OF_ONE, OUTPUTS_OF_TWO = 64, 32
"""Computed side by side: eight sums of eight lanes hide that each waits for the one before it, and leave registers for the weights."""
add_block_of_one, add_block_of_two = _add_block(1, OUTPUTS_OF_ONE), _add_block(2, OUTPUTS_OF_TWO)
