"""The parts of a pass on a CPU, compiled: [activations, packed weights] -> activations, row by row the same whatever the other rows are.

With few rows a product is as fast as its weights are read: they lie in the order of reading, `TILE` outputs after one another for each
input, are read once for all rows, in fp32, as its upper 16 bits (bf16) or as 8-bit integers with a scale per output, and multiplied in
fp32. Loops run side by side over outputs and in order over what is summed, so the compiler makes vectors of them without changing the
order of any sum, and what is computed for a row depends neither on how many rows there are nor on who computes them. torch's products
have another order for every number of rows.

One call is one thread's; what is worth dividing (`crew`) is given with the part of it that is to be computed.

R rows (tokens), I inputs, O outputs, H query heads, K key and value heads, E head size, S tokens of a slot.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fledge.inference.vector_block import (
    INPUTS,
    OUTPUTS_OF_ONE,
    OUTPUTS_OF_TWO,
    TILE,
    add_block_of_one,
    add_block_of_two,
    unpacked,
)

Floats = NDArray[np.float32]

ROWS_AT_ONCE = 24
"""Rows for which a part of the weights is unpacked once; their sums stay in the first cache."""

SILU, GELU, RELU = 0, 1, 2

# e^x = 2^n e^r: log2(e), ln 2 in two parts, and the polynomial for e^r of Cephes' expf (S. L. Moshier).
_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_SMALLEST, _LARGEST = np.float32(-87.0), np.float32(88.0)
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_EXPONENT_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


@njit(nogil=True, cache=True, fastmath={"contract"})
def product(rows: Floats, weights: NDArray[np.generic], scales: Floats, first_tile: int, last_tile: int, result: Floats) -> None:
    """rows (R, I), weights (O / TILE, I x TILE) as packed, scales (O) -> result (R, O), both O with their padding; some tiles of it.

    fp32 is copied too, as if it were packed: read in order it comes from memory in two thirds of the time that 16 places side by side take.
    """
    values = np.empty(INPUTS * TILE, np.float32)
    for tile in range(first_tile, last_tile):
        begin, end = tile * TILE, (tile + 1) * TILE
        for first in range(0, rows.shape[0], ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, rows.shape[0])
            result[first:last, begin:end] = _ZERO
            for start in range(0, rows.shape[1], INPUTS):
                packed = weights[tile, start * TILE : (start + INPUTS) * TILE]
                for place in range(INPUTS * TILE):
                    values[place] = unpacked(packed[place])
                for place in range(0, TILE, OUTPUTS_OF_TWO):
                    for row in range(first, last - 1, 2):
                        add_block_of_two(rows, row, start, values, place, result, begin + place)
                if (last - first) % 2:
                    for place in range(0, TILE, OUTPUTS_OF_ONE):
                        add_block_of_one(rows, last - 1, start, values, place, result, begin + place)
            for row in range(first, last):
                sums, factors = result[row, begin:end], scales[begin:end]
                for place in range(TILE):
                    sums[place] *= factors[place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def product_of_one(row: Floats, weights: NDArray[np.generic], scales: Floats, first_tile: int, last_tile: int, result: Floats) -> None:
    """`product` of a single row (I) -> result (O), to the same bits, for int8.

    Its bytes are read faster than they are unpacked, so what is used once is not copied: 18 ms a token where `product` takes 24 (110M
    parameters). fp32 and bf16 are bound by reading, which goes faster in the one order of the copy: 50 and 35 ms against 62 and 44.
    """
    for tile in range(first_tile, last_tile):
        sums = result[tile * TILE : (tile + 1) * TILE]
        sums[:] = _ZERO
        for start in range(0, row.shape[0], 2):
            packed = weights[tile, start * TILE : (start + 2) * TILE]
            first, second, packed_2 = row[start], row[start + 1], packed[TILE:]
            for place in range(TILE):
                total = sums[place]
                total += first * unpacked(packed[place])
                total += second * unpacked(packed_2[place])
                sums[place] = total
        factors = scales[tile * TILE : (tile + 1) * TILE]
        for place in range(TILE):
            sums[place] *= factors[place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def normalize(rows: Floats, weight: Floats, bias: Floats, eps: float, centers: bool, result: Floats) -> None:
    """rows (R, D) -> (x - mean) / sqrt(mean((x - mean)^2) + eps) weight + bias; RMSNorm does not center and takes the mean as 0."""
    width = weight.shape[0]
    for row in range(rows.shape[0]):
        mean, square = _ZERO, _ZERO
        if centers:
            for place in range(width):
                mean += rows[row, place]
            mean /= np.float32(width)
        for place in range(width):
            square += (rows[row, place] - mean) * (rows[row, place] - mean)
        factor = np.float32(1.0 / math.sqrt(square / width + eps))
        for place in range(width):
            result[row, place] = (rows[row, place] - mean) * factor * weight[place] + bias[place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def rotate(heads: Floats, positions: NDArray[np.int64], cosine: Floats, sine: Floats) -> None:
    """heads (R, heads, E), in place: components i and i + E / 2 are turned as a pair by the angle of the row's position."""
    half = cosine.shape[1]
    for row in range(heads.shape[0]):
        cosines, sines = cosine[positions[row]], sine[positions[row]]
        for head in range(heads.shape[1]):
            for place in range(half):
                first, second = heads[row, head, place], heads[row, head, place + half]
                heads[row, head, place] = first * cosines[place] - second * sines[place]
                heads[row, head, place + half] = second * cosines[place] + first * sines[place]


@njit(nogil=True, cache=True)
def store(key: Floats, value: Floats, slots: NDArray[np.int64], positions: NDArray[np.int64], keys: Floats, values: Floats) -> None:
    """key, value (R, K, E) -> keys (slots, K, E, S) and values (slots, K, S, E), at the rows' positions."""
    for row in range(key.shape[0]):
        slot, position = slots[row], positions[row]
        for head in range(key.shape[1]):
            for place in range(key.shape[2]):
                keys[slot, head, place, position] = key[row, head, place]
                values[slot, head, position, place] = value[row, head, place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def attend(
    query: Floats,
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    keys: Floats,
    values: Floats,
    first_row: int,
    last_row: int,
    result: Floats,
) -> None:
    """query, result (R, H, E): softmax(query key^T / sqrt(E)) value over the keys of the row's slot up to its position; some rows."""
    heads, size = query.shape[1], query.shape[2]
    shared = heads // keys.shape[1]
    scale = np.float32(1.0 / math.sqrt(size))
    for task in range(first_row * heads, last_row * heads):
        row, head = task // heads, task % heads
        seen = positions[row] + 1
        scores = np.zeros(seen, np.float32)
        for place in range(size):
            component, known = query[row, head, place] * scale, keys[slots[row], head // shared, place]
            for token in range(seen):
                scores[token] += component * known[token]
        largest = scores[0]
        for token in range(seen):
            largest = max(largest, scores[token])
        for token in range(seen):
            scores[token] -= largest
        exponentiate(scores)
        total = _ZERO
        for token in range(seen):
            total += scores[token]
        mixed, stored = result[row, head], values[slots[row], head // shared]
        mixed[:] = _ZERO
        for token in range(seen):
            share, vector = scores[token] / total, stored[token]
            for place in range(size):
                mixed[place] += share * vector[place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def gate(both: Floats, activation: int, result: Floats) -> None:
    """both (R, 2 F or more), gates before the other half -> result (R, F): activation(gate) other."""
    width = result.shape[1]
    for row in range(both.shape[0]):
        gates, others, gated = both[row, :width], both[row, width : 2 * width], result[row]
        if activation == SILU:
            for place in range(width):
                gated[place] = -gates[place]
            exponentiate(gated)
            for place in range(width):
                gated[place] = gates[place] / (_ONE + gated[place]) * others[place]
        elif activation == GELU:
            for place in range(width):
                normal = _HALF * (_ONE + np.float32(math.erf(gates[place] * math.sqrt(0.5))))
                gated[place] = gates[place] * normal * others[place]
        else:
            for place in range(width):
                gated[place] = max(gates[place], _ZERO) * others[place]


@njit(nogil=True, cache=True, fastmath={"contract"})
def exponentiate(values: Floats) -> None:
    """x (N) -> e^x in place, within 2 units in the last place; between e^-87 and e^88. numba's own is a call for each number."""
    powers = np.empty(values.shape[0], np.int32)
    for place in range(values.shape[0]):
        x = min(max(values[place], _SMALLEST), _LARGEST)
        whole = np.floor(x * _LOG2_E + _HALF)
        r = x - whole * _LN2_HIGH - whole * _LN2_LOW
        polynomial = np.float32(1.9875691500e-4)
        polynomial = polynomial * r + np.float32(1.3981999507e-3)
        polynomial = polynomial * r + np.float32(8.3334519073e-3)
        polynomial = polynomial * r + np.float32(4.1665795894e-2)
        polynomial = polynomial * r + np.float32(1.6666665459e-1)
        polynomial = polynomial * r + np.float32(5.0000001201e-1)
        values[place] = polynomial * r * r + r + _ONE
        powers[place] = (np.int32(whole) + _EXPONENT_BIAS) << _MANTISSA_BITS
    factors = powers.view(np.float32)
    for place in range(values.shape[0]):
        values[place] *= factors[place]


def are_kept() -> bool:
    """Whether an earlier process has compiled these loops and left them on the disk, since this file was last changed."""
    place, source = attend.stats.cache_path, Path(__file__)
    assert place is not None, "its loops are compiled with cache=True"
    kept = Path(place).glob(f"{source.stem}.attend-*.nbi")
    return any(index.stat().st_mtime >= source.stat().st_mtime for index in kept)
