"""What a run came to: the counting, and the sentence about it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class DeviceAccount:
    """One device at the end of a run.

    Attributes:
        created: updates that its witness ledger saw (not the outbox).
        open: updates still on the device.
        superseded: updates that were replaced before they were sent.
    """

    created: int
    open: int
    superseded: int


@dataclass(frozen=True, slots=True)
class Summary:
    """summary.json. Bytes are whole MQTT packets as they passed the devices' links."""

    accuracy: float
    target: float
    version: int
    seconds: float
    devices: int
    seed: int
    updates_created: int
    updates_folded: int
    updates_rejected: Mapping[str, int]
    updates_superseded: int
    updates_open: int
    updates_stored: int
    updates_lost: int
    duplicates_dropped: int
    staleness: Mapping[str, float]
    bytes_up: int
    bytes_down: int
    payload_bytes_up: int
    bytes_up_float32: int
    links_cut: int

    @property
    def reached(self) -> bool:
        """Whether the run kept its promise: the target was reached and nothing was lost."""
        return self.accuracy >= self.target and self.updates_lost == 0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def lost_updates(
    accounts: Sequence[DeviceAccount], *, folded: int, rejected: int, stored: int
) -> int:
    """Created minus everything that is accounted for: 0 unless something went wrong."""
    created = sum(account.created for account in accounts)
    on_devices = sum(account.open + account.superseded for account in accounts)
    return created - on_devices - folded - rejected - stored


def in_words(summary: Summary) -> str:
    """The summary in plain words."""
    payload = summary.payload_bytes_up
    saved = f": {summary.bytes_up_float32 / payload:.0f} times less than float32" if payload else ""
    verdict = "reached" if summary.accuracy >= summary.target else "did NOT reach"
    rejected = sum(summary.updates_rejected.values())
    return (
        f"{summary.devices} devices {verdict} {summary.target:.0%} held-out accuracy: "
        f"{summary.accuracy:.1%} at version {summary.version} after {summary.seconds:.0f} s.\n"
        f"They created {summary.updates_created} updates; {summary.updates_folded} were folded, "
        f"{rejected} refused, {summary.updates_superseded} replaced before they were sent, "
        f"{summary.updates_open + summary.updates_stored} are still on their way, "
        f"{summary.updates_lost} lost.\n"
        f"Their links were cut {summary.links_cut} times; updates that came twice and were "
        f"counted once: {summary.duplicates_dropped}.\n"
        f"Up went {_bytes(summary.bytes_up)} in all, {_bytes(payload)} of it payload{saved}. "
        f"Down came {_bytes(summary.bytes_down)}."
    )


def _bytes(count: int) -> str:
    if count < 1_000:
        return f"{count} B"
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"
