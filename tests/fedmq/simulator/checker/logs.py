"""Logs for the checker: random ones, told by a seed, and what the product made of them."""

import random
import struct
from dataclasses import dataclass, field, replace
from hashlib import sha256
from zlib import crc32

import numpy as np
from laws import generator

from aggregator import shelf
from fedmq.simulator.checker.entries import Raw
from fedmq.simulator.checker.verdict import Created, Service
from schemas.codecs import codec_by_name
from schemas.log import (
    Arrived,
    Body,
    DeviceSet,
    EpochSet,
    ModelSet,
    PhaseSet,
    SpecSet,
    Tick,
    to_fields,
)
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, shard_of
from schemas.short import carried, over_the_air
from schemas.strategy import StalenessOptions
from schemas.task import FinishOptions, LimitOptions, PublishOptions, TaskSpec, spec_to_json
from schemas.wire import decode_update, encode_manifest, encode_update
from tests.aggregator.world import EPOCH, SIZE, World, encoded, make_spec, ramp, vector

CODECS = ("float32", "topk_int8", "sq", "sq", "float16", "int8", "stc")
DEVICES = [DeviceId(name) for name in ("a", "pump-7", "zz")]


@dataclass
class Recorder:
    """A task in the product, its log as raw entries, and what its service would say."""

    spec: TaskSpec = field(default_factory=make_spec)
    published: dict[int, str] = field(default_factory=dict)
    ledgers: dict[str, list[Created]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world = World(None)
        self.write(SpecSet(spec_to_json(self.spec)))
        self.world.spec = self.spec

    @property
    def origin(self) -> bytes:
        return ramp().tobytes()

    @property
    def raw(self) -> list[Raw]:
        return [(str(entry.id), to_fields(entry.body)) for entry in self.world.log]

    @property
    def service(self) -> Service:
        tally = self.world.state.tally
        return Service(
            version=self.world.state.model.version,
            updates_folded=tally.folded,
            updates_rejected=tally.rejected,
            duplicates_dropped=tally.duplicates,
        )

    def write(self, body: Body, *, after_ms: int = 1) -> None:
        self.world.append(body, after_ms=after_ms)
        changes = self.world.changes()
        for publication in changes.publications:
            manifest = publication.manifest
            self.published[manifest.version] = manifest.model_digest.hex()
        kept = shelf.in_redis(self.world.state)
        for old, new in shelf.renamed(changes, kept).items():
            self.blobs[new] = self.blobs.pop(old)
        self.blobs |= shelf.fresh(changes, kept)
        self.blobs = {name: self.blobs[name] for name in kept}

    @property
    def manifest(self) -> bytes:
        """The newest that everybody has."""
        last = self.world.state.published
        return b"" if last is None else encode_manifest(last.named)

    def create(
        self, update: ModelUpdate, device: str, replaced: int | tuple[int, int] | None = None
    ) -> bytes:
        """A device's update, written into its ledger."""
        data = encode_update(update)
        line = (update.boot, update.seq, sha256(data).hexdigest(), replaced)
        self.ledgers.setdefault(device, []).append(line)
        return data

    def send(self, data: bytes, device: str, *, shard: str = "", size: int = 0) -> None:
        name = DeviceId(device)
        self.write(Arrived(name, shard or shard_of(name), data, size or len(data)))

    def follow(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.world.spec = spec
        self.write(SpecSet(spec_to_json(spec)))


def seal(data: bytes, device: str) -> bytes:
    return data + struct.pack(">I", crc32(device.encode() + data))


def random_spec(rng: random.Random, *, checksum: bool) -> TaskSpec:
    kind = rng.choice(("constant", "polynomial", "hinge"))
    stale = rng.choice((0, 1, 4, 64))
    finish = FinishOptions()
    if rng.random() < 0.1:
        finish = rng.choice(
            [
                FinishOptions(versions=30),
                FinishOptions(seconds=0.5),
                FinishOptions(payload_bytes=900),
            ]
        )
    spec = make_spec(
        codec=rng.choice(CODECS),
        buffer_size=rng.choice((1, 1, 2, 3, 7)),
        server_lr=rng.choice((1.0, 0.3, 1.7)),
        momentum=rng.choice((0.0, 0.0, 0.9, 0.37)),
        staleness=StalenessOptions(kind, a=rng.choice((0.5, 1.0, 0.37)), b=rng.choice((0.0, 2.0))),
        max_staleness=stale,
        flush_after_s=rng.choice((0.0, 0.02, 0.0105)),
        examples_unit=rng.choice((0, 0, 100)),
        publish=PublishOptions(
            every=min(rng.choice((1, 1, 2, 3)), max(1, stale)),
            seconds=rng.choice((0.0, 0.05)),
            keep=3,
            lattice=rng.random() < 0.6,
            step=rng.choice((0.0, 0.25, 2.0**-6, 2.0**-16)),
        ),
        limits=LimitOptions(
            max_update_bytes=rng.choice((0, 0, 0, 70)), max_abs=rng.choice((1e6, 1e6, 2.5))
        ),
        finish=finish,
    )
    import msgspec

    return msgspec.structs.replace(
        spec, codec=msgspec.structs.replace(spec.codec, checksum=checksum and rng.random() < 0.7)
    )


class RandomLog:
    """Good, malformed, repeated, stale, late, reordered, banned and altered updates."""

    def __init__(
        self, seed: int, steps: int, *, checksum: bool, spec: TaskSpec | None = None
    ) -> None:
        self.rng, self.numbers = random.Random(seed), generator(seed)
        self.checksum, self.changes = checksum, spec is None
        self.recorder = Recorder(spec or random_spec(self.rng, checksum=checksum))
        self.seqs: dict[tuple[str, int], int] = {}
        self.waiting: list[tuple[str, bytes]] = []
        self.sent: list[tuple[str, bytes]] = []
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        roll, rng = self.rng.random(), self.rng
        if roll < 0.55:
            self.train()
        elif roll < 0.75 and self.waiting:
            self.deliver(*self.waiting.pop(rng.randrange(len(self.waiting))))
        elif roll < 0.83 and self.sent:
            self.deliver(*rng.choice(self.sent[-90:]))
        elif roll < 0.91:
            self.recorder.write(Tick(), after_ms=rng.choice((1, 5, 11, 60)))
        elif roll < 0.945:
            self.damage()
        else:
            self.decide()

    def train(self) -> None:
        """A new update; some are sent at once, some wait, some numbers never come."""
        rng, world = self.rng, self.recorder.world
        device = rng.choice(DEVICES)
        boot = Boot(rng.choice((7, 7, 7, 8, rng.choice((9, rng.randrange(1, 1000))))))
        jump = rng.choice((1, 1, 1, 1, 2, 5)) if rng.random() < 0.98 else 70
        seq = self.seqs[device, boot] = self.seqs.get((device, boot), 0) + jump
        bases = list(world.state.bases)
        good = world.update(
            vector(self.numbers), device=device, boot=boot, seq=seq, base_version=rng.choice(bases)
        )
        good = replace(good, num_examples=rng.choice((1, 30, 100, 4000)))
        update = self.shortened(self.spoilt(good) if rng.random() < 0.25 else good)
        data = self.recorder.create(update, device)
        if rng.random() < 0.6:
            self.deliver(device, data)
        else:
            self.waiting.append((device, data))

    def shortened(self, update: ModelUpdate) -> ModelUpdate:
        """Some have the short header, some come as a frame."""
        roll = self.rng.random()
        if roll > 0.4 or update.metrics or (update.contributions, update.weight) != (1, 1.0):
            return update
        if roll > 0.2:
            return replace(update, spec_digest=None)
        return decode_update(carried(update.boot, update.seq, over_the_air(update)))

    def spoilt(self, good: ModelUpdate) -> ModelUpdate:
        """Readable, and yet not one that is folded (as a rule)."""
        rng, now = self.rng, self.recorder.world.state.model.version
        name = rng.choice(CODECS)
        codec = codec_by_name(name).codec_id
        one = vector(self.numbers)
        bad = one.copy()
        bad[rng.randrange(SIZE)] = rng.choice((np.nan, np.inf, -np.inf, 1e7, 2.6))
        scale = struct.pack("<f", rng.choice((np.nan, np.inf, -1.0, -0.0, 1e30, 1e-42)))
        payload = bytearray(encoded(name, one))
        payload[rng.randrange(len(payload))] ^= rng.choice((1, 2, 128, 255))
        own = bytearray(good.payload)
        own[rng.randrange(len(own))] ^= rng.choice((1, 2, 128, 255))
        changes = [
            {"epoch": good.epoch + 1},
            {"spec_digest": (good.spec_digest or 0) ^ 1},
            {"base_digest": (good.base_digest or 0) ^ 1},
            {"base_version": now + 1},
            {"base_version": rng.randrange(now + 1)},
            {"codec": 99},
            {"codec": codec, "payload": encoded(name, one)},
            {"codec": 0, "payload": bad.tobytes()},
            {"codec": 1, "payload": b"\x01" + scale + b"\x01\0\0\0\x03\x05"},
            {"codec": codec, "payload": bytes(payload)},
            {"payload": bytes(own)},
            {"codec": rng.choice((6, 9))},
            {"contributions": 2},
            {"weight": rng.choice((0.5, float("nan")))},
            {"metrics": {"loss": rng.choice((1.0, float("nan"))), "@": 3.0}},
            {"payload": bytes(good.payload)[: rng.randrange(40)]},
            {"payload": bytes(good.payload) + bytes(rng.choice((1, 4, 30, 5000)))},
        ]
        return replace(good, **rng.choice(changes))

    def deliver(self, device: str, data: bytes) -> None:
        """As it is, or sealed, with another shard, or too large to be carried."""
        rng = self.rng
        self.sent.append((device, data))
        wants = self.recorder.spec.codec.checksum
        if rng.random() < (0.9 if wants else 0.1 if self.checksum else 0.0):
            data = seal(data, device)
        if rng.random() < 0.02:
            self.recorder.send(data[: rng.randrange(1, len(data))], device, size=100_000)
        elif rng.random() < 0.03:
            self.recorder.send(data, device, shard="0")
        else:
            self.recorder.send(data, device)

    def damage(self) -> None:
        """Bytes that nobody made, or not so."""
        rng = self.rng
        device, data = rng.choice(self.sent or [("a", b"\x91\x01")])
        altered = bytearray(data)
        if rng.random() < 0.7:
            altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
        elif rng.random() < 0.5:
            altered = altered[: rng.randrange(len(altered))]
        else:
            altered = bytearray(rng.randbytes(rng.randrange(60)))
        self.recorder.send(bytes(altered), device, size=rng.choice((0, 0, 0, 90_000)))

    def decide(self) -> None:
        """Something that people write into the log."""
        rng, recorder = self.rng, self.recorder
        device, state = rng.choice(DEVICES), recorder.world.state
        choices: list[Body] = [
            DeviceSet(device, banned=True),
            DeviceSet(device, banned=False),
            DeviceSet(device, tags=("x",)),
            PhaseSet("running"),
            PhaseSet("running"),
            PhaseSet("paused"),
            PhaseSet("finished"),
        ]
        if self.changes:
            version = rng.choice(list(state.releases))
            choices += [
                EpochSet(state.epoch + 1),
                ModelSet(vector(self.numbers).tobytes(), version),
            ]
            if rng.random() < 0.4:
                recorder.follow(random_spec(rng, checksum=self.checksum))
                return
        recorder.write(rng.choice(choices))
        if rng.random() < 0.8:  # most decisions are soon taken back
            recorder.write(DeviceSet(device, banned=False))
            recorder.write(PhaseSet("running"))


__all__ = ["DEVICES", "EPOCH", "RandomLog", "Recorder", "random_spec", "seal"]
