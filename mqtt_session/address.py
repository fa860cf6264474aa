"""Where the broker is and how it is spoken to, out of the settings. Pure.

Refuses (ConfigError) what cannot work, before anything is connected: a password in a URL, a
certificate without its key, a CA file for a connection without TLS.
"""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError

_SCHEMES: Final = {
    "mqtt": (1883, False, False),
    "mqtts": (8883, True, False),
    "ws": (80, False, True),
    "wss": (443, True, True),
}
"""Scheme -> (port, whether TLS, whether WebSocket)."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address.

    Attributes:
        host: name or address.
        port: its TCP port.
        transport: plain TCP, or WebSocket frames (MQTT 3.1.1, section 6).
        path: of the WebSocket; empty without one.
        tls: whether the connection is encrypted and the broker's certificate verified.
    """

    host: str
    port: int
    transport: Literal["tcp", "websockets"] = "tcp"
    path: str = ""
    tls: bool = False

    def __str__(self) -> str:
        scheme = {("tcp", False): "mqtt", ("tcp", True): "mqtts", ("websockets", False): "ws"}
        return (
            f"{scheme.get((self.transport, self.tls), 'wss')}://{self.host}:{self.port}{self.path}"
        )


def address_of(settings: MqttSettings) -> Address:
    """Read the settings. Raises ConfigError."""
    address = _from_url(settings.mqtt_url) if settings.mqtt_url else _plain(settings)
    if bool(settings.mqtt_cert) != bool(settings.mqtt_key):
        missing = "mqtt_key" if settings.mqtt_cert else "mqtt_cert"
        raise ConfigError(missing, "is missing: a certificate and its key go together")
    for field in ("mqtt_ca", "mqtt_cert"):
        if getattr(settings, field) and not address.tls:
            remedy = "is for TLS: set mqtt_url to mqtts:// or wss://"
            raise ConfigError(field, remedy)
    return address


def _plain(settings: MqttSettings) -> Address:
    """Host and port; who names an authority or a certificate means TLS."""
    tls = bool(settings.mqtt_ca or settings.mqtt_cert)
    return Address(settings.mqtt_host, settings.mqtt_port, tls=tls)


def _from_url(url: str) -> Address:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as exc:
        raise ConfigError("mqtt_url", f"cannot be read: {exc}") from exc
    if parts.username is not None or parts.password is not None:
        remedy = "holds a user: use mqtt_user, and FEDMQ_MQTT_PASSWORD or a file"
        raise ConfigError("mqtt_url", remedy)
    if parts.scheme not in _SCHEMES or not host:
        remedy = "must be mqtt://, mqtts://, ws:// or wss:// host[:port][/path]"
        raise ConfigError("mqtt_url", remedy)
    usual, tls, websocket = _SCHEMES[parts.scheme]
    if not websocket and parts.path not in {"", "/"}:
        raise ConfigError("mqtt_url", f"a path ({parts.path}) belongs to ws:// or wss://")
    path = (parts.path if parts.path not in {"", "/"} else "/mqtt") if websocket else ""
    return Address(host, port or usual, "websockets" if websocket else "tcp", path, tls)
