"""The `fedmq` command: one door, a room behind each sub-command."""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from fedmq.commands import (
    agent,
    demo,
    device,
    health,
    lab,
    lab_broker,
    log,
    lora,
    metrics,
    model,
    region,
    replay,
    serve,
    services,
    simulate,
    soak,
    tail,
    task,
)
from schemas.errors import ConfigError, FedmqError

app = typer.Typer(
    name="fedmq",
    help="Federated learning over plain MQTT, for fleets that are rarely online.\n\n"
    "Try it: fedmq demo; with your own data: fedmq lab. In production: a broker (mosquitto, "
    "EMQX), Redis or Valkey, fedmq bridge, fedmq aggregator, and fedmq-agent on every device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # [bridge] in a help text is a table of a file, not a colour
)
app.command("demo")(demo.demo)
app.command("bridge")(services.bridge)
app.command("aggregator")(services.aggregator)
app.command("agent", **agent.WHOLE)(agent.agent)
app.command("serve")(serve.serve)
app.command("region")(region.region)
app.command("soak")(soak.soak)
app.command("simulate")(simulate.simulate)
app.command("lab")(lab.lab)
app.command("lab-broker")(lab_broker.lab_broker)
app.command("tail")(tail.tail)
app.command("log")(log.log)
app.command("replay")(replay.replay)
app.command("metrics")(metrics.metrics)
app.command("health")(health.health)
app.add_typer(task.app, name="task")
app.add_typer(model.app, name="model")
app.add_typer(device.app, name="device")
app.add_typer(lora.app, name="lora")


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer calls it so
    if asked:
        typer.echo(f"fedmq {metadata.version('fedmq')}")
        raise typer.Exit


@app.callback()
def _front_door(
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it, exit."),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exit code 2 for a configuration that cannot work, 130 for Ctrl-C."""
    try:
        app(args=arguments)
    except ConfigError as exc:
        typer.echo(f"fedmq: {exc}", err=True)
        sys.exit(2)
    except (FedmqError, OSError) as exc:
        typer.echo(f"fedmq: {exc}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
