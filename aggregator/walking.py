"""The published model's walk on its lattice, and the diffs that every step leaves. Pure.

At every proposal q goes towards what was folded; V = W0 + 2^-m q is what is published. What V is
still short of stays in the fold's own model. Publications on a lattice are counted over a task's
whole life; the ladder of diffs begins anew where devices must not walk on: at another epoch, at
another W0.
"""

import numpy as np

from aggregator.state import NO_DIFFS, Lattice, TaskState
from schemas.errors import WireError
from schemas.ladder import ends_at, origin_name
from schemas.lattice import (
    LEVELS,
    SPAN,
    decode_diff,
    diff_of,
    encode_diff,
    encode_keyframe,
    finer,
    first_exponents,
    merged,
    placed,
    sizes_of,
    walked,
)
from schemas.params import Params, ParamSpec
from schemas.task import TaskSpec


def begun(spec: TaskSpec, whole: Params, part: Params, *, drawn: bool, serial: int) -> Lattice:
    """A lattice around this model; `part` is what travels of it, `serial` the next publication."""
    sizes = sizes_of(spec.params)
    exponents = first_exponents(spec.params, spec.publish.step)
    q = np.zeros(part.size, np.int32)
    return Lattice(
        origin=part.copy(),
        name=origin_name(whole),
        drawn=drawn,
        q=q,
        exponents=exponents,
        keyframe=encode_keyframe(q, exponents, sizes),
        chunk_bytes=spec.publish.chunk_bytes,
        first=serial,
    )


def walk_on(
    lattice: Lattice, spec: TaskSpec, params: Params, serial: int
) -> dict[tuple[int, int], bytes]:
    """Go towards these parameters and be publication `serial`; the diffs that end there.

    Steps are only ever halved: a larger one in the specification changes nothing.
    """
    sizes = sizes_of(spec.params)
    wanted = first_exponents(spec.params, spec.publish.step)
    exponents = tuple(map(max, lattice.exponents, wanted))
    here = lattice.q
    if exponents != lattice.exponents:
        here = finer(here, lattice.exponents, exponents, sizes)
    q = walked(params, lattice.origin, here, exponents, sizes)
    made: dict[tuple[int, int], bytes] = {}
    if serial > lattice.first:
        try:
            made = _diffs(lattice, q, exponents, serial, sizes)
        except WireError:  # it went further than a diff can tell
            begin_ladder(lattice, serial)
    lattice.q, lattice.exponents = q, exponents
    lattice.keyframe = encode_keyframe(q, exponents, sizes)
    _climb(lattice, made, serial)
    return made


def _diffs(
    lattice: Lattice, q: np.ndarray, exponents: tuple[int, ...], serial: int, sizes: tuple[int, ...]
) -> dict[tuple[int, int], bytes]:
    """Level 0, and every higher level whose second half this is."""
    diff = diff_of(lattice.q, lattice.exponents, q, exponents, sizes)
    made = {(serial - 1, 0): encode_diff(diff, sizes)}
    for level in ends_at(serial)[1:]:
        start = serial - (1 << level)
        if start < lattice.first:
            break
        diff = merged(decode_diff(lattice.halves[level - 1], sizes), diff, sizes)
        made[start, level] = encode_diff(diff, sizes)
    return made


def _climb(lattice: Lattice, made: dict[tuple[int, int], bytes], serial: int) -> None:
    """Note which diffs there are now, and which of them wait for their second half."""
    newest = list(lattice.newest)
    for (start, level), diff in made.items():
        lattice.rungs[start, level] = newest[level] = len(diff)
        lattice.halves.pop(level - 1, None)
    lattice.newest = tuple(newest)
    if made:
        start, level = max(made, key=lambda rung: rung[1])
        if level + 1 < LEVELS and not start % (2 << level):
            lattice.halves[level] = made[start, level]
    for rung in [rung for rung in lattice.rungs if rung[0] < serial - SPAN]:
        del lattice.rungs[rung]


def begin_ladder(lattice: Lattice, serial: int) -> None:
    """No diff leads to publication `serial` or beyond from before it."""
    lattice.first = serial
    lattice.halves.clear()
    lattice.rungs.clear()
    lattice.newest = NO_DIFFS


def oldest(state: TaskState, serial: int) -> int:
    """The first publication from which diffs lead to this one; itself when none does."""
    lattice = state.lattice
    if lattice is None or serial < lattice.first:
        return serial
    return min(serial, max(lattice.first, state.serial - 1 - SPAN))


def published_part(lattice: Lattice, params: ParamSpec) -> Params:
    """What travels of V: float32, a new vector."""
    return placed(lattice.origin, lattice.q, lattice.exponents, sizes_of(params))


def halves_of(lattice: Lattice) -> set[str]:
    """The names under which a checkpoint keeps what waits for its second half."""
    return {f"half:{level}" for level in lattice.halves}
