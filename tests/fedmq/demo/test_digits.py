import subprocess
import sys

import numpy as np
import pytest

from edge_agent.trainers.examples import Examples
from fedmq.demo.digits import (
    CLASSES,
    FEATURES,
    DigitsFleet,
    digits_fleet,
    dirichlet_split,
    load_digits,
    topped_up,
)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def fleet() -> DigitsFleet:
    return digits_fleet(20, generator())


def rows_of(examples: Examples) -> list[bytes]:
    labelled = np.column_stack([examples.features, examples.labels.astype(np.float32)])
    return [row.tobytes() for row in labelled]


def top_share(examples: Examples) -> float:
    """The share of a device's commonest digit."""
    return float(np.bincount(examples.labels).max() / len(examples))


def test_digits_are_float32_between_0_and_1() -> None:
    digits = load_digits()
    assert digits.features.shape == (1797, FEATURES)
    assert digits.features.dtype == np.float32
    assert (digits.features.min(), digits.features.max()) == (0, 1)
    assert set(digits.labels) == set(range(CLASSES))


def test_no_example_is_lost_or_in_two_places(fleet: DigitsFleet) -> None:
    dealt = [row for part in (*fleet.devices, fleet.held_out) for row in rows_of(part)]
    assert sorted(dealt) == sorted(rows_of(load_digits()))


def test_no_device_has_seen_what_is_held_out(fleet: DigitsFleet) -> None:
    seen = {row for device in fleet.devices for row in rows_of(device)}
    assert seen.isdisjoint(rows_of(fleet.held_out))


def test_a_fifth_is_held_out_and_has_every_digit(fleet: DigitsFleet) -> None:
    assert len(fleet.held_out) == round(0.2 * 1797)
    assert set(fleet.held_out.labels) == set(range(CLASSES))


@pytest.mark.parametrize("seed", range(5))
def test_every_device_has_its_minimum(seed: int) -> None:
    fleet = digits_fleet(30, generator(seed), min_examples=12)
    assert len(fleet.devices) == 30
    assert min(map(len, fleet.devices)) >= 12


def test_one_seed_deals_one_fleet(fleet: DigitsFleet) -> None:
    again = digits_fleet(20, generator())
    for mine, other in zip(fleet.devices, again.devices, strict=True):
        assert np.array_equal(mine.features, other.features)
        assert np.array_equal(mine.labels, other.labels)
    assert np.array_equal(fleet.held_out.features, again.held_out.features)


def test_another_seed_deals_another_fleet(fleet: DigitsFleet) -> None:
    other = digits_fleet(20, generator(1))
    assert rows_of(other.held_out) != rows_of(fleet.held_out)


def test_a_small_alpha_is_skewed_and_a_large_one_is_not(fleet: DigitsFleet) -> None:
    even = digits_fleet(20, generator(), alpha=1000)
    assert np.mean([top_share(device) for device in fleet.devices]) > 0.35
    assert np.mean([top_share(device) for device in even.devices]) < 0.2


def test_the_split_deals_every_row_once() -> None:
    labels = np.repeat(np.arange(3), 50)
    hands = dirichlet_split(labels, 7, 0.1, generator())
    assert sorted(np.concatenate(hands)) == list(range(150))


def test_the_richest_gives_to_the_poorest() -> None:
    hands = topped_up([np.arange(6), np.array([], dtype=np.int64), np.array([6, 7])], 2)
    assert [hand.tolist() for hand in hands] == [[0, 1, 2, 3], [5, 4], [6, 7]]


def test_too_many_devices_for_the_digits_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot give 1000 devices 8 each"):
        digits_fleet(1000, generator())


def test_importing_the_demo_does_not_import_sklearn() -> None:
    code = "import sys, fedmq.demo.digits; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
