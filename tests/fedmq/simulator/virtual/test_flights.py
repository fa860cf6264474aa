"""A device's round: what is lost goes back into the residual, what arrives is out of it."""

from math import ceil

import msgspec
import numpy as np
import pytest

from fedmq.simulator.virtual.account import Account
from fedmq.simulator.virtual.fleet_file import FleetFile
from fedmq.simulator.virtual.flights import Flight, Flights
from fedmq.simulator.virtual.learner import Job, Trained
from fedmq.simulator.virtual.population import Device, Population
from fedmq.simulator.virtual.server import Server
from fedmq.simulator.virtual.training import Bench
from schemas.codecs import CodecOptions
from schemas.pace import PaceOptions, Select
from schemas.task import TaskFile, TrainOptions
from schemas.wire import decode_update
from tests.fedmq.simulator.virtual.toy import SIZE, STEPS, Toy, fleet, task


@pytest.mark.parametrize("lost", [0.0, 1.0])
def test_a_lost_update_leaves_the_residual_as_it_was_before(lost: float) -> None:
    sparse = msgspec.structs.replace(task(), codec=CodecOptions("topk_int8", density=0.2))
    given = fleet(sparse, participation={"lost": lost})
    learner, account = Toy(), Account()
    server = Server(given.spec(learner.spec), learner.initial())
    flights = Flights(given, server, Bench(learner), account)
    device = Population(given, learner).at(3, 0.0)
    device.residual = before = np.ones(SIZE, np.float32)
    flight = flights.begin(device, 10.0)
    assert flight is not None
    assert flight.sends_s == pytest.approx(10.0 + STEPS / device.speed)
    assert flights.ready(flight)
    update = decode_update(flight.message)
    assert (update.seq, update.boot, update.base_version) == (1, device.boot, 0)
    arrives_s = flights.send(flight, flight.sends_s)
    assert (arrives_s == float("inf")) == bool(lost)
    assert (device.residual is before) == bool(lost)
    assert account.uploads == 1
    assert account.bytes_up == len(flight.message)
    assert account.joules > 2.0 * STEPS / device.speed


def begun(given: FleetFile, learner: Toy | None = None) -> tuple[Flights, Device, Flight]:
    """A device that trains."""
    toy = learner or Toy()
    server = Server(given.spec(toy.spec), toy.initial())
    flights = Flights(given, server, Bench(toy), Account())
    device = Population(given, toy).at(3, 0.0)
    flight = flights.begin(device, 10.0)
    assert flight is not None
    return flights, device, flight


def with_pace(pace: PaceOptions) -> TaskFile:
    return msgspec.structs.replace(task(), pace=pace)


def test_an_update_bears_what_its_trainer_measured() -> None:
    flights, _, flight = begun(fleet())
    assert flights.ready(flight)
    told = decode_update(flight.message).metrics
    assert told.keys() == {"loss_before", "loss_after", "accuracy"}


@pytest.mark.parametrize(
    ("concurrency", "select", "tells"),
    [(5, "any", False), (5, "fair", True), (5, "utility", True), (0, "fair", False)],
)
def test_a_score_is_sent_only_where_devices_are_selected(
    *, concurrency: int, select: Select, tells: bool
) -> None:
    flights, _, flight = begun(fleet(with_pace(PaceOptions(concurrency, select=select))))
    assert flights.ready(flight)
    assert ("score" in decode_update(flight.message).metrics) == tells


def test_a_round_whose_loss_is_no_number_comes_to_nothing_as_on_a_device() -> None:
    class Blind(Toy):
        def _one(self, job: Job) -> Trained:
            found = super()._one(job)
            return Trained(found.delta, 10, 0.0, STEPS, {"loss_before": float("nan")})

    flights, _, flight = begun(fleet(), Blind())
    assert not flights.ready(flight)


@pytest.mark.parametrize("train", [TrainOptions(seconds=0.4), TrainOptions(joules=0.8)])
def test_a_round_ends_after_the_step_in_which_its_seconds_or_joules_are_over(
    train: TrainOptions,
) -> None:
    given = fleet(msgspec.structs.replace(task(), train=train), energy={"train_w": 2.0})
    _, device, flight = begun(given)
    steps = ceil(0.4 * device.speed)
    assert 0 < steps < STEPS
    assert flight.sends_s == pytest.approx(10.0 + steps / device.speed)
    assert flight.work.job is not None
    assert flight.work.job.steps == steps


def test_a_device_asks_itself_for_its_pace_only_when_it_knows_its_speed() -> None:
    flights, device, first = begun(fleet(with_pace(PaceOptions(seconds=7.0))))
    assert first.sends_s == pytest.approx(10.0 + STEPS / device.speed)
    second = flights.begin(device, 100.0)
    assert second is not None
    assert second.sends_s == pytest.approx(100.0 + int(7.0 * device.speed) / device.speed)


def test_a_device_that_has_never_trained_is_scored_by_its_charge_and_its_link() -> None:
    def scores(select: Select, **tables: object) -> set[float | None]:
        given = fleet(with_pace(PaceOptions(5, select=select)), **tables)
        toy = Toy()
        flights = Flights(given, Server(given.spec(toy.spec), toy.initial()), Bench(toy), Account())
        there = Population(given, toy)
        return {flights.score(there.seen(number, 0.0), 0.0) for number in range(20)}

    assert scores("link", links={"nb-iot": 1, "perfect": 1}) == {0.1, 1.0}
    assert scores("battery", energy={"battery_j": 100.0}) == {1.0}
    assert scores("fair") == {1.0}
    assert scores("utility") == {None}


def test_on_a_bound_of_bytes_a_day_a_link_is_wanted_by_what_is_left_of_it() -> None:
    bounded = msgspec.structs.replace(with_pace(PaceOptions(5, select="link")), uplink="1 kB/day")
    flights, device, flight = begun(fleet(bounded))
    assert flights.score(device, 10.0) == 1.0  # nothing was sent: nothing is known
    assert flights.ready(flight)
    flights.send(flight, flight.sends_s)
    assert (flights.score(device, flight.sends_s) or 0.0) < 0.1
    assert (flights.score(device, flight.sends_s + 43_200.0) or 0.0) == pytest.approx(0.5, abs=0.1)
