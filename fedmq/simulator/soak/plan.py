"""What a soak is: numbers that are chosen once, and the task its fleet trains. Pure."""

from typing import Annotated, Final

import msgspec

from fedmq.simulator.checker.orders import CODECS
from schemas.codecs import CodecOptions, codec_by_name
from schemas.errors import ConfigError
from schemas.names import TaskName
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import (
    InitOptions,
    LimitOptions,
    PublishOptions,
    TaskSpec,
    TrainOptions,
    checked_spec,
)

TASK: Final = TaskName("soak")
EPOCH: Final = 1
ROGUE: Final = "rogue"
"""The device that sends poison."""

LEASE_S: Final = 1.0
"""Of aggregators and bridges: short, so that many take over in a short soak."""

BROKER_QUEUE: Final = 200
"""Messages that the broker keeps for a bridge that is away: few, so that they overflow."""

DAY: Final = "100 MB/day"
"""What a device may send: some packets a second, so that it is the bucket that is broken too."""

MESSAGE: Final = "96 B"
"""What a message may take, where the codec can keep to it."""

DENSE: Final = ("float32", "float16", "int8")
"""Codecs that take what they take."""

PROFILES: Final = ("wifi-bad", "lte-m", "nb-iot")
"""What the devices' links are like, one after the other."""


class Plan(msgspec.Struct, frozen=True):
    """Kept in progress.json, so that a soak is resumed as it was begun.

    Attributes:
        seed: of faults, links and training; what happens in between is the machine's.
        seconds: how long faults are struck.
        devices: how many.
        per_minute: faults a minute, about.
        profile: one link profile for all devices; empty: a mix.
        codec: of the task.
        lattice: whether the model is published on one.
        real_tcp: devices behind network namespaces, and packets that are really lost (root).
        broker: `mosquitto` or `lab`.
        redis: `valkey` (of the wheel) or `redis-server`.
    """

    seed: int
    seconds: float
    devices: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6
    per_minute: Annotated[float, msgspec.Meta(gt=0, le=120)] = 24.0
    profile: str = ""
    codec: str = "sq"
    lattice: bool = True
    real_tcp: bool = False
    broker: str = "lab"
    redis: str = "valkey"

    def profile_of(self, device: int) -> str:
        """The link profile of a device."""
        return self.profile or PROFILES[device % len(PROFILES)]

    @property
    def init(self) -> InitOptions:
        """How the initial model is drawn."""
        return InitOptions(seed=self.seed)

    @property
    def drawn(self) -> bool:
        """Whether devices draw it too, or fetch it: one half of all seeds each."""
        return self.seed % 2 == 0


def device_name(number: int) -> str:
    """The name of a device."""
    return f"device-{number:02}"


def soak_spec(plan: Plan) -> TaskSpec:
    """FedBuff on a small model, in small chunks, published often, sealed; refuses few updates.

    Raises ConfigError: a codec that there is not, or that the checker does not read.
    """
    if codec_by_name(plan.codec).name not in CODECS:
        remedy = f"the checker does not read {plan.codec!r}; choose from {', '.join(CODECS)}"
        raise ConfigError("codec", remedy)
    return checked_spec(
        TaskSpec(
            params=ParamSpec((TensorSpec("w", (24, 16)), TensorSpec("b", (16,)))),
            strategy=StrategyOptions(
                buffer_size=4,
                momentum=0.5,
                staleness=StalenessOptions("polynomial"),
                max_staleness=2000,
                flush_after_s=1.0,
            ),
            train=TrainOptions(learning_rate=0.01),
            codec=CodecOptions(plan.codec, density=0.1, checksum=True),
            publish=PublishOptions(
                every=4,
                seconds=0.5,
                chunk_bytes=128 if plan.lattice else 512,  # some of any keyframe, of few diffs
                lattice=plan.lattice,
                step=2.0**-7,  # a version moves some 50 of 400 weights by some steps
            ),
            limits=LimitOptions(max_update_bytes=8192),
            uplink=DAY if plan.codec in DENSE else f"{MESSAGE}, {DAY}",
            init=plan.init if plan.drawn else None,
        )
    )
