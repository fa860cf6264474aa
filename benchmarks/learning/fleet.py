"""One run: a timeline, a codec and a downlink in, accuracy over bytes out. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from aggregator.strategies import Advanced, Contribution, strategy_for
from benchmarks.learning.datasets import World
from benchmarks.learning.downlink import Downlink, Plain
from benchmarks.learning.models import Network, Steps
from benchmarks.learning.timeline import Faults, Timeline, drawn
from edge_agent.compressor import compress
from schemas.codecs import Ask, Codec, CodecOptions, codec_by_name
from schemas.delta import Delta
from schemas.params import Params
from schemas.strategy import StalenessOptions, StrategyOptions, gain_of

EVERY = 25
"""Uploads between two evaluations."""

LAST = 10
"""Evaluations at the end whose mean is what a run has reached."""

STRATEGY = StrategyOptions(
    buffer_size=5, flush_after_s=0.0, staleness=StalenessOptions("polynomial", 0.5)
)


@dataclass(frozen=True, slots=True)
class Way:
    """How updates go up.

    Attributes:
        codec: its name.
        budget: bytes a payload; 0: as the codec thinks best.
        density: for sparse codecs without a budget.
    """

    codec: str = "float32"
    budget: int = 0
    density: float = 0.01

    def __str__(self) -> str:
        """Tell it in a word."""
        return f"{self.codec} {self.budget} B" if self.budget else self.codec


@dataclass(frozen=True, slots=True)
class Setting:
    """What all contenders of a study share.

    Attributes:
        network: the model.
        steps: local training.
        uploads: how many are sent in all.
        strategy: the server's.
        awake: see `benchmarks.learning.timeline.drawn`.
    """

    network: Network
    steps: Steps
    uploads: int
    strategy: StrategyOptions = STRATEGY
    awake: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        scores: of what is published, after every EVERY uploads.
        up: payload bytes of every upload, lost ones included.
        down: bytes fetched, in all, at every evaluation.
        staleness: mean over what was folded.
    """

    scores: tuple[float, ...]
    up: tuple[int, ...]
    down: tuple[int, ...]
    staleness: float

    @property
    def reached(self) -> float:
        """Mean of the last evaluations."""
        return fmean(self.scores[-LAST:])

    @property
    def update_bytes(self) -> float:
        """Mean bytes of a payload."""
        return fmean(self.up)

    def evaluations_to(self, target: float, *, below: bool = False) -> int | None:
        """How many evaluations until the mean of three is good enough; None: never."""
        for i in range(3, len(self.scores) + 1):
            mean = fmean(self.scores[i - 3 : i])
            if (mean <= target) if below else (mean >= target):
                return i
        return None

    def bytes_to(self, target: float, *, below: bool = False, both: bool = False) -> float:
        """Bytes up (and down) until the target; infinite when it was never met."""
        count = self.evaluations_to(target, below=below)
        if count is None:
            return float("inf")
        return sum(self.up[: count * EVERY]) + (self.down[count - 1] if both else 0)


@dataclass(slots=True)
class Device:
    """What a device keeps between its uploads."""

    residual: Params | None = None
    memory: dict[str, Params] = field(default_factory=dict)


Send = Callable[[Params, Device, np.random.Generator], bytes]
Receive = Callable[[bytes, int, int], Delta]
"""(payload, device, size) -> what is folded."""


def sender(codec: Codec, ask: Ask) -> Send:
    """The product's compressor."""

    def send(delta: Params, device: Device, rng: np.random.Generator) -> bytes:
        sent = compress(delta, device.residual, codec, ask, rng)
        device.residual = sent.residual
        return sent.payload

    return send


def receiver(codec: Codec) -> Receive:
    """The product's decoder."""
    return lambda payload, _device, size: codec.decode(memoryview(payload), size)


def run(
    setting: Setting,
    way: Way,
    world: World,
    seed: int,
    *,
    faults: Faults | None = None,
    downlink: Downlink | None = None,
    send: Send | None = None,
    receive: Receive | None = None,
) -> Outcome:
    """Let a fleet learn. The same seed is the same order of events, whatever the way."""
    codec = codec_by_name(way.codec)
    ask = Ask(CodecOptions(way.codec, way.density), way.budget, gain_of(setting.strategy))
    timeline = drawn(
        len(world.devices),
        setting.uploads,
        faults or Faults(),
        _rng(seed, "events", 0),
        awake=setting.awake,
    )
    return _lived(
        setting,
        world,
        seed,
        timeline=timeline,
        downlink=downlink or Plain(),
        send=send or sender(codec, ask),
        receive=receive or receiver(codec),
    )


def _lived(
    setting: Setting,
    world: World,
    seed: int,
    *,
    timeline: Timeline,
    downlink: Downlink,
    send: Send,
    receive: Receive,
) -> Outcome:
    strategy = strategy_for(setting.strategy)
    state = strategy.init(setting.network.initial(_rng(seed, "model", 0)))
    published = downlink.publish(0, state.vectors["params"])
    devices = [Device() for _ in world.devices]
    bases: dict[int, tuple[int, Params]] = {}  # upload -> version, model
    payloads: dict[int, bytes] = {}
    versions: dict[int, int] = {}
    scores: list[float] = []
    up: list[int] = []
    down: list[int] = []
    ages: list[int] = []
    fetched = 0
    for event in timeline.events:
        number, device = event.number, devices[event.device]
        match event.kind:
            case "begin":
                bases[number] = state.version, published
                fetched += downlink.fetched(event.device, state.version)
            case "send":
                versions[number], base = bases.pop(number)
                share = world.devices[event.device]
                before = device.residual
                rng = _rng(seed, "batches", number)
                with np.errstate(over="ignore", invalid="ignore"):
                    delta = setting.network.train(base, share, setting.steps, rng)
                try:
                    payloads[number] = send(delta, device, _rng(seed, "codec", number))
                except ValueError:  # training diverged: a device sends nothing then
                    payloads[number] = b""
                if number in timeline.lost:  # rolled back to what it was before it was sent
                    device.residual = before
                up.append(len(payloads[number]))
                if len(up) % EVERY == 0:
                    scores.append(setting.network.score(published, world.held_out))
                    down.append(fetched)
            case "arrive":
                if not payloads[number]:
                    continue
                age = state.version - versions[number]
                update = receive(payloads[number], event.device, published.size)
                contribution = Contribution(versions[number], age, 1, update)
                state, outcome = strategy.fold(state, contribution, {})
                ages.append(age)
                if isinstance(outcome, Advanced):
                    published = downlink.publish(state.version, state.vectors["params"])
    return Outcome(tuple(scores), tuple(up), tuple(down), fmean(ages) if ages else 0.0)


_STREAMS = {"events": 1, "model": 2, "batches": 3, "codec": 4}


def _rng(seed: int, what: str, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, _STREAMS[what], number]))
