"""`fedmq lab-broker`: the embedded MQTT broker, for laptops, demos and tests."""

import asyncio
from typing import Annotated

import typer

from broker.lab import LabBroker
from fedmq.commands.running import LogLevel, run


def lab_broker(
    host: Annotated[
        str, typer.Option(help="Where to listen. Loopback unless you know who else can reach it.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one and prints it.")] = 1883,
    log_level: LogLevel = "info",
) -> None:
    """Run a small MQTT 3.1.1 broker for laptops, demos and tests.

    It keeps nothing on disk, knows no users and no TLS. For a real fleet run mosquitto or EMQX.

    Example: fedmq lab-broker --port 1883
    """
    run(_serve(host, port), log_level)


async def _serve(host: str, port: int) -> None:
    async with LabBroker(host=host, port=port) as broker:
        typer.echo(f"lab broker on {host}:{broker.port} - for labs only: no users, no TLS, no disk")
        await asyncio.Event().wait()
