"""The verdict: what devices have created, what the log says, and what the server has said.

Pure. Whatever was created must be in exactly one class: folded, refused, superseded, still open on
its device, gone with a card that was taken away, or lost by the broker that had acknowledged it
when its sender sends only once. Whatever else it is, it is lost.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias, TypedDict

from fedmq.simulator.checker.fold import BELOW, Account, Identity
from fedmq.simulator.checker.ladder import Retained

Created: TypeAlias = tuple[int, int, str, int | tuple[int, int] | None]
"""One line of a device's ledger: boot, seq, SHA-256 (hex) of the message as created (without a
seal), and the update that it replaced before that was ever sent: its seq, (boot, seq) when it was
made under another boot, or None."""

PREFIX_MIN: Final = 16
"""Hex digits of a digest that are enough to compare by."""


class Service(TypedDict):
    """The service's own counters."""

    version: int
    updates_folded: int
    updates_rejected: Mapping[str, int]
    duplicates_dropped: int


class _Line(NamedTuple):
    hash: str
    replaced: Identity | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the promise was kept: nothing lost, nothing twice, the same model.

    Attributes:
        created: updates in the ledgers.
        folded: of these, in the model.
        rejected: of these, refused with a name.
        superseded: of these, replaced before they were ever sent.
        open: of these, still on their device.
        removed: of these, gone with a card that was taken away.
        unsent: of these, sent only once by who never sends again, and lost on the way.
        lost: of these, all others.
        folded_twice: folded more than once, under their own number or their successor's.
        strangers: updates in the log that no ledger knows.
        strangers_folded: of these, in the model.
        changed_bytes: updates that came again with other bytes.
        wrong_bytes: updates of which a message came that differs from what was created.
        settled_wrong: of these, settled by such a message: what was created is not in the model.
        digest: of the newest version that the service has published, as it said it.
        sequential_digest: of the same version, as the checker has folded it.
        versions_checked: published versions whose digests were compared.
        blobs_checked: keyframes and diffs of a lattice that were read and compared.
        mismatches: sentences: digests and counters that differ, and ledgers that contradict.
    """

    created: int
    folded: int
    rejected: int
    superseded: int
    open: int
    removed: int
    unsent: int = 0
    lost: list[Identity] = field(default_factory=list)
    folded_twice: list[Identity] = field(default_factory=list)
    strangers: list[Identity] = field(default_factory=list)
    strangers_folded: list[Identity] = field(default_factory=list)
    changed_bytes: list[Identity] = field(default_factory=list)
    wrong_bytes: list[Identity] = field(default_factory=list)
    settled_wrong: list[Identity] = field(default_factory=list)
    digest: str = ""
    sequential_digest: str = ""
    versions_checked: int = 0
    blobs_checked: int = 0
    mismatches: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Nothing lost, nothing twice, nothing taken for what it was not, and the same model."""
        wrong = (self.strangers_folded, self.settled_wrong, self.mismatches)
        return not any((self.lost, self.folded_twice, *wrong)) and _same(
            self.digest, self.sequential_digest
        )

    def sentences(self) -> list[str]:
        """The same for people."""
        lines = [
            f"{self.created} updates were created: {self.folded} folded, {self.rejected} refused,",
            f"{self.superseded} superseded, {self.open} open, {self.removed} gone with a card.",
            f"Lost: {_some(self.lost)}. Folded twice: {_some(self.folded_twice)}.",
        ]
        if _same(self.digest, self.sequential_digest):
            lines.append(
                f"Folded again one by one the model is the same, bit for bit ({self.digest[:16]}); "
                f"{self.versions_checked} published versions were compared."
            )
        else:
            lines.append(
                f"The service's model is {self.digest[:16] or 'unknown'}, folded again one by one "
                f"it is {self.sequential_digest[:16] or 'unknown'}."
            )
        if self.blobs_checked:
            lines.append(f"Of the lattice {self.blobs_checked} keyframes and diffs were compared.")
        if self.unsent:
            lines.append(f"Sent once, and lost on the way: {self.unsent}.")
        if self.strangers:
            lines.append(f"In the log, but in no ledger: {_some(self.strangers)}.")
        if self.strangers_folded:
            lines.append(f"Of these folded all the same: {_some(self.strangers_folded)}.")
        if self.changed_bytes:
            lines.append(f"Came again with other bytes: {_some(self.changed_bytes)}.")
        if self.wrong_bytes:
            lines.append(f"Came with other bytes than were created: {_some(self.wrong_bytes)}.")
        if self.settled_wrong:
            lines.append(f"Settled by such bytes: {_some(self.settled_wrong)}.")
        lines += [f"Mismatch: {mismatch}." for mismatch in self.mismatches]
        lines.append("The promise was kept." if self.kept else "The promise was NOT kept.")
        return lines


def judge(  # noqa: PLR0917 - six kinds of evidence, each with its own type
    ledgers: Mapping[str, Sequence[Created]],
    account: Account,
    open_ids: Collection[Identity],
    removed_ids: Collection[Identity],
    published: Mapping[int, str],
    service: Service,
    *,
    sent_once: Collection[Identity] = (),
    retained: Retained | None = None,
) -> Verdict:
    """Hold everything against everything.

    Args:
        ledgers: what every device has created, in order.
        account: what the log says.
        open_ids: what is still in the devices' spools.
        removed_ids: what left with a card that was taken away.
        published: version -> digest, as the service recorded them: hex, at least 16 digits.
        service: its counters.
        sent_once: what nobody sends again, though a broker may lose what it has acknowledged.
        retained: what was found among the blobs of a lattice, if anybody has looked.
    """
    retained = retained or Retained()
    mismatches = list(retained.mismatches)
    created = _created(ledgers, mismatches)
    superseded = {who for line in created.values() if (who := line.replaced) in created}
    excuses = {
        "superseded": superseded,
        "open": set(open_ids),
        "removed": set(removed_ids),
        "unsent": set(sent_once),
    }
    classes: dict[str, list[Identity]] = {
        name: [] for name in ("folded", "rejected", *excuses, "lost")
    }
    for who in created:
        outcome = account.outcomes.get(who)
        if outcome == "folded":
            name = "folded"
        elif outcome is not None and outcome != BELOW:
            name = "rejected"
        else:
            name = next((name for name, known in excuses.items() if who in known), "lost")
        classes[name].append(who)
    twice = list(account.folded_twice) + list(_folded_as_two(created, account))
    mismatches += [
        f"{_text(who)} was replaced as never sent, and yet it came"
        for who in sorted(superseded & account.outcomes.keys())
    ]
    mismatches += _counters(account, service)
    newest = max(published, default=-1)
    mismatches += _versions(account, published)
    wrong = {who for who in created if account.heard.get(who, set()) - {created[who].hash}}
    strangers = sorted(account.outcomes.keys() - created.keys())
    settled = (who for who in sorted(wrong) if who in account.decided)
    return Verdict(
        created=len(created),
        folded=len(classes["folded"]),
        rejected=len(classes["rejected"]),
        superseded=len(classes["superseded"]),
        open=len(classes["open"]),
        removed=len(classes["removed"]),
        unsent=len(classes["unsent"]),
        lost=classes["lost"],
        folded_twice=twice,
        strangers=strangers,
        strangers_folded=[who for who in strangers if account.outcomes[who] == "folded"],
        changed_bytes=sorted(account.changed_bytes),
        wrong_bytes=sorted(wrong),
        settled_wrong=[who for who in settled if account.decided[who] != created[who].hash],
        digest=published.get(newest, ""),
        sequential_digest=account.digests.get(newest, account.digest),
        versions_checked=len(published.keys() & account.digests.keys()),
        blobs_checked=retained.checked,
        mismatches=mismatches,
    )


def _created(
    ledgers: Mapping[str, Sequence[Created]], mismatches: list[str]
) -> dict[Identity, _Line]:
    """Every update that any device has created."""
    created: dict[Identity, _Line] = {}
    for device, lines in ledgers.items():
        for boot, seq, own_hash, replaced in lines:
            who = (device, boot, seq)
            old = None
            if replaced is not None:
                old_boot, old_seq = replaced if isinstance(replaced, tuple) else (boot, replaced)
                old = (device, old_boot, old_seq)
            if who in created:
                mismatches.append(f"{_text(who)} was created twice")
            if old is not None and old not in created:
                mismatches.append(f"{_text(who)} replaces {_text(old)}, which nobody created")
            created[who] = _Line(own_hash, old)
    return created


def _folded_as_two(created: Mapping[Identity, _Line], account: Account) -> Iterator[Identity]:
    """Updates that were folded although what replaced them was folded too."""
    for who, line in created.items():
        old = line.replaced
        if old is not None and account.outcomes.get(old) == account.outcomes.get(who) == "folded":
            yield old


def _counters(account: Account, service: Service) -> Iterator[str]:
    pairs = {
        "version": (service["version"], account.version),
        "updates_folded": (service["updates_folded"], account.folded),
        "duplicates_dropped": (service["duplicates_dropped"], account.duplicates),
    }
    rejected = service["updates_rejected"]
    for reason in sorted(rejected.keys() | account.rejected.keys()):
        pairs[f"updates_rejected.{reason}"] = (
            rejected.get(reason, 0),
            account.rejected.get(reason, 0),
        )
    for name, (said, found) in pairs.items():
        if said != found:
            yield f"{name} is {said} for the service, {found} by the log"


def _versions(account: Account, published: Mapping[int, str]) -> Iterator[str]:
    for version, said in sorted(published.items()):
        found = account.digests.get(version)
        if found is None:
            yield f"version {version} was published, but is not due by the log"
        elif not _same(said, found):
            yield f"version {version} is {said[:16]} for the service, {found[:16]} by the log"
    newest, due = max(published, default=-1), max(account.digests, default=-1)
    if newest < due:
        yield f"version {due} is due by the log, but the newest that was published is {newest}"


def _same(said: str, found: str) -> bool:
    """Whether a digest, or the beginning of one, is this one."""
    return len(said) >= PREFIX_MIN and found.startswith(said.lower())


def _text(who: Identity) -> str:
    device, boot, seq = who
    return f"{device}/{boot}/{seq}"


def _some(many: Sequence[Identity]) -> str:
    """How many, and the first few."""
    if not many:
        return "none"
    few = ", ".join(_text(who) for who in many[:3])
    return f"{len(many)} ({few}{', ...' if len(many) > 3 else ''})"
