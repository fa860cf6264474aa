"""A LoRaWAN fleet in virtual time, without sockets: radios, network server, adapter, fold.

The network server's events are ChirpStack's own bytes, the adapter's deciding half is the real one
(`broker.lorawan`), and so is the fold. What is simulated is the air: a frame is lost by chance, a
device is silent for as long as its duty cycle or its operator asks, and a gateway sends no more
than its own bands allow. Deterministic for a given generator.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from aggregator.fold import Fold
from aggregator.state import origin_state
from aggregator.walking import published_part
from broker.lorawan.commands import downlink
from broker.lorawan.events import Joined, Sent, Uplink, read_event
from broker.lorawan.regions import Network, Rate, Region
from broker.lorawan.transfers import Models, Piece, Policy, Step, Transfers
from broker.lorawan.ways import joined, rungs
from fedmq.simulator.lora import MAC_BYTES, airtime_s
from fedmq.simulator.network_server import Event, NetworkServer
from fedmq.simulator.radio import Radio, Train
from schemas.codecs import codec_by_name
from schemas.ladder import keyframe_name
from schemas.lattice import sizes_of
from schemas.log import Arrived, Entry, EntryId, SpecSet, Tick
from schemas.names import Epoch, ModelVersion, shard_of
from schemas.params import Params
from schemas.short import carried
from schemas.strategy import gain_of
from schemas.task import TaskSpec, spec_to_json

DAY_S: Final = 86_400.0
EPOCH: Final = Epoch(1)
POLL_AFTER_S: Final = 3.0
"""A device that polls lets both windows pass first."""


@dataclass(frozen=True, slots=True)
class Air:
    """How a fleet sends.

    Attributes:
        region: whose law holds.
        network: whose fair use.
        rate: the devices' data rate, all the same.
        loss: the share of frames that nobody hears, up and down each.
        duplicates: the share of uplinks that the network server tells twice.
        polls: devices send no update while a transfer is under way, but short frames that open
            windows.
    """

    region: Region
    network: Network
    rate: Rate
    loss: float = 0.1
    duplicates: float = 0.05
    polls: bool = False

    def silence_s(self, air_s: float) -> float:
        """From the begin of one frame to the next: duty cycle, and a day's air time spread."""
        by_day = air_s * DAY_S / self.network.air_s if self.network.air_s else 0.0
        return max(air_s / self.region.duty_up, by_day, air_s + POLL_AFTER_S)


@dataclass(slots=True)
class Spent:
    """What it took, over the fleet.

    Attributes:
        frames: uplinks with an update, lost ones included.
        polls: uplinks without one.
        up_bytes: payload of both; LoRaWAN adds 13 a frame.
        up_air_s: time on the air of both.
        downs: downlinks that a gateway has sent.
        down_bytes: their payload.
        down_air_s: their time on the air.
        adopted: models that devices took over.
    """

    frames: int = 0
    polls: int = 0
    up_bytes: int = 0
    up_air_s: float = 0.0
    downs: int = 0
    down_bytes: int = 0
    down_air_s: float = 0.0
    adopted: int = 0


@dataclass(slots=True)
class _Adapter:
    """The deciding half of the adapter, with blobs at hand."""

    transfers: Transfers
    models: Models = field(default_factory=Models)
    blobs: dict[str, bytes] = field(default_factory=dict)

    def answer(
        self, uplink: Uplink, room: int, sizes: tuple[int, ...], now_s: float
    ) -> Piece | None:
        """What goes down now: a diff is made at once."""
        answer = self.transfers.hear(uplink, self.models, room, now_s)
        if not isinstance(answer, Step):
            return answer
        name = keyframe_name(Epoch(answer.epoch), ModelVersion(answer.last_version))
        names = rungs(answer)
        diff = joined([self.blobs[n] for n in names], sizes) if names else self.blobs[name]
        return self.transfers.begin(uplink, answer, diff, room, now_s)


class Fleet:
    """One run.

    Args:
        spec: the task, with `publish.lattice`.
        origin: W0.
        trains: local training, one a device.
        air: how they send.
        policy: what the adapter sends down, and when.
        rng: all chance.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        origin: Params,
        trains: Sequence[Train],
        air: Air,
        policy: Policy,
        rng: "np.random.Generator",
    ) -> None:
        self._spec, self._air, self._rng = spec, air, rng
        self._sizes = sizes_of(spec.params)
        self.fold = Fold(origin_state(EPOCH, origin))
        self.server = NetworkServer(air.region)
        self.spent = Spent()
        self._adapter = _Adapter(Transfers(policy))
        self._ms = 0
        codec, gain = codec_by_name(spec.codec.name), gain_of(spec.strategy)
        self._append(SpecSet(spec_to_json(spec)), 0.0)
        flashed = msgspec.structs.replace(spec, gain=gain)
        self.radios = {
            f"70b3d57ed00{number:05x}": Radio(
                flashed, origin=origin, codec=codec, epoch=EPOCH, train=train, rng=child
            )
            for number, (train, child) in enumerate(
                zip(trains, rng.spawn(len(trains)), strict=True), 1
            )
        }
        self._counts = dict.fromkeys(self.radios, 0)
        self._free = {
            name: float(rng.uniform(0, air.silence_s(self._air_s(air.rate.frame_bytes))))
            for name in self.radios
        }

    def run(self, days: float, every_s: float) -> Iterator[float]:
        """Let time pass; yields the time in days, every so often."""
        due = [(at, name) for name, at in self._free.items()]
        heapq.heapify(due)
        told = every_s
        while due:
            now, name = heapq.heappop(due)
            while told <= now:
                yield told / DAY_S
                told += every_s
            if now > days * DAY_S:
                return
            heapq.heappush(due, (now + self._send(name, now), name))

    def published(self) -> Params | None:
        """What travels of the newest published model."""
        lattice = self.fold.state.lattice
        if lattice is None:
            return None
        return published_part(lattice, self._spec.params)

    # -- one frame -------------------------------------------------------------------------

    def _send(self, name: str, now: float) -> float:
        """One uplink and its windows; seconds until the next."""
        radio, air, spent = self.radios[name], self._air, self.spent
        polls = air.polls and radio.receives
        frame = radio.poll() if polls else radio.frame(air.rate.frame_bytes)
        air_s = self._air_s(len(frame))
        count, port = self._counts[name], radio.port
        self._counts[name] += 1
        spent.frames += not polls
        spent.polls += polls
        spent.up_bytes += len(frame)
        spent.up_air_s += air_s
        pause = air.silence_s(air_s) * float(self._rng.uniform(1.0, 1.02))
        if self._rng.random() >= air.loss:
            end = now + air_s
            event = self.server.hear(
                name,
                dev_addr="00bcb929",
                count=count,
                rate=air.rate,
                port=port,
                data=frame,
                now_s=end,
            )
            for _ in range(2 if self._rng.random() < air.duplicates else 1):
                self._hear(event, end)
            self._open_windows(name, end)
        return pause

    def _open_windows(self, name: str, now: float) -> None:
        found = self.server.answer(name, self._air.rate, now)
        if found is None:
            return
        down, event = found
        self._hear(event, now)
        self.spent.downs += 1
        self.spent.down_bytes += len(down.data)
        self.spent.down_air_s += down.air_s
        if self._rng.random() >= self._air.loss:
            self.spent.adopted += self.radios[name].receive(down.port, down.data)

    def _hear(self, event: Event, now: float) -> None:
        """The adapter takes an event, as over MQTT."""
        heard = read_event(*event)
        match heard:
            case Uplink():
                if not heard.polls:
                    data = carried(heard.boot, heard.seq, heard.frame)
                    arrived = Arrived(heard.device, shard_of(heard.device), data, len(data))
                    self._append(arrived, now)
                room = self._air.region.room_down(self._air.rate)
                piece = self._adapter.answer(heard, room, self._sizes, now)
                if piece is not None:
                    body = downlink(heard.answer, heard.device, piece.port, piece.data)
                    self.server.take(heard.answer, body)
            case Joined(device):
                self._adapter.transfers.joined(device)
            case Sent(device):
                self._adapter.transfers.sent(device)

    def _append(self, body: Arrived | SpecSet | Tick, now: float) -> None:
        """Fold, and follow what is published."""
        self._ms = max(self._ms + 1, round(now * 1000) + 1)
        self.fold.apply(Entry(EntryId(self._ms, 0), body))
        changes = self.fold.take_changes()
        adapter, last = self._adapter, self.fold.state.published
        adapter.blobs |= changes.beside
        if not changes.model or last is None:
            return
        adapter.models.hear(last.named)

    def _air_s(self, size: int) -> float:
        rate = self._air.rate
        return airtime_s(rate.sf, size + MAC_BYTES, rate.bandwidth_hz)
