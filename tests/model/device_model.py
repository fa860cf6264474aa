"""A device: an outbox on a disk that may be exchanged, and a process that may die.

The boot number is drawn anew at each start, for new updates; open ones keep theirs. Only an update
of this start that was never sent may be replaced: an old card image does not know what was sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, DeviceId, ModelVersion, Seq
from schemas.window import SPAN, is_settled
from schemas.wire import encode_update
from tests.model.bugs import Bugs
from tests.model.names import EPOCH, SPEC, delta


@dataclass(frozen=True)
class OpenUpdate:
    """An update that has no Receipt yet; `index` is ours, to tell one from another."""

    index: int
    boot: int
    seq: int
    base: int
    data: bytes
    sent: bool = False


@dataclass(frozen=True)
class Disk:
    """What survives the process."""

    open: tuple[OpenUpdate, ...] = ()
    boot: int = 0
    seq: int = 0


class DeviceModel:
    """One device."""

    def __init__(
        self, name: str, base: Manifest, boots: Iterator[int], bugs: Bugs, *, lives_max: int
    ) -> None:
        self.name = DeviceId(name)
        self.disk = Disk()
        self._base, self._boots, self._bugs = base, boots, bugs
        self._lives_max = lives_max
        self._image = self.disk
        self.start()

    def start(self) -> None:
        """A new process on the disk that is there."""
        if "boot_kept_on_an_old_card" in self._bugs and self.disk.boot:
            return
        self.disk = replace(self.disk, boot=next(self._boots), seq=0)

    def take_image(self) -> None:
        """Copy the card."""
        self._image = self.disk

    def restore_image(self) -> tuple[set[int], set[int]]:
        """Put the copy in: (updates that are gone with the card, updates that are back)."""
        before = {update.index for update in self.disk.open}
        self.disk = self._image
        after = {update.index for update in self.disk.open}
        self.start()
        return before - after, after - before

    # -- training ------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another number may be opened."""
        disk = self.disk
        oldest = min((u.seq for u in disk.open if u.boot == disk.boot), default=disk.seq + 1)
        return disk.seq + 1 - oldest < SPAN and len(disk.open) < SPAN and self._few_boots

    @property
    def _few_boots(self) -> bool:
        """The server remembers so many boots of a device, and no more may be open."""
        open_boots = {update.boot for update in self.disk.open} | {self.disk.boot}
        return max(open_boots) - min(open_boots) < self._lives_max

    def replaceable(self) -> OpenUpdate | None:
        """The open update that more training on the same base would contain."""
        for update in self.disk.open:
            unsent = not update.sent or "sent_update_replaced" in self._bugs
            mine = update.boot == self.disk.boot
            mine |= "update_of_another_start_replaced" in self._bugs
            if unsent and mine and update.base == self._base.version:
                return update
        return None

    def train(self, index: int, replaces: OpenUpdate | None) -> OpenUpdate:
        """Write a new update, in the place of another: one transaction."""
        disk = self.disk
        made = OpenUpdate(index, disk.boot, disk.seq + 1, self._base.version, b"")
        made = replace(made, data=self._encode(made))
        kept = tuple(update for update in disk.open if update is not replaces)
        self.disk = replace(disk, open=(*kept, made), seq=made.seq)
        return made

    def _encode(self, made: OpenUpdate) -> bytes:
        return encode_update(
            ModelUpdate(
                epoch=EPOCH,
                boot=Boot(made.boot),
                seq=Seq(made.seq),
                base_version=ModelVersion(made.base),
                base_digest=int.from_bytes(self._base.model_digest[:4], "big"),
                spec_digest=SPEC.params.short_digest,
                codec=0,
                num_examples=1,
                payload=delta(made.index),
            )
        )

    # -- the link ------------------------------------------------------------------------------

    def mark_sent(self, update: OpenUpdate) -> None:
        """Note on the disk that it is about to be sent."""
        marked = (replace(u, sent=True) if u is update else u for u in self.disk.open)
        self.disk = replace(self.disk, open=tuple(marked))

    def hear_manifest(self, manifest: Manifest) -> None:
        """Adopt a newer model."""
        if manifest.version > self._base.version:
            self._base = manifest

    def hear_receipt(self, receipt: Receipt) -> set[int]:
        """Forget the sent updates that it settles; returns which."""

        def done(update: OpenUpdate) -> bool:
            mine = update.sent and update.boot == receipt.boot
            return mine and is_settled(Seq(update.seq), receipt.low, receipt.settled)

        settled = {update.index for update in self.disk.open if done(update)}
        left = tuple(update for update in self.disk.open if update.index not in settled)
        self.disk = replace(self.disk, open=left)
        return settled
