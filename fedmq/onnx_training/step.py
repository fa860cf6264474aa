"""The two graphs of a bundle: the training step, and inference without weights. Pure.

    step    (x, label, theta) -> (loss, gradient[, buffers])

theta and gradient are the flat vector in the order of ParamSpec; the gradient is zero where a
tensor is not trained. buffers are the new values of all tensors that are measured, flat, in that
order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import onnx
from onnx import TensorProto

from fedmq.onnx_training import losses
from fedmq.onnx_training.autodiff import gradients
from fedmq.onnx_training.graph import (
    Builder,
    Net,
    Shape,
    Tensor,
    model_of,
    needed,
    renamed,
    value_info,
)
from fedmq.onnx_training.lowering import Lowered
from fedmq.onnx_training.shapes import tensors
from schemas.bundle import CLASSES, Loss
from schemas.errors import ConfigError
from schemas.params import ParamSpec

RESERVED: Final = ("label", "theta", "loss", "gradient", "buffers")


@dataclass(frozen=True, slots=True)
class Head:
    """What a loss is computed of.

    Attributes:
        loss: which.
        output: what is known of the network's output.
        label: what the label is.
    """

    loss: Loss
    output: Tensor
    label: Tensor


def head_of(net: Net, known: Mapping[str, Tensor], loss: Loss) -> Head:
    """Fit a loss to a network. Raises ConfigError: they do not."""
    output = known.get(net.output)
    if output is None or not output.is_float:
        remedy = "end the graph before what makes it whole numbers (ArgMax, TopK)"
        raise ConfigError("model", f"its output {net.output!r} must be float32: {remedy}")
    if output.shape[:1] != (-1,):
        told = f"its output {net.output!r} has the shape {output.shape} for every batch"
        remedy = "export it with a dynamic batch (dynamic_shapes), or use --torch"
        raise ConfigError("model", f"{told}: {remedy}")
    if any(d < 1 for d in output.shape[1:]):
        raise ConfigError("model", f"its output has a shape that is not fixed: {output.shape}")
    shape = losses.label_shape(loss, output.shape)
    dtype = TensorProto.INT64 if loss in CLASSES else TensorProto.FLOAT
    return Head(loss, output, Tensor((-1, *shape), dtype))


def step_model(lowered: Lowered, head: Head, params: ParamSpec) -> onnx.ModelProto:
    """Differentiate a network, and write the training step.

    Raises:
        ConfigError: an operator has no rule, one refuses its node, or no gradient reaches a tensor
            that is to be trained.
    """
    net, build = _free(lowered.net)
    names = dict(zip(lowered.net.params, net.params, strict=True))
    known = dict(tensors(net))
    tensor_names = [names[tensor.name] for tensor in params.tensors]
    _cut_theta(build, params, tensor_names)
    build.nodes.extend(_copies(net))
    trained = {names[t.name]: t.name for t in params.tensors if t.kind == "trained"}
    lost = losses.write(build, head.loss, net.output, head.output.shape, "label")
    found = gradients(build, known, {net.output: lost.slope}, trained)
    untouched = [trained[name] for name in trained if name not in found]
    if untouched:
        raise ConfigError(
            "model", f"no gradient reaches {', '.join(map(repr, untouched))}: name them as frozen"
        )
    pieces = list(_flat(build, params, {trained[name]: adjoint for name, adjoint in found.items()}))
    _out(build, pieces, "gradient")
    build.nodes.append(onnx.helper.make_node("Identity", [lost.value], ["loss"], name="loss"))
    outputs = [
        value_info("loss", TensorProto.FLOAT, (), "batch"),
        value_info("gradient", TensorProto.FLOAT, (params.size,), "batch"),
    ]
    measured = [t for t in params.tensors if t.kind == "buffer"]
    if measured and lowered.measured:
        flat = [lowered.measured[t.name] for t in measured]
        _out(build, flat, "buffers")
        size = sum(t.size for t in measured)
        outputs.append(value_info("buffers", TensorProto.FLOAT, (size,), "batch"))
    nodes, alive = needed(build.nodes, [value.name for value in outputs])
    inputs = [
        value_info("x", net.x[1].dtype, net.x[1].shape, "batch"),
        value_info("label", head.label.dtype, head.label.shape, "batch"),
        value_info("theta", TensorProto.FLOAT, (params.size,), "batch"),
    ]
    constants = {name: array for name, array in build.constants.items() if name in alive}
    return model_of(nodes, constants, inputs, outputs, net.opset)


def loss_model(net: Net, head: Head) -> onnx.ModelProto:
    """The loss of a network as it was given: (x, label, parameters) -> loss."""
    free, build = _free(net)
    build.nodes.extend(_copies(free))
    lost = losses.write(build, head.loss, free.output, head.output.shape, "label")
    nodes, alive = needed(build.nodes, [lost.value])
    inputs = [
        value_info("x", net.x[1].dtype, net.x[1].shape, "batch"),
        value_info("label", head.label.dtype, head.label.shape, "batch"),
    ]
    inputs += [value_info(n, TensorProto.FLOAT, s, "batch") for n, s in free.params.items()]
    constants = {name: array for name, array in build.constants.items() if name in alive}
    outputs = [value_info(lost.value, TensorProto.FLOAT, (), "batch")]
    return model_of(nodes, constants, inputs, outputs, net.opset)


def infer_model(net: Net, output: Tensor) -> onnx.ModelProto:
    """The network without weights: its parameters are named, and absent."""
    inputs = [value_info("x", net.x[1].dtype, net.x[1].shape, "batch")]
    outputs = [value_info(net.output, output.dtype, output.shape, "batch")]
    return model_of(net.nodes, net.constants, inputs, outputs, net.opset)


def _free(net: Net) -> tuple[Net, Builder]:
    """The same, with the names of the step's inputs and outputs free."""
    names = {name: f"{name}_" for name in RESERVED}
    taken = {name for node in net.nodes for name in [*node.input, *node.output]}
    while taken.intersection(names.values()):
        names = {name: f"{new}_" for name, new in names.items()}
    constants = {names.get(n, n): array for n, array in net.constants.items()}
    params: dict[str, Shape] = {names.get(n, n): shape for n, shape in net.params.items()}
    nodes = tuple(renamed(node, names) for node in net.nodes)
    output = names.get(net.output, net.output)
    build = Builder(constants=dict(constants), taken={names.get(n, n) for n in taken})
    build.taken.update(RESERVED)
    return Net(nodes, constants, net.x, params, output, net.opset), build


def _copies(net: Net) -> list[onnx.NodeProto]:
    return [renamed(node, {}) for node in net.nodes]


def _cut_theta(build: Builder, params: ParamSpec, names: list[str]) -> None:
    """Name the parts of theta as the network names its parameters."""
    flat = [name if len(t.shape) == 1 else build.fresh("flat") for t, name in _zip(params, names)]
    sizes = build.ints(tensor.size for tensor in params.tensors)
    make = onnx.helper.make_node
    if len(flat) == 1:
        build.nodes.append(make("Identity", ["theta"], flat, name="theta"))
    else:
        build.nodes.append(make("Split", ["theta", sizes], flat, name="theta", axis=0))
    for (tensor, name), part in zip(_zip(params, names), flat, strict=True):
        if part != name:
            shape = build.ints(tensor.shape)
            build.nodes.append(make("Reshape", [part, shape], [name], name=name))


def _zip(params: ParamSpec, names: list[str]) -> Iterator[tuple[Tensor, str]]:
    for tensor, name in zip(params.tensors, names, strict=True):
        yield Tensor(tensor.shape, TensorProto.FLOAT), name


def _flat(build: Builder, params: ParamSpec, adjoints: Mapping[str, str]) -> Iterator[str]:
    """Every tensor's adjoint as a vector; neighbours that have none are zeros together."""
    for present, run in groupby(params.tensors, lambda tensor: tensor.name in adjoints):
        tensors_ = list(run)
        if not present:
            size = build.ints([sum(tensor.size for tensor in tensors_)])
            yield build.op("ConstantOfShape", size)
            continue
        for tensor in tensors_:
            adjoint = adjoints[tensor.name]
            flat = len(tensor.shape) == 1
            yield adjoint if flat else build.op("Reshape", adjoint, build.ints([-1]))


def _out(build: Builder, pieces: Sequence[str], name: str) -> None:
    make = onnx.helper.make_node
    if len(pieces) == 1:
        build.nodes.append(make("Identity", pieces, [name], name=name))
    else:
        build.nodes.append(make("Concat", pieces, [name], name=name, axis=0))
