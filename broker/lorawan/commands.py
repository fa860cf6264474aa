"""A downlink for the network server, as JSON. Pure.

ChirpStack v4         {"devEui", "confirmed", "fPort", "data"} appends to the device's queue
The Things Stack v3   {"downlinks": [{"f_port", "frm_payload", "priority"}]}, to down/replace: it
                      puts away what is still waiting
"""

from base64 import b64encode
from typing import Final

import msgspec

from schemas.names import DeviceId

_THETHINGS: Final = "v3/"


def downlink(answer: str, device: DeviceId, port: int, data: bytes) -> bytes:
    """What to publish on the topic `answer`, so that `data` goes down unconfirmed.

    Args:
        answer: as `events.Uplink` tells it.
        device: the DevEUI.
        port: FPort, 1 to 223.
        data: the frame's payload.
    """
    text = b64encode(data).decode()
    if answer.startswith(_THETHINGS):
        one = {"f_port": port, "frm_payload": text, "priority": "NORMAL"}
        return msgspec.json.encode({"downlinks": [one]})
    return msgspec.json.encode({"devEui": device, "confirmed": False, "fPort": port, "data": text})
