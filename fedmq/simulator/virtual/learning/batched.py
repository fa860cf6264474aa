"""Local SGD of many ReLU networks at once, on stacked parameters. Pure.

The mathematics is that of `edge_agent.trainers` (sgd.py, network.py), for squared error besides:

    g <- grad(w; batch) + weight_decay w + prox (w - w_in)
    v <- momentum v + g
    w <- w - learning_rate v

prox is FedProx' mu (Li et al., MLSys 2020, arXiv 1812.06127, equation 2). Every batch has the same
shape: a short one is filled up with the job's own first example at weight 0. A job that makes fewer
steps drops out of the stack. So what becomes of one depends on nothing but itself: the products of
a stack are computed one by one, by the same routine and of the same shape, whoever else is there.
That holds on one machine; other processors may round otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.sgd import Descent
from fedmq.simulator.virtual.learning.share import Share
from schemas.params import Params, ParamSpec

Matrix = NDArray[np.float32]
Layers = list[tuple[Matrix, Matrix]]
Order = NDArray[np.int64]
"""Which example comes when, shape (steps, batch_size), -1 for none; every step has at least one."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one network of the stack learns.

    Attributes:
        base: where it starts, float32, shape (spec.size,); not written to.
        share: its examples, at least one.
        order: of its examples.
    """

    base: Params
    share: Share
    order: Order


def order_of(count: int, how: Descent, rng: np.random.Generator, steps: int = 0) -> Order:
    """Shuffle every epoch as `edge_agent.trainers.sgd.batches` does, draw for draw.

    Args:
        count: examples there are.
        how: epochs and batch_size.
        rng: the only source of chance.
        steps: at most so many, beyond the epochs if need be; 0: what the epochs make.
    """
    per_epoch = -(-count // how.batch_size)
    epochs = -(-steps // per_epoch) if steps else how.epochs
    order = np.full((epochs, per_epoch * how.batch_size), -1, dtype=np.int64)
    for epoch in range(epochs):
        order[epoch, :count] = rng.permutation(count)
    flat = order.reshape(-1, how.batch_size)
    return flat[:steps] if steps else flat


def train_stack(
    spec: ParamSpec,
    lessons: Sequence[Lesson],
    how: Descent,
    still: NDArray[np.bool_] | None = None,
) -> Matrix:
    """Train all; returns what they come to, float32, shape (len(lessons), spec.size), in order.

    What diverges becomes infinite or NaN, for itself alone.

    Args:
        spec: W1, b1, W2, b2, ...
        lessons: what is learnt.
        how: the rate, momentum, weight_decay and prox; the rest is in the lessons' orders.
        still: parameters that do not move, shape (spec.size,).
    """
    if not lessons:
        return np.empty((0, spec.size), dtype=np.float32)
    longest = sorted(range(len(lessons)), key=lambda i: -len(lessons[i].order))
    stack = [lessons[i] for i in longest]
    steps = np.array([len(lesson.order) for lesson in stack])
    batch, count = how.batch_size, len(stack)
    order, weights = _laid_out(stack, int(steps[0]), batch)
    x = np.concatenate([lesson.share.features for lesson in stack])
    y = np.concatenate([lesson.share.targets for lesson in stack])
    params = np.stack([lesson.base for lesson in stack])
    base, velocity, slopes = params.copy(), np.zeros_like(params), np.empty_like(params)
    rate, decay, pull = map(np.float32, (how.learning_rate, how.weight_decay, how.prox))
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is the caller's to judge
        for step in range(int(steps[0])):
            m = int(np.searchsorted(-steps, -step))  # the first m have more than `step` steps
            now, slope = params[:m], slopes[:m]
            rows = order[step, :m]
            layers, grads = _layers(spec, now), _layers(spec, slope)
            _gradients(layers, grads, x[rows], y[rows], weights[step, :m])
            if decay:
                slope += decay * now
            if pull:
                slope += pull * (now - base[:m])
            if still is not None:
                slope[:, still] = 0
            if how.momentum:
                velocity[:m] *= np.float32(how.momentum)
                velocity[:m] += slope
                slope[...] = velocity[:m]
            slope *= rate
            now -= slope
    found = np.empty((count, spec.size), dtype=np.float32)
    found[longest] = params
    return found


def scores(spec: ParamSpec, params: Params, features: Matrix) -> Matrix:
    """What one network answers, before any softmax: (n, outputs)."""
    layers = _layers(spec, params[None])
    seen = features[None]
    for weights, bias in layers[:-1]:
        seen = np.maximum(seen @ weights + bias, 0)
    found: Matrix = (seen @ layers[-1][0] + layers[-1][1])[0]
    return found


def mean_loss(answers: Matrix, targets: Matrix) -> float:
    """Cross-entropy in nats; half the squared error of a regression."""
    if targets.shape[1] == 1:
        return 0.5 * float(np.mean((answers - targets) ** 2))
    shifted = answers - answers.max(axis=1, keepdims=True)
    logs = np.log(np.exp(shifted).sum(axis=1)) - (shifted * targets).sum(axis=1)
    return float(np.mean(logs))


def _laid_out(stack: Sequence[Lesson], steps: int, batch: int) -> tuple[Order, Matrix]:
    """Rows in the joined examples, and weights: 1 / examples of the batch, or 0.

    Both have shape (steps, jobs, batch).
    """
    order = np.zeros((steps, len(stack), batch), dtype=np.int64)
    weights = np.zeros(order.shape, dtype=np.float32)
    offset = 0
    for j, lesson in enumerate(stack):
        mine, real = lesson.order, lesson.order >= 0
        order[: len(mine), j] = np.maximum(mine, 0) + offset
        weights[: len(mine), j] = real / real.sum(axis=1, keepdims=True)
        offset += len(lesson.share)
    return order, weights


def _layers(spec: ParamSpec, flat: Matrix) -> Layers:
    """Views: weights (jobs, inputs, outputs) and bias (jobs, 1, outputs) of every layer."""
    views, offset = [], 0
    for tensor in spec.tensors:
        shape = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
        views.append(flat[:, offset : offset + tensor.size].reshape(len(flat), *shape))
        offset += tensor.size
    return list(zip(views[::2], views[1::2], strict=True))


def _gradients(layers: Layers, grads: Layers, x: Matrix, y: Matrix, weights: Matrix) -> None:
    """Write the gradients of the weighted losses into `grads`; x (jobs, batch, d)."""
    seen = [x]
    for matrix, bias in layers[:-1]:
        hidden = seen[-1] @ matrix
        hidden += bias
        np.maximum(hidden, 0, out=hidden)
        seen.append(hidden)
    slope = seen[-1] @ layers[-1][0]
    slope += layers[-1][1]
    if y.shape[2] > 1:
        slope -= np.maximum.reduce(slope, axis=2, keepdims=True)
        np.exp(slope, out=slope)
        slope /= np.add.reduce(slope, axis=2, keepdims=True)
    slope -= y
    slope *= weights[:, :, None]
    for depth in range(len(layers) - 1, -1, -1):
        np.matmul(seen[depth].swapaxes(1, 2), slope, out=grads[depth][0])
        np.add.reduce(slope, axis=1, keepdims=True, out=grads[depth][1])
        if depth:
            slope = slope @ layers[depth][0].swapaxes(1, 2)
            slope *= seen[depth] > 0
