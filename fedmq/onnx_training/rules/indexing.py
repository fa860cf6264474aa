"""What picks by index. Pure."""

from typing import Final

import numpy as np

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule
from fedmq.onnx_training.rules.shape import scattered


def gather(op: Op) -> Adjoints:
    """Add every adjoint to where its value came from: an embedding, or places of an axis."""
    axis = op.integer("axis", 0) % op.rank()
    if op.inputs[1] in op.build.constants and (axis or op.constant(1).size == 1):
        return [_constant(op, axis)]
    if axis:
        op.refuse("indices that are computed must be along axis 0: transpose before it")
    g = op.build
    last = g.op("Unsqueeze", op.inputs[1], g.ints([-1]))
    zeros = _zeros(op)
    return [g.op("ScatterND", zeros, last, op.dy, reduction="add")]


def _zeros(op: Op) -> str:
    if any(d < 0 for d in op.shape()):
        return op.build.zeros_like(op.x)
    return op.build.op("ConstantOfShape", op.build.ints(op.shape()))


def _constant(op: Op, axis: int) -> str:
    g = op.build
    shape = op.shape()
    (size,) = op.fixed((shape[axis],))
    indices = np.asarray(op.constant(1)).astype(np.int64) % size
    flat: Shape = (*shape[:axis], indices.size, *shape[axis + 1 :])
    dy = op.reshape(op.dy, flat) if flat != op.out else op.dy
    flat_indices = indices.reshape(-1)
    if flat_indices.size > 1:
        return scattered(op, dy, flat, flat_indices, axis)
    place = int(flat_indices[0])
    front, back = [0] * len(shape), [0] * len(shape)
    front[axis], back[axis] = place, size - place - 1
    return g.op("Pad", dy, g.ints([*front, *back]))


def gather_elements(op: Op) -> Adjoints:
    """Add every adjoint to where its value came from."""
    g = op.build
    axis = op.integer("axis", 0)
    return [g.op("ScatterElements", _zeros(op), op.inputs[1], op.dy, axis=axis, reduction="add")]


def gather_nd(op: Op) -> Adjoints:
    """Add every adjoint to where its value came from."""
    if op.integer("batch_dims", 0):
        op.refuse("batch_dims must be 0")
    return [op.build.op("ScatterND", _zeros(op), op.inputs[1], op.dy, reduction="add")]


RULES: Final[dict[str, Rule]] = {
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
}
