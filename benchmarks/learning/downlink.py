"""How published models come down: each as float32, or all of them on the lattice."""

from typing import Protocol

import numpy as np

from schemas.ladder import path
from schemas.lattice import (
    LEVELS,
    SPAN,
    Ints,
    diff_of,
    encode_diff,
    encode_keyframe,
    first_exponents,
    placed,
    sizes_of,
    walked,
)
from schemas.params import Params, ParamSpec


class Downlink(Protocol):
    """What a server publishes, and what it costs a device to follow."""

    def publish(self, version: int, params: Params) -> Params:
        """Give the model that devices get of a version: float32, theirs to keep."""
        ...

    def fetched(self, device: int, version: int) -> int:
        """Bytes that this device reads to have this version, the newest."""
        ...


class Plain:
    """Whole models, 4 bytes a parameter; nothing when a device has it already.

    The initial model is drawn from a seed: it costs nothing here as on the lattice.
    """

    def __init__(self) -> None:
        self._has: dict[int, int] = {}
        self._bytes = 0

    def publish(self, version: int, params: Params) -> Params:
        """Give the model as it is."""
        del version
        self._bytes = params.nbytes
        return params.copy()

    def fetched(self, device: int, version: int) -> int:
        """Count a whole model unless the device has it."""
        news = self._has.get(device, 0) != version
        self._has[device] = version
        return self._bytes if news else 0


class Walked:
    """Every version is published on the lattice; a device takes the ladder's diffs.

    Args:
        spec: of the model.
        step: as in `[publish] step`.
    """

    def __init__(self, spec: ParamSpec, step: float = 0.0) -> None:
        self._sizes = sizes_of(spec)
        self._exponents = first_exponents(spec, step)
        self._origin: Params | None = None
        self._has: dict[int, int] = {}
        self.points: list[Ints] = []
        self._lengths: dict[tuple[int, int], int] = {}

    def publish(self, version: int, params: Params) -> Params:
        """Walk to the nearest point; the next diffs of the ladder are made when they are asked."""
        if self._origin is None:
            self._origin = params.copy()
            self.points.append(np.zeros(params.size, dtype=np.int32))
        else:
            last = self.points[-1]
            point = walked(params, self._origin, last, self._exponents, self._sizes)
            self.points.append(point)
        assert version == len(self.points) - 1, "every version is published"
        return placed(self._origin, self.points[-1], self._exponents, self._sizes)

    def fetched(self, device: int, version: int) -> int:
        """Count the ladder's diffs, or a keyframe from too far away."""
        since = self._has.get(device, 0)
        self._has[device] = version
        if version - since > SPAN:
            return self.keyframe(version)
        return self.laddered(since, version)

    def laddered(self, first: int, last: int) -> int:
        """Bytes of the ladder's diffs between two publications."""
        return sum(
            self.merged(serial, serial + (1 << level)) for serial, level in path(first, last)
        )

    def chained(self, first: int, last: int) -> int:
        """Bytes of all single diffs between two publications."""
        return sum(self.merged(serial, serial + 1) for serial in range(first, last))

    def merged(self, first: int, last: int) -> int:
        """Bytes of one diff between two publications."""
        if (first, last) not in self._lengths:
            old, new = self.points[first], self.points[last]
            diff = diff_of(old, self._exponents, new, self._exponents, self._sizes)
            self._lengths[first, last] = len(encode_diff(diff, self._sizes))
        return self._lengths[first, last]

    def keyframe(self, version: int) -> int:
        """Bytes of a whole publication on the lattice."""
        return len(encode_keyframe(self.points[version], self._exponents, self._sizes))


GAPS = tuple(1 << level for level in range(LEVELS))
"""Publications that a device may have slept through."""
