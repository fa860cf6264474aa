"""What a rogue device sends: updates that must be refused, and more messages than a queue holds.

What can be read of it stands in the rogue's ledger, like any other device's updates, as soon as
the broker has it. The rogue sends nothing again: what a broker acknowledged and then lost with its
files never comes, so its lines say `sent_once`.
"""

import asyncio
import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import aiomqtt
from redis.exceptions import RedisError

from aggregator.tasks import published_model
from fedmq.simulator.soak.fleet import HALVES, Fleet
from fedmq.simulator.soak.plan import BROKER_QUEUE, ROGUE, TASK
from redis_session.connection import connect
from schemas.codecs import codec_by_name
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, ModelVersion, Seq, shard_of
from schemas.params import base_digest
from schemas.seal import sealed
from schemas.topics import DEFAULT_PREFIX, TaskTopics, read_shards
from schemas.wire import encode_update

_TOPICS: Final = TaskTopics(DEFAULT_PREFIX, TASK)

_NOT_FINITE: Final = b"\xc0\x7f\x01\x04"
"""Of sq and stc: one impulse of NaN at index 0."""

_TOO_FAR: Final = b"\x80\x3f\x01\xff\xff\xff\xff\xf8"
"""One impulse at index 2^31 - 1."""

PATIENCE_S: Final = 5.0
"""How long the broker may take for all of it."""


async def send_poison(fleet: Fleet, rng: random.Random) -> str:
    """NaN, a base from the future, garbage, what is too large: one of each, under good seals."""
    device = DeviceId(ROGUE)
    good = await _good_update(fleet, rng)
    if good is None:
        return "Redis does not answer just now"
    readable = poisoned(good, fleet.plan.codec)
    messages = [sealed(encode_update(update), device) for update in readable]
    messages += [rng.randbytes(rng.randrange(1, 200)) for _ in range(3)]

    def acknowledged(number: int) -> None:
        if number < len(readable):
            _write_down(fleet.folder, readable[number])

    return await _publish(fleet, _TOPICS.up(device), messages, acknowledged)


def poisoned(good: ModelUpdate, codec: str) -> list[ModelUpdate]:
    """Updates that can be read, and that no server may fold."""
    nan, far = _NOT_FINITE, _TOO_FAR
    if codec == "topk_int8":
        nan = struct.pack("<BfI", 1, float("nan"), 1) + b"\x00\x01"
        far = struct.pack("<BfI", 1, 1.0, 1 << 30)
    return [
        replace(good, payload=nan, spec_digest=None),  # under the short header
        replace(good, seq=Seq(2), base_version=ModelVersion(good.base_version + 10_000)),
        replace(good, seq=Seq(3), payload=bytes(12_000)),
        replace(good, seq=Seq(4), payload=far),
        replace(good, seq=Seq(5), base_digest=(good.base_digest or 0) ^ 1),
        replace(good, seq=Seq(6), codec=99),
    ]


async def flood(fleet: Fleet, bridge: int, rng: random.Random) -> str:
    """Twice as many messages for one bridge as its broker keeps for it; none can be read."""
    shards = read_shards(HALVES[bridge])
    names = (DeviceId(f"flood-{n}") for n in range(1000))
    device = next(name for name in names if shard_of(name) in shards)
    noise = [rng.randbytes(16) for _ in range(2 * BROKER_QUEUE)]
    return await _publish(fleet, _TOPICS.up(device), noise)


async def _good_update(fleet: Fleet, rng: random.Random) -> ModelUpdate | None:
    """What a good update would be but for its payload."""
    with suppress(RedisError, OSError):
        async with connect(fleet.redis.url) as redis:
            model = await published_model(redis, TASK)
        if model is not None:
            manifest = model.manifest
            return ModelUpdate(
                epoch=manifest.epoch,
                boot=Boot(rng.getrandbits(32) or 1),
                seq=Seq(1),
                base_version=manifest.version,
                base_digest=base_digest(manifest.model_digest),
                spec_digest=int.from_bytes(manifest.spec_digest[:2], "big"),
                codec=codec_by_name(fleet.plan.codec).codec_id,
                num_examples=1,
                payload=b"",
            )
    return None


def _write_down(folder: Path, update: ModelUpdate) -> None:
    file = folder / "devices" / ROGUE / "ledger.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256(encode_update(update)).hexdigest()
    line = {"boot": update.boot, "seq": update.seq, "sha256": digest, "replaced": None}
    with file.open("a") as ledger:
        ledger.write(json.dumps(line | {"sent_once": True}) + "\n")


async def _publish(
    fleet: Fleet,
    topic: str,
    messages: list[bytes],
    acknowledged: Callable[[int], None] = lambda _: None,
) -> str:
    """Until every one of them has reached the broker, which may be away; then it is told."""
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            aiomqtt.Client("127.0.0.1", fleet.broker_port, timeout=2) as client,
        ):
            for number, message in enumerate(messages):
                await client.publish(topic, message, qos=1)  # until its PUBACK
                acknowledged(number)
    except (aiomqtt.MqttError, TimeoutError):
        return "the broker does not answer just now"
    return ""
