"""`fedmq lora`: what a LoRaWAN link can learn, and the adapter that lets it."""

import json
import random
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker.lorawan.adapter import serve
from broker.lorawan.regions import NETWORKS, REGIONS, network, region
from broker.lorawan.settings import LorawanSettings
from fedmq.commands.running import (
    Config,
    LogLevel,
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
from fedmq.simulator.lora_plan import ESTIMATES, Plan, Question, without_dwell
from fedmq.simulator.lora_plan import plan as planned

app = typer.Typer(
    help="LoRaWAN: plan what a link can learn, and carry frames and models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("plan")
def plan(
    sf: Annotated[int, typer.Option(help="The devices' spreading factor, 7 to 12.")],
    params: Annotated[
        int, typer.Option(min=1, max=1 << 28, help="Parameters of the model that travel.")
    ],
    region_name: Annotated[str, typer.Option("--region", help=f"{', '.join(REGIONS)}.")] = "eu868",
    network_name: Annotated[
        str, typer.Option("--network", help=f"{' or '.join(NETWORKS)}: whose fair use holds.")
    ] = "private",
    bandwidth: Annotated[int, typer.Option(help="Of the uplink's channel, in kHz.")] = 125,
    devices: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Devices that share one gateway.")
    ] = 20,
    loss: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of frames lost, up and down each.")
    ] = 0.1,
    every: Annotated[
        float, typer.Option(min=0, help="Seconds between frames; 0: as few as are allowed.")
    ] = 0.0,
    no_dwell: Annotated[
        bool, typer.Option("--no-dwell", help="as923, au915: the dwell time bits are cleared.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Tell what a LoRaWAN link can learn in a day, up and down; refuse what is forbidden.

    Every frame is one update that folds on its own: 4 bytes of envelope, then as many impulses as
    fit. A newer model comes down in pieces, one a window, and is the scarce part: the table tells
    how many models a day that makes, and the [strategy] buffer_size that goes with it.

    Air time is Semtech's; what a region allows stands in RP002-1.0.4. Where a region has no duty
    cycle a frame a minute is assumed: --every says otherwise.

    Example: fedmq lora plan --region eu868 --sf 10 --params 9610

    On The Things Network: fedmq lora plan --sf 9 --params 9610 --network ttn
    """
    where = region(region_name)
    question = Question(
        region=without_dwell(where) if no_dwell else where,
        network=network(network_name),
        sf=sf,
        params=params,
        bandwidth_hz=1000 * bandwidth,
        devices=devices,
        loss=loss,
        every_s=every,
    )
    found = planned(question)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    Console().print(_table(found, question))
    typer.echo(f"estimates: {ESTIMATES}")
    typer.echo(f"sources: {found.source}; {question.network.source}")


def _table(found: Plan, question: Question) -> Table:
    title = f"{found.region}, SF{found.sf} (DR{found.dr}), {found.network}: one device, one day"
    table = Table(title=title)
    for name, justify in (("", "left"), ("up", "right"), ("down", "right")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type] # of a literal
    for row in _rows(found, question):
        table.add_row(*row)
    return table


def _rows(found: Plan, question: Question) -> list[tuple[str, str, str]]:
    return [
        ("bytes a frame", f"{found.frame_bytes}", f"{found.down_bytes}"),
        ("on the air", f"{1000 * found.air_s:,.1f} ms", f"{1000 * found.down_air_s:,.1f} ms"),
        ("bound by", found.bound, found.down_bound),
        ("frames", f"{found.frames_day:,}", f"{found.downs_day:,.1f}"),
        ("a frame every", f"{found.every_s:,.0f} s", "-"),
        ("air time", f"{found.air_day_s:,.1f} s", f"{found.downs_day * found.down_air_s:,.1f} s"),
        ("bytes", f"{found.bytes_day:,}", f"{found.down_bytes_day:,.0f} arrive"),
        (f"updates, {question.loss:.0%} lost", f"{found.updates_day:,.1f}", "-"),
        ("impulses an update", f"about {found.impulses}", "-"),
        ("below float32", f"{found.ratio:,.0f}x", "-"),
        ("newer models", "-", f"about {found.refreshes_day:,.1f}"),
        ("windows a model", "-", f"about {found.refresh_windows:,.1f}"),
        ("windows a whole one", "-", f"about {found.keyframe_windows:,.1f}"),
        ("strategy.buffer_size", f"{found.buffer_size:,} or less", "-"),
    ]


@app.command("bridge")
def bridge(
    config: Config = None,
    task: Annotated[str | None, typer.Option(help="The task that the frames are for.")] = None,
    server: Annotated[
        str | None, typer.Option(help="chirpstack or thethings. [default: chirpstack]")
    ] = None,
    application: Annotated[
        str | None, typer.Option(help="ChirpStack's application id, or APPLICATION@TENANT.")
    ] = None,
    region_name: Annotated[
        str | None, typer.Option("--region", help=f"{', '.join(REGIONS)}. [default: eu868]")
    ] = None,
    network_url: Annotated[
        str | None,
        typer.Option(help="The network server's broker. [default: mqtt://127.0.0.1:1883]"),
    ] = None,
    network_user: Annotated[
        str | None, typer.Option(help="User there; the password: FEDMQ_NETWORK_PASSWORD.")
    ] = None,
    network_ca: Annotated[str | None, typer.Option(help="File: who vouches for it.")] = None,
    mqtt_host: MqttHost = None,
    mqtt_port: MqttPort = None,
    mqtt_user: MqttUser = None,
    mqtt_url: MqttUrl = None,
    mqtt_ca: MqttCa = None,
    mqtt_cert: MqttCert = None,
    mqtt_key: MqttKey = None,
    prefix: Prefix = None,
    client_id: Annotated[
        str | None, typer.Option(help="Of its MQTT sessions. [default: fedmq-lora]")
    ] = None,
    behind: Annotated[
        int | None,
        typer.Option(help="Publications behind, before a newer model is sent. [default: 2]"),
    ] = None,
    downlinks_day: Annotated[
        int | None,
        typer.Option(help="To a device; 0: no bound. [default: 8 with thethings, else 0]"),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Carry frames from a LoRaWAN network server to a task, and models back in their windows.

    Reads ChirpStack v4's or The Things Stack's events over MQTT and publishes every frame as an
    update at fedmq's broker; an event is acknowledged only when fedmq's broker has it. Keeps
    nothing of its own. The Things Stack speaks QoS 0: what it says while this is not running is
    lost. Table [lorawan]; FEDMQ_<SETTING> in the environment; passwords in FEDMQ_NETWORK_PASSWORD
    and FEDMQ_MQTT_PASSWORD, or in the file.

    The task needs [codec] name = "sq" and [publish] lattice = true; docs/how-to/lorawan.md.

    Example: fedmq lora bridge --task pumps --application 52f14cd4-c6f1-4fbd-8f87-4025e1d49242
    --network-url mqtt://chirpstack:1883 --mqtt-host broker
    """
    flags = {
        "task": task,
        "server": server,
        "application": application,
        "region": region_name,
        "network_url": network_url,
        "network_user": network_user,
        "network_ca": network_ca,
        "mqtt_host": mqtt_host,
        "mqtt_port": mqtt_port,
        "mqtt_user": mqtt_user,
        "mqtt_url": mqtt_url,
        "mqtt_ca": mqtt_ca,
        "mqtt_cert": mqtt_cert,
        "mqtt_key": mqtt_key,
        "prefix": prefix,
        "client_id": client_id,
        "behind": behind,
        "downlinks_day": downlinks_day,
    }
    settings = read_settings(LorawanSettings, "lorawan", config, flags)
    run(serve(settings, rng=random.Random()), log_level)  # noqa: S311 - jitter only
