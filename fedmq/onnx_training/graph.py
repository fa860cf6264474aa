"""A network as the workshop holds it, and the builder that writes new nodes. Pure.

Shapes are tuples of whole numbers, in which -k stands for "k times the batch": one graph serves
batches of every size, and a rule still knows each dimension.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import ConfigError

Shape: TypeAlias = tuple[int, ...]
"""Dimensions; -k is k times the batch."""

Array: TypeAlias = NDArray[np.generic]
Attribute: TypeAlias = int | float | str | Sequence[int] | Sequence[float]

PRODUCER: Final = "fedmq"


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of a tensor: its shape, and its element type as ONNX numbers it."""

    shape: Shape
    dtype: int

    @property
    def is_float(self) -> bool:
        """Whether it is float32: only such a tensor has a gradient."""
        return self.dtype == TensorProto.FLOAT


@dataclass(frozen=True, slots=True)
class Net:
    """A network without its weights.

    Attributes:
        nodes: in an order in which they can be run.
        constants: arrays by name: neither trained nor sent.
        x: the name of the only input, and what it is.
        params: shapes of the float32 tensors that are inputs, in the order of ParamSpec.
        output: the name of the only output.
        opset: of the domain "", 18 to 20.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, Array]
    x: tuple[str, Tensor]
    params: Mapping[str, Shape]
    output: str
    opset: int

    def model(self, batch: int | str = "batch") -> onnx.ModelProto:
        """An ONNX model of it, whose parameters are inputs, for a batch of this size or name."""
        name, tensor = self.x
        inputs = [value_info(name, tensor.dtype, tensor.shape, batch)]
        inputs += [value_info(n, TensorProto.FLOAT, s, batch) for n, s in self.params.items()]
        outputs = [onnx.ValueInfoProto(name=self.output)]
        return model_of(self.nodes, self.constants, inputs, outputs, self.opset)


def label_of(node: onnx.NodeProto) -> str:
    """What a message calls a node: its name, or that of its first output."""
    return f"{node.op_type} {node.name or node.output[0]!r}"


def refuse(node: onnx.NodeProto, remedy: str) -> NoReturn:
    """Raises ConfigError that names the node."""
    raise ConfigError(f"model: node {label_of(node)}", remedy)


def dims(shape: Shape, batch: int | str) -> list[int | str]:
    """The dimensions with the batch put in; a name stands for every multiple of it.

    Raises ValueError: a multiple of a batch that is but a name.
    """
    if isinstance(batch, int):
        return [-d * batch if d < 0 else d for d in shape]
    if any(d < -1 for d in shape):
        msg = f"a tensor of shape {shape} cannot be told in terms of {batch!r}"
        raise ValueError(msg)
    return [batch if d < 0 else d for d in shape]


def value_info(name: str, dtype: int, shape: Shape, batch: int | str) -> onnx.ValueInfoProto:
    """Declare an input or an output."""
    return helper.make_tensor_value_info(name, dtype, dims(shape, batch))


def model_of(
    nodes: Iterable[onnx.NodeProto],
    constants: Mapping[str, Array],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opset: int,
) -> onnx.ModelProto:
    """A model of one graph, in the oldest format that may hold this opset."""
    initializers = [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()]
    graph = helper.make_graph(list(nodes), PRODUCER, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)]
    version = helper.find_min_ir_version_for(opsets)
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=version, producer_name=PRODUCER
    )


def needed(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes on which these outputs depend, and the names of all that they read."""
    alive = set(outputs)
    kept = []
    for node in reversed(nodes):
        if alive.intersection(node.output):
            alive.update(name for name in node.input if name)
            kept.append(node)
    return kept[::-1], alive


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that reads and writes under other names."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy


@dataclass(slots=True)
class Builder:
    """Writes nodes one after the other; the same node is written once.

    Attributes:
        nodes: in the order in which they were written.
        constants: by name.
        taken: all names that are in use.
    """

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    _made: dict[object, tuple[str, ...]] = field(default_factory=dict)

    def fresh(self, stem: str) -> str:
        """A name that is not in use, and now is."""
        count = len(self.taken)
        while (name := f"{stem}.{count}") in self.taken:
            count += 1
        self.taken.add(name)
        return name

    def ops(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Attribute) -> list[str]:
        """Write a node; returns the names of its outputs."""
        return self._written(kind, inputs, outputs, attributes)

    def _written(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int,
        attributes: Mapping[str, Attribute],
    ) -> list[str]:
        key = (kind, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._made:
            names = tuple(self.fresh(kind) for _ in range(outputs))
            node = helper.make_node(kind, inputs, names, name=names[0])
            made = (helper.make_attribute(n, value) for n, value in attributes.items())
            node.attribute.extend(sorted(made, key=lambda attribute: attribute.name))
            self.nodes.append(node)
            self._made[key] = names
        return list(self._made[key])

    def op(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Write a node of one output; returns its name."""
        return self._written(kind, inputs, 1, attributes)[0]

    def constant(self, array: Array, stem: str = "c") -> str:
        """The name of a constant of this type, shape and content."""
        key = ("", array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            name = self.fresh(stem)
            self.constants[name] = array
            self._made[key] = (name,)
        return self._made[key][0]

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def ints(self, values: Iterable[int]) -> str:
        """A vector of int64: axes, sizes, a shape."""
        return self.constant(np.array(list(values), np.int64))

    def reshape(self, name: str, shape: Shape) -> str:
        """Give a tensor another shape of as many elements.

        Raises ValueError: two of its dimensions grow with the batch.
        """
        return self.op("Reshape", name, self.ints(target(shape)))

    def sum(self, name: str, axes: Sequence[int], *, keepdims: bool = False) -> str:
        """Sum over axes: no axes are no node."""
        if not axes:
            return name
        return self.op("ReduceSum", name, self.ints(axes), keepdims=int(keepdims))

    def sum_to(self, name: str, shape: Shape, to: Shape) -> str:
        """Undo a broadcast: sum a tensor of `shape` down to the shape `to`."""
        if shape == to:
            return name
        lead = len(shape) - len(to)
        axes = list(range(lead))
        axes += [a for a in range(lead, len(shape)) if to[a - lead] == 1 and shape[a] != 1]
        if lead == 0:
            return self.sum(name, axes, keepdims=True)
        summed = self.sum(name, axes)
        return summed if len(axes) == lead else self.reshape(summed, to)

    def zeros_like(self, name: str) -> str:
        """Zeros in the shape of a float32 tensor."""
        return self.op("ConstantOfShape", self.op("Shape", name))

    def mask(self, condition: str) -> str:
        """A condition as 0.0 and 1.0: cheaper to multiply with than Where."""
        return self.op("Cast", condition, to=TensorProto.FLOAT)

    def total(self, names: Sequence[str]) -> str:
        """The sum of tensors of one shape."""
        return names[0] if len(names) == 1 else self.op("Sum", *names)


def target(shape: Shape) -> list[int]:
    """A shape as the operator Reshape takes it.

    Raises ValueError: two of its dimensions grow with the batch.
    """
    if sum(d < 0 for d in shape) > 1:
        msg = f"a tensor of shape {shape} grows with the batch in two dimensions"
        raise ValueError(msg)
    return [-1 if d < 0 else d for d in shape]
