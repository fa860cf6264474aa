"""From nothing to the first update: a device that is started with broker, task, name and data.

A lab (broker, Valkey, bridge, aggregator) holds a task with a bundle; again and again a process
`python -m edge_agent` with a new name and an empty disk is started. Seconds until its first update
is heard on the broker, and until the Receipt that it was folded: Python's start, connecting,
specification, bundle and model in chunks, opening onnxruntime, one round of 4 steps.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Final

import aiomqtt
import numpy as np

from aggregator.tasks import create_task, published_model
from benchmarks.learning.onnx_models import MODELS
from benchmarks.report import generator, progress
from edge_agent.onnx.session import opened
from fedmq.bundle_folder import packed
from fedmq.demo.digits import load_digits
from fedmq.onnx_training import build
from fedmq.servers import servers
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.names import DeviceId, TaskName
from schemas.params import flatten
from schemas.strategy import StrategyOptions
from schemas.task import TaskSpec, TrainOptions, checked_spec
from schemas.topics import DEFAULT_PREFIX, TaskTopics

TASK: Final = TaskName("cold")
PATIENCE_S: Final = 60.0


def cold_starts(repeats: int) -> dict[str, float]:
    """Medians, in seconds."""
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as name:
        return asyncio.run(_starts(repeats, Path(name)))


async def _starts(repeats: int, folder: Path) -> dict[str, float]:
    digits = load_digits()
    np.savez(folder / "data.npz", x=digits.features[:64].reshape(-1, 1, 8, 8), y=digits.labels[:64])
    rng = generator(1)
    built = build(
        MODELS["cnn"](rng),
        loss="cross-entropy",
        run=opened,
        rng=rng,
    )
    spec = checked_spec(
        TaskSpec(
            params=built.bundle.manifest.params,
            strategy=StrategyOptions(buffer_size=1),
            train=TrainOptions(epochs=1, batch_size=16),
            codec=CodecOptions("sq"),
        )
    )
    params = flatten(spec.params, built.theta0)
    sent, told = [], []
    async with servers(folder) as here, connect(here.redis_url) as redis:
        await create_task(redis, TASK, spec, params, epoch=1, bundle=packed(built.bundle))
        while await published_model(redis, TASK) is None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        for number in range(repeats + 1):
            progress(f"onnx: start {number} of {repeats}")
            first, receipt = await _one(f"cold-{number}", folder, here.mqtt_port)
            if number:  # the first one writes .pyc files
                sent.append(first)
                told.append(receipt)
    return {"start to first update, s": median(sent), "start to Receipt, s": median(told)}


async def _one(device: str, folder: Path, port: int) -> tuple[float, float]:
    topics = TaskTopics(DEFAULT_PREFIX, TASK)
    name = DeviceId(device)
    settings = {"task": TASK, "device": device, "data": str(folder / "data.npz")}
    settings |= {"mqtt-port": str(port), "state-dir": str(folder / "state"), "log-level": "error"}
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    async with aiomqtt.Client("127.0.0.1", port) as client, asyncio.timeout(PATIENCE_S):
        await client.subscribe(topics.up(name), qos=1)
        await client.subscribe(topics.receipt(name), qos=1)
        began, first = monotonic(), 0.0
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_agent", *flags, env=environ
        )
        try:
            async for message in client.messages:
                if str(message.topic) == topics.up(name):
                    first = first or monotonic() - began
                elif first:
                    return first, monotonic() - began
        finally:
            process.terminate()
            await process.wait()
    raise AssertionError("the broker went away")
