"""`fedmq bridge` and `fedmq aggregator`: the two processes of the server side."""

import random
from collections.abc import Sequence
from typing import Annotated

import typer

from aggregator.judge import Evaluate, Guide, Guiding
from aggregator.service import serve as serve_aggregator
from aggregator.settings import AggregatorSettings, JudgeSettings
from broker.bridge import serve as serve_bridge
from broker.settings import BridgeSettings
from edge_agent.importing import made
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
    RedisUrl,
    read_settings,
    run,
)
from schemas.errors import ConfigError
from schemas.names import task_name
from schemas.settings import read_option
from schemas.task import Option


def bridge(
    config: Config = None,
    mqtt_host: MqttHost = None,
    mqtt_port: MqttPort = None,
    mqtt_user: MqttUser = None,
    mqtt_url: MqttUrl = None,
    mqtt_ca: MqttCa = None,
    mqtt_cert: MqttCert = None,
    mqtt_key: MqttKey = None,
    redis_url: RedisUrl = None,
    prefix: Prefix = None,
    client_id: Annotated[
        str | None, typer.Option(help="Of its MQTT session; one a bridge. [default: fedmq-bridge]")
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(help="Of several bridges, this one's: 0-7 or 0,3,a-f. [default: all]"),
    ] = None,
    wait_replicas: Annotated[
        int | None,
        typer.Option(help="Pass promises on when so many replicas have them. [default: 0]"),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Carry updates from MQTT into Redis, and models and receipts back.

    A message is acknowledged to the broker only when Redis has it. The bridge keeps nothing of its
    own: stop it, kill it, start it again. Its client id must stay the same, because the broker
    keeps what comes in meanwhile under it. Table [bridge]; FEDMQ_<SETTING> in the environment.

    Several may share the work: --shards 0-7 --client-id bridge-a beside --shards 8-f --client-id
    bridge-b; one of them carries each task's way down, and another takes over when it dies. With
    Sentinel: --redis redis+sentinel://s1,s2,s3/mymaster --wait-replicas 1.

    Example: fedmq bridge --mqtt-host broker.example --redis redis://10.0.0.5:6379/0
    """
    flags = {
        "mqtt_host": mqtt_host,
        "mqtt_port": mqtt_port,
        "mqtt_user": mqtt_user,
        "mqtt_url": mqtt_url,
        "mqtt_ca": mqtt_ca,
        "mqtt_cert": mqtt_cert,
        "mqtt_key": mqtt_key,
        "redis_url": redis_url,
        "prefix": prefix,
        "client_id": client_id,
        "shards": shards,
        "wait_replicas": wait_replicas,
    }
    settings = read_settings(BridgeSettings, "bridge", config, flags)
    run(serve_bridge(settings, rng=random.Random()), log_level)  # noqa: S311 - jitter only


def aggregator(
    config: Config = None,
    redis_url: RedisUrl = None,
    tasks: Annotated[
        str | None, typer.Option(help="Only these, comma-separated. [default: all]")
    ] = None,
    lease_s: Annotated[
        float | None, typer.Option(help="How long a silent aggregator keeps a task. [default: 5]")
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(help="TASK=MODULE:CLASS measures a task's versions on the server's own data."),
    ] = None,
    evaluate_option: Annotated[
        list[str] | None, typer.Option(help="TASK.KEY=VALUE, for the constructor of that class.")
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive", help="Folder or s3:// URL where folded logs are kept. [default: none]"
        ),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Fold the logs into models and publish them through the outbox.

    Serves every task, or those of --tasks (comma-separated). Everything it knows is in Redis: stop
    it, kill it, start it again; it goes on from the last commit and gets the same bits. Redis
    should run with appendfsync always, or Receipts promise less. Table [aggregator].

    With --evaluate every version is measured before people and [gate] judge it; the class has one
    method, evaluate(tensors) -> Evaluation. Built in: edge_agent.trainers:HeldOut. For a guard
    (strategy.robust.guard) it also has guide(tensors) -> tensors: one round on the server's data.

    Start several: they share the tasks, and when one dies or freezes another takes over. With
    --archive nothing leaves the log before it is there; fedmq replay folds it again.

    Example: fedmq aggregator --evaluate pumps=edge_agent.trainers:HeldOut
    --evaluate-option pumps.data=held-out.npz
    """
    judges = _judges(evaluate or (), evaluate_option or ())
    flags = {
        "redis_url": redis_url,
        "tasks": tasks,
        "lease_s": lease_s,
        "evaluate": judges or None,
        "archive_url": archive,
    }
    settings = read_settings(AggregatorSettings, "aggregator", config, flags)
    evaluators = {
        str(task_name(task)): _evaluate_of(judge) for task, judge in settings.evaluate.items()
    }
    run(serve_aggregator(settings, evaluators=evaluators), log_level)


def _evaluate_of(judge: JudgeSettings) -> Evaluate:
    """Make the user's evaluator. Raises ConfigError."""
    evaluator = made("evaluate", judge.evaluator, judge.options)
    evaluate: Evaluate | None = getattr(evaluator, "evaluate", None)
    if evaluate is None:
        raise ConfigError("evaluate", f"{judge.evaluator} has no method evaluate(tensors)")
    guide: Guide | None = getattr(evaluator, "guide", None)
    return evaluate if guide is None else Guiding(evaluate, guide)


def _judges(named: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, object]]:
    """Put TASK=MODULE:CLASS and TASK.KEY=VALUE together. Raises ConfigError."""
    judges: dict[str, dict[str, object]] = {}
    given: dict[str, dict[str, Option]] = {}
    for text in named:
        task, equals, path = text.partition("=")
        if not equals:
            raise ConfigError("evaluate", f"{text!r} must be TASK=MODULE:CLASS")
        given[task] = {}
        judges[task] = {"evaluator": path, "options": given[task]}
    for text in options:
        task, dot, option = text.partition(".")
        if not dot or task not in judges:
            raise ConfigError(
                "evaluate_option", f"{text!r} must be TASK.KEY=VALUE of an --evaluate"
            )
        key, value = read_option(option)
        given[task][key] = value
    return judges
