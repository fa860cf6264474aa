"""A fleet that is connected all at once: what its idling costs, and what a burst of updates waits.

    fleet (one process) -> mosquitto -> fedmq bridge -> redis-server -> fedmq aggregator
          <- Receipt  <-           <-              <-

Everything is real: processes, QoS 1, `appendfsync always`, broker limits as in broker/mosquitto. A
device does what an agent does on its connection: CONNECT with a will, SUBSCRIBE to the agent's five
topics, its retained birth, PINGREQ. It trains nothing and fetches no model, and it never sends
again: every update must get its Receipt at the first try.

Each size of fleet gets fresh servers. They are warmed up with as many updates as the largest burst
has, weighed, weighed again when all devices are connected and have been quiet for a while, and once
more when every device has sent two updates. Bursts: 1 %, 10 %, and always the same number; each
device writes at once, the time is from its write until its Receipt is read. No version is published
in these bursts: telling N devices is N messages, whoever tells them. That is measured apart, last.
"""

import asyncio
import gc
import multiprocessing
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import msgspec
import numpy as np
import psutil  # type: ignore[import-untyped]  # it ships no types
from redis.asyncio import Redis

from aggregator.store import TaskStore
from aggregator.tasks import append_entry, create_task
from benchmarks.ingest import BOOT, new_update
from benchmarks.report import MOSQUITTO, Aim, Arguments, Report, generator, progress, run
from benchmarks.servers import cpu_seconds, fedmq
from broker.lab import LabBroker, Limits
from broker.lab.packets import (
    ConnAck,
    Connect,
    PingReq,
    PubAck,
    Publish,
    Reader,
    SubAck,
    Subscribe,
    encode,
)
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.keys import TaskKeys
from schemas.log import SpecSet
from schemas.names import DeviceId, TaskName
from schemas.outcomes import FOLDED
from schemas.params import ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.topics import DEFAULT_PREFIX, TaskTopics
from schemas.watch import DeviceState
from schemas.window import is_settled
from schemas.wire import decode_receipt
from tests.servers import HOST, mosquitto, redis_server

TASK: Final = TaskName("bench")
SIZE: Final = 44
"""Parameters: an update of 200 bytes."""

BUFFER: Final = 10
NEVER: Final = 65_535
"""Versions between two that are published: more than are made."""

KEEPALIVE_S: Final = 60
AT_ONCE: Final = 100
"""Connections that are being made at the same time: mosquitto's backlog."""

PATIENCE_S: Final = 60.0
SPARE_FILES: Final = 256
WEIGHABLE: Final = 5_000
"""Devices more or fewer that show in a process' memory, which comes and goes by 100 KiB by itself;
--quick has fewer, and its bridge is weighed but not judged."""

WARM: Final = 20
"""Devices that warm the servers up."""

_BIRTH, _SUBSCRIPTION = 1, 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    sizes: tuple[int, ...]
    rounds: int
    idle_s: float

    @property
    def same(self) -> int:
        """Updates in the burst that has the same size in every fleet."""
        return min(self.sizes) // 10

    @property
    def largest(self) -> int:
        """Updates in the largest burst."""
        return max(self.sizes) // 10


@dataclass(frozen=True, slots=True)
class Stack:
    """One set of servers."""

    mqtt_port: int
    redis_url: str
    pids: dict[str, int]

    def rss(self) -> dict[str, int]:
        """Resident bytes of every server."""
        return {name: psutil.Process(pid).memory_info().rss for name, pid in self.pids.items()}

    def cpu(self) -> dict[str, float]:
        """CPU seconds of every server until now."""
        return {name: cpu_seconds(pid) for name, pid in self.pids.items()}


@dataclass(slots=True)
class Found:
    """What was measured with one size of fleet.

    Attributes:
        devices: so many.
        connect_s: until the last was connected, subscribed and had said so.
        births: of them the bridge has noted.
        idle_growth: resident bytes of each server for the whole fleet, idle.
        sent_growth: the same when each device has sent two updates.
        rss: resident bytes of each server, the fleet idle.
        idle_cpu: share of one core of each server, the fleet idle.
        burst_cpu_us: CPU time an update of each server, in the bursts.
        latencies: name of the burst -> one list of seconds a round.
        told_s: from the first write of a burst until the last device had heard of the version that
            it made, a round.
        keys: bytes of what grows in Redis, when each device has sent two updates.
        load_s: how long an aggregator that starts needs for the checkpoint.
        missing: updates without a Receipt that says folded.
        cut: connections that ended by themselves.
    """

    devices: int
    connect_s: float = 0.0
    births: int = 0
    idle_growth: dict[str, float] = field(default_factory=dict)
    sent_growth: dict[str, float] = field(default_factory=dict)
    rss: dict[str, int] = field(default_factory=dict)
    idle_cpu: dict[str, float] = field(default_factory=dict)
    burst_cpu_us: dict[str, float] = field(default_factory=dict)
    latencies: dict[str, list[list[float]]] = field(default_factory=dict)
    told_s: list[float] = field(default_factory=list)
    keys: dict[str, float] = field(default_factory=dict)
    load_s: float = 0.0
    missing: int = 0
    cut: int = 0


# -- the fleet ---------------------------------------------------------------------------------


class Device(asyncio.Protocol):
    """One device on one connection: as little as an agent can say."""

    __slots__ = ("_fleet", "_reader", "_receipt", "name", "open", "ready", "seq", "transport")

    transport: asyncio.Transport

    def __init__(self, fleet: "Fleet", name: DeviceId) -> None:
        self.name = name
        self.seq = 0
        self.open: dict[int, float] = {}
        self.ready: asyncio.Future[None] | None = asyncio.get_running_loop().create_future()
        self._fleet = fleet
        self._receipt = fleet.topics.receipt(name)
        self._reader = Reader(max_packet=1 << 20)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who it is."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        will = self._state(online=False)
        transport.write(encode(Connect(f"agent-{self.name}", True, KEEPALIVE_S, will)))  # noqa: FBT003

    def data_received(self, data: bytes) -> None:
        """Answer whatever the broker says."""
        now = perf_counter()
        self._reader.feed(data)
        for packet in self._reader:
            match packet:
                case Publish(topic, payload, qos, packet_id=packet_id):
                    if qos:
                        self.transport.write(encode(PubAck(packet_id)))
                    if topic == self._receipt:
                        self._settle(payload, now)
                    else:
                        self._fleet.heard[topic] += 1
                case ConnAck(code=0):
                    self.transport.write(encode(self._subscription()))
                case SubAck():
                    self.transport.write(encode(self._state(online=True)))
                case PubAck(packet_id) if packet_id == _BIRTH and self.ready is not None:
                    self.ready.set_result(None)
                    self.ready = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the fleet."""
        self._fleet.lost(self, exc)

    def publish(self, seq: int, update: bytes) -> None:
        """Send an update."""
        topic = self._fleet.topics.up(self.name)
        packet = encode(Publish(topic, update, 1, packet_id=_SUBSCRIPTION + seq))
        self.open[seq] = perf_counter()
        self.transport.write(packet)

    def _settle(self, payload: bytes, now: float) -> None:
        receipt = decode_receipt(payload)
        if receipt.boot != BOOT or receipt.outcome != FOLDED:
            self._fleet.refused += 1
            return
        for seq in list(self.open):
            if is_settled(seq, receipt.low, receipt.settled):  # type: ignore[arg-type]
                self._fleet.settle(now - self.open.pop(seq))

    def _state(self, *, online: bool) -> Publish:
        state = msgspec.json.encode(DeviceState(online, BOOT))
        return Publish(self._fleet.topics.state(self.name), state, 1, True, packet_id=_BIRTH)  # noqa: FBT003

    def _subscription(self) -> Subscribe:
        topics = self._fleet.topics
        own = (topics.busy, topics.pin(self.name), self._receipt, topics.spec, topics.model)
        return Subscribe(_SUBSCRIPTION, tuple((topic, 1) for topic in own))


class Fleet:
    """All devices of one size of fleet, in this process."""

    def __init__(self, port: int, update: Callable[[int], bytes]) -> None:
        self.topics = TaskTopics(DEFAULT_PREFIX, TASK)
        self.devices: list[Device] = []
        self.heard: Counter[str] = Counter()
        self.refused = 0
        self.cut = 0
        self._port = port
        self._update = update
        self._leaving = False
        self._awaited = 0
        self._settled: list[float] = []
        self._all = asyncio.Event()

    async def join(self, prefix: str, count: int) -> list[Device]:
        """Connect so many more devices; return when each has said that it is there."""
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> Device:
            async with turn:
                name = DeviceId(f"{prefix}-{number:05d}")
                loop = asyncio.get_running_loop()
                device = Device(self, name)
                ready = device.ready
                assert ready is not None
                await loop.create_connection(lambda: device, HOST, self._port)
                async with asyncio.timeout(PATIENCE_S):
                    await ready
            return device

        joined = await asyncio.gather(*(one(number) for number in range(count)))
        self.devices += joined
        return joined

    async def keep_alive(self) -> None:
        """Send every device's PINGREQ in time, evenly."""
        slots = KEEPALIVE_S * 8
        for slot in range(sys.maxsize):
            for device in self.devices[slot % slots :: slots]:
                device.transport.write(encode(PingReq()))
            await asyncio.sleep(0.1)

    async def burst(self, devices: Sequence[Device]) -> list[float]:
        """Let devices send at once; the seconds until each Receipt, of those that came."""
        sends = []
        for device in devices:
            device.seq += 1
            sends.append((device, device.seq, self._update(device.seq)))
        self._awaited, self._settled = len(sends), []
        self._all.clear()
        for device, seq, update in sends:
            device.publish(seq, update)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._all.wait()
        return self._settled

    def settle(self, seconds: float) -> None:
        """Note that a Receipt has come."""
        self._settled.append(seconds)
        if len(self._settled) == self._awaited:
            self._all.set()

    def lost(self, device: Device, exc: Exception | None) -> None:
        """Note that a connection has ended."""
        if not self._leaving:
            self.cut += 1
            progress(f"connection of {device.name} ended: {exc}")

    def leave(self) -> None:
        """Drop all connections."""
        self._leaving = True
        for device in self.devices:
            device.transport.abort()


# -- the servers -------------------------------------------------------------------------------


@contextmanager
def _stack(folder: Path, most: int) -> Iterator[Stack]:
    folder.mkdir()
    with _broker(folder, most) as (mqtt_port, broker), redis_server(folder) as redis:
        port, url = str(mqtt_port), f"redis://{HOST}:{redis.port}/0"
        with (
            fedmq(folder, "bridge", "--mqtt-port", port, "--redis-url", url) as bridge,
            fedmq(folder, "aggregator", "--redis-url", url) as aggregator,
        ):
            pids = {
                "broker": broker,
                "bridge": bridge,
                "redis": redis.process.pid,
                "aggregator": aggregator,
            }
            yield Stack(mqtt_port, url, pids)


@contextmanager
def _broker(folder: Path, most: int) -> Iterator[tuple[int, int]]:
    """A broker's port and process id: mosquitto, or the lab broker where there is none."""
    if MOSQUITTO is not None:
        bounds = ["max_queued_bytes 268435456"]  # as in broker/mosquitto/mosquitto.conf
        with mosquitto(folder, max_inflight=100, max_queued=100_000, extra=bounds) as server:
            yield server.port, server.process.pid
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_lab_broker, args=(theirs, most), daemon=True)
    process.start()
    try:
        assert process.pid is not None
        yield ours.recv(), process.pid
    finally:
        process.kill()
        process.join()


def _lab_broker(parent: Connection, most: int) -> None:
    """In a process of its own: `fedmq lab-broker` takes no more than 1000 connections."""
    limits = Limits(
        max_inflight=100, max_queued=100_000, max_connections=most, max_sessions=2 * most
    )

    async def serve() -> None:
        async with LabBroker(HOST, limits=limits) as broker:
            parent.send(broker.port)
            await asyncio.Event().wait()

    asyncio.run(serve())


def allow_files(needed: int) -> None:
    """Raise this process's bound on open files, which its children inherit. Raises SystemExit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        msg = (
            f"connections: {needed} open files are needed in one process, the hard limit is {hard}:"
            f" raise it (as root: ulimit -Hn {needed}), or say --quick"
        )
        raise SystemExit(msg)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# -- measuring ---------------------------------------------------------------------------------


def measure(arguments: Arguments) -> Report:
    """Measure fleets of three sizes, each with servers of its own."""
    plan = (
        Plan((200, 500, 1_000), 10, 4.0)
        if arguments.quick
        else Plan((1_000, 3_000, 10_000), 20, 20.0)
    )
    most = max(plan.sizes) + SPARE_FILES
    allow_files(most)
    found = []
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as name:
        for size in plan.sizes:
            with _stack(Path(name) / str(size), most) as stack:
                found.append(asyncio.run(_measure(stack, size, plan, arguments.seed)))
    return _report(plan, found)


@dataclass(frozen=True, slots=True)
class Scene:
    """One size of fleet with its servers, and where to write down what is seen."""

    stack: Stack
    redis: Redis
    fleet: Fleet
    plan: Plan
    rng: np.random.Generator
    found: Found


async def _measure(stack: Stack, size: int, plan: Plan, seed: int) -> Found:
    rng = generator(seed)
    spec = _spec(NEVER)
    initial = rng.standard_normal(SIZE, dtype=np.float32)
    base = base_digest(model_digest(spec.params.digest, initial))
    async with connect(stack.redis_url) as redis:
        await create_task(redis, TASK, spec, initial, epoch=1)
        fleet = Fleet(stack.mqtt_port, lambda seq: new_update(spec, base, seq, rng))
        scene = Scene(stack, redis, fleet, plan, rng, Found(size))
        pinging = asyncio.create_task(fleet.keep_alive())
        try:
            await _play(scene)
        finally:
            scene.found.missing += fleet.refused
            scene.found.cut = fleet.cut
            pinging.cancel()
            fleet.leave()
            gc.unfreeze()
    return scene.found


async def _play(scene: Scene) -> None:
    stack, found = scene.stack, scene.found
    before = await _warm_up(scene)
    await _connect(scene, before)
    devices = scene.fleet.devices[WARM:]
    gc.collect()
    gc.freeze()  # or the collector looks at the whole fleet in mid-burst
    await _bursts(scene, devices)
    await asyncio.sleep(2.0)
    found.sent_growth = _growth(stack.rss(), before)
    found.keys = await _keys(scene.redis)
    found.load_s = await _load_s(scene.redis)
    await _tell(scene, devices)


def _spec(every: int) -> TaskSpec:
    return TaskSpec(
        ParamSpec((TensorSpec("w", (SIZE,)),)),
        strategy=StrategyOptions(buffer_size=BUFFER, max_staleness=65_535, flush_after_s=0.0),
        codec=CodecOptions(name="float32"),
        publish=PublishOptions(every=every),
    )


async def _warm_up(scene: Scene) -> dict[str, int]:
    """Give every server its largest batch before it is weighed."""
    redis, fleet, plan = scene.redis, scene.fleet, scene.plan
    few = await fleet.join("warm", WARM)
    keys = TaskKeys(TASK)
    async with asyncio.timeout(PATIENCE_S):  # until the bridge hears, and the aggregator folds
        while await redis.hlen(keys.presence) < WARM:  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.05)
        while not await redis.exists(keys.manifest):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for _ in range(2):
        came = await fleet.burst(few * (plan.largest // 2 // WARM))
        assert came, "the servers do not answer"
    await asyncio.sleep(2.0)
    return scene.stack.rss()


async def _connect(scene: Scene, before: dict[str, int]) -> None:
    stack, plan, found = scene.stack, scene.plan, scene.found
    redis, fleet = scene.redis, scene.fleet
    began = perf_counter()
    await fleet.join("device", found.devices)
    found.connect_s = perf_counter() - began
    with suppress(TimeoutError):
        async with asyncio.timeout(10):
            while found.births < found.devices + WARM:
                found.births = int(await redis.hlen(TaskKeys(TASK).presence))
                await asyncio.sleep(0.1)
    progress(f"{found.devices:,} devices are connected after {found.connect_s:.1f} s")
    await asyncio.sleep(3.0)
    used = stack.cpu()
    await asyncio.sleep(plan.idle_s)
    found.idle_cpu = {name: (s - used[name]) / plan.idle_s for name, s in stack.cpu().items()}
    found.rss = stack.rss()
    found.idle_growth = _growth(found.rss, before)


async def _bursts(scene: Scene, devices: list[Device]) -> None:
    """In each round all three; the tenths of ten rounds are the whole fleet."""
    stack, fleet, plan = scene.stack, scene.fleet, scene.plan
    rng, found = scene.rng, scene.found
    used, updates = stack.cpu(), 0
    tenth = found.devices // 10
    order = rng.permutation(found.devices)
    for number in range(plan.rounds):
        at = number % 10 * tenth
        whom = {
            "1 %": rng.choice(found.devices, found.devices // 100, replace=False),
            "10 %": order[at : at + tenth],
            "same": rng.choice(found.devices, plan.same, replace=False),
        }
        for name, numbers in whom.items():
            came = await fleet.burst([devices[i] for i in numbers])
            found.missing += len(numbers) - len(came)
            found.latencies.setdefault(name, []).append(came)
            updates += len(numbers)
            await asyncio.sleep(rng.uniform(0.05, 0.2))
    cpu = stack.cpu()
    found.burst_cpu_us = {name: (cpu[name] - used[name]) / updates * 1e6 for name in cpu}
    p50 = median(median(came) for came in found.latencies["same"])
    progress(f"{found.devices:,} devices: bursts of {plan.same} wait {p50 * 1000:.0f} ms")


async def _tell(scene: Scene, devices: list[Device]) -> None:
    """Bursts that make one published version each, of which every device is told."""
    fleet, plan, rng, found = scene.fleet, scene.plan, scene.rng, scene.found
    spec, model = fleet.topics.spec, fleet.topics.model
    everybody = len(fleet.devices)
    heard = fleet.heard[spec], fleet.heard[model]  # the specification, and the version now due
    await append_entry(scene.redis, TASK, SpecSet(spec_to_json(_spec(plan.same // BUFFER))))
    await _heard(fleet, spec, heard[0] + everybody)
    await _heard(fleet, model, heard[1] + everybody)
    for _ in range(plan.rounds):
        already = fleet.heard[model]
        numbers = rng.choice(found.devices, plan.same, replace=False)
        began = perf_counter()
        came = await fleet.burst([devices[i] for i in numbers])
        await _heard(fleet, model, already + everybody)
        found.told_s.append(perf_counter() - began)
        found.missing += len(numbers) - len(came)
        found.latencies.setdefault("told", []).append(came)
        await asyncio.sleep(rng.uniform(0.05, 0.2))


async def _heard(fleet: Fleet, topic: str, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while fleet.heard[topic] < count:  # noqa: ASYNC110 - counted in a protocol
            await asyncio.sleep(0.005)


async def _keys(redis: Redis) -> dict[str, float]:
    keys = TaskKeys(TASK)
    named = {
        "presence": keys.presence,
        "devices": keys.devices,
        "windows": keys.windows,
        "log": keys.log,
        "outbox": keys.outbox,
    }
    weights: dict[str, Any] = {n: await redis.memory_usage(k, 0) for n, k in named.items()}
    return {name: float(weight or 0) for name, weight in weights.items()}


async def _load_s(redis: Redis) -> float:
    """What an aggregator that takes over reads before it folds on."""
    store, times = TaskStore(redis, TaskKeys(TASK), "nobody"), []
    for _ in range(5):
        began = perf_counter()
        assert await store.load() is not None
        times.append(perf_counter() - began)
    return median(times)


def _growth(now: dict[str, int], before: dict[str, int]) -> dict[str, float]:
    return {name: float(now[name] - before[name]) for name in now}


# -- reporting ---------------------------------------------------------------------------------


def _report(plan: Plan, found: list[Found]) -> Report:
    report = Report("connections", plan.rounds)
    for each in found:
        _figures(report.figures, plan, each)
    first, last = found[0], found[-1]
    between = last.devices - first.devices
    slopes: dict[str, float] = {}
    for name in last.rss:
        slopes[name] = (last.idle_growth[name] - first.idle_growth[name]) / between
        sent = (last.sent_growth[name] - first.sent_growth[name]) / between
        report.figures[f"{name}: bytes a connected idle device"] = slopes[name]
        report.figures[f"{name}: bytes a device that has sent"] = sent
    for name, weight in last.keys.items():
        grown = (weight - first.keys[name]) / between
        report.figures[f"Redis, key {name}: bytes a device that has sent"] = grown

    def ratio(name: str) -> float:
        return _p50(last.latencies[name]) / _p50(first.latencies[name])

    ends = f"{last.devices:,} devices over {first.devices:,}"
    quiet = f"burst of {plan.same}, p50, {ends}"
    report.figures[f"{quiet}, with a version told to all"] = ratio("told")
    report.aims = [
        Aim(quiet, ratio("same"), at_most=2.0),
        Aim("updates without a Receipt", sum(each.missing for each in found), at_most=0),
        Aim("connections that ended", sum(each.cut for each in found), at_most=0),
    ]
    if between >= WEIGHABLE:
        aim = Aim("bridge: bytes a connected idle device", slopes["bridge"], at_most=64)
        report.aims.append(aim)
    broker = "mosquitto" if MOSQUITTO else "the lab broker"
    report.notes = [
        f"{broker}; updates of 200 B, FedBuff K = {BUFFER}; keepalive {KEEPALIVE_S} s",
        "one client process is the whole fleet: its work is in every latency",
        "the bridge keeps nothing: what it has grown when all have sent is its largest batch",
        f"growth a device: between {first.devices:,} and {last.devices:,}, fresh servers for each",
    ]
    return report


def _figures(figures: dict[str, float], plan: Plan, found: Found) -> None:
    head = f"{found.devices:,}"
    figures[f"{head}: connected, seconds"] = found.connect_s
    figures[f"{head}: births that the bridge noted, share"] = found.births / (found.devices + WARM)
    for name, bytes_ in found.rss.items():
        figures[f"{head}: {name}, RSS MiB"] = bytes_ / (1 << 20)
        figures[f"{head}: {name}, grown when idle, KiB"] = found.idle_growth[name] / 1024
        figures[f"{head}: {name}, grown when all have sent, KiB"] = found.sent_growth[name] / 1024
        figures[f"{head}: {name}, idle CPU, % of a core"] = 100 * found.idle_cpu[name]
        figures[f"{head}: {name}, CPU us an update in bursts"] = found.burst_cpu_us[name]
    sizes = {
        "1 %": found.devices // 100,
        "10 %": found.devices // 10,
        "same": plan.same,
        "told": plan.same,
    }
    for name, size in sizes.items():
        all_of = np.array([s for came in found.latencies[name] for s in came]) * 1000
        what = f"{head}: burst of {size}" + {"same": "", "told": ", told"}.get(name, f" ({name})")
        figures[f"{what}, p50 ms"] = float(np.percentile(all_of, 50)) if all_of.size else np.nan
        figures[f"{what}, p99 ms"] = float(np.percentile(all_of, 99)) if all_of.size else np.nan
        figures[f"{what}, max ms"] = float(all_of.max()) if all_of.size else np.nan
    figures[f"{head}: burst of {plan.same}, until the last heard of the version, ms"] = (
        median(found.told_s) * 1000
    )
    figures[f"{head}: load of the checkpoint, ms"] = found.load_s * 1000


def _p50(rounds: list[list[float]]) -> float:
    """The median of the rounds' medians; NaN when a round is empty."""
    return median(median(came) if came else float("nan") for came in rounds)


if __name__ == "__main__":
    sys.exit(run("connections", "A fleet that is connected at once.", measure))
