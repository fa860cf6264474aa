"""A device's round: what is lost goes back into the residual, what arrives is out of it."""

import msgspec
import numpy as np
import pytest

from fedmq.simulator.virtual.account import Account
from fedmq.simulator.virtual.flights import Flights
from fedmq.simulator.virtual.population import Population
from fedmq.simulator.virtual.server import Server
from fedmq.simulator.virtual.training import Bench
from schemas.codecs import CodecOptions
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
