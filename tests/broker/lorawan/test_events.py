import base64
import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.lorawan.events import EVENT_BYTES, Joined, Refused, Sent, Uplink, read_event

EUI = "70B3D57ED0000001"
DEVICE = EUI.lower()
FRAME = bytes(range(51))
UP = f"application/52f1/device/{DEVICE}/event/up"
THINGS = "v3/pumps@ttn/devices/pump-1/up"


def chirpstack(**changed):
    """What ChirpStack v4 says of an uplink (docs: integrations, events)."""
    event = {
        "deduplicationId": "3ac7e3c4-4401-4b8d-9386-a5c902f9202d",
        "time": "2026-07-18T09:34:15.775023242+00:00",
        "deviceInfo": {
            "tenantId": "52f14cd4-c6f1-4fbd-8f87-4025e1d49242",
            "tenantName": "ChirpStack",
            "applicationId": "52f1",
            "devEui": DEVICE,
            "tags": {"site": "north"},
        },
        "devAddr": "00189440",
        "adr": True,
        "dr": 1,
        "fCnt": 4,
        "fPort": 1,
        "confirmed": True,
        "data": base64.b64encode(FRAME).decode(),
        "object": {"never": "read"},
        "rxInfo": [{"gatewayId": "0016c001f153a14c", "rssi": -36, "snr": 10.5}],
        "txInfo": {"frequency": 867_100_000, "modulation": {"lora": {"spreadingFactor": 11}}},
    }
    return json.dumps(event | changed).encode()


def things(message=None, **ids):
    """What The Things Stack v3 says of one: fields that are zero are left out."""
    uplink = {
        "session_key_id": "AXBSH1Pk6Z0G166=",
        "f_port": 15,
        "f_cnt": 2,
        "frm_payload": base64.b64encode(FRAME).decode(),
        "rx_metadata": [{"rssi": -40}],
        "settings": {"data_rate": {"lora": {"bandwidth": 125000, "spreading_factor": 9}}},
    }
    names = {"device_id": "pump-1", "dev_eui": EUI, "dev_addr": "00BCB929"}
    told = {"end_device_ids": names | ids, "uplink_message": uplink | (message or {})}
    return json.dumps(told).encode()


def test_an_uplink_of_chirpstack_names_device_session_and_frame():
    found = read_event(UP, chirpstack())
    assert isinstance(found, Uplink)
    assert (found.device, found.seq, found.port, found.frame) == (DEVICE, 5, 1, FRAME)
    assert (found.dr, found.answer) == (1, f"application/52f1/device/{DEVICE}/command/down")
    digest = sha256(f"{DEVICE}\0".encode() + b"00189440").digest()
    assert found.boot == int.from_bytes(digest[:4], "big")


def test_an_uplink_of_the_things_stack_names_the_same_things():
    found = read_event(THINGS, things())
    assert isinstance(found, Uplink)
    assert (found.device, found.seq, found.port, found.frame) == (DEVICE, 3, 15, FRAME)
    assert (found.sf, found.bandwidth_hz) == (9, 125_000)
    assert found.answer == "v3/pumps@ttn/devices/pump-1/down/replace"


def test_the_name_of_a_device_is_written_one_way():
    assert read_event(UP, chirpstack(deviceInfo={"devEui": EUI})).device == DEVICE


def test_a_join_begins_another_session_and_is_told():
    boots = {read_event(UP, chirpstack(devAddr=address)).boot for address in ("01", "02")}
    boots |= {read_event(THINGS, things({"session_key_id": key})).boot for key in ("a", "b")}
    assert len(boots) == 4
    assert read_event(UP.replace("up", "join"), chirpstack()) == Joined(DEVICE)
    assert read_event(THINGS.replace("/up", "/join"), things()) == Joined(DEVICE)


def test_a_frame_that_is_told_twice_is_the_same_update():
    first, again = (read_event(UP, chirpstack(deduplicationId=name)) for name in ("a", "b"))
    assert first == again


def test_a_downlink_on_the_air_is_told():
    assert read_event(UP.replace("up", "txack"), chirpstack()) == Sent(DEVICE)
    assert read_event(THINGS.replace("/up", "/down/sent"), things()) == Sent(DEVICE)


def test_what_protobufs_json_leaves_out_is_zero():
    event = json.loads(chirpstack())
    del event["fCnt"], event["dr"]
    found = read_event(UP, json.dumps(event).encode())
    assert isinstance(found, Uplink)
    assert (found.seq, found.dr) == (1, 0)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"fPort": 0}, "port"),
        ({"fPort": 224}, "port"),
        ({"fPort": 256}, "not_json"),
        ({"fCnt": -1}, "not_json"),
        ({"fCnt": 0xFFFF_FFFF}, "no_session"),
        ({"devAddr": ""}, "no_session"),
        ({"data": "=="}, "not_base64"),
        ({"data": ""}, "size"),
        ({"data": base64.b64encode(bytes(243)).decode()}, "size"),
        ({"data": "A" * 600}, "not_json"),
        ({"deviceInfo": {"devEui": "no"}}, "not_json"),
        ({"deviceInfo": None}, "not_json"),
        ({"joinServerContext": {"sessionKeyId": "x"}}, "encrypted"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(changed, why):
    found = read_event(UP, chirpstack(**changed))
    assert isinstance(found, Refused)
    assert found.why == why


def test_a_frame_of_eleven_bytes_is_refused_with_the_remedy():
    found = read_event(UP, chirpstack(data=base64.b64encode(bytes(11)).decode()))
    assert isinstance(found, Refused)
    assert found.why == "size"
    assert "ADR" in found.detail


def test_an_envelope_alone_is_a_poll():
    found = read_event(UP, chirpstack(data=base64.b64encode(bytes(4)).decode()))
    assert isinstance(found, Uplink)
    assert found.polls


@pytest.mark.parametrize("topic", ["", "application/a/device/b/event/status", "v3/a/devices/b/x"])
def test_another_topic_is_another_event(topic):
    assert read_event(topic, b"{}") == Refused("other_event", topic)


def test_a_long_event_is_not_parsed():
    found = read_event(UP, b" " * (EVENT_BYTES + 1))
    assert isinstance(found, Refused)
    assert found.why == "too_long"


@given(
    st.sampled_from([UP, THINGS, UP.replace("up", "join")]),
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["deviceInfo", "devEui", "data", "uplink_message", "f_cnt"]),
                    inner,
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_no_garbage_raises(topic, payload):
    assert isinstance(read_event(topic, payload), Uplink | Joined | Sent | Refused)


@given(st.text(max_size=40), st.binary(max_size=40))
def test_no_topic_raises(topic, payload):
    assert isinstance(read_event(topic, payload), Refused)


def test_an_array_that_is_deeper_than_the_stack_is_garbage():
    found = read_event(UP, b"[" * 30_000)
    assert isinstance(found, Refused)
    assert found.why == "not_json"
