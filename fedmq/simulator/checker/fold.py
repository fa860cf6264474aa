"""The fold, once more and one entry after another: what became of every update, and which models.

Follows docs/wire.md in the simplest way there is. Refuses (BadLog) entries that do not ascend or
cannot be read, and (NotCovered) every kind of entry that it does not know.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from math import isfinite
from typing import Final, TypeAlias

import numpy as np

from fedmq.simulator.checker.buffered import Model, model_digest, read_params
from fedmq.simulator.checker.entries import Raw, in_order
from fedmq.simulator.checker.errors import BadLog, NotCovered
from fedmq.simulator.checker.ids import Id
from fedmq.simulator.checker.lattice import Lattice, Point
from fedmq.simulator.checker.message import Refused, Update, read_update, without_seal
from fedmq.simulator.checker.orders import CODEC_IDS, Orders, read_orders
from fedmq.simulator.checker.payload import Places, Values, read_payload
from fedmq.simulator.checker.settled import Settled

Identity: TypeAlias = tuple[str, int, int]
"""(device, boot, seq)."""

BELOW: Final = "below_window"
"""The server calls it settled, but it has never come: it is in no model."""

SPAN: Final = 64
"""So many publications back diffs begin."""

_PHASES: Final = {"running", "paused", "finished"}


@dataclass(slots=True)
class Account:
    """What a log says.

    Attributes:
        version: of the newest model.
        digest: the newest model's model_digest, hex.
        digests: that of every version that was published.
        outcomes: what became of every update that came and said who it is: `folded`, the name of
            a refusal, or BELOW.
        folded: updates that were folded.
        rejected: refusals by reason, as the service counts them.
        nameless: how many of these could not be read: nobody knows which update they were.
        duplicates: arrivals of what was settled already.
        folded_twice: updates that were folded more than once.
        changed_bytes: updates that came again with other bytes.
        decided: SHA-256 (hex) of the message that settled an update, without its seal.
        heard: of every message that came for it. Of a message that was cut there is none.
        buffered: updates that wait in the buffer.
        cursor: the id of the last entry.
        origin: of the lattice on which the model is published, little-endian float32; empty: none.
        points: its newest publications, as many as diffs may lead from.
        ladder_from: the first publication from which a diff may lead.
    """

    version: int = 0
    digest: str = ""
    digests: dict[int, str] = field(default_factory=dict)
    outcomes: dict[Identity, str] = field(default_factory=dict)
    folded: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    nameless: int = 0
    duplicates: int = 0
    folded_twice: list[Identity] = field(default_factory=list)
    changed_bytes: list[Identity] = field(default_factory=list)
    decided: dict[Identity, str] = field(default_factory=dict)
    heard: dict[Identity, set[str]] = field(default_factory=dict)
    buffered: int = 0
    cursor: str = "0-0"
    origin: bytes = b""
    points: list[Point] = field(default_factory=list)
    ladder_from: int = 0


def fold(epoch: int, params: bytes, entries: Iterable[Raw]) -> Account:
    """Fold a whole log from its origin. Raises BadLog, NotCovered."""
    if not params or len(params) % 4:
        raise BadLog("the origin does not hold parameters of float32")
    run = _Run(epoch, Model(read_params(params)))
    for text, fields in in_order(entries):
        run.apply(Id.read(text), fields)
    account, orders = run.account, run.orders
    account.version, account.buffered = run.model.version, run.model.buffered
    account.digest = model_digest(orders.tensors, run.model.params).hex() if orders else ""
    account.changed_bytes = [who for who, heard in account.heard.items() if len(heard) > 1]
    return account


@dataclass(frozen=True, slots=True)
class _Arrival:
    """One message that could be read; `hash` is "" when only its head was carried."""

    device: str
    shard: str
    update: Update
    hash: str
    oversized: bool


class _Run:
    """One walk through a log."""

    def __init__(self, epoch: int, model: Model) -> None:
        self.model = model
        self.orders: Orders | None = None
        self.account = Account()
        self._epoch = epoch
        self._phase = "running"
        self._settled = Settled()
        self._banned: set[str] = set()
        self._bases: dict[int, int] = {}  # what devices may train from -> its short digest
        self._codecs: set[int] = set()  # all that the task has ever asked for
        self._seals = False  # whether the task has ever asked for checksums
        self._published: int | None = None
        self._published_ms = 0
        self._said = (-1, -1)  # epoch and version of the newest publication
        self._lattice: Lattice | None = None
        self._serial = 0  # of the next publication on a lattice
        self._waiting_since_ms = 0  # since when the buffer is not empty; 0 while it is
        self._started_ms = 0
        self._payload_bytes = 0

    def apply(self, here: Id, fields: Mapping[bytes, bytes]) -> None:
        """Fold one entry, then see what time has brought."""
        self._started_ms = self._started_ms or here.ms
        try:
            self._apply(here.ms, fields)
        except (KeyError, ValueError) as exc:
            raise BadLog(f"entry {here} cannot be read: {exc!r}") from exc
        self.account.cursor = str(here)
        if self.orders is not None:
            self._pass_time(self.orders, here.ms)

    def _apply(self, ms: int, fields: Mapping[bytes, bytes]) -> None:
        kind = fields[b"k"]
        match kind:
            case b"up":
                self._arrive(ms, fields)
            case b"spec":
                self._follow(read_orders(fields[b"p"]))
            case b"tick":
                self._tick(ms)
            case b"phase":
                self._enter(str(_json(fields)["phase"]))
            case b"device":
                self._set_device(_json(fields))
            case b"epoch":
                self._move(int(str(_json(fields)["epoch"])))
            case b"model":
                self._go_back(int(fields[b"v"]), fields[b"p"])
            case _:
                raise NotCovered(f"an entry of kind {kind.decode(errors='replace')!r}")

    # -- what people decide ----------------------------------------------------------------

    def _follow(self, orders: Orders) -> None:
        """Another specification: what waits is folded by the old one first."""
        old = self.orders
        if orders.size != self.model.size or (old and old.tensors != orders.tensors):
            raise BadLog("a specification that changes the tensors of its task")
        if old is not None and self.model.buffered:
            self.model.advance(old)
        self.model.follow(orders)
        self.orders = orders
        self._waiting_since_ms = 0
        self._codecs.add(orders.codec)
        self._seals = self._seals or orders.checksum
        if orders.exponents is None:
            self._lattice, self.account.origin, self.account.points = None, b"", []
        elif self._lattice is None:  # around the model as it is now
            origin = self.model.params.copy()
            self._lattice = Lattice(origin, orders.sizes, orders.exponents)
            self.account.origin = origin.astype("<f4").tobytes()
            self.account.ladder_from = self._serial

    def _move(self, epoch: int) -> None:
        """To another epoch: no base holds, no diff leads there; the model is published again."""
        self._epoch = epoch
        self._bases.clear()
        self._published = None
        self.account.ladder_from = self._serial
        self.account.points = [replace(point, epoch=epoch) for point in self.account.points]

    def _enter(self, phase: str) -> None:
        if phase not in _PHASES:
            raise NotCovered(f"the phase {phase!r}")
        self._phase = phase

    def _set_device(self, said: Mapping[str, object]) -> None:
        device, banned = str(said["device"]), said.get("banned")
        if banned is True:
            self._banned.add(device)
        elif banned is False:
            self._banned.discard(device)

    def _go_back(self, version: int, params: bytes) -> None:
        """The model becomes an older one again; nobody may build on what came after that."""
        if self.orders is None or len(params) != 4 * self.model.size:
            raise BadLog("a model that does not fit its task")
        self.model.become(read_params(params))
        self._bases = {v: digest for v, digest in self._bases.items() if v <= version}
        self._published = None
        self._advanced(self.orders)

    # -- time ------------------------------------------------------------------------------

    def _tick(self, ms: int) -> None:
        """A buffer that has waited long enough is folded as it is."""
        orders = self.orders
        if orders is None or not orders.flush_ms or not self.model.buffered:
            return
        if ms - self._waiting_since_ms >= orders.flush_ms:
            self.model.advance(orders)
            self._advanced(orders)

    def _pass_time(self, orders: Orders, ms: int) -> None:
        """After every entry: publish what is due, and finish what is done."""
        if self._is_due(orders, ms):
            self._publish(orders, ms)
        if self._phase == "running" and self._is_done(orders, ms):
            self._phase = "finished"
            if self.model.version != self._published:
                self._publish(orders, ms)

    def _is_due(self, orders: Orders, ms: int) -> bool:
        if self._published is None:
            return True
        new = self.model.version - self._published
        late = orders.publish_ms > 0 and ms - self._published_ms >= orders.publish_ms
        return new > 0 and (new >= orders.publish_every or late)

    def _is_done(self, orders: Orders, ms: int) -> bool:
        return (
            0 < orders.finish_versions <= self.model.version
            or 0 < orders.finish_bytes <= self._payload_bytes
            or 0 < orders.finish_ms <= ms - self._started_ms
        )

    def _publish(self, orders: Orders, ms: int) -> None:
        """One version of an epoch is never two models: said again, it is what it was."""
        version = self.model.version
        if self._said != (self._epoch, version):
            digest = model_digest(orders.tensors, self._proceeded(orders))
            self.account.digests[version] = digest.hex()
        self._bases[version] = int(self.account.digests[version][:8], 16)
        self._published, self._published_ms = version, ms
        self._said = self._epoch, version

    def _proceeded(self, orders: Orders) -> Values:
        """The model, or the point of the lattice that comes nearest to it."""
        lattice, model = self._lattice, self.model
        if lattice is None or orders.exponents is None:
            return model.params
        lattice.walk(model.params, orders.exponents)
        where = (self._serial, self._epoch, model.version, lattice.sizes)
        point = Point(*where, lattice.exponents, lattice.q)
        self.account.points = [*self.account.points[-SPAN:], point]
        self._serial += 1
        return lattice.params

    def _advanced(self, orders: Orders) -> None:
        """A new version: bases that are too old now are forgotten, but never the newest."""
        self._waiting_since_ms = 0
        oldest = self.model.version - orders.max_staleness
        newest = max(self._bases, default=0)
        self._bases = {v: d for v, d in self._bases.items() if v >= oldest or v == newest}

    # -- arrivals --------------------------------------------------------------------------

    def _arrive(self, ms: int, fields: Mapping[bytes, bytes]) -> None:
        orders = self.orders
        if orders is None:
            raise BadLog("an update before the first specification")
        try:
            arrival = self._read(orders, fields)
        except Refused as refused:  # nobody knows which one it was: counted, and nothing is settled
            self.account.nameless += 1
            self._count(refused.name)
            return
        who = (arrival.device, arrival.update.boot, arrival.update.seq)
        if arrival.hash:
            self.account.heard.setdefault(who, set()).add(arrival.hash)
        if self._settled.outcome(*who) is not None:
            self.account.duplicates += 1
            self.account.outcomes.setdefault(who, BELOW)
            return
        try:
            self._check_sender(orders, arrival)
            self._check_base(orders, arrival.update)
            self._check_content(arrival.update)
            places, values = self._delta(orders, arrival.update)
        except Refused as refused:
            self._count(refused.name)
            self._settle(who, refused.name, arrival.hash)
            return
        self._fold(orders, ms, arrival.update, places, values)
        self._settle(who, "folded", arrival.hash)

    def _read(self, orders: Orders, fields: Mapping[bytes, bytes]) -> _Arrival:
        """Who the message says it is. Raises Refused when it cannot be read."""
        device, message = fields[b"d"].decode("ascii"), fields[b"p"]
        size = int(fields.get(b"n", len(message)))
        cut = size != len(message)  # it was too large to be carried, and only its head is here
        if self._seals and cut and orders.checksum:
            raise Refused("oversized")  # its seal is not here: nothing of it is believed
        if self._seals and not cut:
            plain = without_seal(device, message)
            if plain is None and orders.checksum:
                raise Refused("corrupt")
            message = message if plain is None else plain
            size = len(message)
        oversized = cut or size > orders.max_bytes
        try:
            update = read_update(message)
        except Refused as refused:
            raise Refused("oversized" if oversized else refused.name) from refused
        if update.partial:  # of a radio's frame: the newest epoch and version with these bits
            epoch = _newest(update.epoch, 16, self._epoch)
            base = _newest(update.base_version, 1 << 16, self.model.version)
            update = replace(update, epoch=epoch, base_version=base)
        own_hash = "" if cut else sha256(message).hexdigest()
        return _Arrival(device, fields[b"s"].decode(), update, own_hash, oversized)

    def _check_sender(self, orders: Orders, arrival: _Arrival) -> None:
        """Is anything taken, from this device, of this size and for this model?"""
        if arrival.device in self._banned:
            raise Refused("banned")
        if self._phase == "finished":
            raise Refused("finished")
        if arrival.oversized:
            raise Refused("oversized")
        if arrival.shard != sha256(arrival.device.encode()).hexdigest()[0]:
            raise Refused("wrong_shard")
        if arrival.update.epoch != self._epoch:
            raise Refused("wrong_epoch")
        if arrival.update.spec_digest not in {None, int.from_bytes(orders.tensors[:2], "big")}:
            raise Refused("wrong_spec")

    def _check_base(self, orders: Orders, update: Update) -> None:
        """Was it trained from a model that was published, and not too long ago?"""
        base, stale = update.base_version, self.model.version - update.base_version
        if stale < 0:
            raise Refused("future_base")
        if stale > orders.max_staleness or base < min(self._bases):
            raise Refused("too_stale")
        if base not in self._bases:
            raise Refused("unknown_base")
        if update.base_digest not in {None, self._bases[base]}:
            raise Refused("wrong_base")

    def _check_content(self, update: Update) -> None:
        """Everything in it but the payload."""
        if update.codec not in CODEC_IDS:
            raise Refused("unknown_codec")
        if update.codec not in self._codecs:
            raise Refused("wrong_codec")
        if update.contributions != 1 or update.weight != 1.0:
            raise Refused("bad_number")
        if not all(isfinite(value) for value in update.metrics):
            raise Refused("not_finite")

    def _delta(self, orders: Orders, update: Update) -> tuple[Places, Values]:
        places, values = read_payload(update.codec, update.payload, orders.size)
        if not np.isfinite(values).all():
            raise Refused("not_finite")
        if float(np.abs(values).max(initial=0)) > orders.max_abs:
            raise Refused("bad_number")
        return places, values

    def _fold(
        self, orders: Orders, ms: int, update: Update, places: Places, values: Values
    ) -> None:
        stale = self.model.version - update.base_version
        self.model.add(places, values, orders.weight(stale, update.num_examples))
        self.account.folded += 1
        self._payload_bytes += len(update.payload)
        if self.model.buffered >= orders.buffer_size:
            self.model.advance(orders)
            self._advanced(orders)
        elif not self._waiting_since_ms:
            self._waiting_since_ms = ms

    def _count(self, reason: str) -> None:
        self.account.rejected[reason] = self.account.rejected.get(reason, 0) + 1

    def _settle(self, who: Identity, outcome: str, own_hash: str) -> None:
        """Note what became of it. Of a banned device no new boot is remembered."""
        device, boot, _ = who
        account = self.account
        if outcome == account.outcomes.get(who) == "folded":
            account.folded_twice.append(who)
        if account.outcomes.get(who) != "folded":
            account.outcomes[who], account.decided[who] = outcome, own_hash
        if device not in self._banned or self._settled.knows(device, boot):
            self._settled.settle(*who, outcome)


def _newest(rest: int, modulus: int, now: int) -> int:
    """The highest number up to now that leaves this rest; a higher one when there is none."""
    return max(
        (
            n
            for n in (now - now % modulus + rest, now - now % modulus - modulus + rest)
            if 0 <= n <= now
        ),
        default=rest,
    )


def _json(fields: Mapping[bytes, bytes]) -> dict[str, object]:
    found = json.loads(fields[b"p"])
    if not isinstance(found, dict):
        raise BadLog("a command that is not a JSON object")
    return found
