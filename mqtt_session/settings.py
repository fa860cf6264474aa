"""How to reach the MQTT broker: fields that the settings of several processes share."""

from typing import Annotated

import msgspec

from schemas.topics import DEFAULT_PREFIX


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One broker, one user.

    Attributes:
        mqtt_host: name or address of the broker.
        mqtt_port: its TCP port.
        mqtt_url: in their place mqtt://, mqtts://, ws:// or wss:// host[:port][/path].
        mqtt_ca: file of the authorities that vouch for the broker; empty: the system's.
        mqtt_cert: file of this client's certificate, where the broker asks for one.
        mqtt_key: file of its key.
        mqtt_user: user name; empty for none.
        mqtt_password: give it in the environment or a file, never on the command line.
        mqtt_keepalive_s: raise it on slow links.
        mqtt_connect_timeout_s: a slow link needs 30 to 60 s.
        prefix: first levels of every topic.
    """

    mqtt_host: str = "127.0.0.1"
    mqtt_port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 1883
    mqtt_url: str = ""
    mqtt_ca: str = ""
    mqtt_cert: str = ""
    mqtt_key: str = ""
    mqtt_user: str = ""
    mqtt_password: str = ""
    mqtt_keepalive_s: Annotated[int, msgspec.Meta(ge=5, le=65_535)] = 60
    mqtt_connect_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    prefix: str = DEFAULT_PREFIX
