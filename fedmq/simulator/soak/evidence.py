"""What a soak leaves behind, gathered once, and judged as often as one likes.

The files of a run's folder are the evidence: ledgers of the devices, what left with a card, the
archive and the rest of the log, and what the service said of itself. The verdict over them is
always the same, bit for bit: `fedmq soak --check FOLDER`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgpack
from redis.asyncio import Redis

from aggregator.tasks import task_status, version_records
from fedmq.simulator.checker import Account, Created, Verdict, fold, judge, look
from fedmq.simulator.checker.entries import join, read_archive, read_origin
from fedmq.simulator.checker.verdict import Service
from fedmq.simulator.soak.cards import Identity, adopted_on, open_on, read_removed
from fedmq.simulator.soak.fleet import Fleet
from fedmq.simulator.soak.plan import EPOCH, TASK
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.wire import decode_manifest

_FILE: Final = "evidence.json"
_REST: Final = "rest.msgpack"
_RETAINED: Final = "retained.msgpack"

_LOOKS: Final = 5
"""How often it is tried to see manifest and blobs of one moment."""


async def gather(fleet: Fleet) -> None:
    """Write down what the service says and what its stream still holds; files tell the rest."""
    keys = TaskKeys(TASK)
    async with connect(fleet.redis.url) as redis:
        status: Any = await task_status(redis, TASK)
        versions = await version_records(redis, TASK)
        entries: Any = await redis.xrange(keys.log)
        info: Any = await redis.xinfo_stream(keys.log)
        retained = await _retained(redis, keys)
    rest = [[entry_id.decode(), dict(fields)] for entry_id, fields in entries]
    trimmed = int(info.get("entries-added", len(rest))) > len(rest)
    (fleet.folder / _REST).write_bytes(msgpack.packb(rest))
    (fleet.folder / _RETAINED).write_bytes(msgpack.packb(retained))
    opened: set[Identity] = set()
    for device in fleet.devices:
        opened |= open_on(device.spool, device.name)
    evidence = {
        "status": status,
        "published": {v["version"]: v["digest"] for v in versions if v["status"] == "published"},
        "trimmed_below": rest[0][0] if trimmed and rest else "",
        "open": sorted(opened),
        "adopted": {device.name: _adopted(device.spool) for device in fleet.devices},
        "tracebacks": lines_with(fleet, "Traceback (most recent call last)"),
        "tasks_failed": lines_with(fleet, "task_failed"),
    }
    (fleet.folder / _FILE).write_text(json.dumps(evidence))


async def _retained(redis: Redis, keys: TaskKeys) -> tuple[bytes, dict[str, bytes]]:
    """The newest manifest, and every blob that is kept with it, by name."""
    before = len(keys.blob(""))
    for _ in range(_LOOKS):
        manifest: Any = await redis.get(keys.manifest)
        names: Any = [name async for name in redis.scan_iter(match=keys.blob("*"))]
        blobs: Any = await redis.mget(names) if names else []
        if manifest == await redis.get(keys.manifest) and None not in blobs:
            break
    pairs = zip(names, blobs, strict=True)
    return manifest or b"", {name.decode()[before:]: blob for name, blob in pairs if blob}


def lines_with(fleet: Fleet, words: str) -> dict[str, int]:
    """How many lines of each log of fedmq's own processes say this, where any does."""
    own = [*fleet.bridges, *fleet.aggregators, *(device.machine for device in fleet.devices)]
    found: dict[str, int] = {}
    for machine in own:
        with (machine.folder / f"{machine.name}.log").open(errors="replace") as log:
            found[machine.name] = sum(words in line for line in log)
    return {name: count for name, count in found.items() if count}


def _adopted(spool: Path) -> int | None:
    """The version that a device has."""
    manifest = adopted_on(spool)
    return None if manifest is None else decode_manifest(manifest).version


def check(folder: Path) -> tuple[Verdict, Account, Mapping[str, Any]]:
    """Judge a run by its folder: the verdict, what the log says, what the service said.

    Raises ConfigError: this is not the folder of a soak. CheckerError: the log is broken.
    """
    try:
        evidence = json.loads((folder / _FILE).read_text())
        rest: Any = msgpack.unpackb((folder / _REST).read_bytes(), max_ext_len=0)
        file = folder / _RETAINED  # a soak of before has none
        retained: Any = msgpack.unpackb(file.read_bytes()) if file.exists() else None
    except (OSError, ValueError) as exc:
        raise ConfigError("check", f"{folder} holds no finished soak ({exc})") from exc
    archive = folder / "archive"
    stream = [(str(entry_id), dict(fields)) for entry_id, fields in rest]
    trimmed = _just_below(evidence["trimmed_below"])
    origin = read_origin(archive, TASK, EPOCH)
    log = join(read_archive(archive, TASK, EPOCH), stream, trimmed)
    account = fold(EPOCH, origin.params, log)
    status = evidence["status"]
    service: Service = {
        "version": status["version"],
        "updates_folded": status["updates_folded"],
        "updates_rejected": status["updates_rejected"],
        "duplicates_dropped": status["duplicates_dropped"],
    }
    published = {int(version): digest for version, digest in evidence["published"].items()}
    opened = {(str(d), int(b), int(s)) for d, b, s in evidence["open"]}
    removed = read_removed(folder / "removed.jsonl")
    verdict = judge(
        *(ledgers(folder), account, opened, removed, published, service),
        sent_once=sent_once(folder),
        retained=None if retained is None else look(account, *retained),
    )
    return verdict, account, evidence


def _just_below(entry_id: str) -> str:
    """The highest id before this one; the very first where nothing was trimmed."""
    if not entry_id:
        return "0-0"
    ms, _, serial = entry_id.partition("-")
    return f"{ms}-{int(serial) - 1}" if int(serial) else f"{int(ms) - 1}-{2**64 - 1}"


def ledgers(folder: Path) -> dict[str, Sequence[Created]]:
    """What every device has created, by its witness."""
    return {
        device: [(line["boot"], line["seq"], line["sha256"], line["replaced"]) for line in lines]
        for device, lines in _lines(folder)
    }


def sent_once(folder: Path) -> set[Identity]:
    """What nobody has sent again: a broker that was wiped may have lost it."""
    return {
        (device, line["boot"], line["seq"])
        for device, lines in _lines(folder)
        for line in lines
        if line.get("sent_once")
    }


def _lines(folder: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for file in sorted((folder / "devices").glob("*/ledger.jsonl")):
        yield file.parent.name, [json.loads(line) for line in file.read_text().splitlines()]
