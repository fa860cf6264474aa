"""CA2FL: a buffer that is corrected by what every device has sent last.

Wang et al., "Tackling the Data Heterogeneity in Asynchronous Federated Learning with Cached
Update Calibration", ICLR 2024, Algorithm 2. h_i is the cache of device i, h their mean:

    D <- D + delta_i - h_i,   h_i <- delta_i      on every contribution
    when K have come:  v = h + D / K,   w <- w + eta v,   D <- 0
                       h <- the mean of the caches as they are now

so that h of this step is that of before this buffer. Defaults: K = 10, eta = 1, every delta weighs
1. A cache is kept as int8 with one float32 scale, a quarter of the size: it is h_i everywhere, in
the sums, too, so that what is added is what is taken away. h is a sum / N, with N = `fleet_size`,
or 0: the devices cached so far. A device that comes twice in a buffer is corrected by its newest
cache. A contribution whose scale is 0 leaves no cache.

Buffers of the model (statistics) are moved by D / K + h like the others, but at rate 1.
"""

import struct
from collections.abc import Callable, MutableMapping
from typing import Final, cast

import numpy as np

from aggregator.staleness import StalenessWeight, constant
from aggregator.strategies.strategy import (
    Advanced,
    Buffered,
    Contribution,
    Outcome,
    State,
    Strategy,
    Unchanged,
    Views,
)
from schemas.delta import Dense, add_scaled, peak, to_dense
from schemas.names import DeviceId
from schemas.params import Params

CACHE: Final = "cache:"
_LEVELS: Final = 127
_SUMS: Final = frozenset({"caches", "caches_now"})


def ca2fl(
    *,
    buffer_size: int,
    server_lr: float = 1.0,
    fleet_size: int = 0,
    weigh: StalenessWeight | None = None,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
    buffers: tuple[slice, ...] = (),
) -> Strategy:
    """Make the strategy.

    Args:
        buffer_size: K.
        server_lr: eta.
        fleet_size: N; 0: the devices cached so far.
        weigh: S(s).
        example_share: num_examples -> factor in (0, 1].
        buffers: where the vectors hold statistics that are averaged, not trained.
    """
    weighs = weigh or constant()
    rate, size = np.float32(server_lr), np.float32(buffer_size)

    def init(params: Params) -> State:
        names = ("total", *sorted(_SUMS))
        vectors = {"params": params.copy()} | {name: np.zeros_like(params) for name in names}
        return State(0, vectors, scalars={"cached": 0.0})

    def fold(state: State, contribution: Contribution, _views: Views) -> tuple[State, Outcome]:
        weight = weighs(contribution.staleness) * example_share(contribution.num_examples)
        weight *= contribution.scale
        changed = _corrected(state, contribution, weight)
        state = state.with_buffer(state.buffered + 1, state.scalars)
        if state.buffered < buffer_size:
            return state, Buffered(weight, frozenset(changed))
        return advance(state, weight, changed)

    def advance(state: State, weight: float, changed: set[str]) -> tuple[State, Advanced]:
        vectors = state.vectors
        total, caches = vectors["total"], vectors["caches"]
        np.divide(total, size, out=total)
        many = float(fleet_size) or state.scalars["cached"]
        if many:
            np.divide(caches, np.float32(many), out=caches)
            np.add(total, caches, out=total)
        for span in buffers:
            np.add(vectors["params"][span], total[span], out=vectors["params"][span])
            total[span] = 0
        if rate != 1:
            np.multiply(total, rate, out=total)
        np.add(vectors["params"], total, out=vectors["params"])
        total.fill(0)
        np.copyto(caches, vectors["caches_now"])
        scalars = {"cached": float(len(state.packed))}
        state = state.with_buffer(0, scalars).next_version()
        return state, Advanced(weight, frozenset(changed | {"params", "total", "caches"}))

    def flush(state: State) -> tuple[State, Advanced | Unchanged]:
        return advance(state, 0.0, set()) if state.buffered else (state, Unchanged())

    return Strategy(init, fold, flush, forget=_forget)


def _corrected(state: State, contribution: Contribution, weight: float) -> set[str]:
    """Do D += w (delta - h_i) and h_i = delta in place; what has changed."""
    name = f"{CACHE}{contribution.device}"
    old = state.packed.get(name)
    total, now = state.vectors["total"], state.vectors["caches_now"]
    add_scaled(total, contribution.delta, weight)
    if old is not None:
        add_scaled(total, Dense(unpacked(old)), -weight)
    if not contribution.scale:
        return {"total"}
    if old is not None:
        np.subtract(now, unpacked(old), out=now)
    new = packed(to_dense(contribution.delta, total.size))
    np.add(now, unpacked(new), out=now)
    _mutable(state)[name] = new
    return {"total", "caches_now", name}


def _forget(state: State, device: DeviceId) -> tuple[State, frozenset[str]]:
    """Drop a device's cache and take it out of both sums.

    Of one that was renewed in this very buffer, the sum of before keeps what the older one
    differed by, until the buffer is full.
    """
    name = f"{CACHE}{device}"
    old = state.packed.get(name)
    if old is None:
        return state, frozenset()
    del _mutable(state)[name]
    left = float(len(state.packed))
    known = state.scalars["cached"]
    for each in _SUMS:
        vector = state.vectors[each]
        if not left:
            vector.fill(0)
        elif each == "caches_now" or known:
            np.subtract(vector, unpacked(old), out=vector)
    return state.with_buffer(state.buffered, {"cached": min(known, left)}), _SUMS | {name}


def packed(delta: Params) -> bytes:
    """Float32 scale, little-endian, then int8: delta is about q scale, with |q| up to 127."""
    scale = np.float32(peak(delta) / _LEVELS)
    if not scale:
        return bytes(4 + delta.size)
    q = np.clip(np.rint(delta / scale), -_LEVELS, _LEVELS).astype(np.int8)
    return struct.pack("<f", scale) + bytes(q.data)


def unpacked(data: bytes) -> Params:
    """What a cache stands for: float32."""
    scale = np.frombuffer(data, "<f4", 1)[0].astype(np.float32)
    values = np.frombuffer(data, np.int8, offset=4).astype(np.float32)
    np.multiply(values, scale, out=values)
    return values


def _mutable(state: State) -> MutableMapping[str, bytes]:
    """The caches belong to the strategy: whoever made the State gave a dict."""
    return cast("MutableMapping[str, bytes]", state.packed)
