"""A class A device that learns: its frames, its windows, and the model that comes in pieces. Pure.

What a microcontroller would do with W0 from a seed, one vector of integers, and a buffer for one
transfer. It keeps no update: a frame that is lost is a little less information, and nothing is
sent twice. docs/how-to/lorawan.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from broker.lorawan.pieces import Arrived, Assembly
from schemas.codecs import Ask, Codec
from schemas.errors import WireError
from schemas.lattice import (
    Exponents,
    Ints,
    applied,
    decode_diff,
    decode_keyframe,
    first_exponents,
    placed,
    sizes_of,
)
from schemas.messages import ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.params import Params, model_digest
from schemas.short import AIR_BYTES, over_the_air
from schemas.task import TaskSpec

Train: TypeAlias = "Callable[[Params, np.random.Generator], tuple[Params, int]]"
"""(base) -> what comes out of local training, and the examples that were seen."""


@dataclass(slots=True)
class Point:
    """Where a device is on the lattice."""

    epoch: int
    version: int
    q: Ints
    exponents: Exponents


class Radio:
    """One device.

    Args:
        spec: as it was flashed: tensors, codec, gain.
        origin: W0, which its seed draws.
        codec: of its updates.
        epoch: the task's when it was flashed.
        train: local training.
        rng: its chance.
    """

    def __init__(
        self,
        spec: TaskSpec,
        *,
        origin: Params,
        codec: Codec,
        epoch: int,
        train: Train,
        rng: "np.random.Generator",
    ) -> None:
        self._spec = spec
        self._origin = origin
        self._codec = codec
        self._train = train
        self._rng = rng
        self._sizes = sizes_of(spec.params)
        exponents = first_exponents(spec.params, spec.publish.step)
        self._point = Point(epoch, 0, np.zeros(sum(self._sizes), np.int32), exponents)
        self._assembly = Assembly()
        self.adopted = 0
        self.wrong = 0

    @property
    def params(self) -> Params:
        """The model that it has: what travels of it."""
        point = self._point
        return placed(self._origin, point.q, point.exponents, self._sizes)

    @property
    def version(self) -> int:
        """Of that model, as far as it is told: 16 bits."""
        return self._point.version

    @property
    def port(self) -> int:
        """The FPort of the next uplink."""
        return self._assembly.port

    @property
    def receives(self) -> bool:
        """Whether a transfer is under way."""
        return self._assembly.pieces > 0

    def frame(self, frame_bytes: int) -> bytes:
        """Train, and make a frame of at most so many bytes."""
        base = self.params
        trained, examples = self._train(base, self._rng)
        ask = Ask(self._spec.codec, frame_bytes - AIR_BYTES, self._spec.gain)
        return self._framed(self._codec.encode(trained - base, ask, self._rng), examples)

    def poll(self) -> bytes:
        """A frame without an update: it opens two windows for less time on the air."""
        return self._framed(b"", 1)

    def receive(self, port: int, data: bytes) -> bool:
        """Take a downlink; whether another model came out of it."""
        arrived = self._assembly.receive(port, data)
        return arrived is not None and self._adopt(arrived)

    def restart(self) -> None:
        """Lose what is in memory: the model is in flash, a transfer is not."""
        self._assembly = Assembly()

    def _framed(self, payload: bytes, examples: int) -> bytes:
        point = self._point
        update = ModelUpdate(
            epoch=Epoch(point.epoch),
            boot=Boot(1),
            seq=Seq(1),
            base_version=ModelVersion(point.version),
            base_digest=None,
            spec_digest=None,
            codec=self._codec.codec_id,
            num_examples=examples,
            payload=payload,
            partial=True,
        )
        return over_the_air(update)

    def _adopt(self, arrived: Arrived) -> bool:
        """Take the step, prove where it leads, and be there."""
        head, point = arrived.head, self._point
        same = (head.first, head.epoch) == (point.version, point.epoch & 15)
        if not head.whole and not same:
            self.wrong += 1
            return False
        try:
            if head.whole:
                q, exponents = decode_keyframe(arrived.data, self._sizes)
            else:
                diff = decode_diff(arrived.data, self._sizes)
                q, exponents = applied(point.q, point.exponents, diff, self._sizes)
        except WireError:
            self.wrong += 1
            return False
        params = placed(self._origin, q, exponents, self._sizes)
        if model_digest(self._spec.params.digest, params)[:4] != head.digest:
            self.wrong += 1
            return False
        self._point = Point(head.epoch, head.last, q, exponents)
        self.adopted += 1
        return True
