"""FedBuff, once more: the model, its buffer, its momentum. float32, one operation after another.

on every update     total += weight * delta
when K have come    mean = total / K;  with momentum: memory = beta * memory + mean, mean = memory
                    params += eta * mean;  total = 0
"""

from hashlib import sha256

import numpy as np

from fedmq.simulator.checker.orders import Orders
from fedmq.simulator.checker.payload import Places, Values


class Model:
    """The model as it is now, and what waits to become its next version."""

    def __init__(self, params: Values) -> None:
        self.version = 0
        self.buffered = 0
        self.params = params
        self._total = np.zeros_like(params)
        self._memory: Values | None = None

    @property
    def size(self) -> int:
        """The number of parameters."""
        return int(self.params.size)

    def follow(self, orders: Orders) -> None:
        """Keep the momentum's memory from one specification to the next, if both have one."""
        if not orders.momentum:
            self._memory = None
        elif self._memory is None:
            self._memory = np.zeros_like(self.params)

    def add(self, places: Places, values: Values, weight: float) -> None:
        """Put one update into the buffer."""
        with np.errstate(all="ignore"):
            self._total[places] += np.float32(weight) * values
        self.buffered += 1

    def advance(self, orders: Orders) -> None:
        """Make the next version of what is in the buffer, full or not: always divided by K."""
        with np.errstate(all="ignore"):
            mean = self._total / np.float32(orders.buffer_size)
            if self._memory is not None:
                self._memory = self._memory * np.float32(orders.momentum) + mean
                mean = self._memory
            self.params = self.params + np.float32(orders.server_lr) * mean
        self._total = np.zeros_like(self.params)
        self.version, self.buffered = self.version + 1, 0

    def become(self, params: Values) -> None:
        """The next version is another model; buffer and memory are void."""
        self.params = params
        self._total = np.zeros_like(params)
        if self._memory is not None:
            self._memory = np.zeros_like(params)
        self.version, self.buffered = self.version + 1, 0


def model_digest(tensors: bytes, params: Values) -> bytes:
    """Over spec_digest and parameters (docs/wire.md, section 6)."""
    return sha256(tensors + params.astype("<f4").tobytes()).digest()


def read_params(data: bytes) -> Values:
    """Little-endian float32."""
    return np.frombuffer(data, "<f4").astype(np.float32)
