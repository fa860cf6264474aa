"""A fleet: who trains what, on which links, when, and until when. Tables of a fleet file. Pure.

What is not simulated is refused, not passed over: see `_NOT_SIMULATED`.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from fedmq.simulator.profiles import PROFILES
from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.data_options import DataOptions
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.params import ParamSpec
from schemas.strategy import NonNegative, Positive
from schemas.task import PersonalOptions, TaskFile, TaskSpec, TrainOptions

_NOT_SIMULATED: Final = {
    "params": "is not simulated: [data] hidden gives the network's tensors; leave it out",
    "gate": "is not simulated: every version is published; leave it out",
    "init": "is not simulated: the first model is drawn by the fleet's seed; leave it out",
    "evaluate": "is not simulated: [measure] says when the model is measured; leave it out",
    "finish.metric": "is not simulated: say it in [stop] target; leave it out",
    "train.when": "is not simulated: say it in [availability] and [energy]; leave it out",
    "input": "is not simulated: [data] says what devices know; leave it out",
    "train.personal.head_epochs": "is not simulated: all tensors are shared here; leave it out",
}
"""Of a task, by their names: what would go unheard, and what to do."""

ROUNDS_PER_BASE: Final = (1, TrainOptions().rounds_per_base)
"""Devices make one round on a base, since they send at once; the default says no more."""

Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Hours: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=24)]
Portion: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Whole: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class ComputeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[compute]`: how fast devices train.

    Attributes:
        steps_per_second: local steps, of the median device.
        spread: standard deviation of the logarithm of the speed.
        slow_classes: how much of a device's speed hangs on the class that most of its examples are
            of, as a correlation: 0 nothing, 1 all of it. Above 0 slow devices know other things.
    """

    steps_per_second: Positive = 10.0
    spread: Annotated[float, msgspec.Meta(ge=0, le=5)] = 0.5
    slow_classes: Portion = 0.0


class AvailabilityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[availability]`: when devices can be had.

    Attributes:
        kind: `always`; `diurnal`: so many hours a day, each device at its own time; `trace`: as a
            file says.
        hours: of diurnal: awake a day.
        mornings: of diurnal: the share of the day over which devices' mornings are spread; 0: all
            get up together, 1: around the clock.
        trace: a CSV file with the header device,from_s,until_s; who is not in it never comes.
        period_s: mode "free": a device wakes once in each such time, at a moment of its own.
        churn_per_day: devices that leave for ever, as a rate a device and day; a fresh one without
            any memory takes the number.
    """

    kind: Literal["always", "diurnal", "trace"] = "always"
    hours: Hours = 8.0
    mornings: Portion = 1.0
    trace: str = ""
    period_s: Seconds = 3600.0
    churn_per_day: Annotated[float, msgspec.Meta(ge=0, le=24)] = 0.0


class EnergyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[energy]`: what training and radio cost, and what there is.

    Attributes:
        battery_j: a full battery, with which a device begins; 0: it hangs on the mains.
        train_w: while training.
        up_j: a byte that is sent.
        down_j: a byte that is fetched.
        charge_w: while it is charged.
        charge_from_h: hour of the day at which charging begins,
        charge_hours: and how long it lasts; 0: it is never charged.
    """

    battery_j: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    train_w: NonNegative = 2.0
    up_j: NonNegative = 1e-5
    down_j: NonNegative = 5e-6
    charge_w: NonNegative = 5.0
    charge_from_h: Hours = 0.0
    charge_hours: Hours = 0.0


class ParticipationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[participation]`: who begins when.

    Attributes:
        mode: `free`: devices wake by themselves and draw by the server's hint, as in production.
            `slots`: so many train at once, chosen one by one, FedBuff's and Oort's setting.
            `rounds`: synchronous ones.
        concurrency: of slots; 0: [task.pace] concurrency.
        over_selection: of rounds: so many times the buffer are chosen.
        deadline_s: of rounds: takes the place of strategy.flush_after_s, which counts from the
            round's first update; a round in which nothing arrives is given up after it.
        lease_s: of slots: a slot is given to another device after so long; 0: [task.pace] lease_s.
        lost: the share of updates that are sent and never heard of.
    """

    mode: Literal["free", "slots", "rounds"] = "free"
    concurrency: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    over_selection: Annotated[float, msgspec.Meta(ge=1, le=100)] = 1.3
    deadline_s: Seconds = 600.0
    lease_s: NonNegative = 0.0
    lost: Portion = 0.0


class StopOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[stop]`: when the run ends; whatever comes first.

    Attributes:
        uploads: after so many; 0: not for that.
        versions: at this version; 0: not for that.
        seconds: of virtual time.
        target: one figure and the value that is good enough, as a mean of three versions.
    """

    uploads: Whole = 0
    versions: Whole = 0
    seconds: Seconds = 30 * 86_400.0
    target: Annotated[dict[str, float], msgspec.Meta(max_length=1)] = {}


class MeasureOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[measure]`: how often the published model is measured.

    Attributes:
        every: uploads; a sample is taken as soon as the next update has been folded.
    """

    every: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = 25


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        name: of it.
        devices: how many.
        seed: of everything that is drawn.
        task: as in a task.toml, or the path of one.
        data: what devices know.
        links: shares of the devices by the profile of their link.
        compute: how fast they are.
        availability: when they can be had.
        energy: what it costs them.
        participation: who begins when.
        attack: who cheats.
        stop: when it ends.
        measure: how often it is looked at.
    """

    name: str = "fleet"
    devices: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 1000
    seed: Whole = 0
    task: TaskFile = TaskFile()
    data: DataOptions = DataOptions()
    links: dict[str, float] = msgspec.field(default_factory=lambda: {"perfect": 1.0})
    compute: ComputeOptions = ComputeOptions()
    availability: AvailabilityOptions = AvailabilityOptions()
    energy: EnergyOptions = EnergyOptions()
    participation: ParticipationOptions = ParticipationOptions()
    attack: AttackOptions = AttackOptions()
    stop: StopOptions = StopOptions()
    measure: MeasureOptions = MeasureOptions()

    @property
    def concurrency(self) -> int:
        """Slots."""
        return self.participation.concurrency or self.task.pace.concurrency

    @property
    def lease_s(self) -> float:
        """How long a slot is kept for a device."""
        return self.participation.lease_s or self.task.pace.lease_s

    def spec(self, params: ParamSpec) -> TaskSpec:
        """The task that is simulated. Raises ConfigError."""
        spec = self.task.spec(params, drawn=True)
        if self.participation.mode != "rounds":
            return spec
        deadline = self.participation.deadline_s
        strategy = msgspec.structs.replace(spec.strategy, flush_after_s=deadline)
        return msgspec.structs.replace(spec, strategy=strategy)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        uploads: so far.
        of: how many there will be at most; 0: nobody knows.
        version: that is published.
        virtual_s: seconds since the run began.
        figures: newest ones.
    """

    uploads: int
    of: int
    version: int
    virtual_s: float
    figures: dict[str, float]


def check_target(fleet: FleetFile) -> None:
    """Refuse a target that is not measured on this data (ConfigError)."""
    known = ("rmse",) if fleet.data.source.startswith("turbofan:") else ("accuracy", "loss")
    for figure in fleet.stop.target:
        if figure not in known:
            remedy = f"is not measured with this data.source: there is {' and '.join(known)}"
            raise ConfigError(f"stop.target.{figure}", remedy)


def checked_fleet(fleet: FleetFile) -> FleetFile:
    """Check what the types alone cannot. Raises ConfigError."""
    _check_links(fleet.links)
    _check_task(fleet.task)
    _check_personal(fleet)
    _check_stop(fleet.stop)
    if fleet.task.train.joules and not fleet.energy.train_w:
        remedy = "must be above 0 with task.train.joules, which it turns into seconds"
        raise ConfigError("energy.train_w", remedy)
    guard = fleet.task.strategy.robust.guard
    if guard != "none" and not fleet.data.root:
        remedy = (
            f'must be above 0 with guard = "{guard}", which judges by the server\'s own examples'
        )
        raise ConfigError("data.root", remedy)
    _check_mode(fleet)
    there = fleet.availability
    if (there.kind == "trace") != bool(there.trace):
        raise ConfigError("availability.trace", 'names a file, with kind = "trace" and only there')
    if there.kind == "diurnal" and not there.hours:
        raise ConfigError("availability.hours", "must be above 0: nobody would ever be awake")
    return fleet


def _check_links(links: dict[str, float]) -> None:
    for name, share in links.items():
        if name not in PROFILES:
            raise ConfigError(f"links.{name}", f"does not exist; there are {', '.join(PROFILES)}")
        if not 0 <= share < float("inf"):
            raise ConfigError(f"links.{name}", "is a share: 0 or more")
    if not sum(links.values()) > 0:
        raise ConfigError("links", "must name a link with a share above 0")


def _check_task(task: TaskFile) -> None:
    plain = TaskFile()
    asked = {
        "params": task.params is not None,
        "gate": task.gate.holds,
        "init": task.init != plain.init,
        "evaluate": task.evaluate != plain.evaluate,
        "finish.metric": bool(task.finish.metric),
        "train.when": task.train.when != Conditions(),
        "input": task.input != plain.input,
        "train.personal.head_epochs": bool(task.train.personal.head_epochs),
    }
    for name, remedy in _NOT_SIMULATED.items():
        if asked[name]:
            raise ConfigError(f"task.{name}", remedy)
    if task.train.rounds_per_base not in ROUNDS_PER_BASE:
        remedy = "is not simulated: a device makes one round on a base; write 1 or leave it out"
        raise ConfigError("task.train.rounds_per_base", remedy)


def _check_personal(fleet: FleetFile) -> None:
    """What devices make of the model for themselves is measured with the built-in network."""
    table, personal = "task.train.personal", fleet.task.train.personal
    if personal.method == "none":
        plain = PersonalOptions()
        for name in ("epochs", "learning_rate", "pull"):
            if getattr(personal, name) != getattr(plain, name):
                remedy = 'goes unheard without a method: write method = "finetune" or "ditto"'
                raise ConfigError(f"{table}.{name}", remedy)
        return
    own = "data.trainer" if fleet.data.trainer else ""
    if own or fleet.data.source.startswith("turbofan:"):
        remedy = f"is not simulated with {own or 'turbofan, which has no classes'}: leave it out"
        raise ConfigError(f"{table}.method", remedy)


def _check_stop(stop: StopOptions) -> None:
    for figure, value in stop.target.items():
        if not isfinite(value):
            raise ConfigError(f"stop.target.{figure}", f"is {value}: must be a finite number")


def _check_mode(fleet: FleetFile) -> None:
    mode, strategy = fleet.participation.mode, fleet.task.strategy
    if mode == "slots" and not fleet.concurrency:
        raise ConfigError("participation.concurrency", 'must be above 0 with mode = "slots"')
    if mode != "rounds":
        return
    if not strategy.synchronous and strategy.max_staleness:
        remedy = 'must be "fedavg" or "fedadam" in rounds, or strategy.max_staleness be 0'
        raise ConfigError("task.strategy.name", remedy)
    if fleet.task.publish.every != 1:
        raise ConfigError("task.publish.every", "must be 1 in rounds: a round begins with a model")
    if strategy.buffer_size > fleet.devices:
        remedy = f"must not exceed devices = {fleet.devices} in rounds"
        raise ConfigError("task.strategy.buffer_size", remedy)
