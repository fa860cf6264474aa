"""What `fedmq model pull` writes: an .npz of the tensors, or the model as a plain ONNX file."""

from io import BytesIO
from typing import Any

import msgspec
import numpy as np
from redis.asyncio import Redis

from aggregator.bundles import task_bundle
from aggregator.tasks import PublishedModel
from schemas.errors import ConfigError
from schemas.names import TaskName
from schemas.onnx_file import with_parameters
from schemas.params import Params, unflatten
from schemas.task import TaskSpec


def npz(spec: TaskSpec, params: Params) -> bytes:
    """Named float32 arrays, as numpy.load reads them."""
    tensors: dict[str, Any] = dict(unflatten(spec.params, params))
    file = BytesIO()
    np.savez(file, **tensors)
    return file.getvalue()


async def onnx(redis: Redis, task: TaskName, spec: TaskSpec, model: PublishedModel) -> bytes:
    """The bundle's inference graph with a model's parameters, and metadata that tell of it.

    Raises:
        ConfigError: the task has no bundle.
    """
    bundle = await task_bundle(redis, task, spec)
    if bundle is None:
        told = f"onnx needs a bundle, and {task!r} has none"
        remedy = "pull npz, or create the task with fedmq task create --bundle"
        raise ConfigError("format", f"{told}: {remedy}")
    notes = {
        "fedmq.task": task,
        "fedmq.version": str(model.manifest.version),
        "fedmq.digest": model.manifest.model_digest.hex(),
        "fedmq.input": msgspec.json.encode(spec.input).decode(),
    }
    try:
        return with_parameters(bundle.infer, unflatten(spec.params, model.params), notes)
    except ValueError as exc:
        raise ConfigError("format", f"onnx: {exc}") from exc


def scale_note(spec: TaskSpec) -> str:
    """What whoever runs the file must do to what it is fed; empty: nothing."""
    match spec.input.normalise:
        case "task":
            return "feed it (x - mean) / std: both stand in its metadata, fedmq.input"
        case "device":
            return "every device scales by its own statistics: feed it what is scaled like that"
        case _:
            return ""
