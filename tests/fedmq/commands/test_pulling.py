from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
import onnx_bundles
import pytest
import servers
from redis.asyncio import Redis

from aggregator.tasks import PublishedModel, create_task, task_spec
from fedmq.commands import pulling
from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion, TaskName
from schemas.params import ParamSpec, TensorSpec, model_digest
from schemas.task import TaskSpec

WITH, WITHOUT = TaskName("with"), TaskName("without")
BUNDLE = onnx_bundles.softmax_bundle()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path) as running:
        yield running


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with Redis(port=server.port) as connection:
        params = BUNDLE.manifest.params
        zeros = np.zeros(params.size, np.float32)
        spec = TaskSpec(params)
        await create_task(
            connection, WITH, spec, zeros, epoch=1, bundle=onnx_bundles.softmax_packed()
        )
        plain = TaskSpec(ParamSpec((TensorSpec("w", (3,)),)))
        await create_task(connection, WITHOUT, plain, np.zeros(3, np.float32), epoch=1)
        yield connection


def published(spec: TaskSpec, params: np.ndarray) -> PublishedModel:
    manifest = Manifest(
        epoch=Epoch(1),
        version=ModelVersion(7),
        model_digest=model_digest(spec.params.digest, params),
        spec_digest=spec.params.digest,
        codec=0,
        blob="k1-7",
        blob_digest=bytes(32),
        blob_bytes=params.nbytes,
        chunk_bytes=4096,
    )
    return PublishedModel(manifest, params)


async def test_the_global_model_is_a_plain_onnx_file_that_says_what_it_is(redis: Redis) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")
    spec = await task_spec(redis, WITH)
    assert spec is not None
    given = InputOptions(normalise="task", mean=(1.0,), std=(2.0,))
    spec = msgspec.structs.replace(spec, input=given)
    params = np.arange(spec.params.size, dtype=np.float32)
    data = await pulling.onnx(redis, WITH, spec, published(spec, params))
    session = ort.InferenceSession(data)
    x = np.ones((2, 4), np.float32)
    (scores,) = session.run(None, {"x": x})
    assert scores == pytest.approx(x @ params[:12].reshape(4, 3) + params[12:])
    told = session.get_modelmeta().custom_metadata_map
    assert (told["fedmq.task"], told["fedmq.version"]) == ("with", "7")
    assert told["fedmq.digest"] == model_digest(spec.params.digest, params).hex()
    assert msgspec.json.decode(told["fedmq.input"], type=InputOptions) == given
    assert "(x - mean) / std" in pulling.scale_note(spec)


async def test_a_task_without_a_bundle_names_what_to_do(redis: Redis) -> None:
    spec = await task_spec(redis, WITHOUT)
    assert spec is not None
    with pytest.raises(ConfigError, match=r"format: onnx needs a bundle.*pull npz, or create"):
        await pulling.onnx(redis, WITHOUT, spec, published(spec, np.zeros(3, np.float32)))


def test_an_npz_has_the_tensors_by_name() -> None:
    params = np.arange(15, dtype=np.float32)
    found = np.load(BytesIO(pulling.npz(TaskSpec(BUNDLE.manifest.params), params)))
    assert found["W"].tolist() == params[:12].reshape(4, 3).tolist()
    assert found["b"].tolist() == [12, 13, 14]
