import json

from broker.lorawan.commands import downlink
from schemas.names import DeviceId

DEVICE = DeviceId("70b3d57ed0000001")


def test_chirpstack_gets_one_item_for_its_queue():
    body = downlink(f"application/a/device/{DEVICE}/command/down", DEVICE, 3, b"\1\2\3")
    assert json.loads(body) == {"devEui": DEVICE, "confirmed": False, "fPort": 3, "data": "AQID"}


def test_the_things_stack_gets_a_queue_of_one():
    body = downlink("v3/pumps@ttn/devices/pump-1/down/replace", DEVICE, 3, b"\1\2\3")
    assert json.loads(body) == {
        "downlinks": [{"f_port": 3, "frm_payload": "AQID", "priority": "NORMAL"}]
    }
