"""The published model walks on a lattice: V = W0 + 2^-m * q, with integers q. Pure.

Every tensor has an exponent m, which only ever grows: steps are halved and never widened. The
difference of any two published models is then an exact vector of integers: every way from one to
the other, by single diffs, merged ones or keyframes, ends at the same bits on every CPU. With a
power of two the product is exact, so that a fused multiply-add rounds as two operations do.

All vectors here are those that *travel* (`schemas.params.travelling`), in parts of `sizes`.

    keyframe   bits: m + 16 of every tensor, 6 each; then q (`schemas.codecs.integers`)
    diff       a varint: how many bytes follow; then bits: 1 when steps were halved between, and
               then by how many halvings of every tensor, 6 each; then d, as q in a keyframe

The bits are filled up with zeros to a whole byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import frexp, prod
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import integers, rice, varint
from schemas.errors import ConfigError, InvariantError, WireError
from schemas.outcomes import Reason
from schemas.params import TRAVELLING, Params, ParamSpec, TensorSpec

Ints: TypeAlias = NDArray[np.int32]
"""Lattice coordinates: int32, shape (sum(sizes),), every |q| <= Q_MAX."""

Exponents: TypeAlias = tuple[int, ...]
"""m of every travelling tensor, M_MIN .. M_MAX: its step is 2^-m."""

Sizes: TypeAlias = tuple[int, ...]
"""Elements of every travelling tensor."""

LEVELS: Final = 7
"""Levels of the ladder: 0 .. 6; a diff of level j spans 2^j publications."""

SPAN: Final = 64
"""Publications back to which diffs live: a device at `serial - SPAN` or later may walk."""

KEYFRAME: Final = 64
"""The number that a manifest names as the codec of a keyframe."""

Q_MAX: Final = (1 << 24) - 1
"""The highest |q|: float32 holds every integer up to it."""

D_MAX: Final = (1 << 31) - 1
"""The highest |d| of a diff."""

M_MIN: Final = -16
M_MAX: Final = 24
"""Steps of 2^16 down to 2^-24: products neither overflow nor underflow."""

STEP_M_MAX: Final = 20
"""The finest step that a task may ask for: 2^24 steps of it are 16, and no weight goes further."""

_VECTOR_M: Final = 5
_BUFFER_M: Final = 10
_M_BITS: Final = 6
_FAR: Final = 32
"""A longer shift of anything but 0 is as far out of range as one of 32."""


@dataclass(frozen=True, slots=True)
class Diff:
    """What leads from one lattice point to a later one: q' = (q << shift) + d.

    Attributes:
        shifts: halvings of the step between the two, one number >= 0 a tensor.
        indices: where d is not zero: int64, ascending, none repeated.
        values: d there: int32, never 0, |d| <= D_MAX.
    """

    shifts: tuple[int, ...]
    indices: NDArray[np.int64]
    values: NDArray[np.int32]


# -- steps -------------------------------------------------------------------------------------


def sizes_of(spec: ParamSpec) -> Sizes:
    """The sizes of the tensors that travel, in their order."""
    return tuple(tensor.size for tensor in spec.tensors if tensor.kind in TRAVELLING)


def check_step(step: float) -> None:
    """Raise ConfigError("publish.step") unless it is 0 or a power of two within bounds."""
    if step == 0:
        return
    lowest, highest = 2.0**-STEP_M_MAX, 2.0**-M_MIN
    below = 2.0 ** (frexp(step)[1] - 1)
    if lowest <= step <= highest and step == below:
        return
    below = min(max(below, lowest), highest)
    above = min(2 * below, highest) if step > below else below
    near = " or ".join(f"{power:g}" for power in sorted({below, above}))
    bounds = f"from 2^-{STEP_M_MAX} to 2^{-M_MIN}"
    remedy = f"{step:g} is no power of two {bounds}; {near} is, and 0 chooses"
    raise ConfigError("publish.step", remedy)


def first_exponents(spec: ParamSpec, step: float) -> Exponents:
    """The exponent of every travelling tensor when its step is `step` (checked), or 0: by shape.

    By shape: the highest power of two that is at most 0.4 * sqrt(2 / (fan_in + fan_out)) for a
    tensor of two dimensions or more; another takes the step of the last such tensor before it, else
    that of the first after it, else 2^-5. A buffer takes 2^-10, or a finer `step`.
    """
    if step:
        m = 1 - frexp(step)[1]
        kinds = [tensor.kind for tensor in spec.tensors if tensor.kind in TRAVELLING]
        return tuple(max(m, _BUFFER_M) if kind == "buffer" else m for kind in kinds)
    shaped = [t for t in spec.tensors if t.kind != "buffer" and len(t.shape) >= 2]
    last = _by_fans(shaped[0]) if shaped else _VECTOR_M
    found = []
    for tensor in spec.tensors:
        if tensor.kind != "buffer" and len(tensor.shape) >= 2:
            last = _by_fans(tensor)
        if tensor.kind in TRAVELLING:
            found.append(_BUFFER_M if tensor.kind == "buffer" else last)
    return tuple(found)


def _by_fans(tensor: TensorSpec) -> int:
    """The lowest m with 2^-m <= 0.4 sqrt(2 / fans), that is 25 * fans <= 8 * 4^m, in integers."""
    fans = (tensor.shape[0] + tensor.shape[1]) * prod(tensor.shape[2:])
    exponent = 0
    while 25 * fans > 8 << (2 * exponent):
        exponent += 1
    return min(exponent, M_MAX)


# -- points ------------------------------------------------------------------------------------


def placed(origin: Params, q: Ints, exponents: Exponents, sizes: Sizes) -> Params:
    """V = origin + float32(q) * 2^-m, float32: a new vector, one rounding an element."""
    there = q.astype(np.float32)
    _scale(there, [-m for m in exponents], sizes)
    there += origin
    return there


def walked(params: Params, origin: Params, q: Ints, exponents: Exponents, sizes: Sizes) -> Ints:
    """The next point: q + trunc((params - V) / step), a new vector; clipped to |q| <= Q_MAX.

    A NaN moves nothing, infinities go to the clip. What stays unpublished, params - V, is the
    server's error feedback by itself.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a model may have grown beyond all bounds
        way = params - placed(origin, q, exponents, sizes)
        _scale(way, exponents, sizes)
    np.trunc(way, out=way)
    way[np.isnan(way)] = 0
    np.clip(way, -2.0 * Q_MAX, 2.0 * Q_MAX, out=way)  # from one end to the other
    there = way.astype(np.int32)
    there += q
    return np.clip(there, -Q_MAX, Q_MAX, out=there)


def finer(q: Ints, before: Exponents, after: Exponents, sizes: Sizes) -> Ints:
    """The same point with halved steps: q << (after - before), clipped to |q| <= Q_MAX."""
    there = _shifted(q, _halvings(before, after), sizes)
    return np.clip(there, -Q_MAX, Q_MAX).astype(np.int32)


def _scale(vector: Params, powers: Sequence[int], sizes: Sizes) -> None:
    """Multiply every part by its power of two, in place."""
    for part, power in zip(_parts(sizes), powers, strict=True):
        vector[part] *= np.float32(2.0**power)


def _parts(sizes: Sizes) -> Iterator[slice]:
    for size, end in zip(sizes, accumulate(sizes), strict=True):
        yield slice(end - size, end)


def _halvings(before: Exponents, after: Exponents) -> tuple[int, ...]:
    shifts = tuple(b - a for a, b in zip(before, after, strict=True))
    if min(shifts) < 0:
        msg = f"steps are only halved: exponents go from {before} to {after}"
        raise InvariantError(msg)
    return shifts


def _shifted(q: Ints, shifts: Sequence[int], sizes: Sizes) -> NDArray[np.int64]:
    """Double each part `shift` times, as int64: at most _FAR times, which is out of all range."""
    wide = q.astype(np.int64)
    for part, shift in zip(_parts(sizes), shifts, strict=True):
        if shift:
            wide[part] <<= min(shift, _FAR)
    return wide


# -- keyframes ---------------------------------------------------------------------------------


def encode_keyframe(q: Ints, exponents: Exponents, sizes: Sizes) -> bytes:
    """Write a point."""
    indices = np.flatnonzero(q)
    raised = np.array(exponents) - M_MIN
    return rice.pack(rice.write_fixed(raised, _M_BITS), integers.write(indices, q[indices], sizes))


def decode_keyframe(data: bytes | memoryview, sizes: Sizes) -> tuple[Ints, Exponents]:
    """Read a point and its exponents. Raises WireError."""
    bits = rice.unpack(memoryview(data))
    raised, at = rice.read_fixed(bits, 0, len(sizes), _M_BITS)
    exponents = tuple((raised + M_MIN).tolist())
    _check_exponents(exponents)
    indices, values = integers.read(bits, at, sizes, Q_MAX)
    q = np.zeros(sum(sizes), dtype=np.int32)
    q[indices] = values
    return q, exponents


def _check_exponents(exponents: Exponents) -> None:
    if max(exponents) > M_MAX:
        raise WireError(Reason.BAD_NUMBER, f"a step of 2^-{max(exponents)}, below 2^-{M_MAX}")


# -- diffs -------------------------------------------------------------------------------------


def diff_of(old_q: Ints, old: Exponents, new_q: Ints, new: Exponents, sizes: Sizes) -> Diff:
    """What leads from the old point to the new one, whose exponents are nowhere lower.

    Raises WireError when a difference does not fit 32 bits (a weight millions of steps away and
    many halvings at once): the ladder must then begin anew.
    """
    shifts = _halvings(old, new)
    if not any(shifts):
        change = new_q - old_q
        indices = np.flatnonzero(change)
        return Diff(shifts, indices, change[indices])
    wide = new_q - _shifted(old_q, shifts, sizes)
    indices = np.flatnonzero(wide)
    return Diff(shifts, indices, _fitting(wide[indices], D_MAX))


def merged(first: Diff, second: Diff, sizes: Sizes) -> Diff:
    """The diff that does what `first` and then `second` do, exactly.

    Raises WireError when a value does not fit 32 bits.
    """
    indices = _union(first.indices, second.indices)
    values = np.zeros(indices.size, dtype=np.int64)
    before = first.values.astype(np.int64)
    if any(second.shifts):
        part = np.searchsorted(np.array(list(accumulate(sizes))), first.indices, side="right")
        before <<= np.minimum(second.shifts, _FAR)[part]
    values[np.searchsorted(indices, first.indices)] = before
    values[np.searchsorted(indices, second.indices)] += second.values
    kept = values != 0
    shifts = tuple(a + b for a, b in zip(first.shifts, second.shifts, strict=True))
    return Diff(_possible(shifts), indices[kept], _fitting(values[kept], D_MAX))


def _union(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Both ascending lists as one, without repetitions: a stable sort merges two runs."""
    both = np.sort(np.concatenate([first, second]), kind="stable")
    fresh = np.ones(both.size, dtype=np.bool_)
    np.not_equal(both[1:], both[:-1], out=fresh[1:])
    return both[fresh]


def applied(q: Ints, exponents: Exponents, diff: Diff, sizes: Sizes) -> tuple[Ints, Exponents]:
    """The point (a new vector) and the exponents after a diff.

    Raises WireError when either leaves its range: the diff was made for another point.
    """
    after = tuple(m + shift for m, shift in zip(exponents, diff.shifts, strict=True))
    _check_exponents(after)
    if any(diff.shifts):
        wide = _shifted(q, diff.shifts, sizes)
        wide[diff.indices] += diff.values
        return _fitting(wide, Q_MAX), after
    there = q.copy()
    there[diff.indices] = _fitting(q[diff.indices] + diff.values.astype(np.int64), Q_MAX)
    return there, after


def encode_diff(diff: Diff, sizes: Sizes) -> bytes:
    """Write a diff; it begins with its own length (`diff_bytes`)."""
    halved = np.array([any(diff.shifts)], dtype=np.uint8)
    shifts = rice.write_fixed(np.array(diff.shifts if halved[0] else (), dtype=np.int64), _M_BITS)
    body = rice.pack(halved, shifts, integers.write(diff.indices, diff.values, sizes))
    return varint.write(len(body)) + body


def diff_bytes(start: bytes | memoryview) -> int:
    """The length of a whole encoded diff, told by its first 5 bytes (or all, if fewer).

    Raises WireError.
    """
    more, begin = varint.read(memoryview(start), 0)
    return begin + more


def decode_diff(data: bytes | memoryview, sizes: Sizes) -> Diff:
    """Read a diff, all of `data`. Raises WireError."""
    view = memoryview(data)
    more, begin = varint.read(view, 0)
    if len(view) != begin + more:
        reason = Reason.TRUNCATED if len(view) < begin + more else Reason.OVERSIZED
        raise WireError(reason, f"{len(view)} bytes of a diff of {begin + more}")
    bits = rice.unpack(view[begin:])
    halved, at = rice.read_fixed(bits, 0, 1, 1)
    shifts = (0,) * len(sizes)
    if halved[0]:
        found, at = rice.read_fixed(bits, at, len(sizes), _M_BITS)
        shifts = _possible(tuple(found.tolist()))
    return Diff(shifts, *integers.read(bits, at, sizes, D_MAX))


def _possible(shifts: tuple[int, ...]) -> tuple[int, ...]:
    if max(shifts) > M_MAX - M_MIN:
        raise WireError(Reason.BAD_NUMBER, f"a step halved {max(shifts)} times")
    return shifts


def _fitting(values: NDArray[np.signedinteger[Any]], most: int) -> NDArray[np.int32]:
    """The values as int32. Raises WireError when one is beyond +-most."""
    if values.size and max(int(values.max()), -int(values.min())) > most:
        raise WireError(Reason.BAD_NUMBER, f"a lattice value beyond {most}")
    return values.astype(np.int32)
