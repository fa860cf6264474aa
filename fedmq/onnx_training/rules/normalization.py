"""Normalisation, and the softmax. Pure.

With x' = (x - mean) / deviation and h = dy scale:

    dx = (h - mean(h) - x' mean(h x')) / deviation

where the means are over the axes over which x was normalised.
"""

from collections.abc import Sequence
from typing import Final

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def batch_normalization(op: Op) -> Adjoints:
    """With fixed statistics: an affine function of each channel.

    Statistics of the batch are lowered before (`lowering`), and are no business of this rule.
    """
    g = op.build
    x, scale, _, mean, variance = op.inputs
    columns: Shape = (op.shape()[1], *[1] * (op.rank() - 2))
    axes = [0, *range(2, op.rank())]
    epsilon = g.number(op.real("epsilon", 1e-5))
    spread = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, epsilon)))
    dx = dscale = dbias = None
    if op.wants(0):
        factor = op.reshape(g.op("Mul", scale, spread), columns)
        dx = g.op("Mul", op.dy, factor)
    if op.wants(1):
        centred = g.op("Sub", x, op.reshape(mean, columns))
        dscale = g.op("Mul", g.sum(g.op("Mul", op.dy, centred), axes), spread)
    if op.wants(2):
        dbias = g.sum(op.dy, axes)
    if op.wants(3) or op.wants(4):
        op.refuse("its statistics are no initializers of their own: an exporter merges equal ones")
    return [dx, dscale, dbias]


def layer_normalization(op: Op) -> Adjoints:
    """Over the axes from `axis` on; the forward node tells mean and deviation."""
    first = op.integer("axis", -1) % op.rank()
    axes = list(range(first, op.rank()))
    mean, spread = op.output(1), op.output(2)
    g = op.build
    normal = g.op("Mul", g.op("Sub", op.x, mean), spread)
    dscale = op.sum_to(g.op("Mul", op.dy, normal), 1) if op.wants(1) else None
    dbias = op.sum_to(op.dy, 2) if op.wants(2) else None
    dx = None
    if op.wants(0):
        dx = _through(op, g.op("Mul", op.dy, op.inputs[1]), normal, spread, axes)
    return [dx, dscale, dbias]


def instance_normalization(op: Op) -> Adjoints:
    """Of each channel of each example; GroupNorm is exported as this."""
    g = op.build
    axes = list(range(2, op.rank()))
    columns: Shape = (op.shape()[1], *[1] * len(axes))
    where = g.ints(axes)
    centred = g.op("Sub", op.x, g.op("ReduceMean", op.x, where))
    variance = g.op("ReduceMean", g.op("Mul", centred, centred), where)
    variance = g.op("Add", variance, g.number(op.real("epsilon", 1e-5)))
    spread = g.op("Reciprocal", g.op("Sqrt", variance))
    normal = g.op("Mul", centred, spread)
    dscale = g.sum(g.op("Mul", op.dy, normal), [0, *axes]) if op.wants(1) else None
    dbias = g.sum(op.dy, [0, *axes]) if op.wants(2) else None
    dx = None
    if op.wants(0):
        scale = op.reshape(op.inputs[1], columns)
        dx = _through(op, g.op("Mul", op.dy, scale), normal, spread, axes)
    return [dx, dscale, dbias]


def _through(op: Op, h: str, normal: str, spread: str, axes: Sequence[int]) -> str:
    g = op.build
    where = g.ints(axes)
    along = g.op("Mul", normal, g.op("ReduceMean", g.op("Mul", h, normal), where))
    rest = g.op("Sub", g.op("Sub", h, g.op("ReduceMean", h, where)), along)
    return g.op("Mul", rest, spread)


def softmax(op: Op) -> Adjoints:
    """The adjoint is y (dy - sum(y dy))."""
    g = op.build
    weighted = g.op("Mul", op.dy, op.y)
    total = g.sum(weighted, [op.integer("axis", -1) % op.rank()], keepdims=True)
    return [g.op("Sub", weighted, g.op("Mul", op.y, total))]


def log_softmax(op: Op) -> Adjoints:
    """The adjoint is dy - e^y sum(dy)."""
    g = op.build
    total = g.sum(op.dy, [op.integer("axis", -1) % op.rank()], keepdims=True)
    return [g.op("Sub", op.dy, g.op("Mul", g.op("Exp", op.y), total))]


RULES: Final[dict[str, Rule]] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": log_softmax,
    "Softmax": softmax,
}
