"""What attackers send instead of their delta d, and who they are. Pure.

label-flip  trains on y -> c - 1 - y (1 - y for a regression); sends what comes of it
sign-flip   -scale d
scaling     scale d (model replacement: Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459)
gaussian    noise with independent normal coordinates and the length scale |d|
alie        m - z s: mean m and standard deviation s, coordinate by coordinate, of the honest deltas
            that the first COLLUDERS attackers of the fleet would send from the same base (Baruch,
            Baruch and Goldberg, "A Little Is Enough", NeurIPS 2019, arXiv 1902.06156, section 3).
            All attackers on one base send the very same; where labels drift, those of one period.
            They know nothing of honest devices' data, so it does not matter who is trained beside
            them.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Final

import numpy as np

from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.batched import Matrix
from fedmq.simulator.virtual.learning.partitions import ATTACK
from fedmq.simulator.virtual.learning.share import Share
from schemas.params import Params

COLLUDERS: Final = 8
COUNTED: Final = 10_000
_MASK: Final = (1 << 64) - 1


def attacks(options: AttackOptions, devices: int, device: int, seed: int) -> bool:
    """Whether a device is one of them: its hash is among the lowest `share` of all.

    In fleets of up to COUNTED devices the share is exact, rounded to whole devices; in larger ones
    it is so on average.
    """
    if options.kind == "none":
        return False
    return _hash_of(device, seed) < _bound(options.share, devices, seed)


@lru_cache(maxsize=64)
def _bound(share: float, devices: int, seed: int) -> int:
    """The lowest hash that is no attacker's."""
    if devices > COUNTED or share == 1:
        return round(share * 2.0**64)
    hashes = sorted(_hash_of(device, seed) for device in range(devices))
    return hashes[min(round(share * devices), devices - 1)]


def _hash_of(device: int, seed: int) -> int:
    return _hashed(_hashed(seed * 0x100 + ATTACK) ^ device)


def colluders(options: AttackOptions, devices: int, seed: int) -> list[int]:
    """The first attackers of the fleet, COLLUDERS at most; where they are rare, a long look."""
    found: Iterator[int] = (d for d in range(devices) if attacks(options, devices, d, seed))
    return list(islice(found, COLLUDERS)) if options.share else []


def flipped(share: Share) -> Share:
    """The same examples with the labels the wrong way round."""
    if share.targets.shape[1] == 1:
        return Share(share.features, 1 - share.targets)
    return Share(share.features, np.ascontiguousarray(share.targets[:, ::-1]))


def pretended(options: AttackOptions, delta: Params, rng: np.random.Generator) -> Params:
    """What is sent instead of `delta`: a fresh vector; label-flip and alie are not made here."""
    match options.kind:
        case "sign-flip":
            return np.float32(-options.scale) * delta
        case "scaling":
            return np.float32(options.scale) * delta
        case "gaussian":
            noise = rng.standard_normal(delta.size, dtype=np.float32)
            length = float(np.linalg.norm(delta)) / float(np.linalg.norm(noise))
            return noise * np.float32(options.scale * length)
        case _:
            return delta


def a_little(deltas: Matrix, z: float) -> Params:
    """ALIE's vector of the colluders' deltas, shape (colluders, size)."""
    wide = deltas.astype(np.float64)
    found: Params = (wide.mean(axis=0) - z * wide.std(axis=0)).astype(np.float32)
    return found


def _hashed(value: int) -> int:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): evenly spread over 64 bits."""
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
