"""Convolution over one axis or more: groups, strides, dilations and pads. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel walks: along each axis.

    Attributes:
        kernel: its size, before dilation.
        begin: rows of padding in front.
        end: behind: as far as the last window reaches, also where the node pads less or more;
            negative: the last windows leave rows unused.
    """

    kernel: Shape
    strides: Shape
    dilations: Shape
    begin: Shape
    end: Shape

    @property
    def tiles(self) -> bool:
        """Whether the windows cover everything once."""
        plain = self.kernel == self.strides and set(self.dilations) <= {1}
        return plain and not any(self.begin) and not any(self.end)


def window_of(op: Op, kernel: Shape, inside: Shape, outside: Shape) -> Window:
    """The walk of a node from spatial dimensions `inside` to `outside`.

    Raises ConfigError: a spatial dimension is not fixed.
    """
    op.fixed((*inside, *outside))
    axes = range(len(kernel))
    ones = [1] * len(kernel)
    strides, dilations = op.integers("strides", ones), op.integers("dilations", ones)
    reach = [
        (outside[a] - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 - inside[a] for a in axes
    ]
    auto = op.text("auto_pad", "NOTSET")
    if auto == "NOTSET":
        begin = op.integers("pads", [0] * 2 * len(kernel))[: len(kernel)]
    elif auto == "VALID":
        begin = [0] * len(kernel)
    else:
        begin = [(max(r, 0) + (auto == "SAME_LOWER")) // 2 for r in reach]
    end = [r - b for r, b in zip(reach, begin, strict=True)]
    return Window(kernel, tuple(strides), tuple(dilations), tuple(begin), tuple(end))


def transposed(op: Op, name: str, weights: str, window: Window, group: int) -> str:
    """Spread every value over its window: the adjoint of a convolution's input."""
    return op.build.op(
        "ConvTranspose",
        name,
        weights,
        kernel_shape=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        group=group,
        pads=[*window.begin, *(max(e, 0) for e in window.end)],
        output_padding=[max(-e, 0) for e in window.end],
    )


def conv(op: Op) -> Adjoints:
    """For x a transposed convolution, for W a product with the windows laid out as columns."""
    x, w = op.shape(0), op.shape(1)
    group = op.integer("group", 1)
    window = window_of(op, w[2:], x[2:], op.out[2:])
    dx = transposed(op, op.dy, op.inputs[1], window, group) if op.wants(0) else None
    dw = None
    if op.wants(1):
        dw = _weights(op, (op.x, x), (op.dy, op.out), window, group)
    return [dx, dw, _bias(op)]


def conv_transpose(op: Op) -> Adjoints:
    """The same the other way round: what a convolution makes of dy, and its weights' adjoint."""
    x, w = op.shape(0), op.shape(1)
    group = op.integer("group", 1)
    if op.text("auto_pad", "NOTSET") != "NOTSET" or op.attribute("output_shape") is not None:
        op.refuse("must tell its pads, not auto_pad or output_shape")
    window = window_of(op, w[2:], op.out[2:], x[2:])
    dx = None
    if op.wants(0):
        walk = _walk(window)
        dx = op.build.op("Conv", op.dy, op.inputs[1], group=group, **walk)
    dw = None
    if op.wants(1):
        dw = _weights(op, (op.dy, op.out), (op.x, x), window, group)
    return [dx, dw, _bias(op)]


def _bias(op: Op) -> str | None:
    return op.build.sum(op.dy, [0, *range(2, op.rank())]) if op.wants(2) else None


def _walk(window: Window) -> dict[str, Sequence[int]]:
    """The attributes of a convolution."""
    return {
        "kernel_shape": window.kernel,
        "strides": window.strides,
        "dilations": window.dilations,
        "pads": [*window.begin, *(max(e, 0) for e in window.end)],
    }


def _weights(
    op: Op, below: tuple[str, Shape], above: tuple[str, Shape], window: Window, group: int
) -> str:
    """Sum over examples and places of what is above times what lies below each weight.

    What lies there is read by a convolution that walks in the same way, with kernels that each see
    one place of one channel.
    """
    g = op.build
    (name, (batch, channels, *_)), kernel = below, op.shape(1)[2:]
    own, features = channels // group, above[1][1]
    taps, places = prod(kernel), prod(above[1][2:])
    columns = name
    if taps > 1 or set(window.strides) != {1} or any(window.begin + window.end):
        one_hot = np.tile(np.eye(taps, dtype=np.float32), (channels, 1))
        eyes = g.constant(one_hot.reshape(channels * taps, 1, *kernel))
        columns = g.op("Conv", name, eyes, group=channels, **_walk(window))
    lead = (batch,) if group == 1 else (batch, group)
    columns = op.reshape(columns, (*lead, own * taps, places))
    dy = op.reshape(above[0], (*lead, features // group, places))
    rank = len(lead) + 2
    turned = g.op("Transpose", columns, perm=[*range(rank - 2), rank - 1, rank - 2])
    return op.reshape(g.sum(g.op("MatMul", dy, turned), [0]), op.shape(1))


RULES: Final[dict[str, Rule]] = {"Conv": conv, "ConvTranspose": conv_transpose}
