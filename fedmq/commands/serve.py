"""`fedmq serve`: predictions of the newest model for a sensor topic, on a machine of their own."""

import random
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.agent import Agent
from edge_agent.onnx.bundled import LIVE, serving_of
from edge_agent.onnx.serving import OnlyServing
from edge_agent.onnx.serving import serve as serve_models
from edge_agent.settings import AgentSettings
from edge_agent.sources.topic import Listener
from edge_agent.spool import Spool
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
from schemas.errors import ConfigError


def serve(
    task: Annotated[str | None, typer.Option(help="The task, which has a bundle.")] = None,
    device: Annotated[
        str | None, typer.Option(help="This machine's name in the fleet; no agent may have it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="mqtt:TOPIC", help="Where the readings come from.")
    ] = None,
    publish: Annotated[
        str | None,
        typer.Option(metavar="TOPIC", help="Where predictions go. [default: TOPIC/prediction]"),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="A field of the readings that is no feature."),
    ] = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Where the model is kept. [default: fedmq-state]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of one operator. [default: all cores but one]")
    ] = None,
    config: Config = None,
    mqtt_host: MqttHost = None,
    mqtt_port: MqttPort = None,
    mqtt_user: MqttUser = None,
    mqtt_url: MqttUrl = None,
    mqtt_ca: MqttCa = None,
    mqtt_cert: MqttCert = None,
    mqtt_key: MqttKey = None,
    prefix: Prefix = None,
    log_level: LogLevel = "info",
) -> None:
    """Serve the newest model: a prediction is published for every window of a sensor topic.

    It follows the task as a device does, and trains nothing. A model takes its predecessor's place
    at once and whole. Predictions are JSON: {"version", "epoch", "label", "scores"} of classes,
    {"version", "epoch", "value"} of numbers. On a device that trains, fedmq-agent --predict does
    the same. Table [agent]; FEDMQ_<SETTING> in the environment.

    Example: fedmq serve --task pumps --device pump-7-serve --data mqtt:plant/pump-7/sensors
    """
    flags = {
        "task": task,
        "device": device,
        "data": data,
        "publish": publish,
        "label": label,
        "state_dir": state_dir,
        "threads": threads,
        "mqtt_host": mqtt_host,
        "mqtt_port": mqtt_port,
        "mqtt_user": mqtt_user,
        "mqtt_url": mqtt_url,
        "mqtt_ca": mqtt_ca,
        "mqtt_cert": mqtt_cert,
        "mqtt_key": mqtt_key,
        "prefix": prefix,
    }
    settings = read_settings(AgentSettings, "agent", config, flags)
    if not settings.data.startswith(LIVE):
        raise ConfigError("data", "must be mqtt:TOPIC, a topic of sensor readings")
    run(_serve(settings), log_level)


async def _serve(settings: AgentSettings) -> None:
    topic = settings.data.removeprefix(LIVE)
    serving = serving_of(settings, topic)
    listener = Listener(
        settings,
        f"{settings.device}-data",
        topic,
        on_reading=serving.take,
        on_gap=serving.cut,
        rng=random.Random(),  # noqa: S311 - jitter only
        longest_s=settings.reconnect_s,
    )
    spool = Spool(Path(settings.state_dir) / settings.spool_name, disk_mb=settings.disk_mb)
    try:
        stand_in = OnlyServing(serving, settings.label)
        # conditions are for training: their sentences change, and would be told again and again
        agent = Agent(settings, stand_in, spool, unmet=lambda _when: ())
        await serve_models(agent, serving, listener.run(), serving.run(listener.publish))
    finally:
        spool.close()
