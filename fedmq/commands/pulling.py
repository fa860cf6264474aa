"""What `fedmq model pull` writes: an .npz of the tensors, or the model as a plain ONNX file."""

from io import BytesIO
from typing import Any

import numpy as np
from redis.asyncio import Redis

from aggregator.bundles import task_bundle
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


async def onnx(redis: Redis, task: TaskName, spec: TaskSpec, params: Params) -> bytes:
    """The bundle's inference graph with these parameters. Raises ConfigError: it has none."""
    bundle = await task_bundle(redis, task, spec)
    if bundle is None:
        told = f"onnx needs a bundle, and {task!r} has none"
        remedy = "pull npz, or create the task with fedmq task create --bundle"
        raise ConfigError("format", f"{told}: {remedy}")
    try:
        return with_parameters(bundle.infer, unflatten(spec.params, params))
    except ValueError as exc:
        raise ConfigError("format", f"onnx: {exc}") from exc
