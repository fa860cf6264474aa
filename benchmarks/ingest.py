"""Durable ingest: updates a second from a publisher until they are folded and committed.

    publisher -> mosquitto -> fedmq bridge -> redis-server -> fedmq aggregator -> commit

against a bare paho subscriber that only counts, on the same broker:

    publisher -> mosquitto -> subscriber

Everything is real: processes, QoS 1, a Redis with `appendfsync always` and, in a set of servers of
its own, one with `everysec`, where Receipts wait until the disk has what they promise. All have the
same paho publisher, with at most 100 messages in flight. The rate is of the time from its first
publish until the last message was counted, or until the task's metrics in Redis say that it was
folded. Contenders alternate; the ratio is of neighbours in time, its median is judged. All share
the machine's cores, and the durable way has five busy processes where the bare one has three.

How long a Receipt takes is measured apart, with no queue before it: a steady 200 updates a second,
from publish() until the first Receipt that settles the update was read, in one paho client.
"""

import asyncio
import multiprocessing
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from redis import Redis

from aggregator.tasks import create_task
from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from benchmarks.servers import cpu_seconds, fedmq
from redis_session.connection import connect
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.keys import TaskKeys
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import StrategyOptions
from schemas.task import PublishOptions, TaskSpec
from schemas.topics import DEFAULT_PREFIX, TaskTopics
from schemas.window import is_settled
from schemas.wire import decode_receipt, encode_update
from tests.servers import HOST, mosquitto, redis_server

BARE_PREFIX: Final = "plain/v1"
"""As long as fedmq's own prefix, and not heard by the bridge."""

DEVICES: Final = 100
PATIENCE_S: Final = 120.0
INFLIGHT: Final = 100
BOOT: Final = Boot(0xC0FFEE00)
PACE: Final = 200
"""Updates a second when Receipts are waited for."""

Message = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Load:
    """One size of message."""

    label: str
    params: int
    count: int


Places = dict[str, "Place"]
"""By what their Redis does: `always`, `everysec`."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the servers listen, and their process ids by name."""

    mqtt_port: int
    redis_port: int
    pids: dict[str, int]


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: messages a second, and the CPU time a message in each process, in microseconds."""

    rate: float
    cpu_us: dict[str, float]


def measure(arguments: Arguments) -> Report:
    """Run both contenders at both sizes."""
    loads = (
        (Load("200 B", 44, 3_000), Load("20 kB", 4_994, 600))
        if arguments.quick
        else (Load("200 B", 44, 20_000), Load("20 kB", 4_994, 4_000))
    )
    repeats, pace_s = (2, 4.0) if arguments.quick else (5, 6.0)
    report = Report("ingest", repeats)
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-bench-") as name,
        _servers(Path(name), "always") as always,
        _servers(Path(name), "everysec") as everysec,
    ):
        places = {"always": always, "everysec": everysec}
        for load in loads:
            ratio = _compare(places, load, repeats, arguments.seed, report)
            if load is loads[0]:
                aim = Aim("folded a second over counted a second, 200 B", ratio, at_least=0.5)
                report.aims.append(aim)
        _wait(places, pace_s, 2 if arguments.quick else 3, arguments.seed, report)
    report.notes = [
        f"{', '.join(f'{load.count:,} x {load.label}' for load in loads)} a run; {DEVICES} devices",
        "FedBuff K = 10, publish.every 10; QoS 1, 100 in flight; appendonly",
        "appendfsync always where nothing else is said; under everysec Receipts wait for the disk",
        f"publish to Receipt: {PACE} updates of 200 B a second for {pace_s:g} s",
    ]
    return report


@contextmanager
def _servers(above: Path, fsync: str) -> Iterator[Place]:
    folder = above / fsync
    folder.mkdir()
    with (
        mosquitto(folder, max_inflight=INFLIGHT, max_queued=1_000_000) as broker,
        redis_server(folder, appendfsync=fsync) as redis,
    ):
        mqtt_port, url = str(broker.port), f"redis://{HOST}:{redis.port}/0"
        with (
            fedmq(folder, "bridge", "--mqtt-port", mqtt_port, "--redis-url", url) as bridge,
            fedmq(folder, "aggregator", "--redis-url", url) as aggregator,
        ):
            pids = {
                "mosquitto": broker.process.pid,
                "redis": redis.process.pid,
                "bridge": bridge,
                "aggregator": aggregator,
            }
            yield Place(broker.port, redis.port, pids)


def _compare(places: Places, load: Load, repeats: int, seed: int, report: Report) -> float:
    """Let the contenders alternate; write their figures down, give the ratio."""
    bare: list[Measured] = []
    ours: dict[str, list[Measured]] = {fsync: [] for fsync in places}
    for number in range(repeats):
        task = TaskName(f"bench-{load.params}-{number}")
        for fsync, place in places.items():
            messages = _new_task(place, task, load, seed + number)
            ours[fsync].append(_durable(place, task, messages))
        bare.append(_bare(places["always"], messages))
        told = ", ".join(f"{fsync} {each[-1].rate:,.0f}/s" for fsync, each in ours.items())
        size = len(messages[0][1])
        progress(
            f"{load.label} ({size} bytes) {number + 1} of {repeats}: "
            f"{told}, bare {bare[-1].rate:,.0f}/s"
        )
    ratios = {
        fsync: median(mine.rate / rival.rate for mine, rival in zip(each, bare, strict=True))
        for fsync, each in ours.items()
    }
    figures, always = report.figures, ours["always"]
    figures[f"{load.label}: durable, folded a second"] = median(m.rate for m in always)
    figures[f"{load.label}: everysec, folded a second"] = median(m.rate for m in ours["everysec"])
    figures[f"{load.label}: bare, counted a second"] = median(m.rate for m in bare)
    figures[f"{load.label}: ratio"] = ratios["always"]
    figures[f"{load.label}: ratio, everysec"] = ratios["everysec"]
    for name in places["always"].pids:
        figures[f"{load.label}: {name}, CPU us a message"] = median(m.cpu_us[name] for m in always)
    return ratios["always"]


def _wait(places: Places, pace_s: float, repeats: int, seed: int, report: Report) -> None:
    """Measure how long Receipts take."""
    load = Load("200 B", 44, round(PACE * pace_s))
    seconds: dict[str, list[float]] = {fsync: [] for fsync in places}
    for number in range(repeats):
        task = TaskName(f"bench-pace-{number}")
        for fsync, place in places.items():
            messages = _new_task(place, task, load, seed + number)
            with _child(_converse, place.mqtt_port, task, messages) as client:
                came: list[float] = client.recv()
            seconds[fsync] += came
            progress(f"publish to Receipt, {fsync}: {median(came or [float('nan')]):.3f} s")
    for fsync, each in seconds.items():
        head = f"publish to Receipt, {fsync}"
        ms = np.array(each or [np.nan]) * 1000
        report.figures[f"{head}, p50 ms"] = float(np.percentile(ms, 50))
        report.figures[f"{head}, p99 ms"] = float(np.percentile(ms, 99))
        report.figures[f"{head}, max ms"] = float(ms.max())
        report.figures[f"{head}, share that came"] = len(each) / (repeats * load.count)


# -- messages ----------------------------------------------------------------------------------


def _new_task(place: Place, task: TaskName, load: Load, seed: int) -> list[Message]:
    """Create a task, wait until it is served, and encode its updates."""
    rng = generator(seed)
    spec = TaskSpec(
        ParamSpec((TensorSpec("w", (load.params,)),)),
        strategy=StrategyOptions(max_staleness=65_535, flush_after_s=0.0),
        codec=CodecOptions(name="float32"),
        publish=PublishOptions(every=10),
    )
    initial = rng.standard_normal(load.params, dtype=np.float32)
    asyncio.run(_create(place, task, spec, initial))
    with Redis(HOST, place.redis_port) as redis:
        _until_folded(redis, task, 0)
    base = base_digest(model_digest(spec.params.digest, initial))
    topics = TaskTopics(DEFAULT_PREFIX, task)
    ups = [topics.up(DeviceId(f"device-{number:03d}")) for number in range(DEVICES)]
    return [
        (ups[i % DEVICES], new_update(spec, base, i // DEVICES + 1, rng)) for i in range(load.count)
    ]


async def _create(place: Place, task: TaskName, spec: TaskSpec, initial: Params) -> None:
    async with connect(f"redis://{HOST}:{place.redis_port}/0") as redis:
        await create_task(redis, task, spec, initial, epoch=1)


def new_update(spec: TaskSpec, base: int, seq: int, rng: np.random.Generator) -> bytes:
    """The bytes of an update trained from version 0, at epoch 1, of one boot."""
    codec = codec_by_name(spec.codec.name)
    delta = rng.standard_normal(spec.params.size, dtype=np.float32) * np.float32(0.01)
    update = ModelUpdate(
        epoch=Epoch(1),
        boot=BOOT,
        seq=Seq(seq),
        base_version=ModelVersion(0),
        base_digest=base,
        spec_digest=spec.params.short_digest,
        codec=codec.codec_id,
        num_examples=1000,
        payload=codec.encode(delta, Ask(spec.codec), rng),
    )
    return encode_update(update)


# -- the contenders ----------------------------------------------------------------------------


def _durable(place: Place, task: TaskName, messages: Sequence[Message]) -> Measured:
    before = {name: cpu_seconds(pid) for name, pid in place.pids.items()}
    with Redis(HOST, place.redis_port) as redis, _publishing(place, messages) as publisher:
        began: float = publisher.recv()
        _until_folded(redis, task, len(messages))
        seconds = time.monotonic() - began
        publisher.recv()
    used = {name: cpu_seconds(pid) - before[name] for name, pid in place.pids.items()}
    cpu_us = {name: s / len(messages) * 1e6 for name, s in used.items()}
    return Measured(len(messages) / seconds, cpu_us)


def _until_folded(redis: Redis, task: TaskName, count: int) -> None:
    key = TaskKeys(task).metrics
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        raw: Any = redis.get(key)
        if raw is not None and msgspec.json.decode(raw)["updates_folded"] >= count:
            return
        time.sleep(0.01)
    msg = f"not all of {count} updates of {task} were folded within {PATIENCE_S:.0f} s: {raw!r}"
    raise TimeoutError(msg)


def _bare(place: Place, messages: Sequence[Message]) -> Measured:
    renamed = [(t.replace(DEFAULT_PREFIX, BARE_PREFIX), payload) for t, payload in messages]
    with (
        _child(_count, place.mqtt_port, len(messages)) as subscriber,
        _publishing(place, renamed, ready=subscriber) as publisher,
    ):
        began: float = publisher.recv()
        ended: float = subscriber.recv()
        publisher.recv()
    return Measured(len(messages) / (ended - began), {})


@contextmanager
def _publishing(
    place: Place, messages: Sequence[Message], ready: Connection | None = None
) -> Iterator[Connection]:
    """A publisher process that begins when the subscriber, if there is one, is ready."""
    with _child(_publish, place.mqtt_port, messages) as publisher:
        publisher.recv()  # connected
        if ready is not None:
            ready.recv()  # subscribed
        publisher.send("go")
        yield publisher


@contextmanager
def _child(target: Any, *arguments: object) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.join(10)
        process.kill()


# -- in processes of their own -----------------------------------------------------------------


def _publish(parent: Connection, port: int, messages: Sequence[Message]) -> None:
    """Publish as fast as the broker acknowledges; tell when it began and when all was acked."""
    window = threading.Semaphore(INFLIGHT)
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(INFLIGHT)
    client.on_publish = lambda *_: window.release()
    _connected(client, port)
    parent.send("ready")
    parent.recv()
    parent.send(time.monotonic())
    for topic, payload in messages:
        window.acquire()
        client.publish(topic, payload, qos=1)
    for _ in range(INFLIGHT):
        window.acquire()
    parent.send(time.monotonic())
    client.disconnect()
    client.loop_stop()


def _count(parent: Connection, port: int, count: int) -> None:
    """Count messages; tell when the last has come."""
    heard = 0
    done, subscribed = threading.Event(), threading.Event()

    def on_message(*_: object) -> None:
        nonlocal heard
        heard += 1
        if heard == count:
            done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set()
    _connected(client, port)
    client.subscribe(f"{BARE_PREFIX}/+/up/+/+", qos=1)
    subscribed.wait(PATIENCE_S)
    parent.send("ready")
    done.wait(PATIENCE_S)
    parent.send(time.monotonic() if done.is_set() else float("nan"))
    client.disconnect()
    client.loop_stop()


def _converse(parent: Connection, port: int, task: TaskName, messages: Sequence[Message]) -> None:
    """Publish steadily and hear the Receipts; tell how long each update waited for its own."""
    topics = TaskTopics(DEFAULT_PREFIX, task)
    devices = [DeviceId(topic.rpartition("/")[2]) for topic, _ in messages]
    waiting: dict[str, dict[Seq, float]] = {topics.receipt(device): {} for device in devices}
    came: list[float] = []
    subscribed, done, lock = threading.Event(), threading.Event(), threading.Lock()

    def on_message(_client: object, _data: object, message: paho.MQTTMessage) -> None:
        now, receipt = time.monotonic(), decode_receipt(bytes(message.payload))
        with lock:
            mine = waiting[message.topic]
            settled = [seq for seq in mine if is_settled(seq, receipt.low, receipt.settled)]
            came.extend(now - mine.pop(seq) for seq in settled)
            if len(came) == len(messages):
                done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(INFLIGHT)
    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_socket_open = _at_once
    _connected(client, port)
    client.subscribe(topics.receipt(DeviceId("+")), qos=1)
    subscribed.wait(PATIENCE_S)
    began = time.monotonic()
    for number, (topic, payload) in enumerate(messages):
        time.sleep(max(0.0, began + number / PACE - time.monotonic()))
        with lock:
            waiting[topics.receipt(devices[number])][Seq(number // DEVICES + 1)] = time.monotonic()
        client.publish(topic, payload, qos=1)
    done.wait(PATIENCE_S)
    parent.send(came)
    client.disconnect()
    client.loop_stop()


def _at_once(_client: object, _data: object, sock: Any) -> None:
    """Send small packets at once: Nagle's algorithm, which paho leaves on, is not what we time."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _connected(client: paho.Client, port: int) -> None:
    there = threading.Event()
    client.on_connect = lambda *_: there.set()
    client.connect(HOST, port)
    client.loop_start()
    there.wait(PATIENCE_S)


if __name__ == "__main__":
    sys.exit(run("ingest", "Durable ingest, against a bare subscriber.", measure))
