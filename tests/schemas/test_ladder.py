from math import log2

import numpy as np
import pytest

from schemas.ladder import blob_name, ends_at, keyframe_name, origin_name, path
from schemas.lattice import LEVELS, SPAN
from schemas.names import is_name


@pytest.mark.parametrize("gap", range(1, SPAN + 1))
def test_few_aligned_diffs_lead_from_any_publication_to_any_within_the_span(gap):
    for first in range(2 * SPAN):
        steps = path(first, first + gap)
        here = first
        for serial, level in steps:
            assert serial == here
            assert serial % (1 << level) == 0
            here += 1 << level
        assert here == first + gap
        assert len(steps) <= max(1, 2 * log2(gap))


def test_no_way_leads_back_or_stays():
    assert path(7, 7) == path(8, 7) == []


def test_the_longest_diff_that_does_not_overshoot_comes_first():
    assert path(5, 12) == [(5, 0), (6, 1), (8, 2)]
    assert path(0, 200) == [(0, 6), (64, 6), (128, 6), (192, 3)]


def test_every_diff_is_made_once_when_it_ends_from_halves_that_were_there():
    there = set()
    for serial in range(1, 4 * SPAN):
        for level in ends_at(serial):
            start = serial - (1 << level)
            assert start >= 0
            assert (
                level == 0 or {(start, level - 1), (start + (1 << level - 1), level - 1)} <= there
            )
            assert (start, level) not in there
            there.add((start, level))
        for first in range(max(0, serial - SPAN), serial):
            assert set(path(first, serial)) <= there
    assert max(level for _, level in there) == LEVELS - 1
    assert ends_at(0) == []


def test_blobs_have_names_that_may_stand_in_topics():
    origin = origin_name(np.array([1.0, -2.0], dtype=np.float32))
    names = [blob_name(3, 64, 6), keyframe_name(3, 57), origin]
    assert names == ["d3-64-6", "k3-57", "oee4ac73c"]
    assert all(map(is_name, [*names, blob_name(0xFFFF, 0xFFFF_FFFF, 6)]))
