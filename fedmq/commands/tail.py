"""`fedmq tail`: what is going on on the training topics, decoded, one line a message."""

import random
import secrets
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Annotated

import typer

from fedmq.commands.running import (
    Config,
    MqttCa,
    MqttCert,
    MqttHost,
    MqttKey,
    MqttPort,
    MqttUrl,
    MqttUser,
    Prefix,
    read_settings,
    run,
)
from mqtt_session.backoff import Backoff
from mqtt_session.session import Session, connect, keep_connected
from mqtt_session.settings import MqttSettings
from schemas.channels import CHANNELS
from schemas.codecs import CODECS
from schemas.errors import WireError
from schemas.names import DeviceId, task_name
from schemas.outcomes import outcome_name
from schemas.seal import EVERYBODY, opened
from schemas.topics import checked_prefix
from schemas.wire import decode_manifest, decode_receipt, decode_update

_FILTERS = [channel.filter for channel in CHANNELS if channel.payload is not None]


def tail(
    name: Annotated[str | None, typer.Argument(help="A task; all when left out.")] = None,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many messages; 0 never.")] = 0,
    config: Config = None,
    mqtt_host: MqttHost = None,
    mqtt_port: MqttPort = None,
    mqtt_user: MqttUser = None,
    mqtt_url: MqttUrl = None,
    mqtt_ca: MqttCa = None,
    mqtt_cert: MqttCert = None,
    mqtt_key: MqttKey = None,
    prefix: Prefix = None,
) -> None:
    """Print the training topics live, decoded: updates, receipts, models, metrics, events.

    Chunks of models are left out. Stop with Ctrl-C.

    Example: fedmq tail pumps
    """
    flags = {
        "mqtt_host": mqtt_host,
        "mqtt_port": mqtt_port,
        "mqtt_user": mqtt_user,
        "mqtt_url": mqtt_url,
        "mqtt_ca": mqtt_ca,
        "mqtt_cert": mqtt_cert,
        "mqtt_key": mqtt_key,
        "prefix": prefix,
    }
    settings = read_settings(MqttSettings, "mqtt", config, flags)
    task = "+" if name is None else task_name(name)
    run(_listen(settings, task, count), "warning")


async def _listen(settings: MqttSettings, task: str, count: int) -> None:
    prefix = checked_prefix(settings.prefix)
    client_id = f"fedmq-tail-{secrets.token_hex(4)}"
    printed = 0

    def door() -> AbstractAsyncContextManager[Session]:
        return connect(settings, client_id=client_id, clean=True)

    async def use(session: Session) -> None:
        nonlocal printed
        await session.subscribe([f"{prefix}/{task}/{suffix}" for suffix in _FILTERS], qos=0)
        while True:
            for message in await session.receive():
                typer.echo(line(message.topic.removeprefix(f"{prefix}/"), message.payload))
                printed += 1
                if printed == count:
                    raise _EnoughError

    try:
        # only the pause before the next try is drawn from it
        rng = random.Random()  # noqa: S311
        await keep_connected(door, use, rng=rng, backoff=Backoff(0.5, 10.0))
    except _EnoughError:
        return


class _EnoughError(Exception):
    """As many messages as were asked for."""


def line(topic: str, payload: bytes) -> str:
    """One line for a message: time, topic below the prefix, what it says."""
    now = datetime.now().astimezone().strftime("%H:%M:%S")
    return f"{now}  {topic}  {' '.join(_words(topic, payload))}"


def _words(topic: str, payload: bytes) -> Iterator[str]:
    kind = topic.split("/")[1] if "/" in topic else ""
    try:
        match kind:
            case "up":
                update = decode_update(payload)
                codec = CODECS.get(update.codec)
                yield f"seq={update.seq} boot={update.boot:08x} base={update.base_version}"
                yield f"codec={codec.name if codec else update.codec} bytes={len(payload)}"
                yield from (f"{name}={value:.4g}" for name, value in update.metrics.items())
            case "receipt":
                device = DeviceId(topic.rpartition("/")[2])
                receipt = decode_receipt(opened(payload, device))
                yield f"seq={receipt.seq} {outcome_name(receipt.outcome)} low={receipt.low}"
                yield f"version={receipt.version}"
            case "model" | "candidate":
                manifest = decode_manifest(opened(payload, EVERYBODY))
                yield f"epoch={manifest.epoch} version={manifest.version}"
                yield f"blob={manifest.blob} bytes={manifest.blob_bytes} chunks={manifest.chunks}"
            case _:
                yield payload.decode(errors="replace")
    except WireError as exc:
        yield f"({len(payload)} bytes that cannot be read: {exc})"
