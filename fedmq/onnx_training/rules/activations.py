"""Functions of one tensor, element by element: dx = dy f'(x). Pure.

f' is told by the output where that is cheaper. A mask is a comparison, cast and multiplied: several
times cheaper on a CPU than Where or Sign. At a kink the derivative is torch's.
"""

import math
from collections.abc import Callable
from typing import Final, TypeAlias

from fedmq.onnx_training.rules.op import Adjoints, Op, Rule

Slope: TypeAlias = Callable[[Op], str]
"""Writes f'(x)."""

SELU: Final = (1.67326319217681884765625, 1.05070102214813232421875)
"""Alpha and gamma by default (ONNX, Selu)."""


def scaled(slope: Slope) -> Rule:
    """The rule of a function whose derivative this writes."""

    def rule(op: Op) -> Adjoints:
        return [op.build.op("Mul", op.dy, slope(op))]

    return rule


def positive(op: Op) -> str:
    """1.0 where x > 0, 0.0 elsewhere."""
    return op.build.mask(op.build.op("Greater", op.x, op.build.number(0)))


def _affine(op: Op, name: str, factor: float, plus: float) -> str:
    g = op.build
    product = name if factor == 1.0 else g.op("Mul", name, g.number(factor))
    return product if plus == 0.0 else g.op("Add", product, g.number(plus))


def _below(op: Op, factor: float, plus: float, above: float) -> str:
    """`factor` y + `plus` where x <= 0 and y <= 0, `above` where both are positive."""
    g = op.build
    left = _affine(op, g.op("Min", op.y, g.number(0)), factor, plus)
    if plus == above:
        return left
    return g.op("Add", left, _affine(op, positive(op), above - plus, 0.0))


def leaky_relu(op: Op) -> str:
    """1 or alpha."""
    alpha = op.real("alpha", 0.01)
    return _affine(op, positive(op), 1.0 - alpha, alpha)


def elu(op: Op) -> str:
    """1, or alpha e^x = y + alpha."""
    return _below(op, 1.0, op.real("alpha", 1.0), 1.0)


def selu(op: Op) -> str:
    """Gamma, or gamma alpha e^x = y + gamma alpha."""
    alpha, gamma = op.real("alpha", SELU[0]), op.real("gamma", SELU[1])
    return _below(op, 1.0, gamma * alpha, gamma)


def celu(op: Op) -> str:
    """1, or e^(x/alpha) = y/alpha + 1."""
    return _below(op, 1.0 / op.real("alpha", 1.0), 1.0, 1.0)


def thresholded_relu(op: Op) -> str:
    """1 where x > alpha."""
    g = op.build
    return g.mask(g.op("Greater", op.x, g.number(op.real("alpha", 1.0))))


def sigmoid(op: Op) -> str:
    """The slope is y (1 - y)."""
    g = op.build
    return g.op("Mul", op.y, g.op("Sub", g.number(1), op.y))


def tanh(op: Op) -> str:
    """The slope is 1 - y^2."""
    return tanh_slope(op, op.y)


def _ramp(op: Op, name: str) -> str:
    """1.0 where 0 < value < 1."""
    g = op.build
    inside = g.op("And", g.op("Greater", name, g.number(0)), g.op("Less", name, g.number(1)))
    return g.mask(inside)


def hard_sigmoid(op: Op) -> str:
    """Alpha within the ramp."""
    return _affine(op, _ramp(op, op.y), op.real("alpha", 0.2), 0.0)


def hard_swish(op: Op) -> str:
    """h(x) + x h'(x), where h is the ramp of x/6 + 1/2."""
    g = op.build
    ramp = g.op("HardSigmoid", op.x, alpha=1 / 6, beta=0.5)
    return g.op("Add", ramp, g.op("Mul", op.x, _affine(op, _ramp(op, ramp), 1 / 6, 0.0)))


def gelu(op: Op) -> str:
    """Phi(x) + x phi(x), or the derivative of its approximation by tanh."""
    g = op.build
    if op.text("approximate", "none") == "tanh":
        return _gelu_tanh(op)
    square = g.op("Mul", op.x, op.x)
    phi = g.op("Exp", _affine(op, square, -0.5, 0.0))
    phi = _affine(op, phi, 1 / math.sqrt(2 * math.pi), 0.0)
    erf = g.op("Erf", _affine(op, op.x, math.sqrt(0.5), 0.0))
    return g.op("Add", _affine(op, erf, 0.5, 0.5), g.op("Mul", op.x, phi))


def _gelu_tanh(op: Op) -> str:
    g, k, c = op.build, math.sqrt(2 / math.pi), 0.044715
    square = g.op("Mul", op.x, op.x)
    inner = g.op("Mul", op.x, _affine(op, square, k * c, k))
    t = g.op("Tanh", inner)
    slope = g.op("Mul", tanh_slope(op, t), _affine(op, square, 3 * k * c, k))
    curved = g.op("Mul", op.x, slope)
    return _affine(op, g.op("Add", g.op("Add", t, curved), g.number(1)), 0.5, 0.0)


def tanh_slope(op: Op, t: str) -> str:
    """1 - t^2."""
    g = op.build
    return g.op("Sub", g.number(1), g.op("Mul", t, t))


def erf(op: Op) -> str:
    """2/sqrt(pi) e^(-x^2)."""
    g = op.build
    exp = g.op("Exp", g.op("Neg", g.op("Mul", op.x, op.x)))
    return _affine(op, exp, 2 / math.sqrt(math.pi), 0.0)


def softplus(op: Op) -> str:
    """The sigmoid."""
    return op.build.op("Sigmoid", op.x)


def softsign(op: Op) -> str:
    """(1 - |y|)^2."""
    g = op.build
    rest = g.op("Sub", g.number(1), g.op("Abs", op.y))
    return g.op("Mul", rest, rest)


def mish(op: Op) -> str:
    """The slope is t + x sigmoid(x) (1 - t^2), where t = tanh(softplus(x))."""
    g = op.build
    t = g.op("Tanh", g.op("Softplus", op.x))
    swish = g.op("Mul", op.x, g.op("Sigmoid", op.x))
    return g.op("Add", t, g.op("Mul", swish, tanh_slope(op, t)))


def reciprocal(op: Op) -> str:
    """-y^2."""
    return op.build.op("Neg", op.build.op("Mul", op.y, op.y))


def log(op: Op) -> Adjoints:
    """The adjoint is dy / x."""
    return [op.build.op("Div", op.dy, op.x)]


def sqrt(op: Op) -> Adjoints:
    """The adjoint is dy / 2y."""
    return [op.build.op("Div", op.dy, _affine(op, op.y, 2.0, 0.0))]


def neg(op: Op) -> Adjoints:
    """The adjoint is -dy."""
    return [op.build.op("Neg", op.dy)]


def prelu(op: Op) -> Adjoints:
    """1 or the slope; the slope gets what is not positive."""
    g = op.build
    above = positive(op)
    below = g.op("Mul", op.dy, g.op("Sub", g.number(1), above))
    dx = None
    if op.wants(0):
        kept = g.op("Mul", op.dy, above)
        dx = g.op("Add", kept, g.op("Mul", below, op.inputs[1]))
    slope = op.sum_to(g.op("Mul", below, op.x), 1) if op.wants(1) else None
    return [dx, slope]


RULES: Final[dict[str, Rule]] = {
    "Abs": scaled(lambda op: op.build.op("Sign", op.x)),
    "Celu": scaled(celu),
    "Cos": scaled(lambda op: op.build.op("Neg", op.build.op("Sin", op.x))),
    "Elu": scaled(elu),
    "Erf": scaled(erf),
    "Exp": scaled(lambda op: op.y),
    "Gelu": scaled(gelu),
    "HardSigmoid": scaled(hard_sigmoid),
    "HardSwish": scaled(hard_swish),
    "LeakyRelu": scaled(leaky_relu),
    "Log": log,
    "Mish": scaled(mish),
    "Neg": neg,
    "PRelu": prelu,
    "Reciprocal": scaled(reciprocal),
    "Relu": scaled(positive),
    "Selu": scaled(selu),
    "Sigmoid": scaled(sigmoid),
    "Sin": scaled(lambda op: op.build.op("Cos", op.x)),
    "Softplus": scaled(softplus),
    "Softsign": scaled(softsign),
    "Sqrt": sqrt,
    "Tanh": scaled(tanh),
    "ThresholdedRelu": scaled(thresholded_relu),
}
