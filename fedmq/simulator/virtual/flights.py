"""What a device does between fetching a model and being heard: train, encode, send.

Updates are made of the parts that production makes them of: header, compressor with its residual,
allowance, seal. A link is fresh for every flight: how it was an hour ago is not remembered.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite
from typing import Final

from edge_agent.compressor import compress
from edge_agent.conditions.budget import seconds_of
from edge_agent.header import headed, payload_bytes
from fedmq.simulator.links import Link
from fedmq.simulator.virtual.account import Account
from fedmq.simulator.virtual.downlink import fetched_bytes, held
from fedmq.simulator.virtual.draws import CODEC, LOST, chance, generator
from fedmq.simulator.virtual.energy import drained
from fedmq.simulator.virtual.fleet import FleetFile
from fedmq.simulator.virtual.learner import Job, Trained
from fedmq.simulator.virtual.population import Device
from fedmq.simulator.virtual.server import EPOCH, Server
from fedmq.simulator.virtual.training import Bench, Work
from schemas.codecs import Ask, codec_by_name
from schemas.messages import Manifest, ModelUpdate
from schemas.names import Seq
from schemas.pace import SCORE, Facts, score
from schemas.params import Params, base_digest, travelling
from schemas.seal import sealed
from schemas.uplink import read_uplink
from schemas.wire import METRICS_MAX, encode_update

ASK_BYTES: Final = 20
"""What a sleeping device sends so that it is answered."""


@dataclass(slots=True, eq=False)
class Flight:
    """One round of one device.

    Attributes:
        device: whose.
        base: that it trains from; its parameters are with the work, until that is done.
        sends_s: when it will be trained.
        link: that it is sent over.
        work: the training.
        lease: the number of the slot's that it was given; 0: none.
        message: when it is made: what is sent.
        before: the residual before that.
    """

    device: Device
    base: Manifest
    sends_s: float
    link: Link
    work: Work
    lease: int = 0
    message: bytes = b""
    before: Params | None = None


class Flights:
    """Begins and sends; counts what it costs."""

    def __init__(self, fleet: FleetFile, server: Server, bench: Bench, account: Account) -> None:
        self._fleet = fleet
        self._server = server
        self._bench = bench
        self._account = account
        self._weather = random.Random(fleet.seed)  # noqa: S311 - weather, no secret
        self._codec = codec_by_name(server.spec.codec.name)
        self._day_bytes = read_uplink(server.spec.uplink).day_bytes
        self._bound_s = seconds_of(server.spec.train, fleet.energy.train_w).seconds

    def begin(self, device: Device, now_s: float) -> Flight | None:
        """Fetch the newest model and train; None: the device comes to nothing on the way.

        So it is when its link is dead, its battery does not last, or it leaves before it sends.
        """
        base, lattice = self._server.published, self._server.state.lattice
        link = Link(device.link, self._weather)
        size = fetched_bytes(base.manifest, lattice, device.holds)
        asks = link.stream_delay(now_s, ASK_BYTES, "up") if device.link.sleep else 0.0
        fetched_s = now_s + asks
        if fetched_s < inf:
            fetched_s += link.stream_delay(fetched_s, size, "down")
        self._account.bytes_down += size
        steps = self._steps_of(device)
        seconds = steps / device.speed
        energy = self._fleet.energy
        spent = size * energy.down_j + seconds * energy.train_w
        lasts = spent <= device.battery.joules
        self._spend(device, spent)
        sends_s = fetched_s + seconds
        if not lasts or sends_s >= device.leaves_s or sends_s == inf:
            self._account.outcomes["given_up"] += 1
            return None
        device.holds = held(base.manifest, lattice)
        device.seconds = seconds
        asked = steps if self._server.spec.pace.seconds or self._bound_s else 0
        work = self._bench.put(
            Job(device.number, device.rounds, base.params, fetched_s, asked), sends_s
        )
        device.rounds += 1
        device.busy = True
        return Flight(device, base.manifest, sends_s, link, work)

    def ready(self, flight: Flight) -> bool:
        """Make the message, if it is not made yet; False: training has diverged, none is sent."""
        if flight.message:
            return True
        device, trained = flight.device, self._bench.done(flight.work)
        flight.work.trained = None
        device.examples, device.loss = trained.num_examples, trained.loss
        metrics = self._metrics(flight, trained)
        if not all(map(isfinite, metrics.values())):
            return False
        update = self._headed(flight, trained, metrics)
        spec = self._server.spec
        delta = travelling(spec.params, trained.delta)
        ask = Ask(spec.codec, payload_bytes(update, spec), spec.gain)
        rng = generator(self._fleet.seed, CODEC, device.number, device.rounds)
        try:
            sent = compress(delta, device.residual, self._codec, ask, rng)
        except ValueError:
            return False
        flight.before, device.residual = device.residual, sent.residual
        device.seq += 1
        message = encode_update(replace(update, seq=Seq(device.seq), payload=sent.payload))
        flight.message = sealed(message, device.name) if spec.codec.checksum else message
        return True

    def wait_s(self, flight: Flight, now_s: float) -> float:
        """How long the task's bound on bytes a day holds the message back."""
        return flight.device.allowance.wait_s(len(flight.message), self._day_bytes, now_s)

    def send(self, flight: Flight, now_s: float) -> float:
        """Send: when it arrives. Infinite: never; the residual is then as it was before."""
        device, size = flight.device, len(flight.message)
        device.allowance = device.allowance.without(size, self._day_bytes, now_s)
        device.version = flight.base.version
        self._account.uploads += 1
        self._account.bytes_up += size
        self._spend(device, size * self._fleet.energy.up_j)
        arrives_s = now_s + self._carried(flight.link, size, now_s)
        lost = self._fleet.participation.lost
        numbers = device.number, device.life, device.seq
        if lost and chance(self._fleet.seed, LOST, *numbers) < lost:
            arrives_s = inf
        if arrives_s == inf:
            device.residual = flight.before
        return arrives_s

    def score(self, device: Device, now_s: float) -> float | None:
        """How much the task wants a device, by what that knows of itself.

        As in production one that has never trained knows its charge and its link all the same, and
        counts the updates that it has made, whatever became of them.
        """
        full = self._fleet.energy.battery_j
        facts = Facts(
            charge=device.battery.joules / full if full else 1.0,
            unmetered=device.unmetered,
            left=self._left(device, now_s),
            examples=device.examples,
            loss=device.loss,
            seconds=device.seconds,
            folded=device.seq,
        )
        return score(self._server.spec.pace, facts)

    def _left(self, device: Device, now_s: float) -> float | None:
        """The share of a day's bytes that is left; None: nothing is bounded, or known."""
        level = device.allowance.until(self._day_bytes, now_s).level
        if not self._day_bytes or level is None:
            return None
        return min(1.0, max(0.0, level / self._day_bytes))

    def _steps_of(self, device: Device) -> int:
        """Of the next round: as `edge_agent.pacing` asks, and no more than the round's time allows.

        A device that has never trained does not know its speed: its first round is as [train] says.
        """
        pace = self._server.spec.pace
        if not pace.seconds or device.seconds is None:
            steps = self._bench.learner.steps_of(device.number)
        else:
            steps = max(pace.steps_min, int(pace.seconds * device.speed))
            steps = min(steps, pace.steps_max) if pace.steps_max else steps
        if not self._bound_s:
            return steps
        return max(1, min(steps, ceil(self._bound_s * device.speed)))

    def _metrics(self, flight: Flight, trained: Trained) -> dict[str, float]:
        """What the trainer tells, and where devices are selected its score."""
        pace, own = self._server.spec.pace, None
        if pace.concurrency and pace.select != "any":
            own = self.score(flight.device, flight.sends_s)
        told = dict(list(trained.metrics.items())[: METRICS_MAX - (own is not None)])
        return told if own is None else told | {SCORE: own}

    def _headed(
        self, flight: Flight, trained: Trained, metrics: Mapping[str, float]
    ) -> ModelUpdate:
        spec, device = self._server.spec, flight.device
        update = ModelUpdate(
            epoch=EPOCH,
            boot=device.boot,
            seq=Seq(device.seq + 1),
            base_version=flight.base.version,
            base_digest=base_digest(flight.base.model_digest),
            spec_digest=spec.params.short_digest,
            codec=self._codec.codec_id,
            num_examples=trained.num_examples,
            payload=b"",
            metrics=metrics,
        )
        return headed(update, spec)

    @staticmethod
    def _carried(link: Link, size: int, now_s: float) -> float:
        """How long a message takes: one frame of a radio where it fits, else a stream."""
        if link.model.lora_sf is None or size > link.model.frame_bytes:
            return link.stream_delay(now_s, size, "up")
        arrivals = link.transmit(now_s, size, "up")
        return arrivals[0].at_s - now_s if arrivals else inf

    def _spend(self, device: Device, joules: float) -> None:
        self._account.joules += min(joules, device.battery.joules)
        device.battery = drained(device.battery, joules)
