"""What goes down to which device, and when: one transfer each, a piece a window. Pure.

An uplink tells which model a device has, and how much of a transfer. `Transfers.hear` answers with
a piece to send, or with the step that somebody must make a diff for, or with nothing. A transfer
keeps its target until the device has it: what was published meanwhile is one merged diff later on.

Time comes in as seconds of any clock that does not run backwards.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from broker.lorawan.events import Uplink
from broker.lorawan.pieces import HEAD_BYTES, RING, Head, encode_head, port_of, read_port
from schemas.messages import Manifest
from schemas.names import DeviceId
from schemas.short import told_base

DAY_S: Final = 86_400.0

PATIENCE: Final = 2
"""Uplinks after which a piece that was handed over, and of which nothing was heard, goes again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """When a device is sent a newer model, and how much of its windows that may take.

    Attributes:
        behind: publications that a device must be behind before a transfer begins, at least 1.
        day: downlinks to one device in 24 hours at most; 0: no bound.
    """

    behind: int = 1
    day: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """From which model to which.

    Attributes:
        epoch: of both.
        first: the serial number that the device has; None: none that diffs lead from.
        first_version: its version, modulo 2^16; 0 when `first` is None.
        last: the serial number to come to.
        last_version: its version.
        digest: the first 4 bytes of that model's digest.
    """

    epoch: int
    first: int | None
    first_version: int
    last: int
    last_version: int
    digest: bytes

    def head(self, length: int) -> Head:
        """What stands before the diff."""
        return Head(
            first=self.first_version,
            last=self.last_version,
            epoch=self.epoch,
            whole=self.first is None,
            length=length,
            digest=self.digest,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One downlink."""

    port: int
    data: bytes


Answer: TypeAlias = Piece | Step | None


@dataclass(slots=True)
class _Transfer:
    """One transfer under way.

    Attributes:
        step: where it leads.
        turn: of its ports.
        body: head and diff.
        count: pieces that are on the device.
        there: bytes of them.
        sent: bytes of the piece that was handed over last; 0: none was since `count` grew.
        waits: whether that one may still wait in the network server's queue.
        waited: uplinks since then.
    """

    step: Step
    turn: int
    body: bytes
    count: int = 0
    there: int = 0
    sent: int = 0
    waits: bool = False
    waited: int = 0


@dataclass(slots=True)
class _Known:
    """What is remembered of a device."""

    boot: int = 0
    seq: int = 0
    transfer: _Transfer | None = None
    downs: deque[float] = field(default_factory=deque)


class Models:
    """Which models there are: the newest, and which serial number a version has.

    Attributes:
        epoch: the task's.
        serial: of the newest publication; -1 before the first.
        version: its version.
        digest: the first 4 bytes of its model's digest.
        oldest: the oldest serial number that diffs lead from.
        serials: by version, of this epoch.
        last: whether no newer one will come: then every device gets it, however near it is.
    """

    KEPT: Final = 256

    def __init__(self) -> None:
        self.epoch = 0
        self.serial = -1
        self.version = 0
        self.digest = b""
        self.oldest = 0
        self.serials: dict[int, int] = {}
        self.last = False

    def publish(self, *, epoch: int, serial: int, version: int, digest: bytes, oldest: int) -> bool:
        """Take note of a publication; False when nothing is new."""
        if (epoch, serial) <= (self.epoch, self.serial):
            return False
        if epoch != self.epoch:
            self.serials.clear()
        self.epoch, self.serial, self.version = epoch, serial, version
        self.digest, self.oldest = digest[:4], oldest
        self.remember(epoch, {version: serial})
        return True

    def hear(self, manifest: Manifest) -> bool:
        """Take note of a publication as it was published."""
        return self.publish(
            epoch=manifest.epoch,
            serial=manifest.serial,
            version=manifest.version,
            digest=manifest.model_digest,
            oldest=manifest.oldest,
        )

    def remember(self, epoch: int, serials: dict[int, int]) -> None:
        """Add versions of this epoch, as they were noted before."""
        if self.serial < 0:
            self.epoch = epoch
        if epoch == self.epoch:
            self.serials |= serials
        for version in sorted(self.serials)[: -self.KEPT]:
            del self.serials[version]

    def step(self, epoch: int, version: int) -> Step | None:
        """How a device comes from (epoch mod 16, version mod 2^16) to the newest.

        None when it is there, or nothing is published.
        """
        if self.serial < 0:
            return None
        first = self._serial_of(version) if epoch == self.epoch & 15 else None
        if first == self.serial:
            return None
        if first is not None and not self.oldest <= first < self.serial:
            first = None
        told = version if first is not None else 0
        return Step(self.epoch, first, told, self.serial, self.version, self.digest)

    def _serial_of(self, version: int) -> int | None:
        """Of the newest version that ends in these 16 bits."""
        full = self.version - (self.version - version) % (1 << 16)
        return self.serials.get(full)


class Transfers:
    """All transfers of one task."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[DeviceId, _Known] = {}

    def hear(self, uplink: Uplink, models: Models, room: int, now_s: float) -> Answer:
        """What an uplink asks for.

        Args:
            uplink: what came.
            models: what is published.
            room: bytes of one downlink to this device.
            now_s: when.

        Returns:
            A piece to hand over; a step, whose diff `begin` wants; or None.
        """
        known = self._known.setdefault(uplink.device, _Known())
        said = read_port(uplink.port)
        if not self._is_news(known, uplink) or said is None or room <= 0:
            return None
        count, turn = said
        epoch, version = told_base(uplink.frame)
        transfer = known.transfer
        if transfer is not None and not self._goes_on(transfer, epoch, version, count, turn):
            transfer = known.transfer = None
        if not self._may(known, now_s):
            return None
        if transfer is None:
            step = models.step(epoch, version)
            return None if step is None or self._is_near(step, models) else step
        return self._next(known, transfer, room, now_s)

    def begin(
        self, uplink: Uplink, step: Step, diff: bytes, room: int, now_s: float
    ) -> Piece | None:
        """Begin a transfer with the diff of the step that `hear` has asked for: its first piece.

        None when the device has begun another session meanwhile, or there is no room for a head.
        """
        known = self._known.setdefault(uplink.device, _Known())
        said = read_port(uplink.port)
        if (
            known.boot != uplink.boot
            or known.transfer is not None
            or said is None
            or room <= HEAD_BYTES
        ):
            return None
        body = encode_head(step.head(len(diff))) + diff
        known.transfer = _Transfer(step, turn=1 - said[1], body=body)
        return self._next(known, known.transfer, room, now_s)

    def sent(self, device: DeviceId) -> None:
        """It has gone on the air, whether it was heard or not."""
        known = self._known.get(device)
        if known is not None and known.transfer is not None:
            known.transfer.waits = False

    def joined(self, device: DeviceId) -> None:
        """A session begins: what the device had of a transfer may be gone."""
        self._known.pop(device, None)

    @property
    def under_way(self) -> int:
        """How many devices are being sent something."""
        return sum(known.transfer is not None for known in self._known.values())

    # -- one device ------------------------------------------------------------------------

    def _is_news(self, known: _Known, uplink: Uplink) -> bool:
        """Whether this frame is the newest: one that is said again opens no window."""
        if uplink.boot != known.boot:
            known.boot, known.transfer = uplink.boot, None
        elif uplink.seq <= known.seq:
            return False
        known.seq = uplink.seq
        return True

    def _goes_on(
        self, transfer: _Transfer, epoch: int, version: int, count: int, turn: int
    ) -> bool:
        """Read what the device has of it; False when it is done, or unknown to the device."""
        step = transfer.step
        if turn != transfer.turn:
            return not transfer.count  # the first piece is not there yet
        if epoch == step.epoch & 15 and version == step.last_version & 0xFFFF:
            return False  # it is complete
        if count == (transfer.count + 1) % RING and transfer.sent:
            transfer.count += 1
            transfer.there += transfer.sent
            transfer.sent, transfer.waits = 0, False
            return transfer.there < len(transfer.body)  # complete, and yet not adopted: anew
        return count == transfer.count % RING and transfer.count > 0

    def _next(self, known: _Known, transfer: _Transfer, room: int, now_s: float) -> Piece | None:
        if transfer.waits and transfer.sent:
            transfer.waited += 1
            if transfer.waited < PATIENCE:
                return None  # it goes down in this uplink's window
        size = transfer.sent if 0 < transfer.sent <= room else room  # again: the same bytes
        data = transfer.body[transfer.there : transfer.there + size]
        transfer.sent, transfer.waits, transfer.waited = len(data), True, 0
        known.downs.append(now_s)
        return Piece(port_of(transfer.count, transfer.turn), data)

    def _is_near(self, step: Step, models: Models) -> bool:
        if step.first is None or models.last:
            return False
        return step.last - step.first < self._policy.behind

    def _may(self, known: _Known, now_s: float) -> bool:
        """Whether the day's downlinks are not used up."""
        while known.downs and known.downs[0] <= now_s - DAY_S:
            known.downs.popleft()
        return not self._policy.day or len(known.downs) < self._policy.day
