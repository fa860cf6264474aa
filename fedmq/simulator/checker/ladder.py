"""What devices may fetch of a lattice, read again from docs/wire.md, sections 5 and 16.

It is held against the publications that the checker has found by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate
from typing import Any, Final, NamedTuple
from zlib import crc32

import msgpack

from fedmq.simulator.checker.bits import Bits
from fedmq.simulator.checker.fold import SPAN, Account
from fedmq.simulator.checker.lattice import Q_MAX, Point
from fedmq.simulator.checker.message import Refused, read_count

D_MAX: Final = 2**31 - 1
"""The highest magnitude in a diff."""

_LEVELS: Final = 7
_M_MIN, _M_MAX = -16, 24


@dataclass(frozen=True, slots=True)
class Retained:
    """What was compared: how many blobs, and sentences about what is wrong with them."""

    checked: int = 0
    mismatches: list[str] = field(default_factory=list)


class Where(NamedTuple):
    """A point as a device has it: exponents and whole numbers."""

    exponents: list[int]
    q: list[int]


class Diff(NamedTuple):
    """q' = (q << shift) + d, with one shift for every tensor."""

    shifts: list[int]
    d: list[int]


# -- reading -----------------------------------------------------------------------------------


def read_keyframe(data: bytes, sizes: Sequence[int]) -> Where:
    """Raises Refused."""
    bits = Bits(data)
    exponents = [bits.number(6) + _M_MIN for _ in sizes]
    _bounded(exponents, _M_MAX)
    return Where(exponents, _vector(bits, sizes, Q_MAX))


def read_diff(data: bytes, sizes: Sequence[int]) -> Diff:
    """Raises Refused."""
    length, start = read_count(data, 0)
    if len(data) != start + length:
        raise Refused("truncated" if len(data) < start + length else "oversized")
    bits = Bits(data[start:])
    halved = bits.number(1)
    shifts = [bits.number(6) if halved else 0 for _ in sizes]
    _bounded(shifts, _M_MAX - _M_MIN)
    return Diff(shifts, _vector(bits, sizes, D_MAX))


def apply(diff: Diff, start: Where, sizes: Sequence[int]) -> Where:
    """Where a diff leads from a point. Raises Refused."""
    exponents = [m + shift for m, shift in zip(start.exponents, diff.shifts, strict=True)]
    shifts = [shift for shift, size in zip(diff.shifts, sizes, strict=True) for _ in range(size)]
    q = [(a << shift) + d for a, shift, d in zip(start.q, shifts, diff.d, strict=True)]
    _bounded(exponents, _M_MAX)
    _bounded(q, Q_MAX)
    return Where(exponents, q)


def _bounded(numbers: Sequence[int], most: int) -> None:
    if max(map(abs, numbers)) > most:
        raise Refused("bad_number")


class _Run(NamedTuple):
    """A stretch of the vector: its mode, its Rice parameters, and how many numbers each has."""

    size: int
    mode: int
    numbers: int
    parameters: tuple[int, ...]


def _vector(bits: Bits, sizes: Sequence[int], most: int) -> list[int]:
    single = bits.number(1)
    runs = [_head(bits, size) for size in ([sum(sizes)] if single else sizes)]
    columns = [(run.numbers, b) for run in runs for b in run.parameters]
    quotients = [bits.quotients(count, behind=0) for count, _ in columns]
    numbers = [
        [(quotient << b) + bits.number(b) for quotient in each]
        for each, (_, b) in zip(quotients, columns, strict=True)
    ]
    rest = iter(numbers)
    found: list[int] = []
    for run in runs:
        found += _values(bits, run, [next(rest) for _ in run.parameters])
    bits.end()
    _bounded(found, most)
    return found


def _head(bits: Bits, size: int) -> _Run:
    mode = bits.number(2)
    if mode == 0:
        return _Run(size, mode, 0, ())
    b = bits.number(5)
    if mode == 3:
        return _Run(size, mode, size, (b,))
    count = bits.number((size - 1).bit_length()) + 1
    return _Run(size, mode, count, (b,) if mode == 1 else (b, bits.number(5)))


def _values(bits: Bits, run: _Run, columns: Sequence[list[int]]) -> list[int]:
    """All elements of a run, zeros too."""
    if run.mode == 3:
        return [n // 2 if n % 2 == 0 else -(n // 2) - 1 for n in columns[0]]
    values = [0] * run.size
    if run.mode:
        places = [end - 1 for end in accumulate(gap + 1 for gap in columns[0])]
        if places[-1] >= run.size:
            raise Refused("bad_index")
        magnitudes = [n + 1 for n in columns[1]] if run.mode == 2 else [1] * run.numbers
        for place, magnitude, sign in zip(places, magnitudes, bits.take(run.numbers), strict=True):
            values[place] = -magnitude if sign == "1" else magnitude
    return values


# -- holding it against the log ----------------------------------------------------------------


def look(account: Account, manifest: bytes, blobs: Mapping[str, bytes]) -> Retained:
    """Hold the newest manifest and all blobs that were kept with it against an account."""
    if not account.points:
        return Retained()
    said = _read_manifest(manifest)
    if said is None:
        return Retained(0, ["the newest manifest does not have the short form"])
    names = [name for name in blobs if name[:1] in {"k", "d"}]
    told = [*_manifest(account, said, blobs), *_keyframes(account, blobs)]
    return Retained(len(names), [*told, *_diffs(account, said[7], blobs)])


def _read_manifest(manifest: bytes) -> list[Any] | None:
    body, seal = manifest[:-4], manifest[-4:]
    if body.endswith(b"\xc1") and seal == crc32(body).to_bytes(4, "big"):  # section 14
        manifest = body[:-1]
    try:
        said = msgpack.unpackb(manifest)
    except (ValueError, msgpack.UnpackException):
        return None
    types = [int, int, int, bytes, int, int, int, int, int, int, str, list]
    return said if isinstance(said, list) and [type(part) for part in said] == types else None


def _manifest(account: Account, said: list[Any], blobs: Mapping[str, bytes]) -> Iterator[str]:
    newest = account.points[-1]
    due = {
        "form": (0, 2),
        "epoch": (1, newest.epoch),
        "version": (2, newest.version),
        "model_digest": (3, bytes.fromhex(account.digests[newest.version])[:8]),
        "codec": (5, 64),
        "serial": (6, newest.serial),
        "oldest": (7, _oldest(account, said[7])),
        "blob_bytes": (8, len(blobs.get(f"k{newest.epoch}-{newest.version}", b""))),
        "ladder": (11, [_newest_of(account, blobs, j, told) for j, told in enumerate(said[11])]),
    }
    for name, (place, value) in due.items():
        if said[place] != value:
            yield f"{name} of the newest manifest is {said[place]!r}, by the log {value!r}"
    name = f"o{sha256(account.origin).hexdigest()[:8]}"
    if said[10] and (f"o{said[10]}" != name or blobs.get(name) != account.origin):
        yield f"blob o{said[10]} is not the model that the lattice begins at"


def _oldest(account: Account, told: int) -> int:
    """From where diffs lead; later where a step was halved, if a diff could not tell it."""
    last = account.points[-1].serial
    due = max(account.ladder_from, last - SPAN)
    known = {point.exponents for point in account.points if due <= point.serial}
    return due if len(known) == 1 else max(due, min(told, last))


def _newest_of(account: Account, blobs: Mapping[str, bytes], level: int, told: int) -> int:
    """The size of the newest diff of a level; what the server told where that is swept."""
    newest = account.points[-1]
    end = newest.serial - newest.serial % 2**level
    start = end - 2**level
    if start < account.ladder_from:
        return 0
    diff = blobs.get(f"d{newest.epoch}-{start}-{level}")
    return told if diff is None else len(diff)


def _keyframes(account: Account, blobs: Mapping[str, bytes]) -> Iterator[str]:
    known = {f"k{point.epoch}-{point.version}": point for point in account.points}
    newest = account.points[-1]
    if f"k{newest.epoch}-{newest.version}" not in blobs:
        yield f"blob k{newest.epoch}-{newest.version} is missing"
    for name in sorted(known.keys() & blobs.keys()):
        point = known[name]
        try:
            found = read_keyframe(blobs[name], point.sizes)
        except Refused as refused:
            yield f"blob {name} cannot be read: {refused}"
            continue
        if found != _where(point):
            yield f"blob {name} is not version {point.version}"


def _diffs(account: Account, oldest: int, blobs: Mapping[str, bytes]) -> Iterator[str]:
    """Every diff that is due leads from its publication to the one where it ends."""
    points = {point.serial: point for point in account.points}
    newest = account.points[-1]
    for start in range(max(oldest, newest.serial - SPAN), newest.serial):
        for level in range(_LEVELS):
            end = start + 2**level
            if start % 2**level or end > newest.serial:
                break
            name = f"d{newest.epoch}-{start}-{level}"
            if name not in blobs:
                yield f"blob {name} is missing"
                continue
            first, last = points[start], points[end]
            try:
                there = apply(read_diff(blobs[name], first.sizes), _where(first), first.sizes)
            except Refused as refused:
                yield f"blob {name} cannot be read, or does not fit: {refused}"
                continue
            if there != _where(last):
                yield f"blob {name} does not lead from publication {start} to {end}"


def _where(point: Point) -> Where:
    return Where(list(point.exponents), point.q.tolist())
