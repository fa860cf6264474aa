"""A training bundle: all that a device needs to train an ONNX model but parameters and data.

    step     the training step: (x, label, theta) -> (loss, gradient[, buffers]), without weights
    infer    the inference graph, without weights
    manifest what goes in and comes out, the tensors, and the digests of both graphs

`fedmq model import` makes one on the author's machine; here it is packed into one file, which
travels as a blob of the task, and read again: bounded, compared with its digests, and both graphs
looked through (`schemas.onnx_file`) before anything runs them. The initial model is not in it: a
task has that anyhow. Pure.
"""

from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from schemas.onnx_file import IR_VERSIONS, OPSETS, check_graph
from schemas.params import ParamSpec, TensorName

BUNDLE_BYTES_MAX: Final = 64 << 20
"""The largest bundle that is packed or read, in bytes."""

MANIFEST_BYTES_MAX: Final = 1 << 20

SCHEMA: Final = 1
"""Of the manifest."""

EXAMPLE_MAX: Final = 1 << 24
"""Elements of one example, at most."""

Loss: TypeAlias = Literal["cross-entropy", "nll", "bce-with-logits", "mse", "mae", "huber"]
PortType: TypeAlias = Literal["float32", "int64", "int32"]
Hex: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
"""SHA-256, 64 hex digits."""

_Axis: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=EXAMPLE_MAX)]
_Size: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=BUNDLE_BYTES_MAX)]
CLASSES: Final = ("cross-entropy", "nll")
"""The losses whose label is the number of a class."""

_CLASSES_LEAST: Final = 2


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph.

    Attributes:
        name: of the graph's value.
        dtype: of its elements.
        shape: of one example, without the batch axis that stands before it in the graph.
    """

    name: TensorName
    dtype: PortType
    shape: Annotated[tuple[_Axis, ...], msgspec.Meta(max_length=8)] = ()

    def __post_init__(self) -> None:
        """Refuse an example of more than EXAMPLE_MAX elements (ValueError)."""
        if self.size > EXAMPLE_MAX:
            msg = f"{self.name!r} has {self.size} elements an example, more than {EXAMPLE_MAX}"
            raise ValueError(msg)

    @property
    def size(self) -> int:
        """Elements of one example (1 for a scalar)."""
        return prod(self.shape)


class BundleManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is in a bundle.

    Attributes:
        opset: of both graphs; `ir`: their IR version.
        loss: what the step computes of output and label.
        x: the input `x` of both graphs.
        label: the step's input `label`: a class (int64, no shape) with `cross-entropy` and `nll`,
            else float32 in the output's shape.
        output: what the inference graph gives, by the name that the author's model has for it; of
            classes one axis with a score for each.
        params: names, shapes and kinds of the initializers that are missing, in the order of the
            flat vector `theta`.
        step_sha256: of step.onnx, and `step_bytes` its size.
        infer_sha256: of infer.onnx, and `infer_bytes` its size.
    """

    opset: int
    ir: int
    loss: Loss
    x: Port
    label: Port
    output: Port
    params: ParamSpec
    step_sha256: Hex
    step_bytes: _Size
    infer_sha256: Hex
    infer_bytes: _Size
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse what this version does not read, and ports that do not fit (ValueError)."""
        if self.schema != SCHEMA:
            msg = f"a manifest of schema {self.schema}; this fedmq reads {SCHEMA}: update it"
            raise ValueError(msg)
        if self.opset not in OPSETS or self.ir not in IR_VERSIONS:
            msg = f"opset {self.opset} with IR {self.ir} is not read; import the model again"
            raise ValueError(msg)
        classes = self.loss in CLASSES
        wanted = ("int64", ()) if classes else ("float32", self.output.shape)
        found = (self.label.dtype, self.label.shape)
        if self.output.dtype != "float32" or found != wanted:
            msg = f"{self.loss} needs a float32 output and a {wanted[0]} label of shape {wanted[1]}"
            raise ValueError(msg)
        if classes and (len(self.output.shape) != 1 or self.output.size < _CLASSES_LEAST):
            told = f"{self.loss} needs an output of one axis with 2 classes or more"
            raise ValueError(f"{told}, not {self.output.shape}; with one output: bce-with-logits")


class BundleRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bundle of a task, as its specification names it.

    Attributes:
        digest: SHA-256 of the packed bundle, 64 hex digits.
        bytes: its size.
        chunk_bytes: of every chunk but the last.
    """

    digest: Hex
    bytes: _Size
    chunk_bytes: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] = 4096

    @property
    def blob(self) -> str:
        """The name of its blob: `b` and the first 16 digits of its digest."""
        return f"b{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read and checked.

    Attributes:
        step: a serialised ModelProto, as `infer` is.
        digest: SHA-256 of the packed bundle, 64 hex digits.
    """

    manifest: BundleManifest
    step: bytes
    infer: bytes
    digest: str


class _Packed(msgspec.Struct, forbid_unknown_fields=True):
    """The bundle as one file: a MessagePack map of three byte strings."""

    manifest: Annotated[bytes, msgspec.Meta(max_length=MANIFEST_BYTES_MAX)]
    step: bytes
    infer: bytes


def pack_bundle(manifest: BundleManifest, step: bytes, infer: bytes) -> bytes:
    """Lay a bundle out as one file.

    Raises:
        ValueError: the graphs are not those of the manifest, or all is above BUNDLE_BYTES_MAX.
    """
    _check_digests(manifest, step, infer)
    data = msgspec.msgpack.encode(_Packed(msgspec.json.encode(manifest), step, infer))
    _check_size(data)
    return data


def read_bundle(data: bytes) -> Bundle:
    """Read a packed bundle, whoever has sent it.

    Raises:
        ValueError: it is no bundle, larger than BUNDLE_BYTES_MAX, not as its manifest says, or one
            of its graphs is refused by `check_graph`.
    """
    _check_size(data)
    try:
        packed = msgspec.msgpack.decode(data, type=_Packed)
        manifest = msgspec.json.decode(packed.manifest, type=BundleManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        msg = f"these bytes are no bundle: {exc}"
        raise ValueError(msg) from exc
    _check_digests(manifest, packed.step, packed.infer)
    check_graph(packed.step, what="step.onnx")
    check_graph(packed.infer, what="infer.onnx")
    return Bundle(manifest, packed.step, packed.infer, sha256(data).hexdigest())


def ref_of(data: bytes, chunk_bytes: int) -> BundleRef:
    """Name a packed bundle. Raises ValueError: it is empty, or above BUNDLE_BYTES_MAX."""
    _check_size(data)
    return BundleRef(sha256(data).hexdigest(), len(data), chunk_bytes)


def _check_size(data: bytes) -> None:
    if not 0 < len(data) <= BUNDLE_BYTES_MAX:
        bound = f"there are 1 to {BUNDLE_BYTES_MAX}: make the model smaller"
        msg = f"a bundle of {len(data)} bytes; {bound}"
        raise ValueError(msg)


def _check_digests(manifest: BundleManifest, step: bytes, infer: bytes) -> None:
    told = (
        ("step.onnx", step, manifest.step_sha256, manifest.step_bytes),
        ("infer.onnx", infer, manifest.infer_sha256, manifest.infer_bytes),
    )
    for name, graph, digest, size in told:
        if len(graph) != size or sha256(graph).hexdigest() != digest:
            msg = f"{name} is not the file that the manifest tells of; import the model again"
            raise ValueError(msg)
