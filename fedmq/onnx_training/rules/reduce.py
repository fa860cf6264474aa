"""Sums, means and extremes over axes. Pure."""

from math import prod
from typing import Final

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def _axes(op: Op) -> list[int]:
    """The axes, which are a constant: anything else would be guessed."""
    axes = op.axes(1)
    if axes:
        return axes
    return [] if op.integer("noop_with_empty_axes", 0) else list(range(op.rank()))


def _kept(op: Op, name: str) -> str:
    """What has the output's shape, with the axes that were reduced as ones."""
    if op.integer("keepdims", 1):
        return name
    axes = _axes(op)
    return op.reshape(name, tuple(1 if a in axes else d for a, d in enumerate(op.shape())))


def spread(op: Op, name: str) -> str:
    """Repeat along the axes that were reduced."""
    g = op.build
    shape, axes = op.shape(), _axes(op)
    if any(shape[a] < 0 for a in axes):
        return g.op("Expand", name, g.op("Shape", op.x))
    return g.op("Expand", name, g.ints(d if a in axes else 1 for a, d in enumerate(shape)))


def reduce_sum(op: Op) -> Adjoints:
    """The adjoint, for each that was summed."""
    return [spread(op, _kept(op, op.dy))]


def reduce_mean(op: Op) -> Adjoints:
    """The adjoint over how many there were."""
    g = op.build
    reduced: Shape = tuple(op.shape()[a] for a in _axes(op))
    if any(d < 0 for d in reduced):
        count = g.op("Div", g.op("Size", op.x), g.op("Size", op.y))
        share = g.op("Div", op.dy, g.op("CastLike", count, op.dy))
    else:
        share = g.op("Mul", op.dy, g.number(1 / prod(reduced)))
    return [spread(op, _kept(op, share))]


def reduce_extreme(op: Op) -> Adjoints:
    """To the largest, or the least; what ties shares it evenly, as torch's amax."""
    g = op.build
    axes = _axes(op)
    hits = g.mask(g.op("Equal", op.x, _kept(op, op.y)))
    share = g.op("Div", _kept(op, op.dy), g.sum(hits, axes, keepdims=True))
    return [g.op("Mul", hits, share)]


def reduce_l2(op: Op) -> Adjoints:
    """The adjoint along x, over the length; nothing where there is no length."""
    g = op.build
    length = g.op("Max", _kept(op, op.y), g.number(1e-12))
    return [g.op("Mul", op.x, g.op("Div", _kept(op, op.dy), length))]


def reduce_log_sum_exp(op: Op) -> Adjoints:
    """The softmax."""
    g = op.build
    share = g.op("Exp", g.op("Sub", op.x, _kept(op, op.y)))
    return [g.op("Mul", share, _kept(op, op.dy))]


RULES: Final[dict[str, Rule]] = {
    "ReduceL2": reduce_l2,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_extreme,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_extreme,
    "ReduceSum": reduce_sum,
}
