"""The model's parameters: one flat float32 vector, and the spec that names its parts.

Refuses everything that is not float32 on the wire; a trainer may use whatever it likes locally.

Every tensor has a kind, which is the mask of what travels:

    trained   learnt by the fleet: its delta travels and is folded by the strategy
    buffer    not trained but measured (BatchNorm's statistics): its delta travels and is averaged
              plainly, without server rate and momentum
    frozen    as the task was created: never trained, never sent up
    local     every device keeps its own: begins as the task's, never leaves the device
"""

from collections.abc import Mapping
from hashlib import sha256
from itertools import accumulate
from math import prod
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError

Params: TypeAlias = NDArray[np.float32]
"""One flat vector of float32, C-contiguous, shape (size,)."""

MAX_PARAMS: Final = 1 << 28
"""256 Mi parameters, 1 GiB of float32: the bound of what is ever allocated for one vector."""

Dim = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARAMS)]
TensorName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, pattern=r"\A[^\x00-\x1f]+\Z")
]
"""No control characters: the digest is written over lines."""


Kind: TypeAlias = Literal["trained", "buffer", "frozen", "local"]
TRAVELLING: Final = ("trained", "buffer")
"""The kinds whose deltas are sent up."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One named tensor: where it lies in the flat vector follows from the order.

    Attributes:
        name: unique within the task, 1 to 128 characters.
        shape: up to 8 dimensions; none is a scalar.
        kind: what becomes of it: the mask of what is trained and what travels.
    """

    name: TensorName
    shape: Annotated[tuple[Dim, ...], msgspec.Meta(max_length=8)] = ()
    kind: Kind = "trained"

    @property
    def size(self) -> int:
        """The number of elements (1 for a scalar)."""
        return prod(self.shape)


class ParamSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names, shapes and kinds of all tensors, in the order of the flat vector.

    Attributes:
        tensors: at least one, 4,096 at most; together no more than MAX_PARAMS elements.
    """

    tensors: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1, max_length=4096)]

    def __post_init__(self) -> None:
        """Refuse repeated names and more than MAX_PARAMS elements (ValueError)."""
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) != len(names):
            msg = "two tensors have the same name"
            raise ValueError(msg)
        if self.size > MAX_PARAMS:
            msg = f"{self.size} parameters are more than the {MAX_PARAMS} that fedmq handles"
            raise ValueError(msg)
        if not self.wire_size:
            msg = "no tensor is trained: nothing would ever travel"
            raise ValueError(msg)

    @property
    def size(self) -> int:
        """The length of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def wire_size(self) -> int:
        """The length of the vector that travels up: trained tensors and buffers, in their order."""
        return sum(tensor.size for tensor in self.tensors if tensor.kind in TRAVELLING)

    @property
    def buffers(self) -> tuple[slice, ...]:
        """Where the buffers lie in the vector that travels."""
        travelling = [tensor for tensor in self.tensors if tensor.kind in TRAVELLING]
        ends = accumulate(tensor.size for tensor in travelling)
        return tuple(
            slice(end - tensor.size, end)
            for tensor, end in zip(travelling, ends, strict=True)
            if tensor.kind == "buffer"
        )

    @property
    def digest(self) -> bytes:
        r"""SHA-256 over `name\\0dim,dim,...\\n` of every tensor in order: 32 bytes.

        A tensor that is not plainly trained adds its kind: `name\\0dim,dim,...\\0kind\\n`.
        """
        return sha256("".join(map(_line, self.tensors)).encode()).digest()

    @property
    def short_digest(self) -> int:
        """The first 2 bytes of `digest`, big-endian: what travels with every update."""
        return int.from_bytes(self.digest[:2], "big")


def _line(tensor: TensorSpec) -> str:
    kind = "" if tensor.kind == "trained" else f"\0{tensor.kind}"
    return f"{tensor.name}\0{','.join(map(str, tensor.shape))}{kind}\n"


def travelling(spec: ParamSpec, flat: Params) -> Params:
    """What of a flat vector travels, shape (spec.wire_size,): itself when all of it does."""
    if spec.wire_size == spec.size:
        return flat
    parts = unflatten(spec, flat)
    return np.concatenate([parts[t.name].reshape(-1) for t in spec.tensors if t.kind in TRAVELLING])


def settled_in(spec: ParamSpec, whole: Params, part: Params) -> Params:
    """Put what travels back into a whole vector: `part` itself when that is all, else a copy."""
    if spec.wire_size == spec.size:
        return part
    flat = whole.copy()
    offset = 0
    for tensor, view in zip(spec.tensors, unflatten(spec, flat).values(), strict=True):
        if tensor.kind in TRAVELLING:
            view.reshape(-1)[:] = part[offset : offset + tensor.size]
            offset += tensor.size
    return flat


def spec_of(tensors: Mapping[str, NDArray[np.generic]]) -> ParamSpec:
    """Describe named arrays, in the mapping's order. Raises ConfigError."""
    specs = [{"name": name, "shape": array.shape} for name, array in tensors.items()]
    try:
        return msgspec.convert({"tensors": specs}, ParamSpec)
    except msgspec.ValidationError as exc:
        raise ConfigError("params", f"{exc}") from exc


def flatten(spec: ParamSpec, tensors: Mapping[str, NDArray[np.generic]]) -> Params:
    """Lay named arrays into one flat float32 vector.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape than the spec says.
    """
    unknown = set(tensors) - {tensor.name for tensor in spec.tensors}
    if unknown:
        msg = f"unknown tensor {min(unknown)!r}"
        raise ValueError(msg)
    flat = np.empty(spec.size, dtype=np.float32)
    offset = 0
    for tensor in spec.tensors:
        if tensor.name not in tensors:
            msg = f"tensor {tensor.name!r} is missing"
            raise ValueError(msg)
        array = np.asarray(tensors[tensor.name])
        if array.shape != tensor.shape:
            msg = f"tensor {tensor.name!r} has shape {array.shape}, the task says {tensor.shape}"
            raise ValueError(msg)
        flat[offset : offset + tensor.size] = array.reshape(-1)
        offset += tensor.size
    return flat


def unflatten(spec: ParamSpec, flat: Params) -> dict[str, Params]:
    """Name the parts of a flat vector: views of it, shaped as the spec says."""
    if flat.shape != (spec.size,):
        msg = f"a vector of shape {flat.shape} does not fit a spec of {spec.size} parameters"
        raise ValueError(msg)
    parts: dict[str, Params] = {}
    offset = 0
    for tensor in spec.tensors:
        parts[tensor.name] = flat[offset : offset + tensor.size].reshape(tensor.shape)
        offset += tensor.size
    return parts


def model_digest(spec_digest: bytes, params: Params) -> bytes:
    """SHA-256 over the spec's digest and the parameters as little-endian float32: 32 bytes.

    Its first 4 bytes (`base_digest`) travel with every update, so that a second "version 57" is
    never mistaken for the first.
    """
    hasher = sha256(spec_digest)
    hasher.update(np.ascontiguousarray(params, dtype="<f4").data)
    return hasher.digest()


def base_digest(digest: bytes) -> int:
    """The first 4 bytes of a model digest, big-endian."""
    return int.from_bytes(digest[:4], "big")
