"""An ONNX model as a network whose parameters are inputs. Pure.

First float32 initializers become inputs, then constants are folded: so nothing that is trained is
ever folded away, tied to an equal one, or merged with its neighbour. What was an initializer before
is a parameter; what folding makes of constants is not, though it looks the same.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, version_converter

from fedmq.onnx_training.folding import fold
from fedmq.onnx_training.graph import Array, Net, Shape, Tensor, label_of, needed, refuse
from schemas.errors import ConfigError
from schemas.onnx_file import OPSETS

CONSTANT_INPUTS: Final = frozenset(
    {
        ("Clip", 1),
        ("Clip", 2),
        ("Dropout", 1),
        ("Dropout", 2),
        ("OneHot", 2),
        ("Pad", 2),
        ("Pow", 1),
    }
    | {(kind, i) for kind in ("Greater", "Less", "Equal") for i in (0, 1)}
    | {
        ("GreaterOrEqual", 1),
        ("LessOrEqual", 1),
        ("Resize", 1),
        ("Resize", 2),
        ("Range", 0),
        ("Range", 1),
        ("Range", 2),
    }
)
"""Where a float32 initializer is a setting of the node, and never a parameter."""

STATISTICS: Final = (3, 4)
"""The inputs of BatchNormalization that are measured, not trained."""

_FLOATS: Final = (TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
PARTS: Final = ("Slice", "Split", "Gather", "Shape")
"""Operators by which exporters take a parameter apart: that shares nothing."""

_IR_MIN: Final = 4
"""From here on an initializer need not be an input, too."""

_LARGE: Final = 64
_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Promoted:
    """A network and its parameters.

    Attributes:
        net: without weights.
        theta0: the initializers' values, float32, by their names, in their order.
        statistics: the names of those that BatchNormalization measures.
        notes: sentences about what may be meant otherwise.
    """

    net: Net
    theta0: Mapping[str, NDArray[np.float32]]
    statistics: frozenset[str]
    notes: tuple[str, ...]


def promote(model: onnx.ModelProto, *, x_shape: Shape | None = None) -> Promoted:
    """Read a model of one input and one output.

    Args:
        model: with its weights inside; it is not changed.
        x_shape: of one example, where the model leaves dimensions open.

    Raises:
        ConfigError: what it is, and what to do, when it cannot be trained.
    """
    model = _converted(_checked(model))
    theta0, constants = _sorted(model.graph)
    _float32_only(model.graph, constants)
    statistics = _statistics(model.graph.node, theta0)
    x = _input(model.graph, x_shape)
    net = fold(model, x, {name: array.shape for name, array in theta0.items()}, constants)
    notes = [*_shared(model.graph.node, theta0), *_odd(model.graph, theta0)]
    _, alive = needed(net.nodes, [net.output])
    unused = [name for name in theta0 if name not in alive]
    if unused:
        notes.append(f"left out, for the output does not depend on them: {', '.join(unused)}")
    theta0 = {name: array for name, array in theta0.items() if name in alive}
    params = {name: shape for name, shape in net.params.items() if name in alive}
    net = Net(net.nodes, net.constants, net.x, params, net.output, net.opset)
    return Promoted(net, theta0, statistics & set(theta0), tuple(notes))


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ConfigError(
                "model", f"keeps {tensor.name!r} in another file: load it with its external data"
            )
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1 or len(graph.output) != 1:
        sides = ("input", inputs), ("output", graph.output)
        told = ["{}: {}".format(k, ", ".join(v.name for v in vs) or "none") for k, vs in sides]
        raise ConfigError("model", f"must have one input and one output; {'; '.join(told)}")
    if graph.sparse_initializer:
        raise ConfigError("model", "has sparse initializers: store them dense")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, _IR_MIN)
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same at an opset of ours."""
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    if opset in OPSETS:
        return model
    nearest = OPSETS[0] if opset < OPSETS[0] else OPSETS[-1]
    try:
        return version_converter.convert_version(model, nearest)
    except (version_converter.ConvertError, RuntimeError, ValueError) as exc:
        raise ConfigError(
            "model", f"is of opset {opset}, and cannot be converted: export it at opset 18 ({exc})"
        ) from exc


def _sorted(
    graph: onnx.GraphProto,
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Array]]:
    """Parameters, and initializers that are none."""
    settings = {
        name
        for node in graph.node
        for index, name in enumerate(node.input)
        if (node.op_type, index) in CONSTANT_INPUTS
    }
    theta0: dict[str, NDArray[np.float32]] = {}
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        is_param = tensor.data_type == TensorProto.FLOAT and array.size
        if is_param and tensor.name not in settings:
            theta0[tensor.name] = np.array(array, np.float32)
        else:
            constants[tensor.name] = array
    if not theta0:
        others = sorted({TensorProto.DataType.Name(t.data_type).lower() for t in graph.initializer})
        found = f" ({', '.join(others)} there are: export it as float32)" if others else ""
        raise ConfigError("model", f"has no float32 initializers{found}: nothing can be trained")
    return theta0, constants


def _float32_only(graph: onnx.GraphProto, constants: Mapping[str, Array]) -> None:
    for tensor in graph.initializer:
        if tensor.data_type in _FLOATS and constants[tensor.name].size > 1:
            raise ConfigError(
                "model", f"has {tensor.name!r} in another precision: export it in float32"
            )


def _statistics(nodes: Iterable[onnx.NodeProto], params: Collection[str]) -> frozenset[str]:
    found: set[str] = set()
    for node in nodes:
        if node.op_type == "BatchNormalization":
            names = [node.input[i] for i in STATISTICS]
            if any(a.name == "training_mode" and a.i for a in node.attribute):
                refuse(node, "is in training mode: export the model for inference, as .eval()")
            found.update(name for name in names if name in params)
    return frozenset(found)


def _input(graph: onnx.GraphProto, x_shape: Shape | None) -> tuple[str, Tensor]:
    (value,) = graph.input
    kind = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else 0 for d in kind.shape.dim]
    if x_shape is not None:
        shape = [-1, *x_shape]
    if len(shape) < 1 or any(d <= 0 for d in shape[1:]):
        raise ConfigError(
            "model",
            f"its input {value.name!r} has open dimensions besides the batch: tell the shape of "
            "one example",
        )
    if kind.elem_type not in {TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32}:
        raise ConfigError("model", f"its input {value.name!r} must be float32, int64 or int32")
    return value.name, Tensor((-1, *shape[1:]), kind.elem_type)


def _shared(nodes: Iterable[onnx.NodeProto], params: Collection[str]) -> list[str]:
    whole = [node for node in nodes if node.op_type not in PARTS]
    uses = Counter(name for node in whole for name in dict.fromkeys(node.input) if name in params)
    shared = [repr(name) for name, count in uses.items() if count > 1]
    if not shared:
        return []
    more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
    told = f"used by several nodes and trained as one: {', '.join(shared[:_NAMED])}{more}. "
    remedy = "Right when the model ties them, wrong when its exporter merged equal ones"
    return [f"{told}{remedy} (torch.onnx.export: pass optimize=False)"]


def _odd(graph: onnx.GraphProto, params: Mapping[str, NDArray[np.float32]]) -> list[str]:
    notes = [
        f"{name!r} is a single number and is trained: name it as frozen if it is a constant"
        for name, array in params.items()
        if array.shape == ()
    ]
    for node in graph.node:
        for attribute in node.attribute:
            tensor = attribute.t
            if node.op_type == "Constant" and tensor.data_type == TensorProto.FLOAT:
                size = numpy_helper.to_array(tensor).size
                if size > _LARGE:
                    notes.append(
                        f"{label_of(node)} holds {size} numbers that are not trained: only "
                        "initializers are"
                    )
    return notes
