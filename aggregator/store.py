"""Redis as the aggregator sees it: load, read the log, commit. Decides nothing.

A commit is one Lua compare-and-set on (holder's token, serial, the server's run_id). When it is
refused the memory is stale: drop it and load again. redis-py must not retry behind our back, so
it is told not to; what it does all the same is refused by the serial.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any, Final

import msgpack
import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError, WatchError

from aggregator.announce import (
    CALM,
    Moves,
    Shelf,
    metrics_json,
    moves,
    records,
    standing,
    told,
    version_record,
)
from aggregator.checkpoint import (
    SCHEMA,
    changed_devices,
    changed_vectors,
    changed_windows,
    migrated,
    read_small_state,
    restore,
    sender_to_text,
    small_state,
    vector_from_bytes,
)
from aggregator.settings import AggregatorSettings
from aggregator.shelf import fresh, renamed
from aggregator.state import Changes, DeadLetter, TaskState, origin_state
from redis_session.lease import Lease
from schemas.errors import InvariantError
from schemas.keys import TaskKeys
from schemas.log import Body, Entry, EntryId, from_fields, to_fields
from schemas.names import Epoch
from schemas.outbox import to_fields as record_fields
from schemas.streams import stream_pairs
from schemas.watch import Pressure

COMMIT_LUA: Final = files("aggregator").joinpath("commit.lua").read_text()
DEAD_LETTERS_KEPT: Final = 4096
"""Dead letters kept a task: with their 4 KiB heads at most 16 MiB."""

_SHRINK: Final = 64
"""Entries that leave a stream at once when it is too large."""

_LOOKS: Final = 8
"""How often a checkpoint is read that changes in the reading: only who lost the lease sees that."""

_TRIM_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then
  if not string.find(redis.call('INFO', 'server'), ARGV[2], 1, true) then return 0 end
  if (redis.call('HGET', KEYS[2], 'life') or '') ~= ARGV[3] then return 0 end
end
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[4])
return 1
"""
"""What an aggregator forgets is what its own commits made spare: nothing without the lease, nor on
another server than the one it has loaded from."""

_APPEND_LUA: Final = """#!lua flags=allow-oom
return redis.call('XADD', KEYS[1], 'NOMKSTREAM', ARGV[1], unpack(ARGV, 2))
"""
"""Small entries that the fold waits for: a full Redis that refused a Tick would never be folded."""

_FAILOVER_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local known, count = tonumber(redis.call('HGET', KEYS[2], 'failovers')), tonumber(ARGV[2])
if known and known >= count then return 0 end
redis.call('HSET', KEYS[2], 'failovers', ARGV[2])
if ARGV[3] ~= '1' or not known then return 0 end
local epoch = string.format('{"epoch":%d}', tonumber(ARGV[4]) + count - known)
redis.call('XADD', KEYS[3], '*', 'k', 'epoch', 'p', epoch)
return 1
"""
"""The epoch rises by as many failovers as there were: two of them must not end at the same one. A
Sentinel that lags behind tells a lower count, which changes nothing."""


def as_bytes(value: object) -> bytes:
    """Insist on bytes: the client was made without decoding."""
    if not isinstance(value, bytes):
        msg = f"Redis answered {type(value).__name__} where bytes belong"
        raise InvariantError(msg)
    return value


def pack_for_lua(document: object) -> bytes:
    """MessagePack as Redis' cmsgpack reads it: without the bin type."""
    packed: bytes = msgpack.packb(document, use_bin_type=False)
    return packed


@dataclass(frozen=True, slots=True)
class Position:
    """Where the last commit left the store.

    Attributes:
        serial: of the last commit; 0 before the first.
        run_id: of the Redis server that answered.
        shelf: where the blobs lie.
        migrated: whether the checkpoint was of an older schema; the next commit writes all of it.
        life: which life of the task this is; empty for one that was begun before lives had names.
    """

    serial: int
    run_id: str
    shelf: Shelf = field(default_factory=Shelf)
    migrated: bool = False
    life: str = ""


class TaskStore:
    """One task's keys, on one connection pool, with one holder's token."""

    def __init__(self, redis: Redis, keys: TaskKeys, token: str) -> None:
        self._redis = redis
        self._keys = keys
        self._token = token
        self._commit = redis.register_script(COMMIT_LUA)
        self._lease = Lease(redis, keys.holder, token)
        self._failover = redis.register_script(_FAILOVER_LUA)
        self._trim = redis.register_script(_TRIM_LUA)
        self._append = redis.register_script(_APPEND_LUA)
        self._loaded = Position(0, "")

    async def hold(self, ttl_ms: int, *, run_id: str = "") -> bool:
        """Take or renew the lease on the task; False while another holds it.

        Raises AnotherServerError: Redis is not the server with this run_id any more.
        """
        return await self._lease.hold(ttl_ms, run_id=run_id)

    async def is_held(self) -> bool:
        """Whether anybody holds the task now."""
        return bool(await self._redis.exists(self._keys.holder))

    async def release(self) -> None:
        """Give the lease back, if it is still ours."""
        await self._lease.release()

    async def note_failovers(self, count: int, state: TaskState, *, raise_epoch: bool) -> bool:
        """Note how often the primary was replaced; tell whether the epoch was raised for it.

        It is when the primary was replaced since the last time, and the epoch is to be raised then.
        """
        done = await self._failover(
            keys=[self._keys.holder, self._keys.origin, self._keys.log],
            args=[self._token, count, int(raise_epoch), state.epoch],
        )
        return int(done) == 1

    async def pressure(self) -> Pressure:
        """How the bridge fares with the log."""
        raw = await self._redis.get(self._keys.pressure)
        return msgspec.json.decode(raw, type=Pressure) if raw else Pressure()

    async def load(self) -> tuple[TaskState, Position] | None:
        """The state at the last commit, or at the origin; None when there is no such task.

        Plain reads: a full Redis refuses even those inside MULTI. They are one cut when serial and
        life are the same before and after; else they are made again.
        """
        for _ in range(_LOOKS):
            found = await self._look()
            if found is not None:
                break
        else:
            msg = "the checkpoint changes while it is read: somebody else holds the task"
            raise WatchError(msg)
        run_id, checkpoint, origin, arrays, windows, devices, manifest = found
        epoch, params, raw_life = origin
        life = raw_life.decode() if raw_life else ""
        self._loaded = Position(0, run_id, life=life)
        if checkpoint:
            small, known = read_small_state(checkpoint[b"small"]), _texts(devices)
            old = small.schema < SCHEMA
            if old:
                small, known = migrated(small, manifest, _texts(windows), known)
            state = restore(small, _texts(arrays), _texts(windows), known)
            shelf = Shelf(small.living, small.kept)
            serial = int(checkpoint[b"serial"])
            return state, Position(serial, run_id, shelf, migrated=old, life=life)
        if epoch is None:
            return None
        return origin_state(Epoch(int(epoch)), vector_from_bytes(params)), self._loaded

    async def _look(self) -> tuple[Any, ...] | None:
        """Read all of it once; None when it changed meanwhile."""
        keys = self._keys
        pipe = self._redis.pipeline(transaction=False)
        pipe.info("server")
        pipe.hgetall(keys.checkpoint)
        pipe.hmget(keys.origin, ["epoch", "params", "life"])
        pipe.hgetall(keys.arrays)
        pipe.hgetall(keys.windows)
        pipe.hgetall(keys.devices)
        pipe.get(keys.manifest)
        pipe.hmget(keys.origin, ["epoch", "life"])
        pipe.hget(keys.checkpoint, "serial")
        info, checkpoint, origin, *rest, last_origin, last_serial = await pipe.execute()
        first = checkpoint.get(b"serial"), origin[0], origin[2]
        if first != (last_serial, *last_origin):
            return None
        return str(info["run_id"]), checkpoint, origin, *rest

    async def read(self, cursor: EntryId, *, count: int, block_ms: int) -> list[Entry]:
        """The entries after `cursor`, waiting up to `block_ms` for the first."""
        answer: Any = await self._redis.xread(
            {self._keys.log: str(cursor)}, count=count, block=max(1, block_ms)
        )
        return [
            Entry(EntryId.parse(entry_id), from_fields(fields))
            for entry_id, fields in stream_pairs(answer)
        ]

    async def now_ms(self) -> int:
        """Redis' clock, which stamps the log."""
        seconds, micros = await self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def blob(self, name: str) -> bytes | None:
        """The bytes of a kept version; None when it is kept no longer."""
        found: Any = await self._redis.get(self._keys.blob(name))
        return None if found is None else as_bytes(found)

    async def append(self, body: Body, *, not_before_ms: int | None = None) -> None:
        """Write into the log, if there is one: a deadline that has passed, a version's figures.

        `not_before_ms` is the entry's time where Redis' own clock is behind.
        """
        at = "*" if not_before_ms is None else f"{not_before_ms}-*"
        try:
            await self._append(keys=[self._keys.log], args=[at, *_flat(to_fields(body))])
        except ResponseError:
            if not_before_ms is None:
                raise
            await self.append(body)  # a later entry is there already: so this one is late enough

    async def tidy(
        self, cursor: EntryId, settings: AggregatorSettings, *, archived: EntryId | None = None
    ) -> None:
        """Keep log, dead letters and records of versions within their bounds.

        Of the log nothing goes that was not folded, nor, with an archive, was not archived; and
        nothing without the lease, or on another server than this memory was loaded from.
        """
        keys = self._keys
        if settings.dead_keep_s:
            oldest = await self.now_ms() - round(settings.dead_keep_s * 1000)
            await self._redis.xtrim(keys.dead, minid=str(max(0, oldest)), approximate=False)
        if settings.dead_keep_bytes:
            await self._shrink(keys.dead, settings.dead_keep_bytes, None)
        if settings.log_keep_bytes:
            until = cursor if archived is None else min(cursor, _before(archived))
            await self._shrink(keys.log, settings.log_keep_bytes, until)
        versions: Any = await self._redis.hkeys(keys.versions)
        spare = sorted(versions, key=int)[: max(0, len(versions) - settings.versions_keep)]
        if spare:
            await self._redis.hdel(keys.versions, *spare)

    async def _shrink(self, key: str, keep_bytes: int, until: EntryId | None) -> None:
        """Drop a stream's oldest entries, none after `until`, while it is larger than this."""
        while (await self._redis.memory_usage(key) or 0) > keep_bytes:
            batch: Any = await self._redis.xrange(key, count=_SHRINK)
            ids = [EntryId.parse(entry_id) for entry_id, _ in batch]
            spare = [entry_id for entry_id in ids if until is None or entry_id <= until]
            if not spare:
                return
            after = EntryId(spare[-1].ms, spare[-1].serial + 1)
            held = [self._token, self._loaded.run_id, self._loaded.life]
            keys = [self._keys.holder, self._keys.origin, key]
            if not await self._trim(keys=keys, args=[*held, str(after)]):
                return

    async def commit(
        self,
        state: TaskState,
        changes: Changes,
        position: Position,
        *,
        log_keep_ms: int,
        pressure: Pressure = CALM,
        archived: EntryId | None = None,
    ) -> Position | None:
        """Write everything at once; None when refused, and then the memory is stale.

        `archived` is up to where the archive holds the log; None: there is no archive.
        """
        moved = moves(state, position.shelf)
        document = _document(state, changes, moved, pressure)
        if log_keep_ms and state.cursor.ms > log_keep_ms:
            oldest = EntryId(state.cursor.ms - log_keep_ms)
            document["log_keep"] = str(oldest if archived is None else min(oldest, archived))
        done = await self._commit(
            keys=self._commit_keys(changes, moved),
            args=[
                self._token,
                position.serial,
                position.run_id,
                pack_for_lua(document),
                position.life,
            ],
        )
        if not done:
            return None
        return replace(position, serial=position.serial + 1, shelf=moved.after, migrated=False)

    def _commit_keys(self, changes: Changes, moved: Moves) -> list[str]:
        keys, kept = self._keys, frozenset(moved.after.kept)
        return [
            keys.checkpoint,
            keys.arrays,
            keys.windows,
            keys.devices,
            keys.versions,
            keys.standing,
            keys.outbox,
            keys.dead,
            keys.holder,
            keys.spec,
            keys.manifest,
            keys.metrics,
            keys.blobs,
            keys.log,
            keys.origin,
            *(keys.blob(name) for pair in renamed(changes, kept).items() for name in pair),
            *(keys.blob(name) for name in fresh(changes, kept)),
            *(keys.blob(name) for name in moved.dropped),
        ]


def _document(
    state: TaskState, changes: Changes, moved: Moves, pressure: Pressure
) -> dict[str, object]:
    """What commit.lua is told."""
    vectors = changed_vectors(state, changes)
    said, kept = standing(state, changes), frozenset(moved.after.kept)
    document: dict[str, object] = {
        "small": small_state(state, moved.after.living, moved.after.kept),
        "vectors": {name: data for name, data in vectors.items() if data is not None},
        "gone_vectors": [name for name, data in vectors.items() if data is None],
        "windows": changed_windows(state, changes.senders),
        "gone_windows": [sender_to_text(sender) for sender in sorted(changes.gone_senders)],
        "devices": changed_devices(state, changes),
        "versions": {
            str(version): msgspec.json.encode(version_record(state, release))
            for version, release in changes.releases.items()
        },
        "standing": {suffix: payload for suffix, payload in said.items() if payload},
        "gone_standing": [suffix for suffix, payload in said.items() if not payload],
        "spread": {blob.name: str(blob.chunk_bytes) for blob in moved.spread},
        "swept": [blob.name for blob in moved.swept],
        "renamed": len(renamed(changes, kept)),
        "blobs": list(fresh(changes, kept).values()),
        "metrics": metrics_json(state, pressure),
        "out": [
            _flat(record_fields(record)) for record in records(state, changes, moved, pressure)
        ],
        "dead": [[str(letter.id), _flat(_letter_fields(letter))] for letter in changes.dead],
        "dead_keep": DEAD_LETTERS_KEPT,
    }
    if changes.spec is not None:
        document["spec"] = changes.spec
    if changes.model and (last := state.published) is not None:
        document["manifest"] = told(state, last)
    return document


def _before(entry: EntryId) -> EntryId:
    """The id before this one: the last archived entry stays, and shows where the archive ends."""
    if entry.serial:
        return EntryId(entry.ms, entry.serial - 1)
    return EntryId(entry.ms - 1, (1 << 64) - 1)


def _letter_fields(letter: DeadLetter) -> dict[bytes, bytes]:
    return {
        b"d": letter.device.encode(),
        b"reason": letter.reason.encode(),
        b"why": letter.detail.encode(),
        b"p": letter.data,
    }


def _flat(fields: Mapping[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


def _texts(mapping: Mapping[bytes, bytes]) -> dict[str, bytes]:
    return {key.decode(): value for key, value in mapping.items()}
