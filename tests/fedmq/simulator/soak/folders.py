"""The folder of a finished soak, made by hand: a small task in the product, archived and judged."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from aggregator import segments
from aggregator.fold import Fold
from aggregator.segments import Logged, SegmentName
from aggregator.state import origin_state
from fedmq.simulator.checker import Account, Verdict
from fedmq.simulator.checker.entries import Raw
from fedmq.simulator.soak.evidence import check
from fedmq.simulator.soak.plan import EPOCH, TASK, Plan
from fedmq.simulator.soak.report import Progress, in_words, kept, report
from schemas.log import EntryId, SpecSet
from schemas.names import Epoch
from schemas.task import PublishOptions, spec_to_json
from tests.aggregator.world import World, make_spec, ramp
from tests.fedmq.simulator.checker.logs import Recorder

DEVICES = ("device-00", "device-01")
SEGMENTS = ((0, 4), (4, 8))
"""Which entries are archived; what follows is only in the stream."""

TRIMMED = 3
"""So many entries of the stream are gone: it overlaps the archive."""


class Soaked(Recorder):
    """A task of the soak's name and epoch, folded in this process."""

    def __post_init__(self) -> None:
        self.world = World(None)
        self.world.fold = Fold(origin_state(Epoch(EPOCH), ramp()))
        self.write(SpecSet(spec_to_json(self.spec)))
        self.world.spec = self.spec

    def make(self, device: str, replaced: int | None = None, **given: Any) -> bytes:
        """A new update in its device's ledger."""
        return self.create(self.world.update(device=device, **given), device, replaced)


def soaked(publish: PublishOptions | None = None) -> Soaked:
    """Two devices, eight updates: six are folded, one is refused, one replaced; one came twice."""
    soak = Soaked(make_spec(buffer_size=2, publish=publish))
    one, two = DEVICES
    for _ in range(2):
        first, second = soak.make(one), soak.make(two)
        soak.send(first, one)
        soak.send(second, two)
        soak.send(first, one)
    soak.send(soak.make(one, base_version=1000), one)  # nobody has published that
    soak.make(two)  # it is never sent
    soak.send(soak.make(two, replaced=3), two)
    soak.send(soak.make(one), one)
    soak.send(b"noise", two)
    return soak


class Folder:
    """The files of a soak; written when it is made, to be tampered with, and judged."""

    def __init__(self, path: Path, soak: Soaked) -> None:
        self.path = path
        self.progress = Progress(Plan(seed=1, seconds=60.0, devices=2), 60.2, struck={"kill x": 12})
        self._archive(soak)
        self.write_rest(soak.raw[TRIMMED:])
        self.write_retained(soak.manifest, soak.blobs)
        for device, lines in soak.ledgers.items():
            folder = path / "devices" / device
            folder.mkdir(parents=True)
            for line in lines:
                self.add_line(device, *line)
        newest = max(soak.published)
        self.evidence: dict[str, Any] = {
            "status": dict(soak.service),
            "published": {str(version): digest for version, digest in soak.published.items()},
            "trimmed_below": soak.raw[TRIMMED][0],
            "open": [],
            "adopted": dict.fromkeys(DEVICES, newest),
        }
        self.write_evidence()

    def _archive(self, soak: Soaked) -> None:
        self.archive = self.path / "archive" / TASK / f"{EPOCH:05d}"
        self.archive.mkdir(parents=True)
        origin = segments.Origin(segments.FORMAT, TASK, EPOCH, soak.origin)
        (self.archive / "origin.msgpack").write_bytes(msgspec.msgpack.encode(origin))
        previous = ""
        for begin, end in SEGMENTS:
            raw = soak.raw[begin:end]
            logged = [Logged(EntryId.parse(text), fields) for text, fields in raw]
            data = segments.pack(TASK, logged, previous)
            previous = segments.hash_of(data)
            (self.archive / str(SegmentName(logged[0].id, logged[-1].id))).write_bytes(data)

    @property
    def segments(self) -> list[Path]:
        return sorted(self.archive.glob("*.seg"))

    def rest(self) -> list[Raw]:
        raw = msgpack.unpackb((self.path / "rest.msgpack").read_bytes())
        return [(text, fields) for text, fields in raw]

    def write_rest(self, raw: list[Raw]) -> None:
        rest = [[text, dict(fields)] for text, fields in raw]
        (self.path / "rest.msgpack").write_bytes(msgpack.packb(rest))

    def write_retained(self, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
        (self.path / "retained.msgpack").write_bytes(msgpack.packb([manifest, dict(blobs)]))

    def add_line(
        self, device: str, boot: int, seq: int, digest: str = "", replaced: Any = None, **more: Any
    ) -> None:
        line = {"boot": boot, "seq": seq, "sha256": digest, "replaced": replaced} | more
        with (self.path / "devices" / device / "ledger.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_evidence(self, **changed: Any) -> None:
        self.evidence |= changed
        (self.path / "evidence.json").write_text(json.dumps(self.evidence))
        (self.path / "progress.json").write_bytes(msgspec.json.encode(self.progress))

    def judged(self) -> tuple[Verdict, Account, Mapping[str, Any]]:
        return check(self.path)

    def kept(self) -> bool:
        verdict, account, evidence = self.judged()
        return kept(self.progress, verdict, account, evidence)

    def report(self) -> dict[str, Any]:
        verdict, account, evidence = self.judged()
        machine = {"system": "a test"}
        return report(self.progress, verdict, account, evidence=evidence, machine=machine)

    def words(self) -> str:
        verdict, account, evidence = self.judged()
        return in_words(self.progress, verdict, account, evidence)
