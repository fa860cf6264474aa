from itertools import pairwise

import numpy as np
import pytest

from broker.lorawan.transfers import Step
from broker.lorawan.ways import joined, rungs
from schemas.errors import WireError
from schemas.lattice import applied, decode_diff, diff_of, encode_diff

SIZES = (40, 8)
EXPONENTS = (4, 5)


def step(first, last):
    return Step(3, first, 0, last, last, b"dddd")


def test_a_step_is_a_path_over_the_ladder_and_a_keyframe_needs_none():
    assert rungs(step(5, 12)) == ["d3-5-0", "d3-6-1", "d3-8-2"]
    assert rungs(step(None, 12)) == []


def test_one_diff_does_what_many_do():
    rng = np.random.default_rng(1)
    points = [rng.integers(-9, 9, sum(SIZES)).astype(np.int32) for _ in range(4)]
    diffs = [
        encode_diff(diff_of(a, EXPONENTS, b, EXPONENTS, SIZES), SIZES) for a, b in pairwise(points)
    ]
    one = decode_diff(joined(diffs, SIZES), SIZES)
    there, _ = applied(points[0], EXPONENTS, one, SIZES)
    assert there.tobytes() == points[-1].tobytes()


def test_nothing_and_garbage_lead_nowhere():
    for blobs in ([], [b""], [b"\xff\xff\xff\xff\xff\xff"]):
        with pytest.raises(WireError):
            joined(blobs, SIZES)
