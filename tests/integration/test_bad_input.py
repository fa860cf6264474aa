"""Bad bytes on the whole way: refused by name, counted, kept, answered; the next one is folded."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import paho.mqtt.client as paho
import pytest
import redis as redis_py
import servers
from integration.stack import Process, eventually, fedmq, run_fedmq

from schemas.keys import TaskKeys
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, DeviceId, Seq, TaskName, shard_of
from schemas.params import base_digest
from schemas.task import spec_from_json
from schemas.wire import decode_manifest, decode_receipt, encode_update

TASK = TaskName("strict")
DEVICE = DeviceId("probe")
SIZE = 6

Spoil = Callable[[ModelUpdate], bytes]


def payload(*values: float) -> bytes:
    return np.array(values, dtype="<f4").tobytes()


BAD: dict[str, Spoil] = {
    "malformed": lambda _u: b"\xc1 not MessagePack",
    "unknown_wire": lambda _u: b"\x91\x09",
    "unknown_codec": lambda u: encode_update(replace(u, codec=99)),
    "wrong_codec": lambda u: encode_update(replace(u, codec=1)),
    "wrong_spec": lambda u: encode_update(replace(u, spec_digest=u.spec_digest ^ 1)),
    "wrong_base": lambda u: encode_update(replace(u, base_digest=u.base_digest ^ 1)),
    "wrong_epoch": lambda u: encode_update(replace(u, epoch=u.epoch - 1)),
    "future_base": lambda u: encode_update(replace(u, base_version=u.base_version + 5)),
    "not_finite": lambda u: encode_update(replace(u, payload=payload(*[np.nan] * SIZE))),
    "truncated": lambda u: encode_update(replace(u, payload=u.payload[:-4])),
    "bad_number": lambda u: encode_update(replace(u, weight=9.0)),
    "oversized": lambda u: encode_update(replace(u, payload=bytes(100_000))),
}


class Post:
    """A plain MQTT client that plays the device."""

    def __init__(self, mqtt_port: int, redis: "redis_py.Redis") -> None:
        self.redis = redis
        self.receipts: list[Receipt] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", mqtt_port)
        self._client.subscribe(f"fedmq/v1/{TASK}/receipt/{DEVICE}", qos=1)
        self._client.loop_start()

    def _hear(self, _client: object, _userdata: object, message: paho.MQTTMessage) -> None:
        self.receipts.append(decode_receipt(message.payload))

    def send(self, data: bytes, shard: str = shard_of(DEVICE)) -> None:
        topic = f"fedmq/v1/{TASK}/up/{shard}/{DEVICE}"
        self._client.publish(topic, data, qos=1).wait_for_publish(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def manifest(self) -> Manifest | None:
        raw = self.redis.get(TaskKeys(TASK).manifest)
        return None if raw is None else decode_manifest(raw)

    def update(self, seq: int) -> ModelUpdate:
        manifest = self.manifest()
        assert manifest is not None
        spec = spec_from_json(self.redis.get(TaskKeys(TASK).spec))
        return ModelUpdate(
            epoch=manifest.epoch,
            boot=Boot(3),
            seq=Seq(seq),
            base_version=manifest.version,
            base_digest=base_digest(manifest.model_digest),
            spec_digest=spec.params.short_digest,
            codec=0,
            num_examples=1,
            payload=payload(*[1.0] * SIZE),
        )

    def answered(self, outcome: str) -> bool:
        return any(outcome_of(receipt) == outcome for receipt in self.receipts)

    def metrics(self) -> dict[str, object]:
        return json.loads(self.redis.get(TaskKeys(TASK).metrics))


def outcome_of(receipt: Receipt) -> str:
    from schemas.outcomes import outcome_name

    return outcome_name(receipt.outcome)


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    with (
        servers.mosquitto(tmp_path) as broker,
        servers.redis_server(tmp_path) as redis,
        ExitStack() as stack,
    ):
        url = f"redis://127.0.0.1:{redis.port}/0"
        spec = tmp_path / "task.toml"
        spec.write_text(
            f'codec.name = "float32"\ninit.kind = "zeros"\nstrategy.buffer_size = 1\n'
            f'[[params.tensors]]\nname = "w"\nshape = [{SIZE}]\n'
        )
        run_fedmq("task", "create", TASK, "--spec", str(spec), "--redis-url", url)
        mqtt = ("--mqtt-port", str(broker.port))
        commands = (fedmq("bridge", *mqtt, "--redis", url), fedmq("aggregator", "--redis", url))
        for number, command in enumerate(commands):
            process = Process(command, tmp_path / f"{number}.log")
            process.start()
            stack.callback(process.stop)
        post = Post(broker.port, redis_py.Redis(port=redis.port))
        stack.callback(post.close)
        stack.callback(post.redis.close)
        eventually(lambda: post.manifest() is not None, "a first model")
        bridge_log = tmp_path / "0.log"
        eventually(lambda: "connected" in bridge_log.read_text(), "the bridge is connected")
        yield post


def test_bad_updates_are_refused_by_name_and_the_next_is_folded(post: Post) -> None:
    for seq, (name, spoil) in enumerate(BAD.items(), start=1):
        post.send(spoil(post.update(seq)))
        eventually(lambda name=name: post.answered(name), f"a Receipt that says {name}", 20)
    post.send(encode_update(post.update(50)), shard="0" if shard_of(DEVICE) != "0" else "1")
    eventually(lambda: post.answered("wrong_shard"), "a Receipt that says wrong_shard", 20)
    assert post.manifest().version == 0
    post.send(encode_update(post.update(51)))
    eventually(lambda: post.answered("folded"), "the good one is folded", 20)
    metrics = post.metrics()
    assert metrics["updates_rejected"] == dict.fromkeys([*BAD, "wrong_shard"], 1)
    assert metrics["updates_folded"] == 1
    dead = post.redis.xrange(TaskKeys(TASK).dead)
    assert [fields[b"reason"].decode() for _, fields in dead] == [*BAD, "wrong_shard"]
    assert all(0 < len(fields[b"p"]) <= 4096 for _, fields in dead)


def test_a_duplicate_is_counted_and_answered_with_its_first_outcome(post: Post) -> None:
    data = encode_update(post.update(1))
    post.send(data)
    eventually(lambda: post.answered("folded"), "the update is folded", 20)
    post.receipts.clear()
    post.send(data)
    eventually(lambda: post.answered("folded"), "the duplicate has the same answer", 20)
    eventually(lambda: post.metrics()["duplicates_dropped"] == 1, "the duplicate is counted", 20)
    assert (post.metrics()["updates_folded"], post.metrics()["version"]) == (1, 1)
    assert not post.redis.xlen(TaskKeys(TASK).dead)
