"""How to get from the model that is here to the one that is offered with the fewest bytes. Pure.

    ladder     the diffs that lead there, of which the broker retains each once for all devices
    ask        one diff merged of those, made for this device alone
    keyframe   the whole model; what is here does not matter

Each is weighed by what has still to come, with the packets around it: a way that was begun goes on
unless it turns out longer than it was told. docs/wire.md, section 5.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import log2
from typing import Final, Literal, TypeAlias

from edge_agent.download import Here, Parcel
from schemas.errors import WireError
from schemas.ladder import blob_name, path
from schemas.lattice import KEYFRAME, SPAN
from schemas.messages import Manifest
from schemas.names import DeviceId, Epoch
from schemas.topics import TaskTopics

Way: TypeAlias = Literal["ladder", "ask", "keyframe"]

LADDER_MOST: Final = 4
LADDER_SPARE: Final = 1 << 16
"""A ladder that says it takes more than so many keyframes, and these bytes, is none."""

GROWTH: Final = 0.6
"""A diff grows about as the gap to this power, where nothing better is known of longer ones."""

REPLY_BYTES: Final = 16_384
"""A longer diff is not asked for: a reply is one message, and a link that ends begins it anew."""


ASK_SHARE: Final = 0.75
"""To ask must cost at most so much of the ladder: what serves all is retained, and costs nobody
else anything."""


@dataclass(frozen=True, slots=True)
class Start:
    """The publication that is here, with its lattice values."""

    epoch: Epoch
    serial: int


@dataclass(frozen=True, slots=True)
class Packets:
    """What packets cost beside what they carry, in bytes of MQTT, both ways.

    Attributes:
        chunk: of one chunk: its place in SUBSCRIBE, SUBACK and UNSUBSCRIBE, PUBLISH and PUBACK.
        ask: of asking and of the answer.
    """

    chunk: int
    ask: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to the offered model.

    Attributes:
        way: which.
        parcels: what to fetch, in the order in which it is applied.
        cost: bytes that have still to go or come, about.
    """

    way: Way
    parcels: tuple[Parcel, ...]
    cost: int


def packets(topics: TaskTopics, device: DeviceId) -> Packets:
    """What packets cost on these topics (MQTT 3.1.1, QoS 1)."""
    chunk = len(topics.chunk("d1-1000-3", 0))
    ask, reply = len(topics.ask(device)), len(topics.reply(device))
    return Packets(chunk=3 * chunk + 20, ask=ask + 3 * reply + 73)


def cheapest(
    start: Start | None,
    manifest: Manifest,
    here: Here,
    costs: Packets,
    *,
    silent: Collection[str] = (),
    may_ask: bool = True,
) -> Plan:
    """The way with the fewest bytes still to come; of equal ones the first in the list above.

    Args:
        start: what is here; None: nothing that can be gone on from.
        manifest: of a lattice task.
        here: chunks on the disk.
        costs: what packets cost.
        silent: blobs that did not come when they were asked for. The keyframe is tried again.
        may_ask: whether somebody may be there who answers.
    """
    keyframe = _keyframe(manifest, here, costs)
    if start is None or not exists(start, manifest):
        return keyframe
    found = list(_ladder(start, manifest, here, costs, silent))
    if may_ask:
        dearest = ASK_SHARE * found[0].cost if found else keyframe.cost
        found += [plan for plan in _ask(start, manifest, costs) if plan.cost <= dearest]
    if keyframe.parcels[0].blob not in silent or not found:
        found.append(keyframe)
    return min(found, key=lambda plan: plan.cost)


def leads_on(plan: Plan, there: Start, wanted: Manifest, at_once: Plan, costs: Packets) -> bool:
    """Whether a plan is worth its end though another model than it leads to is `wanted` meanwhile.

    It is when diffs lead on from `there`, where it ends, and all of it costs no more than the plan
    to turn to that one `at_once`: who comes by keyframes more slowly than models are published
    would never have one.
    """
    if wanted.codec != KEYFRAME or not exists(there, wanted):
        return False
    return plan.cost + cheapest(there, wanted, {}, costs).cost <= at_once.cost


def useful(start: Start | None, manifest: Manifest) -> set[str]:
    """The blobs that any way to the offered model is made of: whatever came of others is spare."""
    names = {manifest.blob}
    if start is not None and exists(start, manifest):
        names |= {name for name, _ in _rungs(start, manifest)}
    return names


def exists(start: Start, manifest: Manifest) -> bool:
    """Whether diffs lead from what is here to what is offered."""
    if start.epoch != manifest.epoch or not 0 <= manifest.serial - start.serial <= SPAN:
        return False
    return start.serial >= min(manifest.oldest, manifest.serial)


def _keyframe(manifest: Manifest, here: Here, costs: Packets) -> Plan:
    parcel = Parcel(manifest.blob, manifest.blob_bytes, manifest.chunk_bytes)
    cost = _still_to_come(parcel, 0, here, costs)
    return Plan("keyframe", (parcel,), cost)


def _ladder(
    start: Start, manifest: Manifest, here: Here, costs: Packets, silent: Collection[str]
) -> Iterator[Plan]:
    """The diffs of the ladder, unless one of them did not come."""
    rungs = _rungs(start, manifest)
    if not {name for name, _ in rungs} & set(silent):
        parcels = tuple(Parcel(name, 0, manifest.chunk_bytes) for name, _ in rungs)
        cost = sum(
            _still_to_come(parcel, rung_bytes(manifest, level), here, costs)
            for parcel, (_, level) in zip(parcels, rungs, strict=True)
        )
        if cost <= LADDER_MOST * _keyframe(manifest, {}, costs).cost + LADDER_SPARE:
            yield Plan("ladder", parcels, cost)


def _rungs(start: Start, manifest: Manifest) -> list[tuple[str, int]]:
    """Blob and level of every diff that leads there, in order."""
    steps = path(start.serial, manifest.serial)
    return [(blob_name(manifest.epoch, serial, level), level) for serial, level in steps]


def _ask(start: Start, manifest: Manifest, costs: Packets) -> Iterator[Plan]:
    """One merged diff, where it is made of several and is not too long for one message."""
    levels = [level for _, level in _rungs(start, manifest)]
    if len(levels) > 1:
        size = merged_bytes(manifest, manifest.serial - start.serial, max(levels))
        if size <= REPLY_BYTES:
            yield Plan("ask", (), size + costs.ask)


def _still_to_come(parcel: Parcel, about: int, here: Here, costs: Packets) -> int:
    """Bytes that are missing of a parcel whose size is told, or about so much."""
    have = here.get(parcel.blob, {})
    try:
        known = parcel.seen(have.get(0)).blob_bytes
    except WireError:
        known = 0
    size = known or about
    missing = size - sum(map(len, have.values()))
    chunks = -(-size // parcel.chunk_bytes) - len(have)
    return max(0, missing) + max(0, chunks) * costs.chunk


def rung_bytes(manifest: Manifest, level: int) -> int:
    """What a diff over 2^level publications takes, about; never less than one over fewer.

    By the newest of each level; where there is none, by the one below it, or else the one above.
    """
    about = float(next(filter(None, manifest.ladder), manifest.blob_bytes))
    begun = False
    for rung in range(level + 1):
        size = manifest.ladder[rung] if rung < len(manifest.ladder) else 0
        about = max(about, size) if size or not begun else about * 2**GROWTH
        begun = begun or size > 0
    return round(about)


def merged_bytes(manifest: Manifest, gap: int, level: int) -> int:
    """What one diff over `gap` >= 1 publications takes, about.

    Between the levels of the ladder around it, whose newest diffs may be from a time when the model
    still went further; and by the highest `level` on the path, of which there are newer ones: the
    lower of the two.
    """
    below = gap.bit_length() - 1
    share = log2(gap) - below
    sizes = rung_bytes(manifest, below), rung_bytes(manifest, below + 1)
    between: float = sizes[0] ** (1 - share) * sizes[1] ** share
    grown: float = rung_bytes(manifest, level) * (gap / (1 << level)) ** GROWTH
    return round(min(between, grown))
