"""What moves values without changing them. Pure."""

from itertools import accumulate
from typing import Final

import numpy as np

from fedmq.onnx_training.graph import Shape
from fedmq.onnx_training.rules.op import Adjoints, Op, Rule


def reshape(op: Op) -> Adjoints:
    """Back to the shape that was: Reshape, Flatten, Squeeze and Unsqueeze."""
    return [op.reshape(op.dy, op.shape())]


def transpose(op: Op) -> Adjoints:
    """The inverse permutation."""
    order = op.integers("perm", range(op.rank())[::-1])
    return [op.build.op("Transpose", op.dy, perm=[int(a) for a in np.argsort(order)])]


def expand(op: Op) -> Adjoints:
    """Sum over what was repeated."""
    return [op.sum_to(op.dy, 0)]


def tile(op: Op) -> Adjoints:
    """Sum over the repetitions."""
    repeats = op.constant_ints(1) or []
    split: Shape = tuple(d for r, n in zip(repeats, op.shape(), strict=True) for d in (r, n))
    summed = op.build.sum(op.reshape(op.dy, split), list(range(0, len(split), 2)))
    return [op.reshape(summed, op.shape())]


def concat(op: Op) -> Adjoints:
    """Cut into the parts again."""
    g = op.build
    axis = op.integer("axis", 0) % op.rank()
    count = len(op.inputs)
    sizes = [op.shape(i)[axis] for i in range(count)]
    asked = [i for i in range(count) if op.wants(i)]
    if count > 1 and len(set(sizes)) == 1 and (len(asked) > 1 or sizes[0] < 0):
        parts = g.ops("Split", op.dy, outputs=count, axis=axis, num_outputs=count)
        return [part if op.wants(i) else None for i, part in enumerate(parts)]
    op.fixed(tuple(sizes))
    if len(asked) > 1:
        parts = g.ops("Split", op.dy, g.ints(sizes), outputs=count, axis=axis)
        return [part if op.wants(i) else None for i, part in enumerate(parts)]
    ends = list(accumulate(sizes))
    return [
        g.op("Slice", op.dy, g.ints([end - size]), g.ints([end]), g.ints([axis]))
        if op.wants(i)
        else None
        for i, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]


def split(op: Op) -> Adjoints:
    """Put together again; a part that does not matter is zeros."""
    g = op.build
    names = zip(op.node.output, op.adjoints, strict=True)
    parts = [adjoint or g.zeros_like(name) for name, adjoint in names]
    return [g.op("Concat", *parts, axis=op.integer("axis", 0))]


def slice_(op: Op) -> Adjoints:
    """Zeros around what was cut out; strides are scattered."""
    starts, ends = op.constant_ints(1) or [], op.constant_ints(2) or []
    axes = op.axes(3) or list(range(len(starts)))
    steps = op.constant_ints(4) or [1] * len(starts)
    shape = op.shape()
    op.fixed(tuple(shape[a] for a in axes))
    front, back = [0] * len(shape), [0] * len(shape)
    dx, now = op.dy, list(op.out)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        taken = range(shape[axis])[slice(*_bounds(start, end, step, shape[axis]), step)]
        if step == 1:
            front[axis] = taken.start
            back[axis] = shape[axis] - taken.start - len(taken)
        else:
            dx = scattered(op, dx, tuple(now), np.array(taken, np.int64), axis)
            now[axis] = shape[axis]
    return [_padded(op, dx, front, back)]


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int | None]:
    """ONNX's bounds, of which a far end means "to the last", as Python's."""
    if step < 0 and end < -size:
        return start, None
    return start, end


def _padded(op: Op, name: str, front: list[int], back: list[int]) -> str:
    if not any(front) and not any(back):
        return name
    return op.build.op("Pad", name, op.build.ints([*front, *back]))


def scattered(op: Op, name: str, shape: Shape, indices: np.ndarray, axis: int) -> str:
    """Put what was gathered at constant indices back, on zeros: a product with one-hot rows.

    Args:
        op: the node; its first input is what was gathered from.
        name: the tensor, whose axis has one place for each index.
        shape: its shape.
        indices: shape (n,).
        axis: the one they are of.
    """
    g = op.build
    size = op.shape()[axis]
    one_hot = np.zeros((indices.size, size), np.float32)
    one_hot[np.arange(indices.size), indices % size] = 1.0
    last = len(shape) - 1
    if axis == last:
        return g.op("MatMul", name, g.constant(one_hot))
    order = [a for a in range(len(shape)) if a != axis] + [axis]
    turned = g.op("MatMul", g.op("Transpose", name, perm=order), g.constant(one_hot))
    return g.op("Transpose", turned, perm=[int(a) for a in np.argsort(order)])


def pad(op: Op) -> Adjoints:
    """Cut the padding off."""
    if op.text("mode", "constant") != "constant":
        op.refuse('mode must be "constant"')
    pads = op.constant_ints(1) or []
    axes = op.axes(3) or list(range(op.rank()))
    front, back = pads[: len(axes)], pads[len(axes) :]
    if min(pads, default=0) < 0:
        op.refuse("must not pad by less than nothing: use Slice")
    cut = [i for i in range(len(axes)) if front[i] or back[i]]
    op.fixed(tuple(op.shape()[axes[i]] for i in cut))
    starts = [front[i] for i in cut]
    ends = [front[i] + op.shape()[axes[i]] for i in cut]
    g = op.build
    where = g.ints(axes[i] for i in cut)
    return [g.op("Slice", op.dy, g.ints(starts), g.ints(ends), where) if cut else op.dy]


def depth_to_space(op: Op) -> Adjoints:
    """Every block as channels again."""
    size = op.integer("blocksize", 1)
    batch, channels, height, width = op.out
    blocks = (batch, channels, height // size, size, width // size, size)
    by_column = op.text("mode", "DCR") == "DCR"
    order = [0, 3, 5, 1, 2, 4] if by_column else [0, 1, 3, 5, 2, 4]
    turned = op.build.op("Transpose", op.reshape(op.dy, blocks), perm=order)
    return [op.reshape(turned, op.shape())]


def resize(op: Op) -> Adjoints:
    """Sum over what was repeated: the nearest of whole multiples only."""
    if op.text("mode", "nearest") != "nearest":
        op.refuse('mode must be "nearest"')
    blocks: list[int] = []
    for before, after in zip(op.shape(), op.out, strict=True):
        if after % before:
            op.refuse("must repeat whole times")
        blocks += [before, after // before]
    summed = op.build.sum(op.reshape(op.dy, tuple(blocks)), list(range(1, len(blocks), 2)))
    return [op.reshape(summed, op.shape())]


RULES: Final[dict[str, Rule]] = {
    "Concat": concat,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "Slice": slice_,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
