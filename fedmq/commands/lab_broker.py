"""`fedmq lab-broker`: the embedded MQTT broker, for laptops, demos and tests."""

import asyncio
from typing import Annotated, Final

import typer

from broker.lab import LabBroker, Limits
from fedmq.commands.running import LogLevel, run

LIMITS: Final = Limits()


def lab_broker(
    host: Annotated[
        str, typer.Option(help="Where to listen. Loopback unless you know who else can reach it.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="The port; 0 takes a free one and prints it.")
    ] = 1883,
    ws_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Listen for WebSockets too, at this port."),
    ] = None,
    max_packet: Annotated[
        int, typer.Option(min=1, max=LIMITS.max_packet, help="Largest packet, in bytes.")
    ] = LIMITS.max_packet,
    max_inflight: Annotated[
        int, typer.Option(min=1, max=65_535, help="Messages sent to a client and not acknowledged.")
    ] = LIMITS.max_inflight,
    max_queued: Annotated[
        int, typer.Option(min=1, help="Messages kept for a client that is away; more are dropped.")
    ] = LIMITS.max_queued,
    log_level: LogLevel = "info",
) -> None:
    """Run a small MQTT 3.1.1 broker for laptops, demos and tests.

    It keeps nothing on disk, knows no users and no TLS. For a real fleet run mosquitto or EMQX.

    Example: fedmq lab-broker --port 1883
    """
    limits = Limits(max_packet=max_packet, max_inflight=max_inflight, max_queued=max_queued)
    run(_serve(host, port, ws_port, limits), log_level)


async def _serve(host: str, port: int, ws_port: int | None, limits: Limits) -> None:
    async with LabBroker(host=host, port=port, ws_port=ws_port, limits=limits) as broker:
        where = f"{host}:{broker.port}"
        if broker.ws_port is not None:
            where += f" and ws://{host}:{broker.ws_port}/mqtt"
        typer.echo(f"lab broker on {where} - for labs only: no users, no TLS, no disk")
        await asyncio.Event().wait()
