"""A fleet in virtual time, event by event. To be read from `run` downwards.

What the cost of an event hangs on is who is active, never how many there are: in mode "free" the
moments at which devices wake are drawn and sorted once a period, in the other modes devices are
drawn one by one until one can be had.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from math import ceil, inf
from pathlib import Path
from time import perf_counter
from typing import Final, Protocol, TypeAlias, runtime_checkable

from fedmq.simulator.virtual.account import Account, met, participation
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
    """What happens to a device. At the same moment what was planned first comes first."""

    SEND = 1
    ARRIVE = 2


class Alarm(IntEnum):
    """What waits for time alone: one of each, and who sets it anew has forgotten the old one.

    At the same moment they come after what happens to devices, in this order.
    """

    TICK = 1
    LEASE = 2
    AGAIN = 3
    DEADLINE = 4


@dataclass(slots=True)
class Slots:
    """Of mode "slots".

    Attributes:
        count: how many there are.
        held: those that are taken, oldest first: when a lease ends, by its number.
        leases: that were given so far.
    """

    count: int
    held: OrderedDict[int, float] = field(default_factory=OrderedDict)
    leases: int = 0

    @property
    def free(self) -> bool:
        """Whether one is not taken."""
        return len(self.held) < self.count

    @property
    def ends_s(self) -> float:
        """When the oldest lease ends; infinite: none is held."""
        return next(iter(self.held.values()), inf)


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
        self._heap: list[tuple[float, int, What, Flight]] = []
        self._alarms = dict.fromkeys(Alarm, inf)
        self._order = 0
        self._samples_at = fleet.measure.every
        self._measured: tuple[int, dict[str, float]] = (-1, {})
        self._reached: Sample | None = None
        self._now_s = 0.0

    def run(self) -> Outcome:
        """Work off events until the run is over."""
        mode = self._fleet.participation.mode
        self._sample()
        self._refuse_strange_target()
        self._heed_time()
        if mode == "slots":
            self._fill()
        elif mode == "rounds":
            self._begin_round()
        wakes = self._wakes() if mode == "free" else iter(())
        wake = next(wakes, None)
        limit_s = self._fleet.stop.seconds
        while not self._is_over():
            planned_s = self._heap[0][0] if self._heap else inf
            alarm = min(self._alarms, key=self._alarms.__getitem__)
            at_s = min(planned_s, self._alarms[alarm], wake[0] if wake else inf)
            if at_s > limit_s:
                self._now_s = limit_s
                break
            self._now_s = at_s
            self._account.events += 1
            if planned_s == at_s:
                _, _, what, flight = heappop(self._heap)
                self._happen(what, flight)
            elif self._alarms[alarm] == at_s:
                self._alarms[alarm] = inf
                self._ring(alarm)
            elif wake:
                self._wake(wake[1])
                wake = next(wakes, None)
        if self._account.samples[-1].virtual_s != self._now_s:
            self._sample()
        return self._outcome()

    # -- events ----------------------------------------------------------------------------

    def _plan(self, at_s: float, what: What, flight: Flight) -> None:
        self._order += 1
        heappush(self._heap, (at_s, self._order, what, flight))

    def _happen(self, what: What, flight: Flight) -> None:
        match what:
            case What.SEND:
                self._send(flight)
            case What.ARRIVE:
                self._arrive(flight)

    def _ring(self, alarm: Alarm) -> None:
        match alarm:
            case Alarm.TICK:
                self._tick()
            case Alarm.LEASE:
                self._expire()
            case Alarm.AGAIN:
                self._fill()
            case Alarm.DEADLINE:
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
        own = None if pace.select == "any" else self._score(number, self._now_s)
        name = f"d{number}"
        return takes_part(name, EPOCH, base.version, attempt, hint, own, pace.explore)

    # -- mode "slots" ----------------------------------------------------------------------

    def _fill(self) -> None:
        """Give free slots to devices; where nobody is found, with the next slot or later again."""
        slots = self._slots
        while slots.free:
            number = self._chooser.one(self._now_s)
            if number is None:
                later_s = self._now_s + AGAIN_S
                self._alarms[Alarm.AGAIN] = min(self._alarms[Alarm.AGAIN], later_s)
                break
            slots.leases += 1
            flight = self._begin(number)
            if flight is not None:
                flight.lease = slots.leases  # if there is none nobody knows: the lease runs anyway
            slots.held[slots.leases] = self._now_s + self._fleet.lease_s
        self._alarms[Alarm.LEASE] = slots.ends_s

    def _release(self, flight: Flight) -> None:
        """A slot is given on: its update has come."""
        if self._slots.held.pop(flight.lease, None) is not None:
            self._fill()

    def _expire(self) -> None:
        """Slots whose time is over are given on."""
        while self._slots.ends_s <= self._now_s:
            self._slots.held.popitem(last=False)
        self._fill()

    # -- mode "rounds" ---------------------------------------------------------------------

    def _begin_round(self) -> None:
        """Choose devices for the newest model."""
        part = self._fleet.participation
        wanted = ceil(part.over_selection * self.server.spec.strategy.buffer_size)
        chosen = self._chooser.some(wanted, self._now_s)
        for number in chosen:
            self._begin(number)
        wait_s = part.deadline_s if chosen else min(AGAIN_S, part.deadline_s)
        self._alarms[Alarm.DEADLINE] = self._now_s + wait_s

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
        return self._flights.score(self._population.seen(number, now_s), now_s)

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

    def _arrive(self, flight: Flight) -> None:
        flight.device.busy = False
        before = self.server.version
        decided = self.server.arrive(self._now_s, flight.device.name, flight.message)
        if decided is not None:
            self._account.decided(decided)
        self._heed_time()
        if self._account.uploads >= self._samples_at:
            self._sample()
        self._release(flight)
        self._after(before)

    def _tick(self) -> None:
        before = self.server.version
        self.server.tick(self._now_s)
        self._heed_time(LEAST_S)
        self._after(before)

    def _after(self, before: int) -> None:
        """A new version ends a round."""
        if self._fleet.participation.mode == "rounds" and self.server.version != before:
            self._begin_round()

    def _heed_time(self, rest_s: float = 0.0) -> None:
        """Set the alarm for the next tick, after a rest at the earliest."""
        due_s = self.server.due_s()
        self._alarms[Alarm.TICK] = inf if due_s is None else max(due_s, self._now_s + rest_s)

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
        every = self._fleet.measure.every
        self._samples_at = (account.uploads // every + 1) * every
        self._reached = self._reached or met(account.samples, stop.target)
        self._watch(
            Progress(account.uploads, stop.uploads, published.version, self._now_s, figures)
        )

    def _refuse_strange_target(self) -> None:
        """Raises ConfigError where nobody measures what the run is after."""
        there = self._account.samples[0].figures
        for figure in self._fleet.stop.target:
            if figure not in there:
                known = " and ".join(sorted(there))
                remedy = f"is not measured with these data: there is {known}"
                raise ConfigError(f"stop.target.{figure}", remedy)

    def _outcome(self) -> Outcome:
        account, fleet, state = self._account, self._fleet, self.server.state
        personal: dict[str, float] = {}
        asked = fleet.task.train.personal.method != "none"
        if asked and isinstance(self._learner, Personalises):
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
