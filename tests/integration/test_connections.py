"""TLS, client certificates and WebSockets on a real mosquitto."""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import servers
import trustme

from mqtt_session.backoff import Backoff
from mqtt_session.session import LinkError, connect, keep_connected
from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError

CHUNKS = 300


@dataclass(frozen=True)
class Secure:
    """A mosquitto with every kind of listener, and the files that a client needs."""

    server: servers.Server
    folder: Path
    tls: int
    mutual: int
    ws: int
    wss: int

    def to(self, url: str, **more: str) -> MqttSettings:
        ca = str(self.folder / "ca.pem") if url.startswith(("mqtts", "wss")) else ""
        plain = {"mqtt_user": "pump-1", "mqtt_password": "secret", "mqtt_ca": ca}
        return msgspec.convert(
            {"mqtt_url": url, "mqtt_connect_timeout_s": 5.0, **plain, **more}, MqttSettings
        )

    @property
    def urls(self) -> dict[str, str]:
        return {
            "mqtt": f"mqtt://127.0.0.1:{self.server.port}",
            "mqtts": f"mqtts://localhost:{self.tls}",
            "ws": f"ws://127.0.0.1:{self.ws}/mqtt",
            "wss": f"wss://localhost:{self.wss}",
        }


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other-ca.pem")
    broker = authority.issue_cert("localhost")
    broker.private_key_and_cert_chain_pem.write_to_path(folder / "broker.pem")
    device = authority.issue_cert(common_name="pump-9")
    device.private_key_pem.write_to_path(folder / "pump-9.key")
    device.cert_chain_pems[0].write_to_path(folder / "pump-9.pem")
    tls, mutual, ws, wss = (servers.free_port() for _ in range(4))
    files = [f"cafile {folder}/ca.pem", f"certfile {folder}/broker.pem"]
    files += [f"keyfile {folder}/broker.pem"]
    lines = [
        f"password_file {servers.mosquitto_passwords(folder, {'pump-1': 'secret'})}",
        *(f"listener {tls} 127.0.0.1", *files),
        *(f"listener {mutual} 127.0.0.1", *files),
        *("require_certificate true", "use_identity_as_username true"),
        *(f"listener {ws} 127.0.0.1", "protocol websockets"),
        *(f"listener {wss} 127.0.0.1", "protocol websockets", *files),
    ]
    with servers.mosquitto(folder, anonymous=False, max_queued=2000, extra=lines) as server:
        yield Secure(server, folder, tls, mutual, ws, wss)


async def exchange(settings: MqttSettings, name: str) -> list[bytes]:
    """Retain many chunks, and fetch them in windows as a device does."""
    sent = [b"%04d" % number * 1000 for number in range(CHUNKS)]
    found: list[bytes] = []
    async with asyncio.timeout(60), connect(settings, client_id=name, clean=True) as session:
        for start in range(0, CHUNKS, 20):
            window = range(start, min(start + 20, CHUNKS))
            publishing = (session.publish(f"t/{name}/{i}", sent[i], retain=True) for i in window)
            await asyncio.gather(*publishing)
        for start in range(0, CHUNKS, 50):
            await session.subscribe([f"t/{name}/{i}" for i in range(start, start + 50)], qos=1)
            while len(found) < start + 50:
                found += [message.payload for message in await session.receive()]
    assert sorted(found) == sent
    return found


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_hundreds_of_chunks_come_through_every_kind_of_connection(secure, scheme) -> None:
    found = await exchange(secure.to(secure.urls[scheme]), scheme)
    assert len(found) == CHUNKS


async def test_a_client_certificate_is_a_name(secure) -> None:
    folder = secure.folder
    certificate = {
        "mqtt_cert": str(folder / "pump-9.pem"),
        "mqtt_key": str(folder / "pump-9.key"),
        "mqtt_user": "",
        "mqtt_password": "",
    }
    url = f"mqtts://localhost:{secure.mutual}"
    assert len(await exchange(secure.to(url, **certificate), "pump-9")) == CHUNKS
    assert (
        "as pump-9 " in secure.server.log.read_text()
        or "u'pump-9'" in secure.server.log.read_text()
    )


async def test_without_a_certificate_the_door_stays_shut(secure) -> None:
    settings = secure.to(f"mqtts://localhost:{secure.mutual}")
    with pytest.raises(LinkError):
        await exchange(settings, "nobody")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mqtt_ca": "other-ca.pem"}, "certificate verify failed"),
        ({"mqtt_url": "127.0.0.1"}, "IP address mismatch"),
        ({"mqtt_password": "wrong"}, "(?i)not authori[sz]ed"),
    ],
    ids=["another authority", "another host name", "a wrong password"],
)
async def test_whoever_cannot_be_trusted_is_not_connected_to(secure, change, reason) -> None:
    url = secure.urls["mqtts"]
    if "mqtt_url" in change:
        url, change = url.replace("localhost", change["mqtt_url"]), {}
    change = {k: str(secure.folder / v) if k == "mqtt_ca" else v for k, v in change.items()}
    with pytest.raises(LinkError, match=reason):
        await exchange(secure.to(url, **change), "me")


async def test_a_broker_that_cannot_be_trusted_is_told_once_and_tried_again(secure, caplog) -> None:
    settings = secure.to(secure.urls["mqtts"], mqtt_ca=str(secure.folder / "other-ca.pem"))
    tries = 0

    def door():
        nonlocal tries
        tries += 1
        if tries == 3:
            raise asyncio.CancelledError
        return connect(settings, client_id="me", clean=True)

    async def use(_session) -> None:
        pytest.fail("nobody may come through")

    with caplog.at_level(logging.INFO, "fedmq.mqtt"), suppress(asyncio.CancelledError):
        await keep_connected(door, use, rng=random.Random(1), backoff=Backoff(0.01, 0.02))
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "certificate verify failed" in warned[0]
    assert tries == 3


@pytest.mark.parametrize(
    ("field", "name"), [("mqtt_ca", "absent.pem"), ("mqtt_ca", "pump-9.key")], ids=str
)
async def test_a_file_without_certificates_is_named(secure, field, name) -> None:
    settings = secure.to(secure.urls["mqtts"], **{field: str(secure.folder / name)})
    with pytest.raises(ConfigError) as refused:
        await exchange(settings, "me")
    assert refused.value.field == field
    assert name in refused.value.remedy
