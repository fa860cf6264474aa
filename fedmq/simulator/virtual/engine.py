"""A fleet in virtual time, event by event. To be read from `run` downwards.

What the cost of an event hangs on is who is active, never how many there are: in mode "free" the
moments at which devices wake are drawn and sorted once a period, in the other modes devices are
drawn one by one until one can be had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import heappop, heappush
from math import ceil, inf
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol, TypeAlias, runtime_checkable

from fedmq.simulator.virtual.account import Account, meets, participation
from fedmq.simulator.virtual.availability import Availability, read_trace
from fedmq.simulator.virtual.choosing import Chooser
from fedmq.simulator.virtual.draws import CHOICE, WAKE, generator
from fedmq.simulator.virtual.energy import charged
from fedmq.simulator.virtual.fleet import FleetFile, Progress, checked_fleet
from fedmq.simulator.virtual.flights import Flight, Flights
from fedmq.simulator.virtual.learner import Learner, Personal
from fedmq.simulator.virtual.outcome import Outcome, Sample, with_wall
from fedmq.simulator.virtual.population import Device, Population
from fedmq.simulator.virtual.server import EPOCH, Server
from fedmq.simulator.virtual.training import Bench
from schemas.errors import ConfigError
from schemas.log import Entry
from schemas.outcomes import FOLDED
from schemas.pace import takes_part
from schemas.params import Params

AGAIN_S: Final = 60.0
"""When nobody could be had, it is tried again after so long."""

LEAST_S: Final = 1e-3
"""The log's clock tells no shorter time."""

SLICE: Final = 4096
"""Wake-ups that are turned into Python's numbers at once."""

Watch: TypeAlias = Callable[[Progress], None]


@runtime_checkable
class Personalises(Protocol):
    """A learner that can tell what devices make of a model for themselves."""

    def personal(self, params: Params, *, at_s: float) -> Personal:
        """Measure over a sample of the fleet."""
        ...


@runtime_checkable
class Guides(Protocol):
    """A learner with examples that are the server's own."""

    def guide(self, params: Params, number: int) -> Params | None:
        """The server's own step from a model of this version; None: it has no examples."""
        ...


class What(IntEnum):
    """What happens. Of events at the same moment the one that was planned first comes first."""

    SEND = 1
    ARRIVE = 2
    TICK = 3
    LEASE = 4
    AGAIN = 5
    DEADLINE = 6


@dataclass(slots=True)
class Slots:
    """Of mode "slots": how many are not taken, and whether somebody is to look again."""

    free: int
    looks: bool = False


def run(
    fleet: FleetFile, learner: Learner, watch: Watch, *, log: list[Entry] | None = None
) -> Outcome:
    """Run a fleet to its end. Raises ConfigError.

    Args:
        fleet: who, what, when.
        learner: the model and its data.
        watch: is told now and then.
        log: where the entries that were folded are put, if anywhere: all of them, in order.
    """
    began = perf_counter()
    simulation = Simulation(checked_fleet(fleet), learner, watch, keep=log is not None)
    outcome = simulation.run()
    if log is not None:
        log += simulation.server.entries
    return with_wall(outcome, perf_counter() - began)


class Simulation:
    """One run."""

    def __init__(
        self, fleet: FleetFile, learner: Learner, watch: Watch, *, keep: bool = False
    ) -> None:
        spec = fleet.spec(learner.spec)
        guards = spec.strategy.robust.guard != "none"
        guide = learner.guide if guards and isinstance(learner, Guides) else None
        self.server = Server(spec, learner.initial(), guide=guide, keep=keep)
        self._fleet = fleet
        self._learner = learner
        self._watch = watch
        self._account = Account()
        self._bench = Bench(learner)
        self._population = Population(fleet, learner)
        self._flights = Flights(fleet, self.server, self._bench, self._account)
        self._there = _availability(fleet)
        pace = fleet.task.pace
        self._chooser = Chooser(
            fleet.devices,
            self._may,
            None if pace.select == "any" else self._score,
            pace.explore,
            generator(fleet.seed, CHOICE),
        )
        self._slots = Slots(fleet.concurrency if fleet.participation.mode == "slots" else 0)
        self._round = 0
        self._heap: list[tuple[float, int, What, object]] = []
        self._order = 0
        self._ticks_s: float | None = None
        self._measured: tuple[int, dict[str, float]] = (-1, {})
        self._reached: Sample | None = None
        self._now_s = 0.0

    def run(self) -> Outcome:
        """Work off events until the run is over."""
        mode = self._fleet.participation.mode
        self._sample()
        if mode == "slots":
            self._fill()
        elif mode == "rounds":
            self._begin_round()
        wakes = self._wakes() if mode == "free" else iter(())
        wake = next(wakes, None)
        limit_s = self._fleet.stop.seconds
        while not self._is_over():
            planned_s = self._heap[0][0] if self._heap else inf
            wakes_s = wake[0] if wake else inf
            if min(planned_s, wakes_s) > limit_s:
                self._now_s = limit_s
                break
            self._account.events += 1
            if wake and wakes_s < planned_s:
                self._now_s = wakes_s
                self._wake(wake[1])
                wake = next(wakes, None)
            else:
                self._now_s, _, what, subject = heappop(self._heap)
                self._happen(what, subject)
        if self._account.samples[-1].uploads != self._account.uploads:
            self._sample()
        return self._outcome()

    # -- events ----------------------------------------------------------------------------

    def _plan(self, at_s: float, what: What, subject: object = None) -> None:
        self._order += 1
        heappush(self._heap, (at_s, self._order, what, subject))

    def _happen(self, what: What, subject: object) -> None:
        match what, subject:
            case What.SEND, Flight() as flight:
                self._send(flight)
            case What.ARRIVE, Flight() as flight:
                self._arrive(flight)
            case What.LEASE, Flight() as flight:
                self._release(flight)
            case What.LEASE, None:
                self._slots.free += 1
                self._fill()
            case What.TICK, _:
                self._tick()
            case What.AGAIN, _:
                self._slots.looks = False
                self._fill()
            case What.DEADLINE, number if number == self._round:
                self._give_up_round()

    def _is_over(self) -> bool:
        stop, account = self._fleet.stop, self._account
        if stop.uploads and account.uploads >= stop.uploads:
            return True
        if stop.versions and self.server.version >= stop.versions:
            return True
        return self._reached is not None or self.server.finished

    # -- mode "free" -----------------------------------------------------------------------

    def _wakes(self) -> Iterator[tuple[float, int]]:
        """Each device once a period, at a moment of its own: drawn and sorted a period at a time.

        Sorting costs log(devices) a wake-up and 16 bytes a device, and that is all that a device
        costs which only sleeps.
        """
        period_s, devices = self._fleet.availability.period_s, self._fleet.devices
        number = 0
        while True:
            moments = generator(self._fleet.seed, WAKE, number).random(devices)
            order = moments.argsort()
            for first in range(0, devices, SLICE):
                part = order[first : first + SLICE]
                moments_s = ((moments[part] + number) * period_s).tolist()
                yield from zip(moments_s, part.tolist(), strict=True)
            number += 1

    def _wake(self, number: int) -> None:
        """A device wakes by itself: is there something to do?"""
        if not self._may(number, self._now_s):
            return
        known = self._population.present(number, self._now_s)
        if known is not None and known.version == self.server.published.version:
            return  # it has told what it makes of this one
        if self._takes_part(number):
            self._begin(number)

    def _takes_part(self, number: int) -> bool:
        """Whether it trains, as production draws it from the server's hint."""
        hint, pace = self.server.hint, self.server.spec.pace
        if hint is None:
            return True
        base = self.server.published
        period_s = self._fleet.availability.period_s
        attempt = int(max(0.0, self._now_s - base.at_s - period_s) / pace.lease_s)
        known = self._population.present(number, self._now_s)
        own = None if known is None else self._flights.score(known)
        name = f"d{number}"
        return takes_part(name, EPOCH, base.version, attempt, hint, own, pace.explore)

    # -- mode "slots" ----------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to devices; when none can be had, look again later."""
        while self._slots.free and not self._slots.looks:
            number = self._chooser.one(self._now_s)
            if number is None:
                self._slots.looks = True
                self._plan(self._now_s + AGAIN_S, What.AGAIN)
                return
            self._slots.free -= 1
            flight = self._begin(number)
            if flight is not None:
                flight.holds_slot = True  # if it is None nobody knows: the lease runs all the same
            self._plan(self._now_s + self._fleet.lease_s, What.LEASE, flight)

    def _release(self, flight: Flight) -> None:
        """A slot is given on: its update has come, or its time is over."""
        if flight.holds_slot:
            flight.holds_slot = False
            self._slots.free += 1
            self._fill()

    # -- mode "rounds" ---------------------------------------------------------------------

    def _begin_round(self) -> None:
        """Choose devices for the newest model."""
        self._round += 1
        part = self._fleet.participation
        wanted = ceil(part.over_selection * self.server.spec.strategy.buffer_size)
        chosen = self._chooser.some(wanted, self._now_s)
        for number in chosen:
            self._begin(number)
        wait_s = part.deadline_s if chosen else min(AGAIN_S, part.deadline_s)
        self._plan(self._now_s + wait_s, What.DEADLINE, self._round)

    def _give_up_round(self) -> None:
        """Nothing has come: begin anew. Where something has, the fold's deadline ends the round."""
        if not self.server.state.model.buffered:
            self._begin_round()

    # -- one device ------------------------------------------------------------------------

    def _may(self, number: int, now_s: float) -> bool:
        """Whether a device can begin now."""
        if not self._there.there(number, now_s):
            return False
        known = self._population.present(number, now_s)
        if known is None:
            return True
        return not known.busy and self._population.seen(number, now_s).battery.joules > 0

    def _score(self, number: int, now_s: float) -> float | None:
        """How much a device is wanted."""
        return self._flights.score(self._population.seen(number, now_s))

    def _begin(self, number: int) -> Flight | None:
        device = self._population.at(number, self._now_s)
        flight = self._flights.begin(device, self._now_s)
        if flight is not None:
            self._plan(flight.sends_s, What.SEND, flight)
        return flight

    def _send(self, flight: Flight) -> None:
        device, account = flight.device, self._account
        if self._now_s >= device.leaves_s:
            self._bench.drop(flight.work)
            account.outcomes["given_up"] += 1
            return
        if not self._flights.ready(flight):
            account.outcomes["diverged"] += 1
            device.busy = False
            self._release(flight)
            return
        wait_s = self._flights.wait_s(flight, self._now_s)
        if wait_s:
            self._plan(self._now_s + wait_s, What.SEND, flight)
            return
        arrives_s = self._flights.send(flight, self._now_s)
        if arrives_s == inf:
            account.outcomes["lost"] += 1
            device.busy = False
        else:
            self._plan(arrives_s, What.ARRIVE, flight)
        if account.uploads % self._fleet.measure.every == 0:
            self._sample()

    def _arrive(self, flight: Flight) -> None:
        flight.device.busy = False
        before = self.server.version
        decided = self.server.arrive(self._now_s, flight.device.name, flight.message)
        flight.message, flight.before = b"", None  # its lease may be kept for long
        if decided is not None:
            self._account.decided(decided)
            flight.device.folded += decided.outcome == FOLDED
        self._heed_time()
        self._release(flight)
        self._after(before)

    def _tick(self) -> None:
        self._ticks_s = None
        before = self.server.version
        due_s = self.server.due_s()
        if due_s is not None and due_s <= self._now_s:
            self.server.tick(self._now_s)
        self._heed_time()
        self._after(before)

    def _after(self, before: int) -> None:
        """A new version ends a round."""
        if self._fleet.participation.mode == "rounds" and self.server.version != before:
            self._begin_round()

    def _heed_time(self) -> None:
        """Plan the next tick; one that has become too early does nothing."""
        due_s = self.server.due_s()
        if due_s is None or (self._ticks_s is not None and self._ticks_s <= due_s):
            return
        self._ticks_s = max(due_s, self._now_s + LEAST_S)
        self._plan(self._ticks_s, What.TICK)

    # -- what is told ----------------------------------------------------------------------

    def _figures(self) -> dict[str, float]:
        published = self.server.published
        drifts = self._fleet.data.drift_s > 0
        if self._measured[0] != published.version or drifts:
            found = dict(self._learner.evaluate(published.params, at_s=self._now_s))
            self._measured = published.version, found
        return dict(self._measured[1])

    def _sample(self) -> None:
        account, stop, published = self._account, self._fleet.stop, self.server.published
        figures = self._figures()
        account.sample(self._now_s, published.version, figures)
        if meets(account.samples, stop.target):
            self._reached = account.samples[-1]
        self._watch(
            Progress(account.uploads, stop.uploads, published.version, self._now_s, figures)
        )

    def _outcome(self) -> Outcome:
        account, fleet, state = self._account, self._fleet, self.server.state
        personal: dict[str, float] = {}
        asked = fleet.task.train.personal
        if (asked.method != "none" or asked.head_epochs) and isinstance(
            self._learner, Personalises
        ):
            found = self._learner.personal(self.server.published.params, at_s=self._now_s)
            personal = dict(found.figures)
        return Outcome(
            name=fleet.name,
            devices=fleet.devices,
            seed=fleet.seed,
            samples=account.samples,
            target=fleet.stop.target,
            reached=self._reached,
            version=self.server.published.version,
            digest=self.server.published.digest,
            staleness=dict(sorted(account.staleness.items())),
            staleness_mean=account.staleness_mean,
            outcomes=dict(sorted(account.outcomes.items())),
            participation=participation(record.weight for record in state.devices.values()),
            dead=sum(self._is_dead(device) for device in self._population.known.values()),
            trained=self._bench.trained,
            events=account.events,
            wall_s=0.0,
            personal=personal,
        )

    def _is_dead(self, device: Device) -> bool:
        left = charged(device.battery, self._fleet.energy, self._now_s).joules
        return left <= 0 and self._now_s < device.leaves_s


def _availability(fleet: FleetFile) -> Availability:
    options = fleet.availability
    if options.kind != "trace":
        return Availability(options, fleet.seed)
    try:
        text = Path(options.trace).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("availability.trace", f"cannot be read: {exc}") from exc
    spans = read_trace(text, fleet.devices)
    return Availability(options, fleet.seed, spans)
