"""`fedmq device`: who is in the fleet, who may take part, what is kept of whom."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from redis.asyncio import Redis
from rich.console import Console

from aggregator.depot import Depot
from aggregator.erasing import erase_archived
from aggregator.state import DeviceRecord
from aggregator.tasks import device_records, erase_traces, no_such, presences, task_spec
from fedmq.commands.archiving import Archive, depot_for
from fedmq.commands.deciding import columns, decide, sure
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import DeviceErased, DeviceSet, EntryId
from schemas.names import DeviceId, TaskName, device_id, is_name, task_name

app = typer.Typer(
    help="Devices of a task: list, show, ban, allow, tag, erase.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="The task's name.")]
Device = Annotated[str, typer.Argument(help="The device's name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]


@app.command("list")
def list_devices(
    name: Name,
    as_json: Json = False,
    tag: Annotated[str | None, typer.Option(help="Only those that bear this tag.")] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """List devices: last seen, link, updates, bytes, and each one's share of the weight.

    The share tells who makes the model: with staleness weights slow devices have a small one.

    Example: fedmq device list pumps
    """
    rows = asyncio.run(_devices(name, config, redis_url))
    if tag is not None:
        rows = [row for row in rows if tag in row["tags"]]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    names = ["device", "link", "last seen", "folded", "refused", "bytes up", "share", "tags"]
    table = [
        [
            row["device"],
            row["link"],
            _time(row["last_seen_ms"]),
            row["updates_folded"],
            row["updates_rejected"],
            row["bytes_up"],
            f"{row['weight_share']:.1%}",
            ", ".join(row["tags"] + ["BANNED"] * row["banned"]),
        ]
        for row in rows
    ]
    columns(table, names)


@app.command("show")
def show(
    name: Name,
    device: Device,
    as_json: Json = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show all that is known of one device.

    Example: fedmq device show pumps pump-7
    """
    wanted = device_id(device)
    rows = asyncio.run(_devices(name, config, redis_url))
    found = next((row for row in rows if row["device"] == wanted), None)
    if found is None:
        raise ConfigError("device", f"{device!r} has sent nothing to {name!r} yet")
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key, value in found.items():
        shown = _time(value) if key.endswith("_ms") else value
        typer.echo(f"{key.removesuffix('_ms').replace('_', ' '):>20}  {_plain(shown)}")


async def _devices(name: str, config: Path | None, redis_url: str | None) -> list[dict[str, Any]]:
    task = task_name(name)
    async with redis_for(config, redis_url) as redis:
        if await task_spec(redis, task) is None:
            raise no_such(task)
        return device_rows(await device_records(redis, task), await presences(redis, task))


def device_rows(
    records: Mapping[DeviceId, DeviceRecord], presence: Mapping[DeviceId, tuple[int, bytes]]
) -> list[dict[str, Any]]:
    """One row a device, by name: what the log knows, and what the device says of its link."""
    weights = sum(record.weight for record in records.values())
    rows: list[dict[str, Any]] = []
    for device in sorted({*records, *presence}):
        record = records.get(device, DeviceRecord())
        ms, said = presence.get(device, (0, b""))
        rows.append(
            {
                "device": device,
                "link": _link(said),
                "last_seen_ms": max(ms, record.last_ms),
                "first_update_ms": record.first_ms,
                "last_update_ms": record.last_ms,
                "updates_folded": record.folded,
                "updates_rejected": record.rejected,
                "duplicates": record.duplicates,
                "bytes_up": record.bytes_up,
                "staleness_mean": record.staleness_sum / record.folded if record.folded else 0.0,
                "weight_share": record.weight / weights if weights else 0.0,
                "newest_base": record.base if record.base >= 0 else None,
                "banned": record.banned,
                "tags": list(record.tags),
            }
        )
    return rows


def _link(said: bytes) -> str:
    """What the device's birth or will says; its bytes came from outside."""
    try:
        online = msgspec.json.decode(said, type=dict[str, Any]).get("online")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "unknown"
    return "online" if online is True else "offline" if online is False else "unknown"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%F %T}" if ms else "never"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@app.command("ban")
def ban(name: Name, device: Device, config: Config = None, redis_url: RedisUrl = None) -> None:
    """Take nothing from a device any more: its updates are answered `banned`.

    What it has contributed stays in the model.

    Example: fedmq device ban pumps pump-7
    """
    _set(name, DeviceSet(device_id(device), banned=True), f"{device} is banned", config, redis_url)


@app.command("allow")
def allow(name: Name, device: Device, config: Config = None, redis_url: RedisUrl = None) -> None:
    """Take updates from a device again.

    Example: fedmq device allow pumps pump-7
    """
    said = f"{device} may take part"
    _set(name, DeviceSet(device_id(device), banned=False), said, config, redis_url)


@app.command("tag")
def tag(
    name: Name,
    device: Device,
    tags: Annotated[
        list[str] | None, typer.Argument(help="All the tags it bears from now on; none: none.")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Say which groups a device belongs to: `fedmq model pin` holds groups at a version.

    Example: fedmq device tag pumps pump-7 plant-north trial
    """
    given = tuple(sorted(set(tags or ())))
    for text in given:
        if not is_name(text):
            raise ConfigError("tag", f"{text!r} must be 1 to 48 of a-z, 0-9, '_' and '-'")
    if len(given) > 16:
        raise ConfigError("tag", f"{len(given)} tags are more than the 16 that a device may bear")
    said = f"{device} bears {', '.join(given) or 'no tag'}"
    _set(name, DeviceSet(device_id(device), tags=given), said, config, redis_url)


def _set(
    name: str, entry: DeviceSet, said: str, config: Path | None, redis_url: str | None
) -> None:
    task = task_name(name)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            await decide(redis, task, entry, said)

    asyncio.run(act())


@app.command("erase")
def erase(
    name: Name,
    device: Device,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    archive: Archive = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Delete all that is stored of a device, and ban it.

    Its updates in the log, its refused ones, its record, its receipt and its state go. What the
    model has learnt from it stays, and so do files that were exported before. In the archive a
    tombstone takes the place of each of its updates, and all segments since are written again: a
    replay says so, and what it folds from there on proves nothing.

    Example: fedmq device erase pumps pump-7 --archive /srv/fedmq/archive
    """
    task, wanted = task_name(name), device_id(device)
    sure(f"Erase what {task} stores of {wanted}, and ban it?", yes=yes)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            depot = depot_for(config, archive)
            if depot is None and await redis.exists(TaskKeys(task).archived):
                raise ConfigError("archive", f"{task} is archived: say where (--archive URL)")
            entry = await decide(redis, task, DeviceErased(wanted), f"{wanted} is forgotten")
            if entry is None:
                raise ConfigError("task", "what it has sent is not deleted yet: run this again")
            gone = await erase_traces(redis, task, wanted, entry)
            typer.echo(f"{task}: {gone} of its messages were deleted")
            if depot is not None:
                await _erase_archived(redis, task, depot, wanted, entry)

    asyncio.run(act())


async def _erase_archived(
    redis: Redis, task: TaskName, depot: Depot, device: DeviceId, until: EntryId
) -> None:
    with Console(stderr=True).status("rewriting the archive") as status:

        def said(done: int, count: int) -> None:
            status.update(f"rewriting the archive: segment {done} of {count}")

        erased = await erase_archived(redis, task, depot, device, until, said=said)
    typer.echo(f"{task}: {erased.entries} of its updates in the archive are tombstones now")
    if erased.joined:
        typer.echo(
            f"{erased.joined} links of the archive were broken and are joined now: an erasure was "
            "interrupted before, or segments are missing",
            err=True,
        )
