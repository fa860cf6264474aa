"""`fedmq-agent`: one device in one task. An argparse entry, so that a device needs no more."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edge_agent.agent import Agent
from edge_agent.exchange import Exchanged, exchange_now
from edge_agent.importing import made
from edge_agent.limits import apply_limits
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import Trainer
from edge_agent.worker import anyone_left
from lifetimes.loop import run
from lifetimes.together import end, together
from mqtt_session.address import address_of
from schemas.errors import ConfigError
from schemas.settings import load_settings, read_option

if TYPE_CHECKING:
    from edge_agent.onnx.bundled import BundleTrainer

_EPILOG = """\
example:
  fedmq-agent --task pumps --device pump-7 --mqtt-host broker.example \\
              --data /data/pump.csv --label fault

A task with a bundle (fedmq model import) needs no code: --data is a CSV, an .npz, Parquet files,
MODULE:FUNCTION that returns (x, y), or mqtt:TOPIC, a live sensor topic of JSON objects or numbers.
With --predict the newest model's predictions of such a topic are published as well. With a trainer
of your own:
  fedmq-agent --task pumps --device pump-7 --mqtt-host broker.example \\
              --trainer mycode.trainer:PumpTrainer --option csv=/data/pump.csv

Every setting may also stand in a TOML file (--config, table [agent]) or in the environment as
FEDMQ_<SETTING>, e.g. FEDMQ_MQTT_HOST. Flags win over the environment, which wins over the file.
The password only goes into the environment (FEDMQ_MQTT_PASSWORD) or the file.

The trainer is a class with one method; fedmq-agent makes it with the --option values:
  train(tensors, options, rng) -> TrainResult(tensors, num_examples, metrics)
For a device that is woken by cron, --once exchanges what there is and ends.
Built in: edge_agent.trainers:SoftmaxTrainer and edge_agent.trainers:MlpTrainer (--option data=F.npz
with arrays x and y).
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train one fleet's model on this device's own data, over MQTT.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", help="the task to take part in")
    add("--device", help="this device's name: a-z, 0-9, _ and -")
    add("--data", metavar="WHAT", help="what a task's bundle is trained on, see below")
    add("--label", metavar="COLUMN", help="the column of it that is to be told")
    add("--holdout", type=float, metavar="SHARE", help="never trained on: it measures the model")
    add("--samples", type=int, metavar="N", help="that are kept of a live topic (default 4096)")
    add("--predict", action="store_true", default=None, help="publish predictions of a live topic")
    add("--publish", metavar="TOPIC", help="where to (default TOPIC/prediction)")
    add("--trainer", metavar="MODULE:CLASS", help="code of your own that trains on local data")
    add("--option", action="append", default=[], metavar="KEY=VALUE", help="for the trainer")
    add("--config", metavar="FILE", help="a TOML file with a table [agent]")
    add("--mqtt-host", help="the broker (default 127.0.0.1)")
    add("--mqtt-port", type=int, help="its port (default 1883)")
    add("--mqtt-url", metavar="URL", help="in their place mqtt://, mqtts://, ws:// or wss://...")
    add("--mqtt-ca", metavar="FILE", help="who vouches for the broker (default: the system's)")
    add("--mqtt-cert", metavar="FILE", help="this device's certificate, with --mqtt-key")
    add("--mqtt-key", metavar="FILE", help="its key")
    add("--mqtt-user", help="user name, if the broker asks for one")
    add("--prefix", help="first levels of every topic (default fedmq/v1)")
    add("--state-dir", help="where updates and model are kept (default fedmq-state)")
    add("--resend-s", type=float, help="first pause before an update is sent again (default 10)")
    add("--seed", type=int, help="make the local training repeatable")
    add("--provider", metavar="MODULE:FUNCTION", help="tells what the device is like now")
    add("--watts", type=float, help="what it draws in training, for a budget of joules")
    add("--nice", type=int, help="lower the process' priority by so much")
    add("--threads", type=int, help="threads of linear algebra, at most")
    add("--spinning", action="store_true", default=None, help="onnxruntime's threads wait busily")
    add("--checkpoint-s", type=float, help="how often a round is written down (default 60; 0 off)")
    add("--memory-mb", type=int, help="memory, at most")
    add("--disk-mb", type=int, help="disk for updates and model, at most")
    add("--once", action="store_true", help="wake, exchange, sleep: end after one exchange")
    add("--within", type=float, default=120.0, help="seconds that it may take (default 120)")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


def _settings(arguments: argparse.Namespace) -> AgentSettings:
    flags: dict[str, object] = {
        name: value
        for name, value in vars(arguments).items()
        if name not in {"option", "config", "log_level", "once", "within"}
    }
    if arguments.option:
        flags["options"] = dict(read_option(text) for text in arguments.option)
    try:
        text = Path(arguments.config).read_text() if arguments.config else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("config", f"cannot be read: {exc}") from exc
    return load_settings(
        AgentSettings, table="agent", file_text=text, environ=os.environ, flags=flags
    )


def _trainer(settings: AgentSettings) -> Trainer:
    """The user's, or the one that the task's bundle makes. Raises ConfigError."""
    if settings.trainer:
        for name in ("data", "label", "holdout", "predict", "publish"):
            if getattr(settings, name):
                remedy = "is for a task's bundle; a --trainer takes its own options (--option)"
                raise ConfigError(name, remedy)
        return cast("Trainer", made("trainer", settings.trainer, settings.options))
    if not settings.data:
        remedy = "is missing: name --data for a task with a bundle, or a --trainer of your own"
        raise ConfigError("trainer", remedy)
    if settings.options:
        raise ConfigError("option", "is for a --trainer; --data takes --label and --holdout")
    from edge_agent.onnx.bundled import BundleTrainer  # noqa: PLC0415 - 2 MB that others save

    return BundleTrainer(settings)


async def _run(settings: AgentSettings, trainer: Trainer) -> None:
    where = Path(settings.state_dir) / settings.spool_name
    spool = Spool(where, disk_mb=settings.disk_mb)
    agent = Agent(settings, trainer, spool)
    running = asyncio.ensure_future(_beside(settings, agent, trainer))
    if sys.platform != "win32":  # there Ctrl-C cancels this coroutine by itself
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        logging.getLogger("fedmq.agent").info("stopped open=%d", len(spool.open_updates()))
    finally:
        spool.close()


async def _beside(settings: AgentSettings, agent: Agent, trainer: Trainer) -> None:
    """The agent, and what its trainer needs beside it: a live topic, and who serves."""
    bundled = _bundled(settings, trainer)
    if bundled is None:
        await agent.run()
    elif bundled.serving is None:
        await together(agent.run(), bundled.run())
    else:
        await together(agent.run(), bundled.run(), bundled.serving.follow(agent))


def _bundled(settings: AgentSettings, trainer: Trainer) -> "BundleTrainer | None":
    """The trainer, if it is none of the user's."""
    return None if settings.trainer else cast("BundleTrainer", trainer)


async def _exchanged(settings: AgentSettings, trainer: Trainer, within_s: float) -> Exchanged:
    """One exchange; a live topic is listened to meanwhile."""
    bundled = _bundled(settings, trainer)
    if bundled is None:
        return await exchange_now(settings, trainer, within_s=within_s)
    listening = asyncio.ensure_future(bundled.run())
    try:
        return await exchange_now(settings, trainer, within_s=within_s)
    finally:
        await end([listening])


def _exchange(settings: AgentSettings, trainer: Trainer, within_s: float) -> int:
    """One exchange; exit code 1 when the broker was not reached."""
    try:
        done = run(_exchanged(settings, trainer, within_s))
    except KeyboardInterrupt:
        return 130
    version = "no model yet" if done.version is None else f"model version {done.version}"
    why = f" ({done.resting})" if done.resting else ""
    print(f"{version}, {done.settled} updates settled, {done.open} open{why}")  # noqa: T201
    if not done.linked:
        address = address_of(settings)
        print(f"fedmq-agent: {address} was not reached within {within_s:g} s", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _leave(code: int) -> None:
    """End the process, though a trainer still works: its thread would end what it calls badly."""
    if anyone_left():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise SystemExit(code)


def main(arguments: Sequence[str] | None = None, *, prog: str = "fedmq-agent") -> None:
    """Run the agent. Exit code 2 for a configuration that cannot work."""
    code = 0
    parsed = _parser(prog).parse_args(arguments)
    logging.basicConfig(
        level=parsed.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    try:
        settings = _settings(parsed)
        trainer = _trainer(settings)
        apply_limits(nice=settings.nice, threads=settings.threads, memory_mb=settings.memory_mb)
        if parsed.once:
            code = _exchange(settings, trainer, parsed.within)
        else:
            run(_run(settings, trainer))
    except (ConfigError, OSError) as exc:
        print(f"fedmq-agent: {exc}", file=sys.stderr)  # noqa: T201 - a CLI speaks
        code = 2 if isinstance(exc, ConfigError) else 1
    _leave(code)


if __name__ == "__main__":
    main()
