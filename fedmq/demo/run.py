"""The demo: a fleet on bad links learns to read digits, end to end over MQTT and Redis.

The servers are the processes that production runs; the devices are real agents behind flaky
links. To be read from `run` downwards.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
from redis.asyncio import Redis

from aggregator.tasks import create_task, published_model, task_status
from edge_agent.trainers import accuracy
from edge_agent.trainers.examples import Examples
from fedmq.demo.curve import draw
from fedmq.demo.digits import CLASSES, FEATURES, digits_fleet
from fedmq.demo.fleet import Device, fleet
from fedmq.demo.summary import Summary, lost_updates
from fedmq.servers import servers
from fedmq.simulator.links import LinkModel
from fedmq.simulator.outages import Outages
from lifetimes.together import together
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.initial import initial_params, mlp_shapes
from schemas.names import TaskName
from schemas.params import ParamSpec, TensorSpec, unflatten
from schemas.strategy import StrategyOptions
from schemas.task import InitOptions, PublishOptions, TaskSpec, TrainOptions, checked_spec

TASK: Final = TaskName("digits")
HIDDEN: Final = 64
DRAIN_S: Final = 20.0
WEATHER: Final = LinkModel(
    jitter_s=0.15,
    outages=Outages(online_s=2.5, offline_s=4.0, mute_s=0.8, mute_share=0.6),
)
"""Every device's link: offline more than online, and PUBACKs that never come."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        devices: how many.
        target: held-out accuracy at which it ends.
        longest_s: when it ends at the latest.
        seed: of the split, the weather and the training.
    """

    devices: int = 20
    target: float = 0.93
    longest_s: float = 120.0
    seed: int = 0


@dataclass(slots=True)
class Progress:
    """Where the run stands, for whoever watches."""

    seconds: float = 0.0
    accuracy: float = 0.0
    version: int = 0
    online: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    phase: str = "starting the servers"
    status: Mapping[str, Any] = field(default_factory=dict)


Watch = Callable[[Progress], None]


FIRST: Final = InitOptions(seed=0)
"""The model that the task begins with: four bytes, for a device."""


def demo_spec() -> TaskSpec:
    """The task: a small MLP, FedBuff with K = 6, messages of 128 bytes, a model on a lattice."""
    shapes = mlp_shapes(FEATURES, (HIDDEN,), CLASSES)
    params = ParamSpec(tuple(TensorSpec(name, shape) for name, shape in shapes.items()))
    return checked_spec(
        TaskSpec(
            params=params,
            strategy=StrategyOptions(buffer_size=6, server_lr=1.5, flush_after_s=5.0),
            train=TrainOptions(epochs=10, batch_size=8, learning_rate=0.3),
            codec=CodecOptions("sq"),
            publish=PublishOptions(lattice=True),
            uplink="128 B",
            init=FIRST,
        )
    )


async def run(plan: Plan, folder: Path, watch: Watch) -> Summary:
    """Run the whole demo in an empty `folder`; its files are there afterwards."""
    # the shell makes the generator that the core is given
    rng = np.random.default_rng(plan.seed)  # noqa: TID251
    split = digits_fleet(plan.devices, rng)
    spec = demo_spec()
    progress = Progress()
    watch(progress)
    (folder / "devices").mkdir()
    async with servers(folder) as where, connect(where.redis_url) as redis:
        # as every device draws it for itself
        params = initial_params(spec.params, FIRST, np.random.default_rng(FIRST.seed))  # noqa: TID251
        await together(create_task(redis, TASK, spec, params, epoch=1))
        crew = fleet(
            folder,
            TASK,
            split.devices,
            mqtt_port=where.mqtt_port,
            weather=WEATHER,
            seed=plan.seed,
        )
        async with crew as devices:
            observer = Observer(
                redis,
                spec,
                held_out=split.held_out,
                devices=devices,
                progress=progress,
                folder=folder,
            )
            # a child of its own: who stops the demo must not lose the cancellation to a library
            await together(observer.observe(plan, watch))
            summary = observer.summary
    title = f"{plan.devices} devices, flaky links, seed {plan.seed}"
    draw(folder / "curve.png", observer.points, target=plan.target, title=title)
    (folder / "summary.json").write_text(json.dumps(summary.as_dict(), indent=2) + "\n")
    return summary


class Observer:
    """Watches the run from outside: what is published, how good it is, what it cost."""

    def __init__(
        self,
        redis: Redis,
        spec: TaskSpec,
        *,
        held_out: Examples,
        devices: list[Device],
        progress: Progress,
        folder: Path,
    ) -> None:
        self.points: list[tuple[int, float]] = []
        self.summary: Summary
        self._redis = redis
        self._spec = spec
        self._held_out = held_out
        self._devices = devices
        self._progress = progress
        self._events = (folder / "events.jsonl").open("a", buffering=1)
        self._began = monotonic()
        self._seen = -1

    async def observe(self, plan: Plan, watch: Watch) -> None:
        """Watch until the target, drain, and sum up."""
        await self._until_target(plan, watch)
        seconds = self._progress.seconds
        await self._drain(watch)
        self.summary = await self._sum_up(plan, seconds)

    async def _until_target(self, plan: Plan, watch: Watch) -> None:
        """Look at every published version until it is good enough or time is up."""
        progress = self._progress
        progress.phase = "training"
        while progress.accuracy < plan.target and progress.seconds < plan.longest_s:
            await self._look()
            watch(progress)
            await asyncio.sleep(0.15)

    async def _look(self) -> None:
        progress = self._progress
        progress.seconds = monotonic() - self._began
        self._weigh()
        progress.online = sum(device.agent.online for device in self._devices)
        progress.status = await task_status(self._redis, TASK) or {}
        model = await published_model(self._redis, TASK)
        if model is None or model.manifest.version == self._seen:
            return
        self._seen = progress.version = model.manifest.version
        tensors = unflatten(self._spec.params, model.params)
        held = self._held_out
        progress.accuracy = accuracy(tensors, held.features, held.labels)
        self.points.append((progress.bytes_up, progress.accuracy))
        folded = progress.status.get("updates_folded", 0)
        self._note("version", version=self._seen, accuracy=progress.accuracy, folded=folded)

    def _weigh(self) -> None:
        traffic = [device.link.traffic for device in self._devices]
        self._progress.bytes_up = sum(each.up for each in traffic)
        self._progress.bytes_down = sum(each.down for each in traffic)

    def _note(self, event: str, **facts: object) -> None:
        progress = self._progress
        line = {"t": round(progress.seconds, 3), "event": event, "bytes_up": progress.bytes_up}
        self._events.write(json.dumps(line | facts) + "\n")

    async def _drain(self, watch: Watch) -> None:
        """No more training, good weather: wait until every update has its Receipt."""
        self._progress.phase = "draining"
        for device in self._devices:
            device.agent.drain()
            device.link.heal()
        deadline = monotonic() + DRAIN_S
        while monotonic() < deadline and any(d.spool.open_updates() for d in self._devices):
            watch(self._progress)
            await asyncio.sleep(0.1)

    async def _sum_up(self, plan: Plan, seconds: float) -> Summary:
        """Count: the witnesses' ledgers against what the log and the devices say."""
        status: Mapping[str, Any] = await task_status(self._redis, TASK) or {}
        accounts = [device.account() for device in self._devices]
        rejected: Mapping[str, int] = status["updates_rejected"]
        folded = int(status["updates_folded"])
        stored = int(status["updates_stored"])
        self._weigh()
        self._note("end", folded=folded)
        self._events.close()
        return Summary(
            accuracy=self._progress.accuracy,
            target=plan.target,
            version=self._progress.version,
            seconds=round(seconds, 2),
            devices=len(accounts),
            seed=plan.seed,
            updates_created=sum(account.created for account in accounts),
            updates_folded=folded,
            updates_rejected=rejected,
            updates_superseded=sum(account.superseded for account in accounts),
            updates_open=sum(account.open for account in accounts),
            updates_stored=stored,
            updates_lost=lost_updates(
                accounts, folded=folded, rejected=sum(rejected.values()), stored=stored
            ),
            duplicates_dropped=int(status["duplicates_dropped"]),
            staleness={"mean": status["staleness_mean"], "max": status["staleness_max"]},
            bytes_up=self._progress.bytes_up,
            bytes_down=self._progress.bytes_down,
            payload_bytes_up=int(status["payload_bytes"]),
            bytes_up_float32=folded * 4 * self._spec.params.size,
            links_cut=sum(device.link.traffic.cuts for device in self._devices),
        )
