"""A task whose model walks on a lattice, played by the test: its publications, and their blobs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from laws import generator

from edge_agent.trainer import TrainResult
from schemas.initial import initial_params
from schemas.ladder import blob_name, keyframe_name, origin_name
from schemas.lattice import (
    KEYFRAME,
    LEVELS,
    SPAN,
    Ints,
    diff_of,
    encode_diff,
    encode_keyframe,
    first_exponents,
    placed,
    sizes_of,
)
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion
from schemas.params import Params, ParamSpec, TensorSpec, model_digest, settled_in, travelling
from schemas.task import CodecOptions, InitOptions, PublishOptions, TaskSpec, checked_spec
from tests.edge_agent.played_server import TOPICS, ServerSide

TENSORS = (
    TensorSpec("w", (40, 10)),
    TensorSpec("still", (7,), "frozen"),
    TensorSpec("b", (10,)),
)


SEED = InitOptions(seed=5)


def lattice_spec(*, init: InitOptions | None = SEED) -> TaskSpec:
    return checked_spec(
        TaskSpec(
            ParamSpec(TENSORS),
            codec=CodecOptions(name="float32"),
            publish=PublishOptions(lattice=True),
            init=init,
        )
    )


class Adds:
    """A trainer that adds a little to everything."""

    def train(self, tensors: Any, _options: object, _rng: object) -> TrainResult:
        return TrainResult({k: v + np.float32(0.25) for k, v in tensors.items()}, num_examples=5)


@dataclass
class Walk:
    """Publications on a lattice: serial 0 is W0, serial 1 is far away, others are near each other.

    The version is ten times the serial number.

    Attributes:
        moves: coordinates that change from one to the next.
    """

    spec: TaskSpec = field(default_factory=lattice_spec)
    epoch: int = 1
    moves: int = 5
    chunk_bytes: int = 256
    oldest: int = 1
    origin: Params | None = None
    points: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.origin is None:
            self.origin = initial_params(self.spec.params, InitOptions(), generator(5))
        self.sizes = sizes_of(self.spec.params)
        self.exponents = first_exponents(self.spec.params, 0.0)
        self.points.append(np.zeros(self.spec.params.wire_size, np.int32))
        self.rng = generator(1)

    def go(self, steps: int) -> "Walk":
        for _ in range(steps):
            q = self.points[-1].copy()
            if not self.serial:
                q += self.rng.integers(-4000, 4000, q.size).astype(np.int32)
            where = self.rng.integers(0, q.size, self.moves)
            q[where] += self.rng.choice([-1, 1], self.moves).astype(np.int32)
            self.points.append(q)
        return self

    @property
    def serial(self) -> int:
        return len(self.points) - 1

    def params(self, serial: int) -> Params:
        assert self.origin is not None
        start = travelling(self.spec.params, self.origin)
        moved = placed(start, self.points[serial], self.exponents, self.sizes)
        return settled_in(self.spec.params, self.origin, moved)

    def diff(self, first: int, last: int) -> bytes:
        here, there = self.points[first], self.points[last]
        step = diff_of(here, self.exponents, there, self.exponents, self.sizes)
        return encode_diff(step, self.sizes)

    def keyframe(self, serial: int) -> bytes:
        return encode_keyframe(self.points[serial], self.exponents, self.sizes)

    def diffs(self, last: int | None = None) -> dict[str, bytes]:
        last = self.serial if last is None else last
        return {
            blob_name(Epoch(self.epoch), first, level): self.diff(first, first + (1 << level))
            for level in range(LEVELS)
            for first in range(0, last + 1, 1 << level)
            if max(self.oldest, last - SPAN) <= first and first + (1 << level) <= last
        }

    def newest(self, level: int, last: int) -> int:
        end = last - last % (1 << level)
        start = end - (1 << level)
        return len(self.diff(start, end)) if start >= self.oldest else 0

    def manifest(self, serial: int | None = None, *, origin: bool = False) -> Manifest:
        assert self.origin is not None
        serial = self.serial if serial is None else serial
        digest = self.spec.params.digest
        return Manifest(
            epoch=Epoch(self.epoch),
            version=ModelVersion(10 * serial),
            model_digest=model_digest(digest, self.params(serial))[:8],
            spec_digest=digest[:2],
            codec=KEYFRAME,
            blob=keyframe_name(Epoch(self.epoch), ModelVersion(10 * serial)),
            blob_digest=b"",
            blob_bytes=len(self.keyframe(serial)),
            chunk_bytes=self.chunk_bytes,
            serial=serial,
            oldest=min(serial, max(self.oldest, serial - SPAN)),
            origin=origin_name(self.origin) if origin else "",
            ladder=tuple(self.newest(level, serial) for level in range(LEVELS)),
        )

    def chunks(self, blobs: dict[str, bytes]) -> list[tuple[str, bytes]]:
        size = self.chunk_bytes
        return [
            (TOPICS.chunk(name, start // size), data[start : start + size])
            for name, data in blobs.items()
            for start in range(0, len(data), size)
        ]

    async def keep(
        self,
        server: ServerSide,
        *,
        origin: bool = False,
        without: tuple[str, ...] = (),
        **wrong: bytes,
    ) -> Manifest:
        """Retain the newest publication and all that leads to it; `wrong` blobs by names with _."""
        assert self.origin is not None
        manifest = self.manifest(origin=origin)
        blobs = {**self.diffs(), manifest.blob: self.keyframe(self.serial)}
        if origin:
            blobs[manifest.origin] = self.origin.astype("<f4").tobytes()
        blobs |= {name.replace("_", "-"): data for name, data in wrong.items()}
        kept = {name: data for name, data in blobs.items() if name not in without}
        await server.keep_chunks(self.chunks(kept))
        await server.keep_manifest(manifest)
        return manifest
