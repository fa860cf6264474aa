"""What other systems would have put on the wire for the same update: their serialisations, no more.

Their own heads, gRPC frames and HTTP are not counted, so every figure is a floor. What is counted
follows from their sources as read in 2026 (releases of that year):

    Flower              an .npy per tensor inside a protobuf
    NVFlare edge        tensors as JSON lists of Python floats
    FedML               pickle of a dictionary of arrays, on S3, MQTT carrying its key
    OpenFL, STC         top 10 % of each tensor, ternary codes as float32, gzip
    QAFeL 4-bit         4 bits a coordinate and a norm, both ways
"""

import gzip
import io
import json
from collections.abc import Callable, Mapping
from pickle import HIGHEST_PROTOCOL, dumps  # noqa: TID251 - measured only: nothing is unpickled
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np

from schemas.params import Params, ParamSpec, unflatten

Tensors: TypeAlias = Mapping[str, Params]


def _flower(tensors: Tensors) -> int:
    total = 0
    for tensor in tensors.values():
        stream = io.BytesIO()
        np.save(stream, tensor, allow_pickle=False)
        total += stream.tell()
    return total


def _nvflare_edge(tensors: Tensors) -> int:
    return len(json.dumps({name: tensor.tolist() for name, tensor in tensors.items()}))


def _fedml(tensors: Tensors) -> int:
    return len(dumps(dict(tensors), protocol=HIGHEST_PROTOCOL))


def _openfl_stc(tensors: Tensors) -> int:
    total = 0
    for tensor in tensors.values():
        flat = tensor.reshape(-1)
        count = -(-flat.size // 10)
        kept = np.argsort(np.abs(flat))[flat.size - count :]
        codes = np.ones(flat.size, dtype=np.float32)
        codes[kept] += np.sign(flat[kept])
        total += len(gzip.compress(codes.tobytes()))
    return total


def _qafel_4_bit(tensors: Tensors) -> int:
    size = sum(tensor.size for tensor in tensors.values())
    return -(-size // 2) + 4


OTHERS: Final[Mapping[str, Callable[[Tensors], int]]] = MappingProxyType(
    {
        "Flower (npy)": _flower,
        "NVFlare edge (JSON)": _nvflare_edge,
        "FedML (pickle)": _fedml,
        "OpenFL STC 10 %": _openfl_stc,
        "QAFeL 4-bit": _qafel_4_bit,
    }
)


def sizes(spec: ParamSpec, delta: Params) -> dict[str, int]:
    """Bytes of one update, by system."""
    tensors = unflatten(spec, delta)
    return {name: size(tensors) for name, size in OTHERS.items()}
