import json

import pytest

from broker.lorawan.commands import downlink
from broker.lorawan.events import Joined, Sent, Uplink, read_event
from broker.lorawan.regions import region
from fedmq.simulator.lora import airtime_s
from fedmq.simulator.network_server import NetworkServer, timestamp
from schemas.names import DeviceId

EUI = DeviceId("70b3d57ed0000001")
EU = region("eu868")
SLOW = EU.rate(12)


def told(server: NetworkServer, size: int = 51, port: int = 3) -> bool:
    answer = f"application/{server.application}/device/{EUI}/command/down"
    return server.take(answer, downlink(answer, EUI, port, bytes(size)))


def test_its_uplinks_are_read_as_chirpstacks():
    server = NetworkServer(EU)
    event = server.hear(
        EUI, dev_addr="00189440", count=8, rate=SLOW, port=2, data=b"x" * 20, now_s=86_400.0
    )
    found = read_event(*event)
    assert isinstance(found, Uplink)
    assert (found.seq, found.port, found.frame, found.dr) == (9, 2, b"x" * 20, 0)
    assert json.loads(event.payload)["time"] == "2026-01-02T00:00:00.000+00:00"
    assert read_event(*server.join(EUI, "1", 0.0)) == Joined(EUI)


def test_what_was_taken_goes_down_in_order_and_is_told():
    server = NetworkServer(EU)
    assert told(server, 10, port=3)
    assert told(server, 20, port=4)
    first = server.answer(EUI, SLOW, 0.0)
    assert first is not None
    assert (first[0].port, len(first[0].data), first[0].window) == (3, 10, 1)
    assert read_event(*first[1]) == Sent(EUI)
    assert server.answer(EUI, SLOW, 1e6)[0].port == 4
    assert server.answer(EUI, SLOW, 2e6) is None


@pytest.mark.parametrize("body", [b"", b"{}", b'{"devEui":"x","fPort":1,"data":""}', b"[]"])
def test_what_is_no_command_is_not_taken(body):
    server = NetworkServer(EU)
    assert not server.take(f"application/{server.application}/device/{EUI}/command/down", body)
    assert not server.take("elsewhere", b"{}")


def test_a_gateway_keeps_its_duty_cycle_in_both_bands():
    server = NetworkServer(EU)
    for _ in range(3):
        told(server)
    windows = [server.answer(EUI, SLOW, 0.0) for _ in range(3)]
    assert [found and found[0].window for found in windows] == [1, 2, None]
    assert server.held == 1
    air_s = airtime_s(12, 64)
    told(server)
    assert server.answer(EUI, SLOW, 10 * air_s + 0.1)[0].window == 2
    told(server)
    assert server.answer(EUI, SLOW, 100 * air_s + 0.1)[0].window == 1


def test_what_does_not_fit_is_refused_and_a_join_empties_the_queue():
    server = NetworkServer(EU)
    told(server, 52)
    assert server.answer(EUI, SLOW, 0.0) is None
    assert server.refused == 1
    told(server, 51)
    server.join(EUI, "2", 0.0)
    assert server.waiting(EUI) == 0


def test_time_is_that_of_a_year():
    assert timestamp(0.0) == "2026-01-01T00:00:00.000+00:00"
    assert timestamp(59 * 86_400.0 + 3_723.5) == "2026-03-01T01:02:03.500+00:00"
