"""What `python -m benchmarks.bytes` promises, at a fifth of its size: three seeds, 300 uploads.

Margins are three times as wide as what seven such triples of seeds were apart by.
"""

from functools import cache
from statistics import fmean

import pytest

from benchmarks.learning.fleet import Way
from benchmarks.learning.study import Job, outcome
from benchmarks.learning.timeline import Faults

SEEDS = (1, 2, 3)
LOSSY = Faults("lost", 0.2)


@cache
def reached(way: Way, faults: Faults = Faults(), *, lattice: bool = False) -> float:  # noqa: B008 - frozen
    jobs = [Job("small", way, seed, faults, lattice, uploads=300) for seed in SEEDS]
    return fmean(outcome(job).reached for job in jobs)


def test_373_times_fewer_bytes_learn_nearly_as_much():
    assert reached(Way("sq", 103)) > reached(Way()) - 3.0


@pytest.mark.parametrize("codec", ["sq", "eden"])
def test_39_unbiased_bytes_learn_more_than_39_biased_ones(codec: str):
    assert reached(Way(codec, 39)) > reached(Way("stc", 39)) + 2.0


def test_on_the_lattice_with_a_fifth_lost_a_fleet_learns_nearly_as_much():
    assert reached(Way("sq", 103), LOSSY, lattice=True) > reached(Way()) - 4.0
