"""`fedmq region`: a site's server takes part in the task above it, as one device."""

import logging
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from redis.exceptions import RedisError

from edge_agent.agent import Agent
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
from fedmq.region.refusals import Remedy
from fedmq.region.settings import RegionSettings, check_url
from fedmq.region.trainer import SiteTrainer
from schemas.errors import FedmqError


def region(
    task: Annotated[str | None, typer.Option(help="The upstream's task.")] = None,
    device: Annotated[
        str | None, typer.Option(help="This site's name there: a-z, 0-9, _ and -.")
    ] = None,
    site_redis_url: Annotated[
        str | None,
        typer.Option(
            help="Where the site's logs are. One with a password belongs into "
            "FEDMQ_SITE_REDIS_URL or the file."
        ),
    ] = None,
    site_task: Annotated[
        str | None, typer.Option(help="The site's task. [default: the same name]")
    ] = None,
    contributions: Annotated[
        int | None, typer.Option(help="Of so many an update is made. [default: 10]")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="After so long, of what has come. [default: 600]")
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
    state_dir: Annotated[
        Path | None,
        typer.Option(help="Where update and model are kept. [default: fedmq-state]"),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Let a site with its own broker, Redis, bridge and aggregator be one device of another server.

    The upstream's model becomes the site's, the site's devices train, and when --contributions of
    theirs are folded, or --seconds are over, one update goes up that weighs as much as all of
    them. Between two rounds the site's task is paused. The options of the connection are those to
    the upstream's broker. Table [region]; it has all settings of [agent], too.

    The site's task needs the upstream's tensors, strategy fedbuff with server_lr 1 and momentum 0,
    and no lattice. The upstream's needs strategy.contributions_max: 4 times --contributions.

    Example, for a site "north" of ten pumps and more:

    fedmq task create pumps --spec site.toml --redis-url redis://127.0.0.1:6379/0

    fedmq region --task pumps --device north --site-redis-url redis://127.0.0.1:6379/0
    --contributions 10 --seconds 600 --mqtt-url mqtts://fleet.example
    """
    flags = {
        "task": task,
        "device": device,
        "site_redis_url": site_redis_url,
        "site_task": site_task,
        "contributions": contributions,
        "seconds": seconds,
        "mqtt_host": mqtt_host,
        "mqtt_port": mqtt_port,
        "mqtt_user": mqtt_user,
        "mqtt_url": mqtt_url,
        "mqtt_ca": mqtt_ca,
        "mqtt_cert": mqtt_cert,
        "mqtt_key": mqtt_key,
        "prefix": prefix,
        "state_dir": None if state_dir is None else str(state_dir),
    }
    settings = read_settings(RegionSettings, "region", config, flags)
    check_url(settings.site_redis_url, said=site_redis_url is not None)
    logging.getLogger("fedmq.agent").addFilter(Remedy(settings.contributions))
    run(_serve(settings), log_level)


async def _serve(settings: RegionSettings) -> None:
    where = Path(settings.state_dir) / settings.spool_name
    with closing(Spool(where, disk_mb=settings.disk_mb)) as spool:
        trainer = SiteTrainer(
            settings.site_redis_url,
            settings.inner_task,
            settings.contributions,
            settings.seconds,
            memory=where.with_suffix(".round.json"),
            outbox=spool,
        )
        try:
            await trainer.check()
        except RedisError as exc:
            msg = f"the site's redis does not answer ({exc}); is it running?"
            raise FedmqError(msg) from exc
        await Agent(settings, trainer, spool).run()
