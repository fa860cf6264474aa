"""An ONNX file, looked into without the `onnx` package: whether it is safe to load, and filled.

`check_graph` goes through the protobuf of a model that came over the air before onnxruntime sees
it, one level after the other and to no depth that the file chooses. It knows every field that IR 10
has and refuses the rest: what could read another file, run another library, or hide a graph in a
graph (`schemas.onnx_fields`). The bytes may be no second format besides: onnxruntime takes a file
with its own mark for one of its own, whatever else it is.

`with_parameters` gives a graph without weights its tensors. A field that occurs twice in a protobuf
message is merged with the first ("Last One Wins", the encoding specification), so a second model
with nothing but initializers is written behind the first, and no parser is needed. Pure.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.onnx_fields import (
    ATTRIBUTE,
    ELSEWHERE,
    GRAPH,
    MODEL,
    NODE,
    OPSET,
    PORT,
    TENSOR,
    Message,
)
from schemas.protobuf import Value, fields, head, number

OPSETS: Final = range(18, 21)
"""Operator sets that are read: onnxruntime from 1.18 on has them all."""

IR_VERSIONS: Final = range(4, 11)
"""Before 4 every initializer had to be an input; onnxruntime 1.18 knows none after 10."""

NODES_MAX: Final = 1 << 16
FIELDS_MAX: Final = 1 << 19
"""Fields that are looked at, so that no file takes long: half a second on a PC."""

NOTES_BYTES_MAX: Final = 1 << 16
"""Of metadata_props, doc_string, producer and names of the whole together: nobody runs them."""

MODEL_BYTES_MAX: Final = (1 << 31) - 1
"""No protobuf message is larger."""

_DOMAINS: Final = (b"", b"ai.onnx")
_RUNTIMES_OWN: Final = b"ORTM"
"""From byte 4 on: onnxruntime's own format, a flatbuffer with this identifier."""

_FLOAT: Final = 1
_GRAPH_FIELD: Final = 7
_NOTES_FIELD: Final = 14
_INITIALIZER_FIELD: Final = 5


def check_graph(data: bytes, *, what: str) -> None:
    """Refuse a model that is not to be loaded from strangers, or not by every onnxruntime.

    Args:
        data: a serialised ModelProto; its initializers may be missing.
        what: how the refusal calls it, e.g. `step.onnx`.

    Raises:
        ValueError: IR version outside IR_VERSIONS; an operator set outside OPSETS, or of another
            domain than ONNX' own; more than NODES_MAX nodes; sub-graphs, functions, sparse or
            external tensors; notes above NOTES_BYTES_MAX; fields that IR 10 does not have; bytes
            that are no ONNX, or onnxruntime's own format too. It names the node, and what to do.
    """
    if data[4:8] == _RUNTIMES_OWN:
        msg = f"{what}: the file is in onnxruntime's own format (ORT); give it as ONNX"
        raise ValueError(msg)
    _Look(what).model(memoryview(data))


def with_parameters(
    infer: bytes, tensors: Mapping[str, NDArray[np.float32]], notes: Mapping[str, str] | None = None
) -> bytes:
    """A plain ONNX model: a graph without weights, and these as its initializers.

    Args:
        infer: a serialised ModelProto that names the tensors and does not have them.
        tensors: float32, by the initializers' names.
        notes: what its metadata tell besides.

    Raises:
        ValueError: the graph has a tensor of that name already; one is not float32; the whole is
            larger than MODEL_BYTES_MAX.
    """
    there = _initializers(memoryview(infer))
    pieces: list[bytes | memoryview] = []
    for name, array in tensors.items():
        if name in there:
            msg = f"the graph has a tensor {name!r} of its own: give it to one without weights"
            raise ValueError(msg)
        if array.dtype != np.float32:
            msg = f"tensor {name!r} is {array.dtype}, not float32"
            raise ValueError(msg)
        pieces += _initializer(name, array)
    graph = sum(map(len, pieces))
    told = [_note(key, value) for key, value in (notes or {}).items()]
    whole = [infer, head(_GRAPH_FIELD, graph), *pieces, *told]
    if sum(map(len, whole)) > MODEL_BYTES_MAX:
        msg = f"{graph} bytes of tensors are more than an ONNX file of one piece can hold"
        raise ValueError(msg)
    return b"".join(whole)


def _note(key: str, value: str) -> bytes:
    """A ModelProto's field metadata_props: a message of key and value."""
    texts = ((1, key.encode()), (2, value.encode()))
    body = b"".join(head(field, len(text)) + text for field, text in texts)
    return head(_NOTES_FIELD, len(body)) + body


def _initializer(name: str, array: NDArray[np.float32]) -> list[bytes | memoryview]:
    """A GraphProto's field: one TensorProto."""
    raw = np.ascontiguousarray(array, dtype="<f4").reshape(-1).view(np.uint8).data
    text = name.encode()
    dims = b"".join(number(1, size) for size in array.shape)
    before = b"".join((dims, number(2, _FLOAT), head(8, len(text)), text, head(9, len(raw))))
    return [head(_INITIALIZER_FIELD, len(before) + len(raw)), before, raw]


def _initializers(model: memoryview) -> set[str]:
    """The names of a model's own tensors."""
    return {
        _text(name)
        for graph in _inner(model, _GRAPH_FIELD)
        for tensor in _inner(graph, _INITIALIZER_FIELD)
        for name in _inner(tensor, 8)
    }


def _inner(message: memoryview, field: int) -> Iterator[memoryview]:
    for found, _, value in fields(message):
        if found == field and isinstance(value, memoryview):
            yield value


class _Look:
    """One look at one file: what was seen so far."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen = 0
        self._nodes = 0
        self._notes = 0

    def _refuse(self, where: str, why: str) -> ValueError:
        return ValueError(f"{self._what}: {where} {why}")

    def _fields(
        self, message: memoryview, kind_of: Message, where: str
    ) -> Iterator[tuple[int, Value]]:
        """The fields of a message, none that is not known."""
        walk = fields(message)
        while True:
            try:
                field, kind, value = next(walk)
            except StopIteration:
                return
            except ValueError as exc:
                raise self._refuse(where, f"is no ONNX: {exc}") from exc
            self._seen += 1
            if self._seen > FIELDS_MAX:
                raise self._refuse(
                    "the file", f"has more than {FIELDS_MAX} fields; make it smaller"
                )
            if field in kind_of.refused:
                raise self._refuse(where, kind_of.refused[field])
            if kind not in kind_of.known.get(field, ()):
                remedy = "export it with opset 18 to 20 and IR 10 at most"
                raise self._refuse(where, f"has a field {field} that is not understood; {remedy}")
            yield field, value

    def _note(self, value: Value) -> None:
        self._notes += _bytes(value).nbytes
        if self._notes > NOTES_BYTES_MAX:
            remedy = "clear metadata_props, doc_string and producer_name"
            raise self._refuse(
                "the file", f"has more than {NOTES_BYTES_MAX} bytes of notes; {remedy}"
            )

    def model(self, message: memoryview) -> None:
        """A ModelProto. A field may come twice: then both are looked at."""
        versions, opsets, graphs = 0, 0, 0
        for field, value in self._fields(message, MODEL, "the file"):
            match field:
                case 1:
                    versions += 1
                    self._ir(value)
                case 2 | 3 | 4 | 6 | 14:
                    self._note(value)
                case 7:
                    graphs += 1
                    self._graph(_bytes(value))
                case 8:
                    opsets += 1
                    self._opset(_bytes(value))
        if not (versions and opsets and graphs):
            raise self._refuse("the file", "is no ONNX model: it has no graph, or no version")

    def _ir(self, value: Value) -> None:
        if value not in IR_VERSIONS:
            told = f"has IR version {value}; from {IR_VERSIONS[0]} to {IR_VERSIONS[-1]} are read"
            raise self._refuse("the file", f"{told}: set model.ir_version and save it again")

    def _opset(self, message: memoryview) -> None:
        domain, version = b"", 0
        for field, value in self._fields(message, OPSET, "an opset_import"):
            if field == 1:
                domain = bytes(_bytes(value))
            elif isinstance(value, int):
                version = value
        if domain not in _DOMAINS:
            remedy = "use ONNX' own operators, and drop the import"
            raise self._refuse("the file", f"imports operators of {_shown(domain)}; {remedy}")
        if version not in OPSETS:
            told = f"has opset {version}; {OPSETS[0]} to {OPSETS[-1]} are read"
            raise self._refuse("the file", f"{told}: convert it (onnx.version_converter)")

    def _graph(self, message: memoryview) -> None:
        for field, value in self._fields(message, GRAPH, "the graph"):
            match field:
                case 1:
                    self._node(_bytes(value))
                case 5:
                    self._tensor(_bytes(value), "an initializer")
                case 2 | 10 | 16:
                    self._note(value)
                case 11 | 12 | 13:
                    self._port(_bytes(value))

    def _port(self, message: memoryview) -> None:
        for field, value in self._fields(message, PORT, "an input or output"):
            if field in {3, 4}:
                self._note(value)

    def _node(self, message: memoryview) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            remedy = "unroll less, or make the model smaller"
            raise self._refuse("the graph", f"has more than {NODES_MAX} nodes; {remedy}")
        found = list(self._fields(message, NODE, f"node number {self._nodes}"))
        texts = {field: bytes(_bytes(value)) for field, value in found if field in {3, 4}}
        where = f"node {_shown(texts.get(3, b''))} ({_text(texts.get(4, b'?'))[:48]})"
        for field, value in found:
            match field:
                case 5:
                    self._attribute(_bytes(value), where)
                case 6 | 9:
                    self._note(value)
                case 7 if bytes(_bytes(value)) not in _DOMAINS:
                    told = f"is an operator of {_shown(_bytes(value))}"
                    raise self._refuse(where, f"{told}; use ONNX' own operators")
                case 8 if _bytes(value):
                    remedy = "inline the functions (onnx.inliner)"
                    raise self._refuse(where, f"calls one of several functions; {remedy}")

    def _attribute(self, message: memoryview, node: str) -> None:
        for field, value in self._fields(message, ATTRIBUTE, node):
            match field:
                case 5 | 10:
                    self._tensor(_bytes(value), f"a tensor of {node}")
                case 13:
                    self._note(value)

    def _tensor(self, message: memoryview, where: str) -> None:
        try:
            for field, value in self._fields(message, TENSOR, where):
                if field == 14 and value:
                    raise self._refuse(where, ELSEWHERE)
                if field in {12, 16}:
                    self._note(value)
        except ValueError as exc:
            name = _name_of(message)
            raise ValueError(f"{exc} (tensor {_shown(name)})" if name else f"{exc}") from exc


def _name_of(tensor: memoryview) -> memoryview | None:
    """The name of a tensor that is refused, if it is among the first fields."""
    try:
        found = [value for field, _, value in islice(fields(tensor), 64) if field == 8]
    except ValueError:
        return None
    return _bytes(found[-1]) if found else None


def _bytes(value: Value) -> memoryview:
    """Of a field whose kind is known to be bytes."""
    return value if isinstance(value, memoryview) else memoryview(b"")


def _text(value: bytes | memoryview) -> str:
    return bytes(value).decode(errors="replace")


def _shown(name: bytes | memoryview) -> str:
    return repr(_text(name[:256])[:64])
