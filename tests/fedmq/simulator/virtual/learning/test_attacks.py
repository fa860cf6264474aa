"""What attackers send, and who they are."""

import numpy as np
import pytest

from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.attacks import (
    a_little,
    attacks,
    colluders,
    flipped,
    pretended,
)
from fedmq.simulator.virtual.learning.share import Share, one_hot


def chance() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(1))


DELTA = np.linspace(-1, 2, 500, dtype=np.float32)


def test_about_the_share_that_is_asked_for_attacks_and_another_seed_chooses_others() -> None:
    options = AttackOptions("scaling", share=0.2)
    found = [{d for d in range(5000) if attacks(options, 20_000, d, seed)} for seed in (1, 2)]
    assert all(900 < len(devices) < 1100 for devices in found)
    assert len(found[0] & found[1]) < 300
    assert not any(attacks(AttackOptions(share=1.0), 100, d, 1) for d in range(100))
    assert all(attacks(AttackOptions("alie", share=1.0), 100, d, 1) for d in range(100))


def test_colluders_are_the_first_attackers() -> None:
    options = AttackOptions("alie", share=0.2)
    found = colluders(options, 1000, 7)
    assert found == [d for d in range(1000) if attacks(options, 1000, d, 7)][:8]
    assert colluders(AttackOptions("alie", share=0.0), 50, 7) == []


def test_a_sign_flip_turns_around_and_scaling_does_not() -> None:
    flip, scale = AttackOptions("sign-flip", scale=3.0), AttackOptions("scaling", scale=3.0)
    assert (pretended(flip, DELTA, chance()) == -3 * DELTA).all()
    assert (pretended(scale, DELTA, chance()) == 3 * DELTA).all()


def test_noise_is_as_long_as_asked_and_knows_nothing_of_the_delta() -> None:
    noise = pretended(AttackOptions("gaussian", scale=2.0), DELTA, chance())
    assert np.isclose(np.linalg.norm(noise), 2 * np.linalg.norm(DELTA), rtol=1e-5)
    assert abs(np.corrcoef(noise, DELTA)[0, 1]) < 0.15


def test_noise_about_nothing_is_nothing() -> None:
    nothing = np.zeros(5, np.float32)
    assert not pretended(AttackOptions("gaussian"), nothing, chance()).any()


def test_flipped_labels_count_from_the_other_end() -> None:
    share = one_hot(np.zeros((3, 2), np.float32), np.array([0, 4, 9]), 10)
    assert flipped(share).targets.argmax(axis=1).tolist() == [9, 5, 0]
    number = Share(share.features, np.array([[0.0], [0.25], [1.0]], np.float32))
    assert flipped(number).targets.ravel().tolist() == [1.0, 0.75, 0.0]


def test_a_little_is_z_deviations_below_the_mean() -> None:
    deltas = np.array([[1, 0], [3, 0], [5, 6]], np.float32)
    found = a_little(deltas, 1.5)
    expected = [3 - 1.5 * (8 / 3) ** 0.5, 2 - 1.5 * 8**0.5]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(("devices", "share", "wanted"), [(20, 0.2, 4), (10, 0.25, 2), (7, 0.0, 0)])
def test_in_a_small_fleet_the_share_of_attackers_is_exact(devices, share, wanted):
    options = AttackOptions("sign-flip", share=share)
    for seed in range(5):
        assert sum(attacks(options, devices, d, seed) for d in range(devices)) == wanted
