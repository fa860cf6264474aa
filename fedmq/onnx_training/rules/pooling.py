"""Pooling. Pure."""

from math import prod
from typing import Final

import numpy as np

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.convolution import Window, transposed, window_of
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def _window(op: Op) -> Window:
    kernel = tuple(op.integers("kernel_shape", []))
    return window_of(op, kernel, op.shape()[2:], op.out[2:])


def max_pool(op: Op) -> Adjoints:
    """Back to where each largest value was found: MaxPool tells it in its second output."""
    g = op.build
    window = _window(op)
    if op.integer("storage_order", 0):
        op.refuse("storage_order must be 0")
    indices = op.output(1)
    if window.tiles and len(window.kernel) > 1:
        walk = {"kernel_shape": window.kernel, "strides": window.strides}
        return [g.op("MaxUnpool", op.dy, indices, **walk)]
    everything = g.op("Reshape", op.x, g.ints([-1]))
    where = g.op("Reshape", indices, g.ints([-1]))
    values = g.op("Reshape", op.dy, g.ints([-1]))
    zeros = g.zeros_like(everything)
    dx = g.op("ScatterElements", zeros, where, values, axis=0, reduction="add")
    return [op.reshape(dx, op.shape())]


def average_pool(op: Op) -> Adjoints:
    """Each average spread evenly over what it was taken of."""
    g = op.build
    window = _window(op)
    if window.tiles:
        return [_repeated(op, op.dy, window.kernel)]
    channels = op.shape()[1]
    counts = _counts(op, window)
    share = g.op("Div", op.dy, g.constant(counts.reshape(1, 1, *op.out[2:])))
    ones = g.constant(np.ones((channels, 1, *window.kernel), np.float32))
    return [transposed(op, share, ones, window, channels)]


def _counts(op: Op, window: Window) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """How many values each window averages: outer product of the counts along the axes."""
    padded = bool(op.integer("count_include_pad", 0))
    pads = op.integers("pads", [0] * 2 * len(window.kernel))
    counts = np.ones((), np.float32)
    for axis, size in enumerate(op.shape()[2:]):
        starts = np.arange(op.out[2 + axis]) * window.strides[axis] - window.begin[axis]
        taps = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        first, last = 0, size
        if padded:
            behind = pads[len(window.kernel) + axis]
            if op.text("auto_pad", "NOTSET") != "NOTSET":
                behind = max(window.end[axis], 0)
            first, last = -window.begin[axis], size + behind
        inside = ((taps >= first) & (taps < last)).sum(axis=1)
        counts = np.multiply.outer(counts, inside.astype(np.float32))
    return counts


def _repeated(op: Op, name: str, kernel: Shape) -> str:
    """Every value divided by the kernel's size, and repeated over its window."""
    g = op.build
    batch, channels, *places = op.out
    thin = [batch, channels]
    block = [1, 1]
    for size, taps in zip(places, kernel, strict=True):
        thin += [size, 1]
        block += [1, taps]
    share = np.full(block, 1 / prod(kernel), np.float32)
    return op.reshape(g.op("Mul", op.reshape(name, tuple(thin)), g.constant(share)), op.shape())


def global_average_pool(op: Op) -> Adjoints:
    """The average's adjoint, spread evenly."""
    places = op.fixed(op.shape()[2:])
    share = np.full((1, 1, *places), 1 / prod(places), np.float32)
    return [op.build.op("Mul", op.dy, op.build.constant(share))]


def global_max_pool(op: Op) -> Adjoints:
    """To the largest value; what ties shares it evenly."""
    g = op.build
    hits = g.mask(g.op("Equal", op.x, op.y))
    count = g.sum(hits, list(range(2, op.rank())), keepdims=True)
    return [g.op("Mul", hits, g.op("Div", op.dy, count))]


RULES: Final[dict[str, Rule]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
