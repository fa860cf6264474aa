"""Constants folded, while the parameters are inputs: so nothing of them is. Pure.

onnxscript does it: it knows the idioms that exporters leave behind.
"""

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fedmq.onnx_training.graph import Array, Net, Shape, Tensor, needed, refuse, renamed
from schemas.errors import ConfigError

X: Final = "x"
"""What the input is called, whatever it was called."""


def fold(
    model: onnx.ModelProto,
    x: tuple[str, Tensor],
    params: Mapping[str, Shape],
    constants: Mapping[str, Array],
) -> Net:
    """Fold what depends on constants only.

    Args:
        model: it is changed.
        x: the name of its input, and what it is.
        params: the shapes of the parameters, which become inputs.
        constants: the other initializers.

    Raises:
        ConfigError: the graph has control flow, operators of other domains, or names in its way.
    """
    from onnxscript import optimizer  # noqa: PLC0415  # half a second, for who builds only

    name, tensor = x
    graph = model.graph
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    del graph.input[:]
    sizes: list[int | str] = ["batch", *tensor.shape[1:]]
    graph.input.append(helper.make_tensor_value_info(name, tensor.dtype, sizes))
    for param, shape in params.items():
        graph.input.append(helper.make_tensor_value_info(param, TensorProto.FLOAT, shape))
    del graph.value_info[:]
    output = graph.output[0].name
    kind = graph.output[0].type.tensor_type.elem_type
    graph.output[0].CopyFrom(helper.make_tensor_value_info(output, kind, None))
    folded: onnx.ModelProto = optimizer.optimize(model)
    return _read(folded, x, params)


def _read(model: onnx.ModelProto, x: tuple[str, Tensor], params: Mapping[str, Shape]) -> Net:
    graph = model.graph
    opset = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    constants = {t.name: np.array(numpy_helper.to_array(t)) for t in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _content(node)
        else:
            nodes.append(node)
    (output,) = [value.name for value in graph.output]
    names = _names(x[0], [*params, output])
    nodes = [renamed(_plain(node), names) for node in nodes]
    nodes, alive = needed(nodes, [output])
    constants = {names.get(name, name): array for name, array in constants.items()}
    kept = {name: array for name, array in constants.items() if name in alive}
    return Net(tuple(nodes), kept, (X, x[1]), params, output, opset)


def _content(node: onnx.NodeProto) -> Array:
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return np.array(numpy_helper.to_array(value))
    if attribute.name in {"value_int", "value_ints"}:
        return np.array(value, np.int64)
    if attribute.name not in {"value_float", "value_floats"}:
        refuse(node, "holds what is no number: leave it out")
    return np.array(value, np.float32)


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    """Without what only explains it, and without sub-graphs."""
    for attribute in node.attribute:
        if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            refuse(node, "runs a graph of its own: export the model without control flow")
    if node.domain not in {"", "ai.onnx"}:
        refuse(node, f"is of the domain {node.domain!r}: export with standard operators only")
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    return copy


def _names(x: str, kept: Collection[str]) -> dict[str, str]:
    if x != X and X in kept:
        raise ConfigError("model", f"has a parameter or an output named {X!r}: rename it")
    return {X: f"{X}_", x: X}
