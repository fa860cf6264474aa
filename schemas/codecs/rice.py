"""Golomb-Rice codes of whole arrays at once: the bit work of the sparse codecs and of the lattice.

After Rice, "Some Practical Universal Noiseless Coding Techniques", JPL 79-22, 1979. A value v >= 0
under parameter b is its quotient `v >> b` in unary (that many zeros, then a one) and its remainder,
the lowest b bits. Here the parts of an array do not alternate: first stand the quotients of all
values, then the remainders of all, b bits each, highest bit first. As many bits as ever, and both
sides need no loop: the ones of the first part are one `flatnonzero`.

Bits are uint8 arrays of 0 and 1 until they are packed, the first into the highest bit of the first
byte; spare bits of the last byte are 0. What a reader allocates is bounded by the bytes that came.
"""

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.errors import WireError
from schemas.outcomes import Reason

_OCTETS: Final = {8: "u1", 16: ">u2", 32: ">u4"}
"""Widths in which numbers are packed -> how numpy reads them."""

_STRIDE: Final = 1 << 20
"""Bits in which ones are looked for at a time: a list of ones takes 8 bytes for each."""

Bits: TypeAlias = NDArray[np.uint8]
"""Zeros and ones, shape (bits,)."""

LARGEST_PARAMETER: Final = 31
PARAMETER_BITS: Final = 5
"""In which a parameter is written where it travels."""


def cost(values: NDArray[np.int64], b: int) -> int:
    """How many bits `write` takes for values >= 0, shape (count,)."""
    return int((values >> b).sum()) + values.size * (1 + b)


def most_of_one(below: int) -> int:
    """How many bits one value of 0 .. below-1 takes at most under its best parameter."""
    return 1 + (below - 1).bit_length()


def best(values: NDArray[np.int64]) -> int:
    """The parameter under which the values cost least, the smaller of two that are equal.

    One more bit of remainder costs 1 a value and saves `ceil((v >> b) / 2)`, which only falls with
    b: the cost is convex, and walking downhill from a guess ends at the minimum.
    """
    if not values.size:
        return 0
    b = min(max(int(values.mean() * 0.7), 1).bit_length() - 1, LARGEST_PARAMETER)
    here = cost(values, b)
    while b and (below := cost(values, b - 1)) <= here:
        b, here = b - 1, below
    while b < LARGEST_PARAMETER and (above := cost(values, b + 1)) < here:
        b, here = b + 1, above
    return b


def write(values: NDArray[np.int64], b: int) -> Bits:
    """Values >= 0, shape (count,), as `cost(values, b)` bits."""
    ends = np.cumsum((values >> b) + 1)
    unary = np.zeros(int(ends[-1]) if values.size else 0, dtype=np.uint8)
    unary[ends - 1] = 1
    return np.concatenate([unary, write_fixed(values & ((1 << b) - 1), b)])


def read(bits: Bits, start: int, count: int, b: int) -> tuple[NDArray[np.int64], int]:
    """`count` values from bit `start` on, and where they end.

    Raises WireError(TRUNCATED) when they are not there. Allocates O(bits): a count that the bits
    cannot hold is refused before anything is made.
    """
    ones, end = _ends_of_quotients(bits, start, count, b)
    values = ones.copy()
    values[1:] -= ones[:-1] + 1
    values <<= b
    remainders, end = read_fixed(bits, end, count, b)
    values |= remainders
    return values, end


def read_sums(
    bits: Bits, start: int, count: int, b: int, *, below: int, most: int
) -> tuple[NDArray[np.int64], int]:
    """As `read`, but the running sums of the values, at less cost than adding them up.

    Raises WireError(BAD_INDEX) when there are more than `most` values, or the last sum, the
    largest, is not below `below`.
    """
    sums, end = _ends_of_quotients(bits, start, count, b, most)
    remainders, end = read_fixed(bits, end, count, b)
    np.add.accumulate(remainders, out=remainders)
    sums -= np.arange(count)  # the zeros so far: the quotients' sum
    last = (int(sums[-1]) << b) + int(remainders[-1]) if count else -1
    if last >= below:  # before anything can overflow
        raise WireError(Reason.BAD_INDEX, f"a sum of {last} where less than {below} is due")
    sums <<= b
    sums += remainders
    return sums, end


def _ends_of_quotients(
    bits: Bits, start: int, count: int, b: int, most: int | None = None
) -> tuple[NDArray[np.int64], int]:
    """Where the quotients of `count` values end, counted from `start`, and where they all end."""
    last = bits.size - count * b  # the remainders need what is behind it
    if count > last - start:
        raise _ends_early(count, 1 + b)
    found = bits[start:last].view(np.bool_)
    if most is not None and count > most:  # that they are there is looked up without a list
        if np.count_nonzero(found) < count:
            raise _ends_early(count, 1 + b)
        raise WireError(Reason.BAD_INDEX, f"{count} values where {most} are the most")
    ones = _first_ones(found, count)
    if ones.size < count:
        raise _ends_early(count, 1 + b)
    return ones, start + (int(ones[-1]) + 1 if count else 0)


def _first_ones(found: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Where the first `count` ones are, or all when there are fewer. Lists few more than those."""
    if found.size <= _STRIDE:
        return found.nonzero()[0][:count]
    parts, missing = [np.zeros(0, dtype=np.int64)], count
    for begin in range(0, found.size, _STRIDE):
        if missing <= 0:
            break
        ones = found[begin : begin + _STRIDE].nonzero()[0][:missing]
        parts.append(ones + begin)
        missing -= ones.size
    return np.concatenate(parts)


def write_fixed(values: NDArray[Any], width: int) -> Bits:
    """Values 0 .. 2^width-1, shape (count,), in `width` bits each, 0 to 32."""
    octets = values.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.unpackbits(octets, axis=1)[:, 32 - width :].reshape(-1)


def read_fixed(bits: Bits, start: int, count: int, width: int) -> tuple[NDArray[np.int64], int]:
    """`count` values of `width` bits each from bit `start` on, and where they end.

    Raises WireError(TRUNCATED) when they are not there.
    """
    end = start + count * width
    if end > bits.size:
        raise _ends_early(count, width)
    if not width:
        return np.zeros(count, dtype=np.int64), end
    row = next(row for row in _OCTETS if width <= row)
    rows = np.zeros((count, row), dtype=np.uint8)
    rows[:, row - width :] = bits[start:end].reshape(count, width)
    return np.packbits(rows.reshape(-1)).view(_OCTETS[row]).astype(np.int64), end


def pack(*parts: Bits) -> bytes:
    """The parts one after another, filled up with zeros to a whole byte."""
    return np.packbits(np.concatenate(parts)).tobytes()


def unpack(payload: memoryview) -> Bits:
    """All bits of a payload: 8 bytes of memory for one that came."""
    return np.unpackbits(np.frombuffer(payload, dtype=np.uint8))


def finish(bits: Bits, end: int) -> None:
    """Raise WireError unless fewer than 8 bits follow bit `end`, and all are 0."""
    if bits.size - end >= 8:
        raise WireError(Reason.OVERSIZED, f"{(bits.size - end) // 8} bytes after the end")
    if any(bits[end:].tolist()):
        raise WireError(Reason.MALFORMED, "bits after the end are not zero")


def _ends_early(count: int, width: int) -> WireError:
    return WireError(Reason.TRUNCATED, f"the payload ends before {count} values of {width} bits")
