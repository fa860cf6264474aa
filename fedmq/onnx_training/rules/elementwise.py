"""Arithmetic with broadcasting. Pure."""

from typing import Final

import numpy as np

from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def add(op: Op) -> Adjoints:
    """Of x + z, each gets the adjoint, summed where it was broadcast."""
    return [op.sum_to(op.dy, i) if op.wants(i) else None for i in range(len(op.inputs))]


def sub(op: Op) -> Adjoints:
    """Of x - z: the second's is negative."""
    x, z = add(op)
    return [x, op.build.op("Neg", z) if z else None]


def mul(op: Op) -> Adjoints:
    """Of x z: each is scaled by the other."""
    a, b = op.inputs
    return [
        op.sum_to(op.build.op("Mul", op.dy, other), i) if op.wants(i) else None
        for i, other in enumerate((b, a))
    ]


def div(op: Op) -> Adjoints:
    """Of x / z: the second's is -y dy / z."""
    g, z = op.build, op.inputs[1]
    dx = g.op("Div", op.dy, z)
    first = op.sum_to(dx, 0) if op.wants(0) else None
    if not op.wants(1):
        return [first]
    return [first, g.op("Neg", op.sum_to(g.op("Mul", dx, op.y), 1))]


def power(op: Op) -> Adjoints:
    """Of x ** p with a constant p: p x**(p-1) dy."""
    g = op.build
    exponent = np.asarray(op.constant(1), np.float32)
    if op.shape(1) != () and exponent.size > 1:
        slope = g.op("Mul", g.op("Pow", op.x, g.constant(exponent - 1)), g.constant(exponent))
        return [op.sum_to(g.op("Mul", op.dy, slope), 0)]
    p = float(exponent.reshape(-1)[0])
    base = op.x if p == 2.0 else g.op("Pow", op.x, g.number(p - 1))
    return [g.op("Mul", op.dy, g.op("Mul", base, g.number(p)))]


def extreme(op: Op) -> Adjoints:
    """The largest or least of several: what ties shares the adjoint evenly, as in torch."""
    g = op.build
    hits = [g.mask(g.op("Equal", name, op.y)) for name in op.inputs]
    share = g.op("Div", op.dy, g.total(hits))
    return [
        op.sum_to(g.op("Mul", share, hit), i) if op.wants(i) else None for i, hit in enumerate(hits)
    ]


def where(op: Op) -> Adjoints:
    """Where the condition holds the first gets the adjoint, elsewhere the second."""
    g = op.build
    holds = g.mask(op.x)
    first = op.sum_to(g.op("Mul", op.dy, holds), 1) if op.wants(1) else None
    if not op.wants(2):
        return [None, first]
    fails = g.mask(g.op("Not", op.x))
    return [None, first, op.sum_to(g.op("Mul", op.dy, fails), 2)]


def clip(op: Op) -> Adjoints:
    """Where x lies within the bounds, which are constants."""
    g = op.build
    low = g.constant(op.constant(1)) if op.has(1) else None
    high = g.constant(op.constant(2)) if op.has(2) else None
    masks = []
    if low is not None:
        masks.append(g.mask(g.op("GreaterOrEqual", op.x, low)))
    if high is not None:
        masks.append(g.mask(g.op("LessOrEqual", op.x, high)))
    dx = op.dy
    for mask in masks:
        dx = g.op("Mul", dx, mask)
    return [dx]


def unchanged(op: Op) -> Adjoints:
    """The adjoint itself: Identity, and a Cast between float32."""
    return [op.dy]


RULES: Final[dict[str, Rule]] = {
    "Add": add,
    "Cast": unchanged,
    "CastLike": unchanged,
    "Clip": clip,
    "Div": div,
    "Identity": unchanged,
    "Max": extreme,
    "Min": extreme,
    "Mul": mul,
    "Pow": power,
    "Sub": sub,
    "Sum": add,
    "Where": where,
}
