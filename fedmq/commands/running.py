"""What every command that runs needs: settings from all sources, logs, signals, exit codes."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError

from lifetimes.together import end, together
from redis_session.address import watched
from redis_session.connection import connect
from schemas.errors import ConfigError, FedmqError
from schemas.settings import load_settings

_Settings = TypeVar("_Settings", bound=msgspec.Struct)
_Result = TypeVar("_Result")

Config = Annotated[
    Path | None,
    typer.Option(envvar="FEDMQ_CONFIG", help="A TOML file; each command reads its own table."),
]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        "--redis",
        help="Where the logs are, e.g. redis://127.0.0.1:6379/0. One with a password belongs "
        "into FEDMQ_REDIS_URL or the file, not onto the command line.",
    ),
]
MqttHost = Annotated[str | None, typer.Option(help="The MQTT broker. [default: 127.0.0.1]")]
MqttPort = Annotated[int | None, typer.Option(help="Its port. [default: 1883]")]
MqttUser = Annotated[
    str | None, typer.Option(help="User name; the password goes into FEDMQ_MQTT_PASSWORD.")
]
MqttUrl = Annotated[
    str | None,
    typer.Option(help="In their place mqtt://, mqtts://, ws:// or wss://host:port/path."),
]
MqttCa = Annotated[
    str | None, typer.Option(help="File: who vouches for the broker. [default: the system's]")
]
MqttCert = Annotated[str | None, typer.Option(help="File: the client certificate.")]
MqttKey = Annotated[str | None, typer.Option(help="File: its key.")]
Prefix = Annotated[str | None, typer.Option(help="First levels of topics. [default: fedmq/v1]")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]


_ESCAPED = "{}; in a password / ? # and @ are written %2F %3F %23 %40"


def read_settings(
    kind: type[_Settings], table: str, config: Path | None, flags: Mapping[str, object]
) -> _Settings:
    """Settings from the file, FEDMQ_* and flags. Raises ConfigError."""
    url = flags.get("redis_url")
    if isinstance(url, str) and urlsplit(url).password:
        remedy = "a password on the command line is seen by everyone; use FEDMQ_REDIS_URL"
        raise ConfigError("redis_url", remedy)
    try:
        text = config.read_text() if config else ""
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("config", f"cannot be read: {exc}") from exc
    settings = load_settings(kind, table=table, file_text=text, environ=os.environ, flags=flags)
    _check_redis_url(getattr(settings, "redis_url", None))
    return settings


def _check_redis_url(url: str | None) -> None:
    """Refuse a URL before anything is started with it; it may hold a password, so is not said."""
    if url is None:
        return
    remedy = "cannot be read; write redis://host:port/0, rediss:// or unix://"
    try:
        connect(url)  # reads the URL, opens nothing
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("redis_url", _ESCAPED.format(remedy)) from None  # it repeats parts of it
    if "@" in parts.path + parts.fragment and parts.scheme != "unix":
        raise ConfigError("redis_url", _ESCAPED.format("has an @ behind its host"))


def run(coroutine: Coroutine[Any, Any, None], log_level: str = "info") -> None:
    """Run until done, SIGTERM or Ctrl-C: both end cleanly."""
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        coroutine.close()
        raise ConfigError("log_level", f"{log_level!r} must be debug, info, warning or error")
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    asyncio.run(_until_told(coroutine))


async def _until_told(coroutine: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(together(coroutine))  # a library may swallow one cancellation
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        logging.getLogger("fedmq").info("stopped")


async def until_told(run: Coroutine[Any, Any, _Result], told: list[signal.Signals]) -> _Result:
    """Run; the first signal ends it in order, servers and all, and later ones change nothing.

    Raises CancelledError when it was told to end. A library may swallow a cancellation: it is
    repeated until it is obeyed.
    """
    running, stopped = asyncio.ensure_future(run), asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if not told:
            told.append(number)
            stopped.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    waiting = asyncio.ensure_future(stopped.wait())
    try:
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise asyncio.CancelledError
        return running.result()
    finally:
        await end([running, waiting])


class RedisSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of the commands that only look into Redis."""

    redis_url: str = "redis://127.0.0.1:6379/0"


@asynccontextmanager
async def redis_at(url: str) -> AsyncIterator[Redis]:
    """A connection whose failure is one line that names the remedy."""
    try:
        async with connect(url) as redis:
            await redis.ping()
            yield redis
    except RedisError as exc:
        msg = f"redis at {_without_password(url)} does not answer ({exc}); is it running?"
        raise FedmqError(msg) from exc


def _without_password(url: str) -> str:
    behind = watched(url)
    if behind is not None:
        hosts = ",".join(f"{host}:{port}" for host, port in behind.sentinels)
        return f"redis+sentinel://{hosts}/{behind.service}/{behind.db}"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"


def redis_for(config: Path | None, redis_url: str | None) -> AbstractAsyncContextManager[Redis]:
    """The Redis that a command's file, environment and flags name."""
    settings = read_settings(RedisSettings, "redis", config, {"redis_url": redis_url})
    return redis_at(settings.redis_url)
