"""SIGKILL any process at any time: nothing that was created is lost, nothing is folded twice."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import servers
from integration.stack import TASK, Stack, eventually, run_fedmq, stack

DEVICES = 3
ROUNDS = 200
KILLS = 3


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Stack]:
    with (
        servers.mosquitto(tmp_path) as broker,
        servers.redis_server(tmp_path) as redis,
        stack(tmp_path, broker, redis, devices=DEVICES, rounds=ROUNDS) as running,
    ):
        yield running


def published(fleet: Stack) -> np.ndarray:
    """The newest published model, as `fedmq model pull` gives it."""
    path = fleet.folder / "model.npz"
    run_fedmq("model", "pull", TASK, "-o", str(path), "--redis-url", fleet.redis_url)
    with np.load(path) as archive:
        return archive["counts"]


def rounds_done(fleet: Stack) -> int:
    return sum(len(device.trained) for device in fleet.devices)


def kill_again_and_again(
    fleet: Stack, kill: Callable[[random.Random], None], start: Callable[[], None]
) -> None:
    """Kill in mid-run at seeded moments, each time after some progress."""
    rng = random.Random(20)
    for _ in range(KILLS):
        goal = rounds_done(fleet) + 6
        eventually(lambda goal=goal: rounds_done(fleet) >= goal, f"{goal} rounds")
        time.sleep(rng.uniform(0, 0.2))
        kill(rng)
        time.sleep(rng.uniform(0, 0.3))
        start()
    goal = rounds_done(fleet) + 6
    eventually(lambda: rounds_done(fleet) >= goal, "progress after the last kill")


def check_ledgers(fleet: Stack) -> None:
    """Drain, then hold the model against the witnesses: every round exactly once.

    A round that made no update may be missing: its device was killed before that, or the update
    that it was to replace was sent while it was under way.
    """
    fleet.quiesce()
    eventually(
        lambda: sum(device.open for device in fleet.devices) == 0, "every update has its Receipt"
    )

    def is_whole() -> bool:
        model = published(fleet)  # before the ledgers: whatever it holds stands in them
        expected = np.zeros(DEVICES * ROUNDS)
        for device in fleet.devices:
            expected[device.trained] = 1
        assert model.max() <= 1, f"folded twice: {np.flatnonzero(model > 1)}"
        assert not model[expected == 0].any(), "folded what nobody trained"
        without = sum(len(device.trained) - device.created for device in fleet.devices)
        return int((expected - model).sum()) == without

    eventually(is_whole, "every round that made an update is in the model", 20)
    assert rounds_done(fleet) > 20


def test_a_killed_bridge_loses_nothing_and_repeats_nothing(fleet: Stack) -> None:
    kill_again_and_again(fleet, lambda _rng: fleet.bridge.kill(), fleet.bridge.start)
    check_ledgers(fleet)


def test_a_killed_aggregator_loses_nothing_and_repeats_nothing(fleet: Stack) -> None:
    kill_again_and_again(fleet, lambda _rng: fleet.aggregator.kill(), fleet.aggregator.start)
    check_ledgers(fleet)


def test_a_killed_redis_loses_nothing_and_repeats_nothing(fleet: Stack) -> None:
    kill_again_and_again(fleet, lambda _rng: fleet.redis.kill(), fleet.redis.start)
    check_ledgers(fleet)


def test_a_killed_broker_loses_nothing_and_repeats_nothing(fleet: Stack) -> None:
    kill_again_and_again(fleet, lambda _rng: fleet.broker.kill(), fleet.broker.start)
    check_ledgers(fleet)


def test_a_killed_device_loses_nothing_and_repeats_nothing(fleet: Stack) -> None:
    victims = []

    def kill(rng: random.Random) -> None:
        victims.append(rng.choice(fleet.devices))
        victims[-1].process.kill()

    kill_again_and_again(fleet, kill, lambda: victims[-1].process.start())
    check_ledgers(fleet)
