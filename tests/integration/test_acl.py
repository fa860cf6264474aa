"""The shipped ACL on a real mosquitto: who may do what on the training topics.

mosquitto acknowledges a forbidden PUBLISH and drops it, and grants a forbidden SUBSCRIBE and sends
nothing. So every test looks at what arrives until a message that is permitted has come through.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import servers

from mqtt_session.session import Session, connect
from mqtt_session.settings import MqttSettings

P = "fedmq/v1/pumps"
USERS = ("pump-1", "pump-2", "fedmq-bridge", "fedmq-lora", "fedmq-watch", "root")
END = b"that was all"

DEVICE_WRITES = ("up/3/pump-1", "state/pump-1", "ask/pump-1")
DEVICE_READS = (
    "spec",
    "model",
    "candidate",
    "busy",
    "blob/k1-0/0",
    "model/pump-1",
    "receipt/pump-1",
    "reply/pump-1",
)
BRIDGE_WRITES = (*DEVICE_READS, "metrics", "versions", "events", "state/pump-1")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    directory = tmp_path_factory.mktemp("acl")
    shipped = (servers.ROOT / "broker/mosquitto/acl").read_text()
    # one more user, who may do everything: the tests' own witness
    (directory / "acl").write_text(shipped + "\nuser root\ntopic readwrite #\n")
    passwords = servers.mosquitto_passwords(directory, {user: f"of {user}" for user in USERS})
    lines = (f"password_file {passwords}", f"acl_file {directory / 'acl'}")
    with servers.mosquitto(directory, anonymous=False, extra=lines) as server:
        yield server


@asynccontextmanager
async def as_user(broker: servers.Server, user: str) -> AsyncIterator[Session]:
    settings = MqttSettings(
        mqtt_port=broker.port, mqtt_user=user, mqtt_password=f"of {user}", mqtt_connect_timeout_s=5
    )
    async with asyncio.timeout(20), connect(settings, client_id=user, clean=True) as session:
        yield session


async def arrives(broker: servers.Server, writer: str, suffix: str) -> bool:
    """Whether what this user publishes there reaches somebody who may read everything."""
    async with as_user(broker, "root") as witness, as_user(broker, writer) as session:
        await witness.subscribe([f"{P}/#", "end"], qos=1)
        await session.publish(f"{P}/{suffix}", b"here I am")
        await witness.publish("end", END)  # after the other one's PUBACK
        return await _until_end(witness)


async def hears(broker: servers.Server, reader: str, suffix: str) -> bool:
    """Whether this user gets what is published there, by the exact topic or a wildcard."""
    async with as_user(broker, reader) as session, as_user(broker, "root") as witness:
        permitted = f"{P}/spec" if reader != "fedmq-bridge" else f"{P}/ask/x"
        permitted = f"{P}/metrics" if reader == "fedmq-watch" else permitted
        await session.subscribe([f"{P}/{suffix}", f"{P}/#", permitted], qos=1)
        await witness.publish(f"{P}/{suffix}", b"for one only")
        await witness.publish(permitted, END)
        return await _until_end(session)


async def _until_end(session: Session) -> bool:
    heard = []
    while END not in heard:
        heard += [message.payload for message in await session.receive()]
    return len([each for each in heard if each != END]) > 0


@pytest.mark.parametrize("suffix", DEVICE_WRITES)
async def test_a_device_may_send_what_is_its_own(broker, suffix) -> None:
    assert await arrives(broker, "pump-1", suffix)


@pytest.mark.parametrize("suffix", DEVICE_READS)
async def test_a_device_may_read_what_it_needs(broker, suffix) -> None:
    assert await hears(broker, "pump-1", suffix)


@pytest.mark.parametrize("suffix", ["up/3/pump-2", "state/pump-2", "ask/pump-2"])
async def test_a_device_cannot_speak_as_another(broker, suffix) -> None:
    assert not await arrives(broker, "pump-1", suffix)


@pytest.mark.parametrize(
    "suffix", ["receipt/pump-2", "reply/pump-2", "model/pump-2", "up/3/pump-2", "state/pump-2"]
)
async def test_a_device_cannot_read_what_is_anothers(broker, suffix) -> None:
    assert not await hears(broker, "pump-1", suffix)


@pytest.mark.parametrize(
    "suffix",
    [*DEVICE_READS, "metrics", "versions", "events", "lorawan", "model/pump-2", "reply/pump-2"],
)
async def test_a_device_cannot_speak_as_the_server(broker, suffix) -> None:
    assert not await arrives(broker, "pump-1", suffix)


@pytest.mark.parametrize("suffix", BRIDGE_WRITES)
async def test_the_bridge_may_say_what_it_must(broker, suffix) -> None:
    assert await arrives(broker, "fedmq-bridge", suffix)


@pytest.mark.parametrize("suffix", ["up/3/pump-1", "ask/pump-1", "state/pump-1", "busy"])
async def test_the_bridge_hears_every_device_and_other_bridges(broker, suffix) -> None:
    assert await hears(broker, "fedmq-bridge", suffix)


@pytest.mark.parametrize("suffix", ["up/3/70b3d57ed0000001", "lorawan"])
async def test_the_lorawan_adapter_speaks_for_every_radio(broker, suffix) -> None:
    assert await arrives(broker, "fedmq-lora", suffix)


@pytest.mark.parametrize("suffix", ["lorawan", "model", "blob/d1-0-0/0"])
async def test_the_lorawan_adapter_follows_the_task(broker, suffix) -> None:
    assert await hears(broker, "fedmq-lora", suffix)


@pytest.mark.parametrize("suffix", ["model", "receipt/pump-1"])
async def test_the_lorawan_adapter_is_not_the_server(broker, suffix) -> None:
    assert not await arrives(broker, "fedmq-lora", suffix)


@pytest.mark.parametrize("suffix", ["metrics", "versions", "events", "state/pump-1"])
async def test_a_dashboard_may_look(broker, suffix) -> None:
    assert await hears(broker, "fedmq-watch", suffix)


@pytest.mark.parametrize("suffix", ["up/3/pump-1", "receipt/pump-1"])
async def test_a_dashboard_sees_no_update_and_no_receipt(broker, suffix) -> None:
    assert not await hears(broker, "fedmq-watch", suffix)


@pytest.mark.parametrize("suffix", ["metrics", "spec", "up/3/pump-1", "state/pump-1"])
async def test_a_dashboard_writes_nothing(broker, suffix) -> None:
    assert not await arrives(broker, "fedmq-watch", suffix)


def test_the_fleets_configuration_names_the_files_that_are_shipped(tmp_path: Path) -> None:
    text = (servers.ROOT / "broker/mosquitto/fleet.conf").read_text()
    for line in ("allow_anonymous false", "password_file", "acl_file /etc/fedmq/acl"):
        assert line in text
