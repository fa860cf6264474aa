"""What is said in simpler operators before it is differentiated. Pure.

Recurrent layers are unrolled, BatchNormalization measures its batch where it is asked to, and what
changes nothing is left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto

from fedmq.onnx_training import recurrent
from fedmq.onnx_training.graph import Builder, Net, Tensor, needed, renamed
from fedmq.onnx_training.rules.op import Op

Lowering: TypeAlias = Callable[[Op], list[str] | None]
"""Writes other nodes; returns the names of its outputs, or None: the node stays as it is."""


@dataclass(frozen=True, slots=True)
class Lowered:
    """A network in operators that have rules.

    Attributes:
        net: the network.
        measured: the new value of every statistic of BatchNormalization, by the statistic's name:
            the names of float32 tensors of its shape. Empty unless it was asked for.
    """

    net: Net
    measured: Mapping[str, str]


def lower(net: Net, known: Mapping[str, Tensor], *, batch_statistics: bool) -> Lowered:
    """Rewrite a network.

    Args:
        net: as it was promoted.
        known: shapes and types of its tensors.
        batch_statistics: normalise by the batch's statistics, as in training.

    Raises:
        ConfigError: a recurrent layer, or a normalisation, that cannot be told in simpler terms.
    """
    taken = {name for node in net.nodes for name in node.output}
    build = Builder(constants=dict(net.constants), taken=taken | set(net.constants) | {net.x[0]})
    build.taken.update(net.params)
    names: dict[str, str] = {}
    measured: dict[str, str] = {}
    for original in net.nodes:
        node = renamed(original, names)
        op = Op(node, build, {**known, **_moved(known, names)}, [], frozenset())
        if batch_statistics and node.op_type == "BatchNormalization":
            outputs: list[str] | None = [_of_batch(op, measured)]
        else:
            outputs = LOWERINGS.get(node.op_type, _kept)(op)
        if outputs is None:
            build.nodes.append(node)
        else:
            pairs = zip(original.output, outputs, strict=False)
            names.update((old, new) for old, new in pairs if old)
    output = names.get(net.output, net.output)
    nodes, alive = needed(build.nodes, [output, *measured.values()])
    constants = {name: array for name, array in build.constants.items() if name in alive}
    return Lowered(Net(tuple(nodes), constants, net.x, net.params, output, net.opset), measured)


def _moved(known: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {new: known[old] for old, new in names.items() if old in known}


def _kept(op: Op) -> list[str] | None:
    del op
    return None


def _dropout(op: Op) -> list[str] | None:
    """Nothing is dropped: a model for inference."""
    if op.has(2) and bool(op.constant(2).reshape(-1)[0]):
        op.refuse("is in training mode: export the model for inference")
    return [op.x]


def _cast(op: Op) -> list[str] | None:
    """To float32 what is float32."""
    same = op.y in op.known and op.x in op.known and op.known[op.y].dtype == op.known[op.x].dtype
    return [op.x] if same else None


def _of_batch(op: Op, measured: dict[str, str]) -> str:
    """Normalise by the batch: what the statistics become is told beside it.

    As torch does: the batch's variance is over n where it normalises, over n - 1 where it is kept
    (Ioffe and Szegedy, arXiv 1502.03167). ONNX's momentum is how much of the old is kept.
    """
    g = op.build
    x, scale, bias, *statistics = op.inputs
    for name in statistics:
        if name in measured:
            op.refuse("shares its statistics with another node: give each its own")
    axes = [0, *range(2, op.rank())]
    columns = (op.shape()[1], *[1] * (op.rank() - 2))
    where = g.ints(axes)
    mean = g.op("ReduceMean", x, where)
    centred = g.op("Sub", x, mean)
    variance = g.op("ReduceMean", g.op("Mul", centred, centred), where)
    deviation = g.op("Sqrt", g.op("Add", variance, g.number(op.real("epsilon", 1e-5))))
    factor = g.op("Div", op.reshape(scale, columns), deviation)
    kept = op.real("momentum", 0.9)
    one = g.ints([1])
    count = g.op("Div", g.op("Size", x), g.op("Size", mean))
    fewer = g.op("Max", g.op("Sub", count, one), one)
    real = (g.op("Cast", n, to=TensorProto.FLOAT) for n in (count, fewer))
    unbiased = g.op("Mul", variance, g.op("Div", *real))
    for name, new in zip(statistics, (mean, unbiased), strict=True):
        flat = g.op("Mul", g.op("Reshape", new, g.ints([-1])), g.number(1 - kept))
        measured[name] = g.op("Add", g.op("Mul", name, g.number(kept)), flat)
    return g.op("Add", g.op("Mul", centred, factor), op.reshape(bias, columns))


def zeros(op: Op, name: str, nodes: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor is zeros, of whatever shape."""
    if name in op.build.constants:
        return not np.any(op.build.constants[name])
    node = nodes.get(name)
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        values = [a.t for a in node.attribute]
        return all(not np.any(onnx.numpy_helper.to_array(v)) for v in values)
    return node.op_type in {"Expand", "Cast", "Reshape", "Unsqueeze", "Identity"} and zeros(
        op, node.input[0], nodes
    )


def _recurrent(unroll: Callable[[Op, list[str | None]], list[str]]) -> Lowering:
    def lowering(op: Op) -> list[str] | None:
        nodes = {name: node for node in op.build.nodes for name in node.output}
        states = [
            op.inputs[i] if op.has(i) and not zeros(op, op.inputs[i], nodes) else None
            for i in (5, 6)
        ]
        return unroll(op, states)

    return lowering


LOWERINGS: Final[dict[str, Lowering]] = {
    "Cast": _cast,
    "CastLike": _cast,
    "Dropout": _dropout,
    "GRU": _recurrent(recurrent.gru),
    "Identity": lambda op: [op.x],
    "LSTM": _recurrent(recurrent.lstm),
    "RNN": _recurrent(recurrent.rnn),
}
