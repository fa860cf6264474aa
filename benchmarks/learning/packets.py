"""What an update costs on the wire: every packet of it, written by the product's own encoders.

    up      PUBLISH (topic, header, payload), the PUBACK of the receipt
    down    PUBACK, the Receipt on its topic

and of a version: PUBLISH of its manifest, and what stands around each chunk of a blob.

MQTT 3.1.1 as the sessions speak it, without TLS, TCP and IP. Lost packets are sent again until they
are acknowledged: where a packet gets through with chance q each way, PUBLISH is sent 1 / q^2 times
on average and PUBACK 1 / q times.
"""

from dataclasses import dataclass

from broker.lab.packets import PubAck, Publish, encode, encode_publish
from edge_agent import catch_up
from schemas.lattice import KEYFRAME
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName
from schemas.params import ParamSpec
from schemas.topics import TaskTopics
from schemas.wire import encode_manifest, encode_receipt, encode_update


@dataclass(frozen=True, slots=True)
class Names:
    """What a user has called things: a good part of a short packet."""

    prefix: str
    task: str
    device: str

    @property
    def topics(self) -> TaskTopics:
        """The task's topics."""
        return TaskTopics(self.prefix, TaskName(self.task))


USUAL = Names("fedmq/v1", "pump-faults", "device-0123456789")
SHORTEST = Names("f", "t", "d7")


@dataclass(frozen=True, slots=True)
class Packets:
    """Bytes of one update that was folded.

    Attributes:
        payload: the codec's.
        header: of the message.
        publish: the whole PUBLISH.
        puback: its answer.
        receipt: the PUBLISH that says what became of it.
        receipt_ack: the PUBACK of that.
    """

    payload: int
    header: int
    publish: int
    puback: int
    receipt: int
    receipt_ack: int

    def up(self, loss: float = 0.0) -> float:
        """Bytes that the device sends."""
        q = 1 - loss
        return self.publish / q**2 + self.receipt_ack / q

    def down(self, loss: float = 0.0) -> float:
        """Bytes that it gets."""
        q = 1 - loss
        return self.puback / q + self.receipt / q**2


def packets(
    spec: ParamSpec, codec_id: int, payload: bytes, names: Names, *, short: bool
) -> Packets:
    """Write an update in the middle of a long task: version 300, 60 updates of this device."""
    device = DeviceId(names.device)
    update = ModelUpdate(
        epoch=Epoch(1),
        boot=Boot(0xDEADBEEF),
        seq=Seq(60),
        base_version=ModelVersion(300),
        base_digest=0xCAFEF00D,
        spec_digest=None if short else spec.short_digest,
        codec=codec_id,
        num_examples=72,
        payload=payload,
    )
    message = encode_update(update)
    receipt = encode_receipt(Receipt(Epoch(1), Boot(0xDEADBEEF), 60, 0, 60, 0, ModelVersion(303)))
    topics = names.topics
    acknowledged = len(encode(PubAck(7)))
    return Packets(
        payload=len(payload),
        header=len(message) - len(payload),
        publish=len(encode_publish(Publish(topics.up(device), message, qos=1, packet_id=7))),
        puback=acknowledged,
        receipt=len(encode_publish(Publish(topics.receipt(device), receipt, qos=1, packet_id=9))),
        receipt_ack=acknowledged,
    )


@dataclass(frozen=True, slots=True)
class Offer:
    """Bytes of one version beside what its blobs hold.

    Attributes:
        manifest: the PUBLISH of the manifest, every device's.
        chunk: around one chunk of a blob, asking for it included.
    """

    manifest: int
    chunk: int


def offer(spec: ParamSpec, names: Names, *, lattice: bool) -> Offer:
    """Offer version 300 in the middle of a long task."""
    manifest = Manifest(
        epoch=Epoch(1),
        version=ModelVersion(300),
        model_digest=bytes(range(32)),
        spec_digest=spec.digest,
        codec=KEYFRAME if lattice else 0,
        blob="k1-300" if lattice else "v1-300",
        blob_digest=b"" if lattice else bytes(range(32)),
        blob_bytes=6_000 if lattice else 4 * spec.size,
        chunk_bytes=4_096,
        serial=300 if lattice else 0,
        oldest=236 if lattice else 0,
        ladder=(100, 150, 250, 450, 750, 1_200, 1_700) if lattice else (),
    )
    message = encode_manifest(manifest)
    topics = names.topics
    around = catch_up.packets(topics, DeviceId(names.device))
    published = encode_publish(Publish(topics.model, message, qos=1, retain=True, packet_id=5))
    return Offer(len(published) + len(encode(PubAck(5))), around.chunk)
