"""What depends on shapes only, computed now. Pure.

Exporters leave arithmetic on shapes behind: the hidden size of a layer, a scale by the square root
of a width, where to reshape to. Every such value is computed for both batches of `shapes`: what is
the same for both is a constant, and a shape that differs in one place reshapes to -1 there. Nothing
that is trained is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fedmq.onnx_training.graph import Array, Net, Shape, Tensor, needed, refuse, renamed, target
from fedmq.onnx_training.shapes import BATCHES, tensors

Values: TypeAlias = tuple[Array, Array]
"""A tensor's content, for either batch."""

ROUNDS: Final = 8
"""A shape that is settled may settle others."""

SIZE_MAX: Final = 256
"""Elements of a value that is followed, at most: shapes and scalars are small."""

ARITHMETIC: Final = frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor"}
    | {"Gather", "Greater", "Identity", "Less", "Max", "Min", "Mul", "Neg", "Not", "Pow", "Range"}
    | {
        "Reciprocal",
        "ReduceProd",
        "Reshape",
        "Slice",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Transpose",
    }
    | {"Unsqueeze", "Where"}
)
"""The operators that are followed."""


def settle(net: Net) -> tuple[Net, dict[str, Tensor]]:
    """Compute what can be; returns the network, and what is known of its tensors.

    Raises ConfigError: the graph contradicts itself for some batch.
    """
    for _ in range(ROUNDS):
        known = tensors(net)
        values = _values(net, known)
        nodes, constants = _replaced(net, known, values)
        if tuple(nodes) == net.nodes:
            break
        kept, alive = needed(nodes, [net.output])
        constants = {name: array for name, array in constants.items() if name in alive}
        net = replace(net, nodes=tuple(kept), constants=constants)
    return net, known


def _values(net: Net, known: Mapping[str, Tensor]) -> dict[str, Values]:
    values: dict[str, Values] = {
        name: (array, array) for name, array in net.constants.items() if array.size <= SIZE_MAX
    }
    for node in net.nodes:
        if node.op_type == "Shape" and node.input[0] in known:
            values[node.output[0]] = _dimensions(node, known[node.input[0]].shape)
        elif node.op_type in ARITHMETIC and _small(node, known):
            given = [values.get(name) for name in node.input if name]
            if all(given):
                values.update(_computed(node, [v for v in given if v], net.opset))
    return values


def _small(node: onnx.NodeProto, known: Mapping[str, Tensor]) -> bool:
    """Whether its outputs are few numbers, for every batch."""
    tensors_ = [known.get(name) for name in node.output]
    return all(
        t is not None and all(d >= 0 for d in t.shape) and np.prod(t.shape) <= SIZE_MAX
        for t in tensors_
    )


def _dimensions(node: onnx.NodeProto, shape: Shape) -> Values:
    told = {attribute.name: attribute.i for attribute in node.attribute}
    cut = shape[told.get("start", 0) : told.get("end", len(shape))]
    one, two = (np.array([-d * b if d < 0 else d for d in cut], np.int64) for b in BATCHES)
    return one, two


def _computed(
    node: onnx.NodeProto, given: Sequence[Values], opset: int
) -> list[tuple[str, Values]]:
    names = [name for name in node.input if name]
    inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names)]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], node.op_type, inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    evaluator = ReferenceEvaluator(model)
    results = [
        evaluator.run(None, dict(zip(names, [v[which] for v in given], strict=True)))
        for which in (0, 1)
    ]
    pairs = zip(*results, strict=True)
    return [
        (name, (np.asarray(one), np.asarray(two)))
        for name, (one, two) in zip(node.output, pairs, strict=True)
    ]


def _replaced(
    net: Net, known: Mapping[str, Tensor], values: Mapping[str, Values]
) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    nodes, constants = [], dict(net.constants)
    for node in net.nodes:
        if all(name in values and _same(values[name]) for name in node.output):
            constants.update((name, values[name][0]) for name in node.output)
            continue
        shape = _shape_to(node, known, values, constants)
        if shape is not None:
            copy = renamed(node, {})
            copy.input[1] = f"{node.output[0]}.shape"
            constants[copy.input[1]] = np.array(shape, np.int64)
            nodes.append(copy)
        elif node.op_type == "AveragePool" and {node.input[0], node.output[0]} <= known.keys():
            nodes.append(_rounded(node, known))
        else:
            nodes.append(node)
    return nodes, constants


def _rounded(node: onnx.NodeProto, known: Mapping[str, Tensor]) -> onnx.NodeProto:
    """An AveragePool that rounds up, as one that is padded: onnxruntime 1.18 counts it wrongly.

    Raises ConfigError: it counts its pads, too.
    """
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if not told.get("ceil_mode"):
        return node
    kernel = told["kernel_shape"]
    pads = told.get("pads") or [0] * 2 * len(kernel)
    if any(pads) and told.get("count_include_pad"):
        refuse(node, "counts its pads and rounds up: pad before it, or round down")
    before, after = (known[name].shape[2:] for name in (node.input[0], node.output[0]))
    ones = [1] * len(kernel)
    strides, dilations = told.get("strides") or ones, told.get("dilations") or ones
    reach = [
        (after[a] - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 - before[a] - pads[a]
        for a in range(len(kernel))
    ]
    pads = [*pads[: len(kernel)], *(max(r, 0) for r in reach)]
    told = {k: v for k, v in told.items() if k not in {"ceil_mode", "count_include_pad"}}
    attributes = [helper.make_attribute(k, v) for k, v in (told | {"pads": pads}).items()]
    copy = renamed(node, {})
    del copy.attribute[:]
    copy.attribute.extend(attributes)
    return copy


def _same(values: Values) -> bool:
    return np.array_equal(*values)


def _shape_to(
    node: onnx.NodeProto,
    known: Mapping[str, Tensor],
    values: Mapping[str, Values],
    constants: Mapping[str, Array],
) -> list[int] | None:
    """A constant shape that a Reshape can have instead of a computed one; None: it has none."""
    if node.op_type != "Reshape" or node.input[1] in constants:
        return None
    if node.output[0] in known:
        shape = known[node.output[0]].shape
        return None if sum(d < 0 for d in shape) > 1 else target(shape)
    if node.input[1] not in values:
        return None
    one, two = (np.asarray(value, np.int64) for value in values[node.input[1]])
    if (one != two).sum() > 1 or (one < 0).any():
        return None
    return [int(d) for d in np.where(one == two, one, -1)]
