"""Settings of `fedmq lora bridge`."""

from typing import Annotated, Literal

import msgspec

from mqtt_session.settings import MqttSettings


class LorawanSettings(MqttSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One adapter: one task, one application of one network server.

    The settings that begin with mqtt_ are fedmq's own broker, those with network_ the network
    server's; both may be the same.

    Attributes:
        task: whose updates the frames are.
        server: `chirpstack` (v4) or `thethings` (The Things Stack v3, The Things Network).
        application: ChirpStack's application id, or {application}@{tenant}.
        region: eu868, us915, as923, au915 or in865: tells what fits into a downlink.
        client_id: of both MQTT sessions; stable, one an adapter.
        network_url: mqtt://, mqtts://, ws:// or wss:// of the network server's broker.
        network_user: user name there; with The Things Stack {application}@{tenant}.
        network_password: give it in the environment or a file, never on the command line.
        network_ca: file of the authorities that vouch for it; empty: the system's.
        network_cert: file of a client certificate for it.
        network_key: file of its key.
        behind: publications a device must be behind before it is sent a newer model; the last model
            of a finished task is sent to everybody.
        downlinks_day: to one device in 24 hours at most; 0: no bound. -1: 8 with `thethings`
            (fair use is 10, and two are left to the network), no bound with `chirpstack`.
        downlink_bytes: that fit into a downlink; 0: what RX1 takes at the uplink's data rate.
    """

    task: str = ""
    server: Literal["chirpstack", "thethings"] = "chirpstack"
    application: str = ""
    region: str = "eu868"
    client_id: str = "fedmq-lora"
    network_url: str = "mqtt://127.0.0.1:1883"
    network_user: str = ""
    network_password: str = ""
    network_ca: str = ""
    network_cert: str = ""
    network_key: str = ""
    behind: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    downlinks_day: Annotated[int, msgspec.Meta(ge=-1, le=100_000)] = -1
    downlink_bytes: Annotated[int, msgspec.Meta(ge=0, le=242)] = 0


def network_settings(settings: LorawanSettings) -> MqttSettings:
    """How to reach the network server's broker."""
    return MqttSettings(
        mqtt_url=settings.network_url,
        mqtt_ca=settings.network_ca,
        mqtt_cert=settings.network_cert,
        mqtt_key=settings.network_key,
        mqtt_user=settings.network_user,
        mqtt_password=settings.network_password,
        mqtt_keepalive_s=settings.mqtt_keepalive_s,
        mqtt_connect_timeout_s=settings.mqtt_connect_timeout_s,
    )
